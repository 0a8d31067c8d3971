"""Where sequences begin, in the forms that operators take."""

from __future__ import annotations

import torch
from torch import Tensor


def resets_from_sequence_index(index: Tensor) -> Tensor:
    """Marks of sequence boundaries from numbers of sequences.

    Arguments:
        index: (batch, length), whole numbers that change where a new sequence begins (`seq_idx` of published code).

    Returns:
        (batch, length) bool, True at the first position of every sequence but those that begin the rows: what was before
        a row, its initial state, goes on into it.
    """
    if index.ndim != 2 or index.is_floating_point():
        given = f"{str(index.dtype).removeprefix('torch.')} {tuple(index.shape)}"
        raise ValueError(f"index: expected whole numbers (batch, length), got {given}")
    resets = torch.zeros_like(index, dtype=torch.bool)
    resets[:, 1:] = index[:, 1:] != index[:, :-1]
    return resets
