"""How alignment grows with what is shown: frames of a video and captions of it.

score(frames, captions) = limit - (frame_loss frames^-frame_rate + caption_loss captions^-caption_rate), the law of
"Dynamic Reflections: Probing Video Representations with Text Alignment" (ICLR 2026, arXiv 2511.02767).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True)
class ScalingLaw:
    """Alignment by the number of frames and captions.

    Fields:
        limit: score with endless frames and captions.
        frame_loss, caption_loss: what one frame, and one caption, leave to be gained.
        frame_rate, caption_rate: exponents, how fast that shrinks.
        r2: share of the scores' variance that a fit explains; None for a law that was not fitted.
    """

    limit: float
    frame_loss: float
    caption_loss: float
    frame_rate: float
    caption_rate: float
    r2: float | None = None

    def scores(self, frames: Sequence[float], captions: Sequence[float]) -> np.ndarray:
        """The law on a grid: (frames, captions)."""
        f, c = np.asarray(frames, dtype=float)[:, None], np.asarray(captions, dtype=float)[None, :]
        if (f <= 0).any() or (c <= 0).any():
            raise ValueError("frames, captions: positive numbers")
        return self.limit - (self.frame_loss * f**-self.frame_rate + self.caption_loss * c**-self.caption_rate)

    def explains(self, frames: Sequence[float], captions: Sequence[float], scores: np.ndarray) -> float:
        """R² against scores (frames, captions)."""
        left = np.asarray(scores, dtype=float) - self.scores(frames, captions)
        return _r2(np.asarray(scores, dtype=float), float(np.square(left).sum()))


def fit_scaling_law(frames: Sequence[float], captions: Sequence[float], scores: np.ndarray) -> ScalingLaw:
    """The law's five numbers by least squares, all of them positive.

    For given exponents the rest is linear: the exponents alone are searched, on a grid that is refined. It draws no
    random numbers and needs no start.

    Arguments:
        frames, captions: numbers of them, at least three of one and one of the other. What was not varied gets no loss of
            its own: it is part of the limit.
        scores: (frames, captions).

    Raises:
        ValueError: other shapes, too few points, numbers that are not positive, or scores that are not finite or equal.
    """
    f, c = np.asarray(frames, dtype=float), np.asarray(captions, dtype=float)
    table = np.asarray(scores, dtype=float)
    if table.shape != (len(f), len(c)):
        raise ValueError(f"scores: (frames, captions) = {(len(f), len(c))}, got {table.shape}")
    if (f <= 0).any() or (c <= 0).any():
        raise ValueError("frames, captions: positive numbers")
    if max(len(set(f)), len(set(c))) < 3:
        raise ValueError(f"frames, captions: at least three different numbers of one, got {len(set(f))}, {len(set(c))}")
    if not np.isfinite(table).all() or np.ptp(table) == 0:
        raise ValueError("scores: finite numbers that are not all equal")
    low, high = np.log(0.01), np.log(20.0)
    centre, width, points = ((low + high) / 2, (low + high) / 2), (high - low) / 2, 31
    best: tuple[float, np.ndarray, tuple[float, float]] | None = None
    while width > 1e-7:
        grids = [np.clip(np.linspace(middle - width, middle + width, points), low, high) for middle in centre]
        for exponents in product(*grids):
            error, linear = _linear(f, c, table, float(np.exp(exponents[0])), float(np.exp(exponents[1])))
            if best is None or error < best[0]:
                best = (error, linear, (float(exponents[0]), float(exponents[1])))
        assert best is not None
        centre, width, points = best[2], width / 3, 7
    assert best is not None
    error, linear, logs = best
    limit, frame_loss, caption_loss = (float(value) for value in linear)
    return ScalingLaw(
        limit, frame_loss, caption_loss, float(np.exp(logs[0])), float(np.exp(logs[1])), _r2(table, error)
    )


def _linear(f: np.ndarray, c: np.ndarray, table: np.ndarray, alpha: float, beta: float) -> tuple[float, np.ndarray]:
    """Squared error and (limit, frame_loss, caption_loss), the losses at least zero."""
    rows, columns = (-(f**-alpha)).repeat(len(c)), np.tile(-(c**-beta), len(f))
    design = np.stack([np.ones(table.size), rows, columns], 1)
    found: tuple[float, np.ndarray] | None = None
    # Where one of the two was not varied, its loss is part of the limit.
    varied = {0} | ({1} if len(set(f)) > 1 else set()) | ({2} if len(set(c)) > 1 else set())
    for kept in ((0, 1, 2), (0, 1), (0, 2), (0,)):
        if not varied.issuperset(kept):
            continue
        part = np.linalg.lstsq(design[:, kept], table.ravel(), rcond=None)[0]
        solution = np.zeros(3)
        solution[list(kept)] = part
        if (solution[1:] < 0).any():
            continue
        error = float(np.square(table.ravel() - design @ solution).sum())
        if found is None or error < found[0]:
            found = (error, solution)
        if varied == set(kept):
            break
    assert found is not None
    return found


def _r2(table: np.ndarray, error: float) -> float:
    return 1 - error / float(np.square(table - table.mean()).sum())
