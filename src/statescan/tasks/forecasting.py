"""Forecasting numeric series: training, and what it is worth beside baselines that need none."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan import data, models
from statescan.tasks._run_folder import RunFolder, first_process, write_atomically
from statescan.tasks._settings import TrainingSettings, build


@dataclass(frozen=True)
class ForecastTraining(TrainingSettings):
    """Train a model to forecast the columns of a table.

    Example: statescan train forecast --data weather.csv --history 96 --horizon 24 --season 24 --out runs/weather
    """

    #: CSV or TSV file with a row a point in time.
    data: str = ""
    #: Columns to forecast; none: all but that of the time.
    columns: tuple[str, ...] = ()
    #: Column of the time; None: one called date, datetime, time, timestamp or ds, if there is one.
    time_column: str | None = None
    #: What to do about missing numbers and rows: tell, or fill by linear interpolation.
    missing: Literal["error", "interpolate"] = "error"
    #: What to do about columns that are constant in the training part: tell, or keep them.
    constant: Literal["error", "keep"] = "error"
    #: Points in time that a forecast is made from.
    history: int = 96
    #: Points in time to forecast.
    horizon: int = 24
    #: Period of the seasonal-naive baseline, in points in time; 1: none.
    season: int = 1
    #: Sizes of the training and the validation part; the rest is the test part, last in time.
    fractions: tuple[float, float] = (0.7, 0.1)
    #: Name of a model that forecasts: a forecaster, or any with a method forecast(x, horizon).
    model: str = "forecaster_tiny"
    #: Sequences of a batch, on each device.
    batch_size: int = 32
    #: Highest learning rate.
    learning_rate: float = 1e-3
    #: Steps between validations; None: a tenth of all steps.
    validate_every: int | None = None
    #: Windows of a validation, evenly over its part.
    validation_windows: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("history", "horizon", "season", "validation_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.season > self.history:
            raise ValueError(f"season: {self.season} is longer than the history of {self.history}")
        data.check_fractions(self.fractions)


@dataclass(frozen=True)
class ForecastResult:
    """What a run came to.

    Fields:
        steps, validation, parameters, seconds, model, metrics, picture: as those of other training.
        scores: by method, MSE and MAE in standard deviations of the training part, and MASE, on the test part.
        windows: of the test part.
        predictions: table of the model's forecasts in the given units.
        forecasts: their picture, or None where matplotlib is missing.
    """

    steps: int
    validation: dict[str, float]
    parameters: int
    seconds: float
    model: str
    metrics: str
    picture: str | None
    scores: dict[str, dict[str, float]]
    windows: int
    predictions: str
    forecasts: str | None


class ForecastBatches(IterableDataset):
    """Random windows of the training part for one process, from batch `first` on, without end.

    Batch n is a pure function of the seed and n.
    """

    def __init__(
        self,
        windows: data.SeriesWindows,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
    ) -> None:
        self._windows, self._batch_size, self._seed, self._first = windows, batch_size, seed, first
        share = batch_size // world
        self._rows = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Any:
        starts = self._windows.parts["train"]
        index = self._first
        while True:
            generator = np.random.default_rng(data.batch_seed(self._seed, "train", index))
            drawn = generator.integers(starts.start, starts.stop, self._batch_size)
            yield self._windows.batch(drawn[self._rows])
            index += 1


class _Validation(IterableDataset):
    """At most so many windows, evenly over the validation part, this process's share."""

    def __init__(self, windows: data.SeriesWindows, most: int, *, batch_size: int, rank: int, world: int) -> None:
        starts = windows.parts["validation"]
        chosen = np.unique(np.linspace(starts.start, starts.stop - 1, min(most, len(starts))).astype(int))
        self._windows, self._starts, self._batch_size = windows, chosen[rank::world], batch_size

    def __iter__(self) -> Any:
        for first in range(0, len(self._starts), self._batch_size):
            yield self._windows.batch(self._starts[first : first + self._batch_size])


def squared_error(model: Any, batch: dict[str, Any], state: Any) -> tuple[Tensor, Tensor, None]:
    """The summed squared error of a batch with its gradient; squared errors, count and absolute errors without."""
    targets = batch["targets"]
    error = (model.forecast(batch["inputs"], targets.shape[1]) - targets).float()
    loss = error.square().sum()
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    count = torch.tensor(error.numel(), device=error.device)
    return loss, torch.stack([loss.detach().to(wide), count.to(wide), error.detach().abs().sum().to(wide)]), None


def train_forecast(settings: ForecastTraining) -> ForecastResult:
    """Train a model on the first part of a series and judge it, beside baselines, on the last.

    Baselines: the last season again, the last value, ridge regression on the history. Leaves the model, its metrics,
    ``predictions.csv`` (every window of the test part), ``forecasts.png``, ``scores.json`` and ``series.json``.

    Raises:
        ValueError: for a series that cannot be used, a model that does not forecast, or a folder that cannot be written
            or that holds another run.
        FileNotFoundError: where there is no such file.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    if not settings.data:
        raise ValueError("data: give a CSV or TSV file")
    series = data.read_series(
        settings.data, columns=settings.columns or None, time_column=settings.time_column, missing=settings.missing
    )
    windows = data.SeriesWindows(
        series,
        history=settings.history,
        horizon=settings.horizon,
        fractions=settings.fractions,
        constant=settings.constant,
    )
    model = _build(settings, windows)

    def batches(first: int, rank: int, world: int) -> ForecastBatches:
        size = settings.batch_size * settings.world_size
        return ForecastBatches(windows, batch_size=size, seed=settings.seed, rank=rank, world=world, first=first)

    def validation(first: int, rank: int, world: int) -> _Validation:
        return _Validation(windows, settings.validation_windows, batch_size=settings.batch_size, rank=rank, world=world)

    from statescan.tasks._fit import Objective, fit

    objective = Objective(
        batches,
        validation,
        targets=settings.horizon * windows.channels,
        columns=("validation_loss", "validation_mae"),
        describe=lambda sums: {"validation_loss": sums.mean_loss, "validation_mae": sums.accuracy},
        measure=squared_error,
    )
    result = fit(model, settings, folder, objective)
    known = {field.name for field in dataclasses.fields(ForecastResult)}
    common: dict[str, Any] = {name: value for name, value in vars(result).items() if name in known}
    common["windows"] = len(windows.parts["test"])
    common["predictions"] = str(folder.path / "predictions.csv")
    if not first_process():
        return ForecastResult(**common, scores={}, forecasts=None)
    with folder.guard():
        scores, picture = _judge(settings, windows, folder)
    return ForecastResult(**common, scores=scores, forecasts=picture)


def forecast_series(
    run: str | os.PathLike[str],
    source: Any,
    *,
    horizon: int | None = None,
    missing: Literal["error", "interpolate"] = "error",
) -> np.ndarray:
    """What comes after the end of a table, by a model that `train_forecast` left: (horizon, channels), in its units.

    Arguments:
        run: the run's folder.
        source: a file or data frame with at least the columns and as many rows as the history that it was trained on.
        horizon: points in time; None: as many as it was trained for.
        missing: as for `data.read_series`.

    Raises:
        ValueError: the folder holds no such run, or the table does not fit.
    """
    from statescan.checkpoints import load

    place = Path(run) / "series.json"
    if not place.is_file():
        raise ValueError(f"run: {str(run)!r} holds no forecaster; `statescan train forecast` leaves one")
    known = json.loads(place.read_text())
    series = data.read_series(source, columns=known["columns"], time_column=known["time_column"], missing=missing)
    if len(series) < known["history"]:
        raise ValueError(f"source: has {len(series)} rows, fewer than the history of {known['history']}")
    mean, scale = np.array(known["mean"]), np.array(known["scale"])
    inputs = torch.from_numpy(((series.values[-known["history"] :] - mean) / scale).astype(np.float32))
    with torch.inference_mode():
        ahead = load(run).forecast(inputs[None], known["horizon"] if horizon is None else horizon)
    return ahead[0].double().numpy() * scale + mean


def _build(settings: ForecastTraining, windows: data.SeriesWindows) -> Any:
    """The model; its config is told of the series what it has fields for."""
    kind = models.model_info(settings.model).config
    told = {
        "channels": windows.channels,
        "input_dim": windows.channels,
        "output_dim": windows.channels,
        "history": windows.history,
        "horizon": windows.horizon,
    }
    fields = {field.name for field in dataclasses.fields(kind)}
    if not hasattr(type(_empty(settings.model)), "forecast"):
        able = ", ".join(models.list_models("forecaster_*"))
        raise ValueError(f"model: {settings.model!r} does not forecast numbers; {able} and others with forecast() do")
    return build(settings, **{name: value for name, value in told.items() if name in fields})


def _empty(name: str) -> Any:
    with torch.device("meta"):
        return models.create_model(name)


def _judge(
    settings: ForecastTraining, windows: data.SeriesWindows, folder: RunFolder
) -> tuple[dict[str, dict[str, float]], str | None]:
    from statescan.checkpoints import load
    from statescan.tasks import _forecasts as judging

    model = load(folder.path)

    def forecast(inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model.forecast(torch.from_numpy(inputs), windows.horizon).float().numpy()

    forecasts: dict[str, judging.Forecast] = {
        "model": forecast,
        "seasonal naive": judging.seasonal_naive(settings.season, windows.horizon),
        "last value": judging.last_value(windows.horizon),
        "linear": judging.linear(windows),
    }
    if settings.season == 1:
        del forecasts["seasonal naive"]  # the same as the last value
    scores = judging.judge(
        windows,
        forecasts,
        season=settings.season,
        batch_size=max(64, settings.batch_size),
        predictions=folder.path / "predictions.csv",
    )
    numbers = {name: score.numbers() for name, score in scores.items()}
    write_atomically(folder.path / "scores.json", json.dumps(numbers, indent=2).encode() + b"\n")
    known = {
        "columns": list(windows.series.columns),
        "time_column": settings.time_column,
        "history": windows.history,
        "horizon": windows.horizon,
        "mean": windows.mean.tolist(),
        "scale": windows.scale.tolist(),
    }
    write_atomically(folder.path / "series.json", json.dumps(known, indent=2).encode() + b"\n")
    return numbers, judging.draw_forecasts(folder.path / "forecasts.png", windows, forecasts, scores)
