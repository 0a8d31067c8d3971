"""What becomes of several walks' results at one cell. Merges with parameters are layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from statescan._names import nearest

#: (..., walks, channels) -> (..., channels of the result).
Merge = Callable[[Tensor], Tensor]


def route_attention(walks: Tensor, *, threshold: float = 0.0) -> Tensor:
    """S relu(c - t) over walks: S their sum, c their coefficient of variation above the least of them, which is the
    unbiased standard deviation over (mean - minimum + 1e-5). What all walks agree on is dropped. Ji 2024, "MHS-VM",
    arXiv 2406.05992, section 3.3.

    Arguments:
        walks: (..., walks, channels), two walks or more.
        threshold: t.
    """
    if walks.shape[-2] < 2:
        raise ValueError(f"walks: two or more for the deviation over them, got {walks.shape[-2]}")
    least = walks.amin(-2)
    coefficient = walks.std(-2) / (walks.mean(-2) - least + 1e-5)
    return walks.sum(-2) * torch.relu(coefficient - threshold)


def _sum(walks: Tensor) -> Tensor:
    return walks.sum(-2)


def _mean(walks: Tensor) -> Tensor:
    return walks.mean(-2)


def _concatenate(walks: Tensor) -> Tensor:
    return walks.flatten(-2)


MERGES: dict[str, Merge] = {
    "sum": _sum,
    "mean": _mean,
    "concatenate": _concatenate,
    "attention": route_attention,
}


def merge_rule(how: str | Merge) -> Merge:
    """The rule of that name; a function is given back as it is.

    Raises:
        ValueError: there is none of that name; the nearest is named.
    """
    if not isinstance(how, str):
        return how
    if how not in MERGES:
        hint = nearest(how, MERGES)
        raise ValueError(f"merge: unknown {how!r}{hint}; known: {', '.join(MERGES)}")
    return MERGES[how]
