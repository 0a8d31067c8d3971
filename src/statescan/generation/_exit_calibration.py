"""What exits save and what they cost in agreement, measured; and the thresholds of a wanted agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from statescan.generation._early_exit import EarlyExit
from statescan.generation._progress import progress_bar

#: Thresholds that calibration tries unless others are given.
THRESHOLDS = (1.0, 0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class ExitPoint:
    """What one setting of the thresholds gives.

    Fields:
        thresholds: one an exit.
        saved: share of blocks that were not computed.
        agreement: share of tokens for which the most probable next one was that of the whole model.
        tokens: that were compared.
    """

    thresholds: tuple[float, ...]
    saved: float
    agreement: float
    tokens: int


def measure_exits(model: EarlyExit, sequences: Sequence[Tensor], *, prompt: int = 1) -> ExitPoint:
    """Step through sequences with the thresholds as they are, and compare with the whole model at every token.

    The tokens are those of the sequences, but the states are those that early exits leave behind: a token after an exit sees
    what it would see in generation.

    Arguments:
        sequences: of tokens, (length,) each, of one length.
        prompt: how many tokens are read through all blocks first, and not compared.

    Raises:
        ValueError: no sequences, unequal ones, or none left to decode after the prompt.
    """
    return _measure(model, _stacked(model, sequences, prompt), prompt, _whole(model, sequences, prompt))


def calibrate_exits(
    model: EarlyExit,
    sequences: Sequence[Tensor],
    *,
    quality: float,
    thresholds: Sequence[float] | None = None,
    prompt: int = 1,
    progress: bool = False,
) -> tuple[ExitPoint, list[ExitPoint]]:
    """Measure one threshold after the other, and set the one that saves most of those that agree as well as wanted.

    Arguments:
        model: its thresholds are set to those found.
        sequences, prompt: as in `measure_exits`; the agreement is that on these sequences, so leave some for a test.
        quality: agreement with the whole model, from 0 to 1, that is to be kept.
        thresholds: those to try, each for all exits; 1, which is the whole model, is always among them.
        progress: show a progress bar, if the error output is a terminal.

    Returns the point that was set, and all that were measured, by falling threshold.
    """
    if not 0 <= quality <= 1:
        raise ValueError(f"quality: expected an agreement from 0 to 1, got {quality}")
    tried = sorted({1.0, *(THRESHOLDS if thresholds is None else thresholds)}, reverse=True)
    batch = _stacked(model, sequences, prompt)
    whole = _whole(model, sequences, prompt)
    points = []
    with progress_bar("measuring", len(tried), unit="thresholds", shown=progress) as advance:
        for threshold in tried:
            model.thresholds = (threshold,)
            points.append(_measure(model, batch, prompt, whole))
            advance(1)
    kept = [point for point in points if point.agreement >= quality or point.thresholds[0] >= 1]
    best = max(kept, key=lambda point: (point.saved, point.thresholds[0]))
    model.thresholds = best.thresholds
    return best, points


def _stacked(model: EarlyExit, sequences: Sequence[Tensor], prompt: int) -> Tensor:
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1:
        raise ValueError(f"sequences: expected some of one length, got {len(sequences)} of {len(lengths)} lengths")
    if prompt < 1 or lengths.pop() <= prompt:
        raise ValueError(f"prompt: expected at least 1 token and fewer than a sequence has, got {prompt}")
    return torch.stack([torch.as_tensor(sequence) for sequence in sequences]).to(model.model.embedding.weight.device)


def _whole(model: EarlyExit, sequences: Sequence[Tensor], prompt: int) -> Tensor:
    """What the whole model finds most probable after each token that is decoded: (sequences, length - prompt)."""
    with torch.no_grad():
        logits, _ = model.model(_stacked(model, sequences, prompt))
    return logits[:, prompt:, : model.config.vocab_size].argmax(-1)


def _measure(model: EarlyExit, batch: Tensor, prompt: int, whole: Tensor) -> ExitPoint:
    counts: Any = model.counts
    model.reset_counts()
    equal = 0
    with torch.no_grad():
        _, state = model(batch[:, :prompt], last=1)
        for place in range(prompt, batch.shape[1]):
            logits, state = model.step(batch[:, place], state)
            found = logits[:, : model.config.vocab_size].argmax(-1)
            equal += int((found == whole[:, place - prompt]).sum())
    point = ExitPoint(model.thresholds, model.counts.saved, equal / whole.numel(), whole.numel())
    model.counts = counts
    return point
