"""Pieces that published hybrids keep apart and we keep together: queries with keys and values, gate with value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from statescan.layers import squared_relu
from statescan.models._registry import Tensors


def fuse(tensors: Tensors, parts: tuple[str, ...], whole: str) -> Tensors:
    """Stack the rows of `parts` under the name `whole`, in place of the first; where one is missing all stay apart."""
    for suffix in ("weight", "bias"):
        names = [f"{part}.{suffix}" for part in parts]
        if all(name in tensors for name in names):
            joined = torch.cat([tensors[name] for name in names])
            tensors = {f"{whole}.{suffix}": joined} | {n: t for n, t in tensors.items() if n not in names}
    return tensors


def split(tensors: Tensors, whole: str, parts: tuple[str, ...], rows: tuple[int, ...]) -> Tensors:
    """The inverse of `fuse`: `rows` of each part."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        stem, _, suffix = name.rpartition(".")
        if stem != whole:
            out[name] = tensor
            continue
        for part, piece in zip(parts, tensor.split(list(rows)), strict=True):
            out[f"{part}.{suffix}"] = piece
    return out


def rename(tensors: Tensors, names: tuple[tuple[str, str], ...], *, back: bool = False) -> Tensors:
    """Replace beginnings of names: (theirs, ours) pairs, or the other way `back`."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        for theirs, ours in names:
            old, new = (ours, theirs) if back else (theirs, ours)
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        out[name] = tensor
    return out


#: Activations of MLPs by the names that published configs give them.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "relu2": squared_relu,
    "silu": F.silu,
    "swish": F.silu,
}

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GLU = ("feed_forward.up_proj", "feed_forward.gate_proj")
#: Names of a block of the layout that Jamba, Bamba and Falcon-H1 share.
BLOCK = (
    ("input_layernorm.", "norm."),
    ("pre_ff_layernorm.", "channel_norm."),
    ("feed_forward.down_proj.", "channel_mixer.output_projection."),
)
OUTER = (
    ("model.embed_tokens.", "embedding."),
    ("model.final_layernorm.", "norm."),
    ("lm_head.", "head."),
)


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """An activation of `ACTIVATIONS`.

    Raises:
        ValueError: one that is not there.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: unknown {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def qkv_rows(config: Any) -> tuple[int, int, int]:
    """Rows of queries, keys and values in the projection of a config's attention."""
    attention = config.attention
    head_dim = attention.head_dim or config.dim // attention.heads
    keys = head_dim * (attention.kv_heads or attention.heads)
    return head_dim * attention.heads, keys, keys


def by_layer(tensors: Tensors, prefix: str) -> tuple[dict[int, Tensors], Tensors]:
    """Tensors of numbered layers without ``prefix.NUMBER.``, and the others, each in file order."""
    layers: dict[int, Tensors] = {}
    others: Tensors = {}
    for name, tensor in tensors.items():
        index, _, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and index.isdigit():
            layers.setdefault(int(index), {})[rest] = tensor
        else:
            others[name] = tensor
    return layers, others


def swap_halves(tensor: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Published gated MLPs that keep both halves in one tensor give the gate first, ours the value."""
    first, second = tensor.chunk(2, dim=axis)
    return torch.cat([second, first], dim=axis)


_ONE_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")


def fuse_experts(tensors: Tensors, wholes: dict[str, tuple[str, ...]]) -> Tensors:
    """Tensors of single experts, as files of transformers 4 have them, joined as those of transformers 5 are.

    Arguments:
        tensors: among them ``….experts.NUMBER.PART.weight``.
        wholes: a joined tensor's name -> the parts whose rows it stacks: ``{"gate_up_proj": ("gate_proj", "up_proj")}``.

    Returns:
        those with ``….experts.WHOLE`` (experts, rows, columns) instead. What does not make a whole stays as it is.
    """
    found: dict[str, dict[str, dict[int, str]]] = {}
    for name in tensors:
        match = _ONE_EXPERT.fullmatch(name)
        if match:
            place, number, part = match.groups()
            found.setdefault(place, {}).setdefault(part, {})[int(number)] = name
    joined: Tensors = {}
    for place, parts in found.items():
        for whole, wanted in wholes.items():
            lists = [parts.get(part, {}) for part in wanted]
            if not lists[0] or any(sorted(names) != list(range(len(lists[0]))) for names in lists):
                continue
            rows = [torch.cat([tensors[names[e]] for names in lists]) for e in range(len(lists[0]))]
            if len({tuple(row.shape) for row in rows}) == 1:
                joined[f"{place}.{whole}"] = torch.stack(rows)
                tensors = {n: t for n, t in tensors.items() if all(n not in names.values() for names in lists)}
    return tensors | joined
