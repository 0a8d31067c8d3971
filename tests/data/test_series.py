"""Series from tables: what is read, what is filled, and how every bad table is named."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from statescan.data import Series, SeriesWindows, read_series

GOOD = "date,wind,rain\n2020-01-30,1,0.5\n2020-01-31,2,1.5\n2020-02-01,3,2.5\n"


def write(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def ramp(time: int = 100, channels: int = 1) -> Series:
    values = np.arange(time * channels, dtype=float).reshape(time, channels)
    return Series(values, tuple(f"c{index}" for index in range(channels)))


def test_a_table_with_a_time_column(tmp_path: Path) -> None:
    series = read_series(write(tmp_path, GOOD))
    assert series.columns == ("wind", "rain")
    assert series.values.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5]]
    assert series.times is not None and str(series.times[0]).startswith("2020-01-30")
    assert read_series(write(tmp_path, GOOD), columns=["rain"]).values.tolist() == [[0.5], [1.5], [2.5]]


@pytest.mark.parametrize(
    "text",
    ["a\tb\n1\t2\n3\t4\n", "a;b\n1;2\n3;4\n", "\ufeffa, b\n1, 2\n\n3, 4\n", '"a","b"\n"1","2"\n3,4\n'],
    ids=["tabs", "semicolons", "blanks and byte order mark", "quotes"],
)
def test_dialects(tmp_path: Path, text: str) -> None:
    series = read_series(write(tmp_path, text))
    assert series.columns == ("a", "b")
    assert series.values.tolist() == [[1, 2], [3, 4]]


def test_without_header_or_times(tmp_path: Path) -> None:
    series = read_series(write(tmp_path, "1 2\n3 4\n".replace(" ", ",")))
    assert (series.columns, series.times) == (("1", "2"), None)
    numbered = read_series(write(tmp_path, "hour,x\n0,1\n2,5\n4,7\n"), time_column="hour")
    assert numbered.times is not None and numbered.times.tolist() == [0, 2, 4]


def test_times_may_carry_a_zone_and_months_differ_in_length(tmp_path: Path) -> None:
    zoned = read_series(write(tmp_path, "time (UTC),x\n2020-01-01T00:00:00Z,1\n2020-01-01T00:30:00Z,2\n"))
    assert zoned.columns == ("x",)
    months = "".join(f"2021/{month:02}/01,{month}\n" for month in range(1, 13))
    assert len(read_series(write(tmp_path, "ds,x\n" + months))) == 12


def test_missing_numbers_and_rows_are_filled_on_demand(tmp_path: Path) -> None:
    holes = read_series(write(tmp_path, "x\nNA\n1\n\n2\n?\n4\nnan\n"), missing="interpolate")
    assert holes.values.ravel().tolist() == [1, 1, 2, 3, 4, 4]
    gap = write(tmp_path, "date,x\n2020-01-01,1\n2020-01-02,2\n2020-01-05,5\n2020-01-06,6\n")
    series = read_series(gap, missing="interpolate")
    assert series.values.ravel().tolist() == [1, 2, 3, 4, 5, 6]
    assert [str(time)[:10] for time in series.times] == [f"2020-01-0{day}" for day in range(1, 7)]


def test_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1.0, None, 3.0], "y": [4, 5, 6]}, index=pandas.date_range("2020-01-01", periods=3))
    series = read_series(frame, missing="interpolate")
    assert series.columns == ("x", "y")
    assert series.values.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert series.times is not None and len(series.times) == 3


def test_anything_with_columns_is_a_data_frame() -> None:
    class Frame(SimpleNamespace):
        def __getitem__(self, name: str) -> list[float]:
            return getattr(self, name)

    assert read_series(Frame(columns=["x"], x=[1, 2])).values.tolist() == [[1], [2]]
    with pytest.raises(ValueError, match="data: the data frame is empty"):
        read_series(Frame(columns=[]))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (GOOD, dict(columns=["wnd"]), "columns: no column 'wnd'; nearest: 'wind'; the table has date, wind, rain"),
        (GOOD, dict(columns=["wind", "wind"]), "columns: expected different names, got wind, wind"),
        (GOOD, dict(time_column="dat"), "time_column: no column 'dat'; nearest: 'date'; the table has"),
        (GOOD, dict(missing="drop"), "missing: expected 'error' or 'interpolate', got 'drop'"),
        ("a,b\n1,2\n3,north\n", {}, "data: row 2, column 'b': 'north' is not a finite number; leave such a column"),
        ("a,b\n1,2\n3,inf\n", {}, "data: row 2, column 'b': 'inf' is not a finite number"),
        ("a,b\n1,2\n3,\n5,\n", {}, "data: 2 numbers of column 'b' are missing, the first in row 2; fill them by"),
        ("a,b\n1,\n3,\n", dict(missing="interpolate"), "data: column 'b' holds no number at all"),
        ("a,b\n1,2\n3\n", {}, "data: row 2 has 1 cells, the header 2"),
        ("a,a\n1,2\n", {}, "has more than one column called 'a'"),
        ("", {}, "is empty"),
        ("a,b\n", {}, "has a header and no rows"),
        ("date\n2020-01-01\n", {}, "columns: the table has no column of numbers beside that of the time"),
        ("date,x\n2020-01-01,1\n1.2.2020,2\n", {}, "row 2, column 'date': '1.2.2020' is no time; expected a number or"),
        ("date,x\n2020-01-02,1\n2020-01-01,2\n", {}, "row 2, column 'date': 2020-01-01T00:00:00 does not come after"),
        (
            "date,x\n2020-01-01,1\n2020-01-02,1\n2020-01-05,2\n",
            {},
            "data: 1 rows are not there, the first after row 2 (2020-01-02T00:00:00; the next is 2020-01-05T00:00:00)",
        ),
        (
            "t,x\n0,1\n1,1\n2,2\n900,3\n",
            dict(time_column="t", missing="interpolate"),
            "data: column 't': the steps are uneven; 897 rows would have to be added",
        ),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, text: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_series(write(tmp_path, text), **options)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data: no file"):
        read_series(tmp_path / "none.csv")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not text; expected a CSV or TSV file in UTF-8"):
        read_series(tmp_path / "picture.csv")


def test_windows_never_mix_the_parts() -> None:
    windows = SeriesWindows(ramp(), history=5, horizon=3, fractions=(0.6, 0.2))
    parts = windows.parts
    assert (parts["train"], parts["validation"], parts["test"]) == (range(5, 58), range(60, 78), range(80, 98))
    targets = {name: set() for name in parts}
    for name, starts in parts.items():
        for start in starts:
            targets[name] |= set(range(start, start + 3))
    assert targets["train"] <= set(range(60))
    assert targets["validation"] == set(range(60, 80))
    assert targets["test"] == set(range(80, 100))


def test_windows_are_standardised_by_the_training_part() -> None:
    series = ramp(50, 2)
    windows = SeriesWindows(series, history=4, horizon=2)
    np.testing.assert_allclose(windows.mean, series.values[:35].mean(0))
    np.testing.assert_allclose(windows.scale, series.values[:35].std(0))
    batch = windows.batch([10, 20])
    assert batch.inputs.shape == (2, 4, 2) and batch.targets.shape == (2, 2, 2)
    np.testing.assert_allclose(windows.restored(batch.inputs[0]), series.values[6:10], rtol=1e-5)
    np.testing.assert_allclose(windows.restored(batch.targets[1]), series.values[20:22], rtol=1e-5)
    counted = sum(len(part.inputs) for part in windows.batches("test", 3))
    assert counted == len(windows.parts["test"])


def test_a_constant_channel() -> None:
    series = Series(np.stack([np.arange(50.0), np.full(50, 7.0)], 1), ("x", "still"))
    with pytest.raises(ValueError, match=r"series: 'still' is constant in the training part \(rows 1 to 35\)"):
        SeriesWindows(series, history=4, horizon=2)
    windows = SeriesWindows(series, history=4, horizon=2, constant="keep")
    assert torch.equal(windows.values[:, 1], torch.zeros(50))
    assert windows.restored([[0.0, 0.0]])[0, 1] == 7


def test_numbers_too_large_to_be_standardised() -> None:
    series = Series(np.stack([np.arange(50.0), 1e200 * np.arange(50.0)], 1), ("x", "vast"))
    with pytest.raises(
        ValueError, match=r"series: 'vast' holds numbers too large .* \(rows 1 to 35\); give it in a larger"
    ):
        SeriesWindows(series, history=4, horizon=2)


@pytest.mark.parametrize(
    ("time", "options", "message"),
    [
        (30, {}, "series: 30 rows are too few: its train part has 21, fewer than history 20 + horizon 5"),
        (40, {}, "series: 40 rows are too few: its validation part has 4, fewer than horizon 5; use a shorter"),
        (60, dict(fractions=(0.5, 0.45)), "series: 60 rows are too few: its test part has 3, fewer than horizon 5"),
        (90, dict(history=0), "history: expected at least 1, got 0"),
        (90, dict(horizon=0), "horizon: expected at least 1, got 0"),
        (90, dict(fractions=(0.9, 0.1)), "fractions: expected two positive numbers whose sum is less than 1"),
        (90, dict(constant="drop"), "constant: expected 'error' or 'keep', got 'drop'"),
    ],
)
def test_series_that_cannot_be_cut_are_named(time: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SeriesWindows(ramp(time), **{"history": 20, "horizon": 5, **options})
