"""Configs of published layouts, both ways: state-spaces' own, and Hugging Face's model types."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from statescan import models
from statescan.checkpoints import _huggingface, _hybrids, _state_spaces

Config = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """One spelling of config.json.

    Arguments:
        family: its config -> the family of our registry.
        read: its config -> fields of our config.
        write: our config object -> its config.
    """

    family: Callable[[Config], str]
    read: Callable[[Config], Config]
    write: Callable[[Any], Config]


LAYOUTS = {
    "state-spaces": Layout(_state_spaces.family, _state_spaces.read, _state_spaces.write),
    "mamba": Layout(lambda c: "mamba", _huggingface.read_mamba, _huggingface.write_mamba),
    "mamba2": Layout(lambda c: "mamba2", _huggingface.read_mamba2, _huggingface.write_mamba2),
    "falcon_mamba": Layout(lambda c: "falcon_mamba", _huggingface.read_falcon_mamba, _huggingface.write_falcon_mamba),
    "bamba": Layout(lambda c: "bamba", _huggingface.read_bamba, _huggingface.write_bamba),
    "zamba2": Layout(lambda c: "zamba2", _huggingface.read_zamba2, _huggingface.write_zamba2),
    "jamba": Layout(lambda c: "jamba", _hybrids.read_jamba, _hybrids.write_jamba),
    "granitemoehybrid": Layout(
        lambda c: "granitemoehybrid", _hybrids.read_granite_moe_hybrid, _hybrids.write_granite_moe_hybrid
    ),
    "falcon_h1": Layout(lambda c: "falcon_h1", _hybrids.read_falcon_h1, _hybrids.write_falcon_h1),
    "nemotron_h": Layout(lambda c: "nemotron_h", _hybrids.read_nemotron_h, _hybrids.write_nemotron_h),
    "zamba": Layout(lambda c: "zamba", _hybrids.read_zamba, _hybrids.write_zamba),
}
#: Layouts whose activation is not silu throughout: the one they have, or None where a field of ours says it.
_ACTIVATIONS = {"zamba2": "gelu", "zamba": None, "nemotron_h": None}


def identify(config: Config, where: str) -> str:
    """Which layout a config.json is of: ``statescan``, ``state-spaces`` or a Hugging Face model type."""
    if "statescan" in config:
        return "statescan"
    kind = config.get("model_type")
    if kind in LAYOUTS:
        return str(kind)
    if "d_model" in config and "n_layer" in config:
        return "state-spaces"
    if kind is not None:
        raise ValueError(f"checkpoint: {where!r} is of model type {kind!r}; known: {', '.join(list(LAYOUTS)[1:])}")
    raise ValueError(
        f"checkpoint: config.json of {where!r} is of no known layout: it has neither model_type nor d_model"
    )


def read_config(layout: str, config: Config, where: str) -> tuple[str, Any]:
    """The family and our config of a published config.

    Raises:
        ValueError: it says what our models are not, or lacks a field; says which.
    """
    found = LAYOUTS[layout]
    try:
        if config.get("quantization_config"):
            raise ValueError("the weights are quantised (quantization_config); give the unquantised ones")
        activation = _ACTIVATIONS.get(layout, "silu")
        if activation and config.get("hidden_act", activation) != activation:
            raise ValueError(f"hidden_act is {config['hidden_act']!r}; known: {activation}")
        for field in ("hidden_mamba_act", "mamba_hidden_act"):
            if config.get(field, "silu") != "silu":
                raise ValueError(f"{field} is {config[field]!r}; known: silu")
        slug = found.family(config)
        return slug, models.build_config(models.family(slug).config, found.read(config), name=layout)
    except KeyError as error:
        raise ValueError(f"checkpoint: config.json of {where!r} lacks {error.args[0]!r}") from None
    except (ValueError, TypeError, ZeroDivisionError, AttributeError) as error:
        raise ValueError(f"checkpoint: config.json of {where!r}: {error}") from None


def write_config(layout: str, config: Any) -> Config:
    """The published config of one of ours.

    Raises:
        ValueError: the layout has no words for some of its options; says which.
    """
    written = LAYOUTS[layout].write(config)
    _, back = read_config(layout, written, "what was written")
    have, want = _essence(back), _essence(config)
    for name, value in want.items():
        if have.get(name) != value:
            raise ValueError(f"layout: {layout} cannot express {name}={getattr(config, name)!r}")
    return written


def same_model(one: Any, other: Any) -> bool:
    """Whether two configs describe the same architecture."""
    if type(one) is not type(other):
        return False
    return bool(one == other or (hasattr(one, "padded_vocab_size") and _essence(one) == _essence(other)))


#: Fields that decide how weights begin, how they are held or how fast they run, not what a model computes.
_WITHOUT_MEANING = {"A_range", "dt_min", "dt_max", "dt_floor", "dt_init", "dt_scale", "conv_init", "chunk_size"}
_WITHOUT_MEANING |= {"residual_in_float32", "pad_vocab_size_multiple", "mlp_multiple_of"}


def _essence(config: Any) -> Config:
    """What a config means: defaults that depend on other fields are spelled out, what has no effect is left out."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in _WITHOUT_MEANING}
    fields["vocab_size"] = config.padded_vocab_size
    inner = getattr(config, "inner_dim", None)
    fields["expand"] = fields["inner_dim"] = int(config.expand * config.dim) if inner is None else inner
    fields["mlp_dim"] = math.ceil(config.mlp_dim / config.mlp_multiple_of) * config.mlp_multiple_of
    attention = dataclasses.asdict(config.attention)
    attention["kv_heads"] = attention["kv_heads"] or attention["heads"]
    attention["head_dim"] = attention["head_dim"] or config.dim // attention["heads"]
    attention["scale"] = attention["scale"] or attention["head_dim"] ** -0.5
    everywhere = hasattr(config, "ssm_multipliers")  # attention beside the scan, in every layer
    fields["attention"] = attention if config.attention_layers or everywhere else None
    resolved = {
        "dt_rank": math.ceil(config.dim / 16),
        "norm_groups": getattr(config, "groups", None),
        "gated_norm_eps": config.norm_eps,
        "ssm_dim": fields["expand"],
        "kv_heads": getattr(config, "heads", None),
        "attention_head_dim": getattr(config, "shared_head_dim", None),
    }
    for name, value in resolved.items():
        if name in fields and fields[name] in (None, "auto"):
            fields[name] = value
    if not config.mlp_dim:
        fields.pop("mlp_bias")
    if not getattr(config, "expert_layers", True) or not getattr(config, "experts", True):
        for name in ("experts", "active_experts", "expert_dim"):
            fields.pop(name, None)
    if fields.get("inner_norm", "any") is None:
        fields.pop("inner_norm_eps")
    return fields
