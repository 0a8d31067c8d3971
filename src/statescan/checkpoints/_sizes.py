"""Sizes that tensors tell: they fill in what a published config leaves out, and show which of its fields is wrong."""

from __future__ import annotations

import math
from typing import Any

import torch

from statescan.checkpoints._files import Tensors

Config = dict[str, Any]

_BIASES = dict(bias="use_bias", conv_bias="use_conv_bias")
_MAMBA = dict(state="state_size", conv="conv_kernel", expand="expand", inner="intermediate_size", rank="time_step_rank")
_MAMBA2 = dict(state="mamba_d_state", conv="mamba_d_conv", expand="mamba_expand")
#: What configs call the sizes of a mixer, by layout.
_FIELDS: dict[str, dict[str, str]] = {
    "state-spaces": dict(state="d_state", conv="d_conv", expand="expand", rank="dt_rank", head="headdim")
    | dict(groups="ngroups", bias="bias", conv_bias="conv_bias"),
    "mamba": _MAMBA | _BIASES,
    "falcon_mamba": _MAMBA | _BIASES,
    "mamba2": dict(state="state_size", conv="conv_kernel", expand="expand", heads="num_heads", head="head_dim")
    | dict(groups="n_groups", **_BIASES),
    "bamba": _MAMBA2
    | dict(heads="mamba_n_heads", head="mamba_d_head", groups="mamba_n_groups")
    | dict(bias="mamba_proj_bias", conv_bias="mamba_conv_bias"),
    "zamba2": _MAMBA2
    | dict(heads="n_mamba_heads", head="mamba_headdim", groups="mamba_ngroups")
    | dict(bias="add_bias_linear", conv_bias="use_conv_bias"),
    "jamba": _MAMBA2 | dict(rank="mamba_dt_rank", bias="mamba_proj_bias", conv_bias="mamba_conv_bias"),
    "granitemoehybrid": _MAMBA2
    | dict(heads="mamba_n_heads", head="mamba_d_head", groups="mamba_n_groups")
    | dict(bias="mamba_proj_bias", conv_bias="mamba_conv_bias"),
    "falcon_h1": dict(state="mamba_d_state", conv="mamba_d_conv", scanned="mamba_d_ssm", conv_bias="mamba_conv_bias")
    | dict(heads="mamba_n_heads", head="mamba_d_head", groups="mamba_n_groups"),
    "nemotron_h": dict(state="ssm_state_size", conv="conv_kernel", groups="n_groups", **_BIASES)
    | dict(heads="mamba_num_heads", head="mamba_head_dim"),
    "zamba": _MAMBA2
    | dict(rank="mamba_dt_rank", mamba_heads="n_mamba_heads")
    | dict(bias="mamba_proj_bias", conv_bias="mamba_conv_bias"),
}


def reconcile(layout: str, config: Config, tensors: Tensors, where: str) -> Config:
    """A published config with the sizes that it leaves out, as the tensors have them.

    Raises:
        ValueError: fields that the tensors contradict; each is named with both values.
    """
    nested = layout == "state-spaces"
    filled = dict(config)
    part = dict(config.get("ssm_cfg") or {}) if nested else filled
    shell = _outer(layout, tensors)
    mixer = _mixer(_FIELDS[layout], tensors, part, shell.get(_dim(layout)))
    problems = [line for key, value in shell.items() for line in _compare(filled, key, value)]
    prefix = "ssm_cfg." if nested else ""
    problems += [line for key, value in mixer.items() for line in _compare(part, key, value, prefix=prefix)]
    if problems:
        raise ValueError(
            f"checkpoint: config.json of {where!r} contradicts its weights: {'; '.join(problems)}. Correct it, or name the "
            "model: create_model(name, checkpoint=path)"
        )
    return filled | {"ssm_cfg": part} if nested else filled


def _dim(layout: str) -> str:
    return "d_model" if layout == "state-spaces" else "hidden_size"


def _compare(config: Config, key: str, value: Any, *, prefix: str = "") -> list[str]:
    """Fill in a field that is not given; a line for one that differs."""
    given = config.get(key)
    if given is None or given == "auto":
        config[key] = value
    elif given != value and not (isinstance(given, (list, tuple)) and list(given) == list(value)):
        return [f"{prefix}{key} is {given!r}, the tensors say {value!r}"]
    return []


def _shape(tensors: Tensors, *names: str) -> tuple[int, ...] | None:
    for name in names:
        if name in tensors:
            return tuple(tensors[name].shape)
    return None


def _layers(tensors: Tensors) -> dict[int, dict[str, str]]:
    """Layer number -> names within the layer -> whole names."""
    layers: dict[int, dict[str, str]] = {}
    for name in tensors:
        for prefix in ("backbone.layers.", "model.layers."):
            index, _, rest = name.removeprefix(prefix).partition(".")
            if name.startswith(prefix) and index.isdigit():
                layers.setdefault(int(index), {})[rest] = name
    return layers


def _outer(layout: str, tensors: Tensors) -> Config:
    """Sizes of the shell, the attention layers and the MLPs, under the config's own names."""
    found: Config = {}
    layers = _layers(tensors)
    names = ("backbone.embedding.weight", "backbone.embeddings.weight", "model.embed_tokens.weight")
    names += ("model.embeddings.weight",)
    embedding = next((tensors[name] for name in names if name in tensors), None)
    if embedding is not None and embedding.ndim == 2:
        found[_dim(layout)] = embedding.shape[1]
        if layout != "state-spaces":  # there, it is padded
            found["vocab_size"] = embedding.shape[0]
        head = tensors.get("lm_head.weight")
        tie = "tie_embeddings" if layout == "state-spaces" else "tie_word_embeddings"
        if head is None:
            found[tie] = True
        elif head.shape != embedding.shape or not torch.equal(head, embedding):
            found[tie] = False
    if layers:
        found["n_layer" if layout == "state-spaces" else "num_hidden_layers"] = max(layers) + 1
    if layout == "state-spaces" and layers:
        found["attn_layer_idx"] = [i for i, layer in sorted(layers.items()) if "mixer.A_log" not in layer]
    if layout == "bamba" and layers:
        found["attn_layer_indices"] = [i for i, layer in sorted(layers.items()) if "self_attn.q_proj.weight" in layer]
        for layer in layers.values():
            if "feed_forward.up_proj.weight" in layer:
                found["intermediate_size"] = tensors[layer["feed_forward.up_proj.weight"]].shape[0]
    if layout == "zamba":
        name = "shared_transf.self_attn.o_proj.weight"
        blocks = [tensors[layer[name]] for layer in layers.values() if name in layer]
        found["num_mem_blocks"] = 1 if all(torch.equal(block, blocks[0]) for block in blocks) else len(blocks)
    if layout == "zamba2":
        for layer in layers.values():
            if "shared_transformer.feed_forward.down_proj.weight" in layer:
                name = layer["shared_transformer.feed_forward.down_proj.weight"]
                found["intermediate_size"] = tensors[name].shape[1]
            for rest, name in layer.items():
                if "gate_up_proj_adapter_list." in rest and rest.endswith(".0.weight"):
                    found["adapter_rank"] = tensors[name].shape[0]
    return found


def _mixer(fields: dict[str, str], tensors: Tensors, config: Config, dim: int | None) -> Config:
    """Sizes of the first Mamba or Mamba-2 mixer, under the config's own names."""
    for layer in _layers(tensors).values():
        prefix = next((name.removesuffix("A_log") for name in layer if name.endswith("A_log")), None)
        if prefix is not None:
            break
    else:
        return {}
    mixer = {rest.removeprefix(prefix): tensors[name] for rest, name in layer.items() if rest.startswith(prefix)}
    conv, out = _shape(mixer, "conv1d.weight"), _shape(mixer, "out_proj.weight")
    if conv is None or out is None or len(conv) != 3 or len(out) != 2:
        return {}
    inner = out[1]
    sizes: dict[str, Any] = {"conv": conv[2], "conv_bias": "conv1d.bias" in mixer, "bias": "out_proj.bias" in mixer}
    expand = config.get(fields.get("expand", ""))
    told = (
        "inner" in fields and config.get(fields["inner"]) == inner
    )  # then expand is not asked, and wrong in some files
    if dim and not told and not (isinstance(expand, (int, float)) and int(expand * dim) == inner):
        sizes["expand"] = inner // dim if inner % dim == 0 else inner / dim
    if mixer["A_log"].ndim >= 2:  # Mamba, in heads or not
        sizes |= {"inner": inner, "state": mixer["A_log"].shape[-1]}
        if mixer["A_log"].ndim == 3:
            sizes["mamba_heads"] = mixer["A_log"].shape[0]
        rank = _shape(mixer, "dt_proj.weight", "dt_proj_weight")
        automatic = config.get(fields["rank"]) in (None, "auto") and dim and rank and rank[-1] == math.ceil(dim / 16)
        if rank and not automatic:
            sizes["rank"] = rank[-1]
    elif "dt_bias" in mixer:  # Mamba-2; its published class may also scan fewer channels than it projects (d_ssm)
        heads = len(mixer["dt_bias"])
        norm = _shape(mixer, "norm.weight")
        scanned = inner if norm is None else norm[0]
        sizes["scanned"] = inner
        if heads and scanned % heads == 0:
            sizes |= {"heads": heads, "head": scanned // heads}
        sizes |= _groups(fields, config, conv[0] - scanned)
    return {fields[size]: value for size, value in sizes.items() if size in fields}


def _groups(fields: dict[str, str], config: Config, rows: int) -> dict[str, int]:
    """Groups and states from the rows of B and C together, which hold only their product."""
    product = rows // 2
    groups, states = (config.get(fields[size]) for size in ("groups", "state"))
    if isinstance(groups, int) and groups > 0 and product % groups == 0:
        return {"state": product // groups}
    if isinstance(states, int) and states > 0 and product % states == 0:
        return {"groups": product // states}
    return {}
