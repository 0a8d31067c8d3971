"""Forecasting: it learns a wave, it is judged fairly, and what it leaves can be used."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statescan
from statescan import cli
from statescan.data import Series, SeriesWindows
from statescan.tasks import ForecastTraining, forecast_series, train_forecast
from statescan.tasks._forecasts import Score, last_value, linear, seasonal_naive
from statescan.tasks.forecasting import ForecastBatches, squared_error

pytest.importorskip("pytorch_lightning")

SMALL: dict[str, Any] = dict(
    set=("dim=8", "depth=1", "options.state_dim=4"),
    history=24,
    horizon=6,
    season=12,
    steps=4,
    warmup=1,
    batch_size=8,
    log_every=2,
    accelerator="cpu",
    progress=False,
)


def waves(time: int = 300) -> np.ndarray:
    """Two channels: a wave of twelve steps, and a slower one that drifts."""
    steps = np.arange(time)
    noise = np.random.default_rng(0).normal(0, 0.05, (time, 2))
    return np.stack([np.sin(steps * np.pi / 6), np.cos(steps * np.pi / 10) + steps / 100], 1) + noise


@pytest.fixture
def table(tmp_path: Path) -> Path:
    days = np.datetime64("2020-01-01") + np.arange(300)
    rows = [f"{day},{first:.6f},{second:.6f}" for day, (first, second) in zip(days, waves(), strict=True)]
    path = tmp_path / "waves.csv"
    path.write_text("\n".join(["date,fast,slow", *rows]) + "\n")
    return path


def run(table: Path, out: Path, **changes: Any) -> Any:
    return train_forecast(ForecastTraining(**{**SMALL, "data": str(table), "out": out, **changes}))


def test_a_wave_is_learnt_and_everything_is_left(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(table, out, steps=150, learning_rate=1e-2, set=("dim=16", "depth=1"))
    scores = result.scores
    assert list(scores) == ["model", "seasonal naive", "last value", "linear"]
    assert scores["model"]["mae"] < scores["last value"]["mae"]
    assert scores["linear"]["mse"] < scores["last value"]["mse"]
    assert json.loads((out / "scores.json").read_text()) == scores
    assert result.windows == 60 - 6 + 1
    assert result.forecasts is None or Path(result.forecasts).stat().st_size > 10_000
    rows = list(csv.DictReader(Path(result.predictions).read_text().splitlines()))
    assert len(rows) == result.windows * 6
    assert list(rows[0]) == ["window", "step", "row", "time", "fast", "fast forecast", "slow", "slow forecast"]
    values = waves()
    assert float(rows[7]["slow"]) == pytest.approx(values[int(rows[7]["row"]) - 1, 1], abs=1e-5)
    assert rows[0]["time"].startswith(str(np.datetime64("2020-01-01") + int(rows[0]["row"]) - 1))
    # The table's errors are the score's.
    scale = SeriesWindows(Series(values, ("fast", "slow")), history=24, horizon=6).scale
    errors = [[float(row[f"{name} forecast"]) - float(row[name]) for name in ("fast", "slow")] for row in rows]
    assert np.abs(np.array(errors) / scale).mean() == pytest.approx(scores["model"]["mae"], rel=1e-3)


def test_what_comes_next(table: Path, tmp_path: Path) -> None:
    result = run(table, tmp_path / "run")
    ahead = forecast_series(result.model, table)
    assert ahead.shape == (6, 2) and np.isfinite(ahead).all()
    assert forecast_series(result.model, table, horizon=9).shape == (9, 2)
    np.testing.assert_allclose(forecast_series(result.model, table, horizon=9)[:6], ahead, rtol=1e-5)
    short = tmp_path / "short.csv"
    short.write_text("date,fast,slow\n2020-01-01,1,2\n2020-01-02,1,2\n")
    with pytest.raises(ValueError, match="source: has 2 rows, fewer than the history of 24"):
        forecast_series(result.model, short)
    with pytest.raises(ValueError, match=r"run: .* holds no forecaster; `statescan train forecast` leaves one"):
        forecast_series(tmp_path, table)


def test_any_model_that_forecasts(table: Path, tmp_path: Path) -> None:
    result = run(table, tmp_path / "run", model="spacetime_tiny", set=("dim=16", "heads=4"))
    assert np.isfinite(result.scores["model"]["mse"])
    assert forecast_series(result.model, table).shape == (6, 2)


def test_a_resumed_run_ends_where_a_whole_one_does(table: Path, tmp_path: Path) -> None:
    whole = run(table, tmp_path / "whole", steps=6)
    run(table, tmp_path / "parts", steps=6, checkpoint_every=3)
    settings = ForecastTraining(**{**SMALL, "data": str(table), "steps": 6, "out": tmp_path / "parts", "resume": True})
    again = train_forecast(dataclasses.replace(settings, checkpoint_every=3))
    assert again.steps == 6
    assert again.scores == whole.scores


def test_batches_are_shared_and_resumed() -> None:
    windows = SeriesWindows(Series(waves(), ("a", "b")), history=24, horizon=6)

    def batches(**changes: Any) -> list[Any]:
        made = iter(ForecastBatches(windows, **{"batch_size": 6, "seed": 3, **changes}))
        return [next(made) for _ in range(3)]

    whole, late = batches(), batches(first=2)
    shares = [batches(rank=rank, world=2) for rank in range(2)]
    for index in range(3):
        assert torch.equal(whole[index].inputs, torch.cat([share[index].inputs for share in shares]))
    assert torch.equal(whole[2].targets, late[0].targets)
    assert not torch.equal(whole[0].inputs, whole[1].inputs)


def test_the_loss_is_the_squared_error() -> None:
    model = statescan.create_model("forecaster_tiny", channels=2, horizon=6, dim=8, depth=1).eval()
    batch = {"inputs": torch.randn(3, 24, 2), "targets": torch.randn(3, 6, 2)}
    loss, sums, state = squared_error(model, batch, None)
    error = model.forecast(batch["inputs"], 6) - batch["targets"]
    torch.testing.assert_close(loss, error.square().sum())
    torch.testing.assert_close(sums, torch.stack([loss, torch.tensor(36.0), error.abs().sum()]).double().detach())
    assert state is None and loss.requires_grad


def test_baselines() -> None:
    inputs = np.arange(8.0)[None, :, None]
    assert seasonal_naive(3, 5)(inputs).ravel().tolist() == [5, 6, 7, 5, 6]
    assert last_value(3)(inputs).ravel().tolist() == [7, 7, 7]
    line = SeriesWindows(Series(waves()[:, :1] * 0 + np.arange(300.0)[:, None], ("x",)), history=8, horizon=4)
    batch = line.batch(list(line.parts["test"]))
    np.testing.assert_allclose(linear(line)(batch.inputs.double().numpy()), batch.targets.numpy(), atol=1e-3)


def test_scores() -> None:
    windows = SeriesWindows(Series(waves(), ("a", "b")), history=24, horizon=6)
    score = Score(windows, season=12)
    targets = np.zeros((4, 6, 2))
    score.add(targets + [1.0, 3.0], targets)
    numbers = score.numbers()
    assert (numbers["mse"], numbers["mae"]) == (5, 2)
    train = windows.values[:210].numpy()
    naive = np.abs(train[12:] - train[:-12]).mean(0)
    assert numbers["mase"] == pytest.approx((1 / naive[0] + 3 / naive[1]) / 2, rel=1e-5)
    assert score.by_step().tolist() == [2] * 6


def test_from_the_command_line(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--history 24 --horizon 6 --season 12 --steps 2 --accelerator cpu --no-progress --set dim=8 depth=1"
    words = flags.split()
    place = ["train", "forecast", "--data", str(table), "--out", str(tmp_path / "run")]
    assert cli.main([*place, *words]) == 0
    printed = capsys.readouterr().out
    assert "seasonal naive" in printed and "MASE" in printed
    assert cli.main([*place, *words, "--overwrite", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["scores"]) == {"model", "seasonal naive", "last value", "linear"}
    assert cli.main([*place, *words, "--overwrite", "--columns", "fats"]) != 0
    assert "nearest: 'fast'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data=""), "data: give a CSV or TSV file"),
        (dict(season=25), "season: 25 is longer than the history of 24"),
        (dict(history=0), "history: expected at least 1, got 0"),
        (dict(horizon=0), "horizon: expected at least 1, got 0"),
        (dict(validation_windows=0), "validation_windows: expected at least 1, got 0"),
        (dict(fractions=(0.5, 0.5)), "fractions: expected two positive numbers whose sum is less than 1"),
        (dict(model="mamba_tiny"), "model: 'mamba_tiny' does not forecast numbers; forecaster_mamba2_tiny,"),
        (dict(model="forecaster_tinny"), "unknown model 'forecaster_tinny'; nearest: 'forecaster_tiny'"),
        (dict(mixer="lsmt"), "mixer: unknown 'lsmt'; nearest: 'lstm'"),
        (dict(model="spacetime_tiny", mixer="s4d", set=()), "mixer: 'spacetime_tiny' has parts of its own"),
        (dict(history=250), "series: 300 rows are too few: its train part has 210, fewer than history 250 + horizon 6"),
    ],
)
def test_mistakes_are_named(table: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(table, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def spoilt(table: Path, how: str) -> None:
    """The table with one thing wrong."""
    header, *rows = table.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    if how == "gap":
        del cells[40:43]
    elif how == "order":
        cells[5], cells[6] = cells[6], cells[5]
    elif how == "twice":
        cells.insert(8, cells[7])
    elif how == "ragged":
        cells[11].pop()
    elif how == "short":
        cells = cells[:20]
    elif how == "no rows":
        cells = []
    else:
        for row in cells if how.startswith("all ") else cells[99:101]:
            row[2] = how.removeprefix("all ")
    table.write_text("\n".join([header, *map(",".join, cells)]) + "\n")


@pytest.mark.parametrize(
    ("how", "changes", "message"),
    [
        ("gap", {}, "data: 3 rows are not there, the first after row 40 (2020-02-09T00:00:00; the next is 2020-02-13"),
        ("order", {}, "data: row 7, column 'date': 2020-01-06T00:00:00 does not come after 2020-01-07T00:00:00; sort"),
        ("twice", {}, "data: row 9, column 'date': 2020-01-08T00:00:00 does not come after 2020-01-08T00:00:00; sort"),
        ("ragged", {}, "data: row 12 has 2 cells, the header 3"),
        (
            "",
            {},
            "data: 2 numbers of column 'slow' are missing, the first in row 100; fill them by missing='interpolate'",
        ),
        ("nan", {}, "data: 2 numbers of column 'slow' are missing, the first in row 100; fill them by missing="),
        ("all NaN", dict(missing="interpolate"), "data: column 'slow' holds no number at all"),
        ("-inf", {}, "data: row 100, column 'slow': '-inf' is not a finite number; leave such a column out (columns)"),
        ("1e999", {}, "data: row 100, column 'slow': '1e999' is not a finite number"),
        (
            "north",
            {},
            "data: row 100, column 'slow': 'north' is not a finite number; leave such a column out (columns)",
        ),
        (
            "all 3.5",
            {},
            "series: 'slow' is constant in the training part (rows 1 to 210), so it cannot be standardised",
        ),
        ("short", {}, "series: 20 rows are too few: its train part has 14, fewer than history 24 + horizon 6; use a"),
        (
            "short",
            dict(history=4, season=1),
            "its validation part has 2, fewer than horizon 6; use a shorter history or",
        ),
        ("no rows", {}, "has a header and no rows"),
        ("none", dict(columns=("quick",)), "columns: no column 'quick'; the table has date, fast, slow"),
        (
            "none",
            dict(columns=("date", "fast")),
            "row 1, column 'date': '2020-01-01' is not a finite number; leave such a",
        ),
        ("none", dict(time_column="when"), "time_column: no column 'when'; the table has date, fast, slow"),
    ],
)
def test_bad_tables_are_named_before_anything_is_written(
    table: Path, tmp_path: Path, how: str, changes: dict, message: str
) -> None:
    if how != "none":
        spoilt(table, how)
    with pytest.raises(ValueError, match=re.escape(message)):
        run(table, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_what_may_be_filled_or_kept_is(table: Path, tmp_path: Path) -> None:
    spoilt(table, "gap")
    spoilt(table, "")
    assert run(table, tmp_path / "filled", missing="interpolate").windows == 60 - 6 + 1
    spoilt(table, "all 3.5")
    result = run(table, tmp_path / "kept", missing="interpolate", constant="keep")
    assert np.isfinite(result.scores["model"]["mse"])


def test_bad_tables_to_go_on_from_are_named(table: Path, tmp_path: Path) -> None:
    model = run(table, tmp_path / "run", steps=2).model
    for text, message in (
        ("date,fast\n2020-01-01,1\n", "columns: no column 'slow'; the table has date, fast"),
        ("date,fast,slow\n" + "2020-01-01,1,\n", "data: column 'slow' holds no number at all"),
        (table.read_text().replace("2020-01-09", "2020-01-0x"), "row 9, column 'date': '2020-01-0x' is no time"),
    ):
        other = tmp_path / "other.csv"
        other.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            forecast_series(model, other)
    with pytest.raises(FileNotFoundError, match="data: no file"):
        forecast_series(model, tmp_path / "none.csv")
    with pytest.raises(ValueError, match="horizon: expected at least 1, got 0"):
        forecast_series(model, table, horizon=0)
