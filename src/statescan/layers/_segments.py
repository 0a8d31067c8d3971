"""Sequences that begin within a batch, for layers whose one call spans a whole sequence."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from statescan.layers._state import State

#: (batch, length, dim) and the state before, None for zeros -> the output and the state after.
Walk = Callable[[Tensor, State | None], tuple[Tensor, State]]


def walk_segments(
    walk: Walk,
    x: Tensor,
    state: State | None,
    *,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    last: Walk | None = None,
) -> tuple[Tensor, State]:
    """Call `walk` on the stretches between which no sequence begins, the state carried on or, where one begins, zeroed.

    Arguments:
        walk: the layer on one stretch of all rows of a batch.
        x: (batch, length, dim).
        state: before the first position; zeros if None. Packed sequences have one each.
        resets: (batch, length) bool, where sequences begin.
        offsets: (sequences + 1,) int64, cumulative lengths of sequences packed into a batch of 1.
        last: `walk` for stretches after which nothing comes, where their states are not wanted: it gives empty ones.

    Returns:
        the output, and the state after it (with the sequences as first axis where they are packed).
    """
    last = last or walk
    if offsets is not None:
        if x.shape[0] != 1 or resets is not None:
            raise ValueError(
                f"offsets: packed sequences come in a batch of 1 and without resets, got a batch of {x.shape[0]}"
                f"{' with resets' if resets is not None else ''}"
            )
        parts = [
            last(x[:, start:end], None if state is None else state.select([index]))
            for index, (start, end) in enumerate(itertools.pairwise(offsets.tolist()))
        ]
        if not parts:
            return last(x, state)
        return torch.cat([y for y, _ in parts], dim=1), State.concatenate([after for _, after in parts])
    if resets is None or not bool(resets.any()):
        return last(x, state)
    cuts = torch.nonzero(resets.any(dim=0)).flatten().tolist()
    outputs = []
    for start, end in itertools.pairwise(sorted({0, *cuts, x.shape[1]})):
        if state is not None:
            state = _zeroed(state, resets[:, start])
        y, state = (last if end == x.shape[1] else walk)(x[:, start:end], state)
        outputs.append(y)
    assert state is not None
    return torch.cat(outputs, dim=1), state


def _zeroed(state: State, rows: Tensor) -> State:
    def zero(tensor: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (tensor.ndim - 1)), torch.zeros((), dtype=tensor.dtype), tensor)

    return pytree.tree_map(zero, state)
