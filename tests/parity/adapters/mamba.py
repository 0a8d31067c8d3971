"""state-spaces/mamba: the language model, the Mamba block, the selective scan and the causal convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from statescan import ops
from statescan.layers import Mamba
from statescan.models import build_model, load_published
from statescan.models._published import mixer_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity._operators import as_stored, complex_inputs, with_gradients

BOOKKEEPING = ("layer_idx", "device", "dtype", "use_fast_path", "use_mem_eff_path", "sequence_parallel")
ALONE = {"process_group": (None,)}

MAMBA_NAMES = {
    "d_model": "dim",
    "d_state": "state_dim",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "dt_rank",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "dt_init": "dt_init",
    "dt_scale": "dt_scale",
    "dt_init_floor": "dt_floor",
    "conv_bias": "conv_bias",
    "bias": "bias",
}
MAMBA2_NAMES = {
    "d_model": "dim",
    "d_state": "state_dim",
    "d_conv": "conv_kernel",
    "conv_init": "conv_init",
    "expand": "expand",
    "headdim": "head_dim",
    "d_ssm": "ssm_dim",
    "ngroups": "groups",
    "A_init_range": "A_range",
    "D_has_hdim": "D_per_channel",
    "rmsnorm": "gated_norm",
    "norm_before_gate": "norm_before_gate",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "dt_init_floor": "dt_floor",
    "dt_limit": "dt_limit",
    "bias": "bias",
    "conv_bias": "conv_bias",
    "chunk_size": "chunk_size",
}
MAMBA3_NAMES = {
    "d_model": "dim",
    "d_state": "state_dim",
    "expand": "expand",
    "headdim": "head_dim",
    "ngroups": "groups",
    "rope_fraction": "rope_fraction",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "dt_init_floor": "dt_floor",
    "A_floor": "A_floor",
    "is_outproj_norm": "output_norm",
    "mimo_rank": "mimo_rank",
    "chunk_size": "chunk_size",
}
ATTENTION_NAMES = {
    "embed_dim": "dim",
    "num_heads": "heads",
    "num_heads_kv": "kv_heads",
    "head_dim": "head_dim",
    "mlp_dim": "mlp_dim",
    "qkv_proj_bias": "qkv_bias",
    "out_proj_bias": "output_bias",
    "softmax_scale": "scale",
    "causal": "causal",
    "d_conv": "conv_kernel",
    "rotary_emb_dim": "rotary_dim",
    "rotary_emb_base": "rotary_base",
    "rotary_emb_interleaved": "rotary_interleaved",
}
#: What a language model's attention must be.
_CAUSAL = {"causal": (True,), "rotary_emb_interleaved": (False,)}
ATTENTION_DEFAULTS = {"qkv_proj_bias": True, "out_proj_bias": True, "causal": False}
LANGUAGE_MODEL_NAMES = {
    "d_model": "dim",
    "d_intermediate": "mlp_dim",
    "n_layer": "depth",
    "vocab_size": "vocab_size",
    "attn_layer_idx": "attention_layers",
    "residual_in_fp32": "residual_in_float32",
    "pad_vocab_size_multiple": "pad_vocab_size_multiple",
    "tie_embeddings": "tie_embeddings",
}
#: `MambaConfig`'s own, where ours differ.
LANGUAGE_MODEL_DEFAULTS = {"d_model": 2560, "n_layer": 64}


def mamba3_options(given: dict[str, Any]) -> dict[str, Any]:
    """`Mamba3`'s arguments under our names; `mimo_rank` counts only with `is_mimo`."""
    given = dict(given)
    if given.pop("is_mimo", False):
        given.setdefault("mimo_rank", 4)
    else:
        given.pop("mimo_rank", None)
    # `dropout` and `n_layer` are taken and not used; the fused norm is the same norm.
    unused = ("dropout", "n_layer", "fuse_pregate_headwise_norm", "process_group")
    return translate(given, MAMBA3_NAMES, ignored=(*BOOKKEEPING, *unused))


def language_model(fixture: Fixture) -> dict[str, Any]:
    """`MambaLMHeadModel`: either mixer, attention layers, MLPs."""
    given = LANGUAGE_MODEL_DEFAULTS | fixture.kwargs
    options = {name: given.pop(name, None) or {} for name in ("ssm_cfg", "attn_cfg")}
    norm = "rms" if given.pop("rms_norm", True) else "layer"
    layer = options["ssm_cfg"].pop("layer", "Mamba1")
    tables = {
        "Mamba1": ("mamba", MAMBA_NAMES),
        "Mamba2": ("mamba2", MAMBA2_NAMES),
        "Mamba3": ("mamba3", MAMBA3_NAMES),
    }
    if layer not in tables:
        raise ParityError(f"ssm_cfg: layer {layer!r} is not supported; supported: {', '.join(tables)}")
    family, names = tables[layer]
    config = translate(given, LANGUAGE_MODEL_NAMES, ignored=("fused_add_norm",))
    if layer == "Mamba3":
        config |= mamba3_options(options["ssm_cfg"])
    else:
        config |= translate(options["ssm_cfg"], names, ignored=BOOKKEEPING, only=ALONE)
    if config.get("attention_layers"):
        names = {name: ours for name, ours in ATTENTION_NAMES.items() if name not in _CAUSAL}
        given = ATTENTION_DEFAULTS | options["attn_cfg"]
        config["attention"] = translate(given, names, ignored=BOOKKEEPING, only=_CAUSAL)
    model = build_model(family, config | {"norm": norm}).eval()
    return run_language_model(fixture, model)


@torch.no_grad()
def run_language_model(fixture: Fixture, model: Any, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """Load the published weights (or `tensors`) strictly and give every output that language-model fixtures have."""
    fixture.check_parameters(model)
    load_published(model, fixture.state_dict() if tensors is None else tensors)
    (tokens,) = fixture.inputs()
    hidden, _ = model.hidden(tokens)
    logits, _ = model(tokens)
    outputs = {"hidden": hidden, "logits": logits}
    if "last_logits" in fixture.outputs:
        outputs["last_logits"], _ = model(tokens, last=fixture.outputs["last_logits"][1])
    return outputs


def mamba_block(fixture: Fixture) -> dict[str, Any]:
    """`Mamba` alone."""
    return run_mixer(fixture, lambda: Mamba(**translate(fixture.kwargs, MAMBA_NAMES, ignored=BOOKKEEPING)))


@torch.no_grad()
def run_mixer(fixture: Fixture, build: Callable[[], nn.Module]) -> dict[str, Any]:
    """A mixer's whole-sequence output; and a prefill with steps after it, if asked for."""
    mixer: Any = build().eval()
    fixture.check_parameters(mixer)
    mixer.load_state_dict(mixer_from_published(fixture.state_dict()), strict=True)
    (x,) = fixture.inputs()
    full, _ = mixer(x)
    outputs = dict.fromkeys(("full", "y", "out"), full)
    if "prefill_then_step" not in fixture.outputs:
        return outputs
    length = int(fixture.note(r"first (\d+) positions") or 0)
    if not 1 <= length < x.shape[1]:
        raise ParityError("the notes do not say how long the prefill is")
    _, before = mixer(x[:, : length - 1])
    prefill, state = mixer(x[:, :length])
    parts = [prefill]
    for name in ("prefill", "last"):
        outputs[f"conv_state_{name}"] = torch.cat([before["conv"][:, :1], state["conv"]], dim=1).transpose(1, 2)
        outputs[f"ssm_state_{name}"] = state["ssm"]
        for t in range(length, x.shape[1]) if name == "prefill" else ():
            y, state, before = *mixer.step(x[:, t], state), state
            parts.append(y[:, None])
    outputs["prefill_then_step"] = torch.cat(parts, dim=1)
    return outputs


def selective_scan(fixture: Fixture) -> dict[str, Any]:
    """`selective_scan_ref`, whose time axis is the last; complex rows of B and C interleave the two parts."""
    options = translate(fixture.kwargs, {"delta_softplus": "delta_softplus"}, ignored=("return_last_state",))
    last: list[Tensor] = []

    def call(given: dict[str, Tensor]) -> Tensor:
        rows = {}
        for name in ("B", "C"):
            value = given[name]
            if value.ndim > 2 and given["A"].is_complex():
                value = torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous())
            rows[name] = value if value.ndim == 2 else value.movedim(-1, 1)
        y, state = ops.selective_scan(
            given["u"].mT,
            given["delta"].mT,
            given["A"],
            rows["B"],
            rows["C"],
            given.get("D"),
            given["z"].mT if "z" in given else None,
            delta_bias=given.get("delta_bias"),
            return_last_state=True,
            **options,
        )
        last.append(as_stored(state))
        return y.mT

    out, gradients = with_gradients(fixture, complex_inputs(fixture.named_inputs()), call)
    return {"out": out, "last_state": last[0], **gradients}


def selective_state_update(fixture: Fixture) -> dict[str, Any]:
    """`selective_state_update_ref`, with heads (batch, heads, channels, states) or without."""
    options = translate(fixture.kwargs, {"dt_softplus": "delta_softplus"})
    given = fixture.named_inputs()
    state = given["state"]
    inner = state.shape[1:-1]

    def flat(name: str, batched: bool) -> Tensor | None:
        value = given.get(name)
        axis = 1 if batched else 0
        return value.flatten(axis, axis + len(inner) - 1) if value is not None else None

    y, after = ops.selective_state_step(
        state.flatten(1, -2),
        flat("x", True),
        flat("dt", True),
        flat("A", False),
        given["B"],
        given["C"],
        flat("D", False),
        flat("z", True),
        delta_bias=flat("dt_bias", False),
        **options,
    )
    return {"out": y.unflatten(1, inner), "state": after.unflatten(1, inner)}


def causal_conv1d(fixture: Fixture) -> dict[str, Any]:
    """`causal_conv1d_ref` and `causal_conv1d_update_ref`, whose time axis is the last."""
    translate(fixture.kwargs, {})
    given = fixture.named_inputs()
    x, weight, bias = given["x"].mT, given["weight"], given["bias"]
    first, last = ops.causal_conv1d(
        x, weight, bias, activation="silu", initial_state=given["initial_states"].mT, return_last_state=True
    )
    step, state = ops.causal_conv1d_step(given["conv_state"].mT, given["x_step"], weight, bias, activation="silu")
    two, state_of_two = ops.causal_conv1d(
        x[:, :2],
        weight,
        bias,
        activation="silu",
        initial_state=given["conv_state"].mT.contiguous(),
        return_last_state=True,
    )
    return {
        "plain": ops.causal_conv1d(x, weight, None).mT,
        "silu": ops.causal_conv1d(x, weight, bias, activation="silu").mT,
        "with_initial": first.mT,
        "final_states": last.mT,
        "update": step,
        "update_state": state.mT,
        "update_chunk": two.mT,
        "update_chunk_state": state_of_two.mT,
    }


ADAPTERS = {
    "mamba_ssm.models.mixer_seq_simple.MambaLMHeadModel": language_model,
    "mamba_ssm.modules.mamba_simple.Mamba": mamba_block,
    "mamba_ssm.ops.selective_scan_interface.selective_scan_ref": selective_scan,
    "mamba_ssm.ops.selective_scan_interface.selective_scan_fn": selective_scan,
    "mamba_ssm.ops.triton.selective_state_update.selective_state_update_ref": selective_state_update,
    "mamba_ssm.ops.triton.selective_state_update.selective_state_update": selective_state_update,
    "causal_conv1d.causal_conv1d_interface.causal_conv1d_ref / causal_conv1d_update_ref": causal_conv1d,
}
