"""Alignment of two encoders, and its scaling law."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from statescan import inspect
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError


def _number(fixture: Fixture, pattern: str, otherwise: float) -> float:
    found = fixture.note(pattern)
    return otherwise if found is None else float(found)


def metrics(fixture: Fixture) -> dict[str, Any]:
    """Every metric on two noisy views of the same samples, as the notes say."""
    z, wx, wy, ex, ey = fixture.inputs()
    noise_x, noise_y = _number(fixture, r"([\d.]+) ex", 0.7), _number(fixture, r"([\d.]+) ey", 0.7)
    x, y = F.normalize(z @ wx + noise_x * ex, dim=-1), F.normalize(z @ wy + noise_y * ey, dim=-1)
    asked = fixture.data["ours"]["k"]
    ks = list(asked) if isinstance(asked, (list, tuple)) else [asked]
    rolled = int(_number(fixture, r"rolled by (-?\d+)", 7))
    sigma = _number(fixture, r"sigma ([\d.]*\d)", 1.0)
    mixed = _number(fixture, r"X \+ ([\d.]+) Y", 0.1)
    most = max(ks)
    return {
        "mutual_knn": [inspect.mutual_knn(x, y, k) for k in ks],
        "mutual_knn_shuffled": [inspect.mutual_knn(x, y.roll(rolled, 0), k) for k in ks],
        "cycle_knn": [inspect.cycle_knn(x, y, k) for k in ks],
        "cka": [
            inspect.cka(x, y),
            inspect.cka(x, y, unbiased=True),
            inspect.cka(x, y, kernel="rbf", sigma=sigma),
            inspect.cka(x, x + mixed * y[:, :1]),
        ],
        "cknna": [inspect.cknna(x, y, k) for k in ks if k >= 2],
        "neighbours_x": inspect.nearest_neighbours(x, most),
        "neighbours_y": inspect.nearest_neighbours(y, most),
    }


def layers(fixture: Fixture) -> dict[str, Any]:
    """The clamp and the search over layers."""
    z, wx, wy, ex, ey = fixture.inputs()
    noise = _number(fixture, r"([\d.]+) \(l\+1\) ex", 0.5)
    quantile = _number(fixture, r"int\(([\d.]+) \* count\)", 0.95)
    x = torch.stack([z @ w + noise * (i + 1) * ex[:, i] for i, w in enumerate(wx)], 1)
    y = torch.stack([z @ w + noise * (len(wy) - i) * ey[:, i] for i, w in enumerate(wy)], 1)
    found = inspect.align(x, y, k=int(fixture.data["ours"]["k"]), quantile=quantile, shuffles=0, resamples=0)
    return {
        "table": found.table,
        "best": [found.score, *found.layers],
        "clipped_x": inspect.clamp_outliers(x, quantile),
        "clipped_y": inspect.clamp_outliers(y, quantile),
    }


LAW = {"s_inf": "limit", "c_f": "frame_loss", "c_c": "caption_loss", "alpha": "frame_rate", "beta": "caption_rate"}


def scaling_law(fixture: Fixture) -> dict[str, Any]:
    """The law on the notes' grid, and a fit to noisy scores that must explain them as well as the true numbers do."""
    (noise,) = fixture.inputs()
    law = inspect.ScalingLaw(**translate(fixture.kwargs, LAW))
    frames, captions = (
        [float(number) for number in re.search(rf"{name} ([\d,]*\d)", fixture.notes)[1].split(",")]
        for name in ("frames", "captions")
    )
    clean = law.scores(frames, captions)
    noisy = clean + _number(fixture, r"clean \+ ([\d.]+) e", 0.002) * np.asarray(noise, dtype=float)
    reached = law.explains(frames, captions, noisy)
    fitted = inspect.fit_scaling_law(frames, captions, noisy)
    if fitted.r2 < reached - 1e-9:
        raise ParityError(f"the fit explains {fitted.r2:.6f}, the true numbers {reached:.6f}")
    # The second place is not used.
    return {"clean": clean, "noisy": noisy, "r2_of_true_parameters": [reached, 0.0]}


ADAPTERS = {
    "metrics.py:AlignmentMetrics": metrics,
    "measure_alignment.py:compute_score + metrics.py:remove_outliers": layers,
    "dynamic_reflections:from the paper's formula": scaling_law,
}
