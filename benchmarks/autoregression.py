"""Autoregressions of order 2 to 6: does SpaceTime reach the noise, and does S4D?

python -m benchmarks.autoregression

draws a series of 4,000 points for each order, with roots near the unit circle, and trains both for the same number of steps
to forecast 8 points from 64. The floor is the error of forecasts by the true coefficients on the same windows. Figures go to
``benchmarks/results/autoregression.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _measure
from statescan.tasks import ForecastTraining, train_forecast

HISTORY, HORIZON, POINTS = 64, 8, 4000
MODELS: dict[str, dict[str, Any]] = {
    "SpaceTime": {"model": "spacetime_tiny", "set": ("filters=0",)},
    "S4D": {"model": "forecaster_tiny", "mixer": "s4d", "set": ("window_norm=False",)},
}


def coefficients(order: int, generator: np.random.Generator) -> np.ndarray:
    """a_1 to a_p of x_t = sum_i a_i x_{t-i} + noise, the roots in pairs at 0.9 to 0.98 from the origin."""
    radius = generator.uniform(0.9, 0.98, order // 2)
    angle = generator.uniform(0.2, 2.8, order // 2)
    roots = radius * np.exp(1j * angle)
    return -np.poly(np.concatenate([roots, roots.conj()])).real[1:]


def series(a: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    x = np.zeros(POINTS + 500)
    noise = generator.standard_normal(len(x))
    for t in range(len(a), len(x)):
        x[t] = a @ x[t - len(a) : t][::-1] + noise[t]
    return x[500:]


def floor(a: np.ndarray, x: np.ndarray, deviation: float, first: int) -> float:
    """Mean square error of the best forecast, over the test part's windows, in units of the training part's variance."""
    errors = []
    for start in range(first, len(x) - HISTORY - HORIZON + 1):
        known = list(x[start : start + HISTORY])
        for _ in range(HORIZON):
            known.append(float(a @ np.array(known[-len(a) :])[::-1]))
        errors.append(np.square(np.array(known[HISTORY:]) - x[start + HISTORY : start + HISTORY + HORIZON]).mean())
    return float(np.mean(errors)) / deviation**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    rows = []
    for order in (2, 4, 6):
        generator = np.random.default_rng(order)
        a = coefficients(order, generator)
        x = series(a, generator)
        best = floor(a, x, float(x[: int(0.7 * POINTS)].std()), int(0.8 * POINTS))
        for name, changes in MODELS.items():
            with tempfile.TemporaryDirectory() as folder:
                table = Path(folder) / "series.csv"
                with table.open("w", newline="") as file:
                    csv.writer(file).writerows([["x"], *([value] for value in x)])
                result = train_forecast(
                    ForecastTraining(
                        data=str(table), out=Path(folder) / "run", history=HISTORY, horizon=HORIZON, steps=options.steps,
                        learning_rate=3e-3, warmup=50, weight_decay=0.0, progress=False, **changes,
                    )
                )  # fmt: skip
            scores = result.scores
            rows.append(
                {
                    "order": order,
                    "model": name,
                    "parameters": result.parameters,
                    "seconds": result.seconds,
                    "MSE": scores["model"]["mse"],
                    "floor": best,
                    "MSE over floor": scores["model"]["mse"] / best,
                    "linear over floor": scores["linear"]["mse"] / best,
                    "last value over floor": scores["last value"]["mse"] / best,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    title = f"Forecasts of {HORIZON} points from {HISTORY}, {options.steps} steps"
    _measure.show(title, rows)
    if not options.no_save:
        print(f"written to {_measure.save('autoregression', rows, tables={title: rows})}")


if __name__ == "__main__":
    main()
