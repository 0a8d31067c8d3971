"""Forecasts judged: baselines, scores, the table of predictions and its picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from statescan.data import ForecastBatch, SeriesWindows, shown_time
from statescan.tasks._run_folder import replacing

#: Inputs (batch, history, channels) -> (batch, horizon, channels), both standardised.
Forecast = Callable[[np.ndarray], np.ndarray]

#: Penalties of the linear baseline, in units of the number of its examples; the validation part chooses.
PENALTIES = (1e-6, 1e-4, 1e-2, 1.0)


def seasonal_naive(season: int, horizon: int) -> Forecast:
    """The last season over and over."""
    places = np.arange(horizon) % season - season
    return lambda inputs: inputs[:, places]


def last_value(horizon: int) -> Forecast:
    """The last value from now on."""
    return lambda inputs: np.repeat(inputs[:, -1:], horizon, axis=1)


def linear(windows: SeriesWindows) -> Forecast:
    """Ridge regression of each channel's future on its history, both less the last value; one for all channels."""

    def rows(batch: ForecastBatch) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = batch.inputs.double().numpy(), batch.targets.double().numpy()
        last = inputs[:, -1:]
        x, y = ((part - last).transpose(0, 2, 1) for part in (inputs, targets))
        x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
        return x.reshape(-1, x.shape[2]), y.reshape(-1, y.shape[2])

    size = windows.history + 1
    square, product, count = np.zeros((size, size)), np.zeros((size, windows.horizon)), 0
    for batch in windows.batches("train", 256):
        x, y = rows(batch)
        square, product, count = square + x.T @ x, product + x.T @ y, count + len(x)
    penalised = np.eye(size)
    penalised[-1, -1] = 0  # the constant may be anything
    found = []
    for penalty in PENALTIES:
        weight = np.linalg.lstsq(square + penalty * count * penalised, product, rcond=None)[0]
        error = 0.0
        for batch in windows.batches("validation", 256):
            x, y = rows(batch)
            error += float(np.square(x @ weight - y).sum())
        found.append((error, penalty, weight))
    weight = min(found, key=lambda entry: entry[:2])[2]

    def forecast(inputs: np.ndarray) -> np.ndarray:
        last = inputs[:, -1:]
        ahead = (inputs - last).transpose(0, 2, 1) @ weight[:-1] + weight[-1]
        return ahead.transpose(0, 2, 1) + last

    return forecast


class Score:
    """Errors of a forecaster, in standard deviations of the training part."""

    def __init__(self, windows: SeriesWindows, season: int) -> None:
        train = windows.values[: windows.training_rows].double().numpy()
        #: Mean absolute error of the seasonal-naive forecast one season ahead, of every channel.
        self._naive = np.abs(train[season:] - train[:-season]).mean(0)
        self._squares = self._count = 0.0
        self._absolute = np.zeros((windows.horizon, windows.channels))

    def add(self, forecast: np.ndarray, targets: np.ndarray) -> None:
        """Count more windows: both (batch, horizon, channels)."""
        error = forecast.astype(np.float64) - targets
        self._squares += float(np.square(error).mean((1, 2)).sum())
        self._absolute += np.abs(error).sum(0)
        self._count += len(error)

    def numbers(self) -> dict[str, float]:
        """MSE, MAE and MASE; the last is not a number where every channel repeats itself exactly."""
        by_channel = self._absolute.mean(0) / self._count
        moving = self._naive > 0
        mase = float((by_channel[moving] / self._naive[moving]).mean()) if moving.any() else float("nan")
        return {"mse": self._squares / self._count, "mae": float(by_channel.mean()), "mase": mase}

    def by_step(self) -> np.ndarray:
        """MAE of every step ahead: (horizon,)."""
        return self._absolute.mean(1) / self._count


def judge(
    windows: SeriesWindows, forecasts: Mapping[str, Forecast], *, season: int, batch_size: int, predictions: Path
) -> dict[str, Score]:
    """Score forecasters on every window of the test part, and write the first one's predictions."""
    scores = {name: Score(windows, season) for name in forecasts}
    with replacing(predictions) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text, lineterminator="\n")
        names = [f"{name}{kind}" for name in windows.series.columns for kind in ("", " forecast")]
        table.writerow(["window", "step", "row", *(["time"] if windows.series.times is not None else []), *names])
        start = windows.parts["test"].start
        for batch in windows.batches("test", batch_size):
            inputs, targets = batch.inputs.numpy(), batch.targets.numpy()
            made = {name: forecast(inputs) for name, forecast in forecasts.items()}
            for name, forecast in made.items():
                scores[name].add(forecast, targets)
            _write(table, windows, start, next(iter(made.values())))
            start += len(inputs)
        text.detach()
    return scores


def _write(table: Any, windows: SeriesWindows, start: int, forecast: np.ndarray) -> None:
    times = windows.series.times
    restored = windows.restored(forecast)
    for window, values in enumerate(restored):
        first = start + window
        for step, ahead in enumerate(values):
            row = first + step
            pairs = np.stack([windows.series.values[row], ahead], axis=1).ravel()
            time = [] if times is None else [shown_time(times[row])]
            number = first - windows.parts["test"].start + 1
            table.writerow([number, step + 1, row + 1, *time, *(f"{value:.7g}" for value in pairs)])


def draw_forecasts(
    path: Path, windows: SeriesWindows, forecasts: Mapping[str, Forecast], scores: Mapping[str, Score]
) -> str | None:
    """Draw a window of the test part, of at most three channels, and the errors by step; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    from statescan.tasks._picture import COLOURS

    starts = windows.parts["test"]
    start = starts[len(starts) // 2]
    batch = windows.batch([start])
    made = {name: windows.restored(forecast(batch.inputs.numpy()))[0] for name, forecast in forecasts.items()}
    shown = min(3, windows.channels)
    figure = Figure(figsize=(11, 1.2 + 2.4 * shown), layout="constrained")
    grid = figure.add_gridspec(shown, 2, width_ratios=(2, 1))
    before = min(windows.history, 4 * windows.horizon)
    past, ahead = np.arange(1 - before, 1), np.arange(1, windows.horizon + 1)
    for channel in range(shown):
        place = figure.add_subplot(grid[channel, 0])
        values = windows.series.values[:, channel]
        place.plot(past, values[start - before : start], color="#444444", linewidth=1.4, label="history")
        place.plot(ahead, values[start : start + windows.horizon], color="#444444", linestyle=":", label="what came")
        for colour, (name, forecast) in zip(COLOURS, made.items(), strict=False):
            wide = 2.0 if colour == COLOURS[0] else 1.0
            place.plot(ahead, forecast[:, channel], color=colour, linewidth=wide, label=name)
        place.axvline(0.5, color="#999999", linewidth=0.8)
        place.set_ylabel(windows.series.columns[channel])
        _plain(place, legend=channel == 0)
    place.set_xlabel("steps from the end of the history")
    place = figure.add_subplot(grid[:, 1])
    for colour, (name, score) in zip(COLOURS, scores.items(), strict=False):
        marker = "o" if windows.horizon == 1 else None
        place.plot(ahead, score.by_step(), color=colour, label=name, marker=marker)
    place.set_xlabel("steps ahead")
    place.set_ylabel("mean absolute error (standard deviations)")
    place.set_ylim(bottom=0)
    _plain(place, legend=True)
    figure.savefig(path, dpi=130)
    return str(path)


def _plain(place: Any, *, legend: bool) -> None:
    place.grid(alpha=0.25)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
    if legend:
        place.legend(frameon=False, fontsize=8)
