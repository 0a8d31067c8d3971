"""Pieces that published hybrids keep apart and we keep together: queries with keys and values, gate with value."""

from __future__ import annotations

import torch

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
