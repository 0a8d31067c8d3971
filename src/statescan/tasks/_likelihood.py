"""How probable a model finds given tokens, with its state carried from chunk to chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from statescan.layers import State


@dataclass(frozen=True)
class Likelihood:
    """Natural logarithm of the probability of a sequence's tokens, and whether each was the most probable one."""

    log_likelihood: float
    greedy: bool


def token_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities (batch, length) of targets (batch, length) under logits (batch, length, vocabulary)."""
    flat = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return -flat.view_as(targets)


def likelihoods(
    model: Any,
    sequences: Sequence[Sequence[int]],
    state: State | None = None,
    *,
    chunk: int = 2048,
    advance: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """The likelihood of all tokens but the first of each sequence, given the first and the state before it.

    Sequences of unequal lengths run side by side, padded at the end, and leave the batch when they are through.

    Arguments:
        sequences: tokens; those of fewer than two have likelihood 1.
        state: the state before the first tokens, its first axis one entry a sequence; None is the beginning.
        chunk: tokens a forward call, over all sequences; bounds the memory of a long sequence.
        advance: called with the number of tokens scored in each chunk.
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 token, got {chunk}")
    device = next(model.parameters()).device
    totals = [0.0] * len(sequences)
    greedy = [True] * len(sequences)
    rows = [row for row, sequence in enumerate(sequences) if len(sequence) > 1]
    if state is not None and len(rows) < len(sequences):
        state = state.select(torch.tensor(rows, device=device))
    start = 0
    while rows:
        columns = max(1, chunk // len(rows))
        parts = [sequences[row][start : start + columns + 1] for row in rows]
        scored = [len(part) - 1 for part in parts]
        width = max(scored)
        block = torch.zeros(len(rows), width + 1, dtype=torch.int64)
        for index, part in enumerate(parts):
            block[index, : len(part)] = torch.tensor(part)
        block = block.to(device)
        with torch.inference_mode():
            logits, state = model(block[:, :-1], state)
            real = torch.arange(width) < torch.tensor(scored).unsqueeze(1)
            log_probabilities = token_log_probabilities(logits, block[:, 1:]).cpu()
            sums = log_probabilities.double().where(real, 0.0).sum(1).tolist()
            hits = ((logits.argmax(-1) == block[:, 1:]).cpu() | ~real).all(1).tolist()
        for row, total, hit in zip(rows, sums, hits, strict=True):
            totals[row] += total
            greedy[row] &= hit
        if advance is not None:
            advance(sum(scored))
        start += columns
        stay = [index for index, row in enumerate(rows) if len(sequences[row]) > start + 1]
        if len(stay) < len(rows):
            rows = [rows[index] for index in stay]
            if rows:
                with torch.inference_mode():
                    state = state.select(torch.tensor(stay, device=device))
    return [Likelihood(total, hit) for total, hit in zip(totals, greedy, strict=True)]
