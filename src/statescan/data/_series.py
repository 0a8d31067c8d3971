"""Time series from a table: read with every doubt named, cut into windows of a history and what followed it."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from statescan._names import nearest

#: First words of names by which a time column is known when none is named.
_TIMES = ("date", "datetime", "time", "timestamp", "ds")
#: Cells that say that there is no number.
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_DELIMITERS = ("\t", ";", ",")


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers over time.

    Fields:
        values: (time, channels), float64, none missing.
        columns: the channels' names.
        times: (time,) of datetime64 or numbers, or None where the table has no time column.
    """

    values: np.ndarray
    columns: tuple[str, ...]
    times: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)


def read_series(
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    time_column: str | None = None,
    delimiter: str | None = None,
    missing: Literal["error", "interpolate"] = "error",
) -> Series:
    """Read a table with a row a point in time.

    A first row of numbers alone is no header; its columns are called 1, 2, … The time column holds numbers or ISO 8601
    (``2010-01-31``, ``2010/01/31 06:00``), one row after the other at even steps.

    Arguments:
        source: a CSV or TSV file, or a data frame.
        columns: channels to take, in this order; None is all but the time column.
        time_column: its name; None takes the first called date, datetime, time, timestamp or ds, if there is one.
        delimiter: between cells; None is what the first row has most of: tab, semicolon or comma.
        missing: what to do about empty cells and rows that are not there: tell, or fill by linear interpolation (at
            the ends with the nearest number).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what cannot be read, by row (the first is that after the header) and column.
    """
    if missing not in ("error", "interpolate"):
        raise ValueError(f"missing: expected 'error' or 'interpolate', got {missing!r}")
    table = _of_frame(source) if hasattr(source, "columns") else _of_file(source, delimiter)
    if time_column is None:
        time_column = next((name for name in table if _is_time(name) and name not in (columns or ())), None)
    else:
        _check_columns("time_column", [time_column], table)
    if columns is None:
        columns = [name for name in table if name != time_column]
    _check_columns("columns", columns, table)
    if not columns:
        raise ValueError("columns: the table has no column of numbers beside that of the time")
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns: expected different names, got {', '.join(columns)}")
    values = np.stack([_numbers(table[name], name) for name in columns], axis=1)
    times = None
    if time_column is not None:
        times = _times(table[time_column], time_column)
        values, times = _even(values, times, time_column, fill=missing == "interpolate")
    return Series(_whole(values, columns, fill=missing == "interpolate"), tuple(columns), times)


@dataclass(frozen=True)
class ForecastBatch:
    """Windows of a series.

    Fields:
        inputs: (batch, history, channels), float32.
        targets: (batch, horizon, channels): what followed.
    """

    inputs: Tensor
    targets: Tensor


class SeriesWindows:
    """A series in three parts, one after the other in time, standardised by the first.

    Every target of a part lies within it; its histories may reach back into the part before.

    Arguments:
        series: what to cut.
        history: points in time that a forecast is made from.
        horizon: points in time to forecast.
        fractions: of the training and of the validation part; the rest is the test part.
        constant: what to do about a channel that is the same throughout the training part, whose standard deviation is
            zero: tell, or keep it (less its mean).

    Attributes:
        values: (time, channels), float32 tensor in units of the training part's standard deviation.
        mean, scale: (channels,), float64: values * scale + mean are the given numbers.
        parts: of train, validation and test: the points in time where targets may begin.

    Raises:
        ValueError: for a series that is too short, or constant.
    """

    def __init__(
        self,
        series: Series,
        *,
        history: int,
        horizon: int,
        fractions: tuple[float, float] = (0.7, 0.1),
        constant: Literal["error", "keep"] = "error",
    ) -> None:
        for name, value in (("history", history), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        check_fractions(fractions)
        if constant not in ("error", "keep"):
            raise ValueError(f"constant: expected 'error' or 'keep', got {constant!r}")
        self.series, self.history, self.horizon = series, history, horizon
        time = len(series)
        ends = [0, round(time * fractions[0]), round(time * sum(fractions)), time]
        self.parts: dict[str, range] = {}
        for name, first, last in zip(("train", "validation", "test"), ends, ends[1:], strict=False):
            self.parts[name] = range(max(first, history), last - horizon + 1)
            if not self.parts[name]:
                needed = (f"history {history} + horizon {horizon}") if name == "train" else f"horizon {horizon}"
                raise ValueError(
                    f"series: {time} rows are too few: its {name} part has {last - first}, fewer than {needed}; "
                    "use a shorter history or horizon, other fractions, or a longer series"
                )
        self.training_rows = ends[1]
        train = series.values[: ends[1]]
        with np.errstate(over="ignore", invalid="ignore"):
            self.mean, self.scale = train.mean(0), train.std(0)
        vast = ~(np.isfinite(self.mean) & np.isfinite(self.scale))
        if vast.any():
            names = ", ".join(repr(series.columns[index]) for index in np.nonzero(vast)[0])
            raise ValueError(
                f"series: {names} holds numbers too large for a standard deviation in the training part (rows 1 to "
                f"{ends[1]}); give it in a larger unit, or leave it out (columns)"
            )
        flat = self.scale <= 1e-12 * np.maximum(1.0, np.abs(self.mean))
        if flat.any() and constant == "error":
            names = ", ".join(repr(series.columns[index]) for index in np.nonzero(flat)[0])
            raise ValueError(
                f"series: {names} is constant in the training part (rows 1 to {ends[1]}), so it cannot be standardised; "
                "leave it out (columns) or keep it (constant='keep')"
            )
        self.scale = np.where(flat, 1.0, self.scale)
        self.values = torch.from_numpy(((series.values - self.mean) / self.scale).astype(np.float32))

    @property
    def channels(self) -> int:
        """Channels of the series."""
        return self.values.shape[1]

    def batch(self, starts: Any) -> ForecastBatch:
        """The windows whose targets begin at these points in time."""
        first = torch.as_tensor(np.asarray(starts, dtype=np.int64))[:, None]
        return ForecastBatch(
            self.values[first + torch.arange(-self.history, 0)], self.values[first + torch.arange(self.horizon)]
        )

    def batches(self, part: str, batch_size: int) -> Iterator[ForecastBatch]:
        """All windows of a part in the order of time; the last batch may be smaller."""
        starts = self.parts[part]
        for first in range(0, len(starts), batch_size):
            yield self.batch(starts[first : first + batch_size])

    def restored(self, values: Any) -> np.ndarray:
        """Standardised numbers (..., channels) in the given units."""
        return np.asarray(values, dtype=np.float64) * self.scale + self.mean


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise unless these are sizes of a training and a validation part that leave a test part."""
    if len(fractions) != 2 or min(fractions) <= 0 or not sum(fractions) < 1 - 1e-9:
        raise ValueError(
            f"fractions: expected two positive numbers whose sum is less than 1, got {tuple(fractions)}; the rest is "
            "the test part"
        )


def _of_frame(frame: Any) -> dict[str, list[Any]]:
    """Columns of a pandas or polars data frame; a named index of points in time is a column, too."""
    table = {str(name): list(frame[name]) for name in frame.columns}
    index = getattr(frame, "index", None)
    if index is not None and np.issubdtype(np.asarray(index).dtype, np.datetime64):
        table = {str(index.name or "time"): list(np.asarray(index)), **table}
    if not table or not next(iter(table.values())):
        raise ValueError("data: the data frame is empty")
    return table


def _of_file(path: str | os.PathLike[str], delimiter: str | None) -> dict[str, list[Any]]:
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"data: no file {str(place)!r}")
    try:
        text = place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"data: {str(place)!r} is not text; expected a CSV or TSV file in UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"data: {str(place)!r} is empty")
    if delimiter is None:
        delimiter = max(_DELIMITERS, key=lines[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    header = [str(number) for number in range(1, len(rows[0]) + 1)]
    if any(_number(cell) is None for cell in rows[0]):
        header, rows = rows[0], rows[1:]
    if not rows:
        raise ValueError(f"data: {str(place)!r} has a header and no rows")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"data: {str(place)!r} has more than one column called {repeated[0]!r}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"data: row {number} has {len(row)} cells, the header {len(header)}")
    return {name: list(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}


def _check_columns(argument: str, names: Sequence[str], table: dict[str, list[Any]]) -> None:
    for name in names:
        if name not in table:
            hint = nearest(name, table)
            raise ValueError(f"{argument}: no column {name!r}{hint}; the table has {', '.join(table)}")


def _number(cell: Any) -> float | None:
    """The number that a cell holds, NaN for one that says there is none, None for anything else."""
    if isinstance(cell, str) and cell.strip().lower() in _MISSING:
        return math.nan
    try:
        return math.nan if cell is None else float(cell)
    except (TypeError, ValueError):
        return None


def _is_time(name: str) -> bool:
    """Whether a column is called like one of points in time, for instance ``time (UTC)``."""
    return re.split(r"[^a-z]", name.strip().lower())[0] in _TIMES


def _numbers(cells: Sequence[Any], name: str) -> np.ndarray:
    numbers = np.empty(len(cells))
    for row, cell in enumerate(cells):
        number = _number(cell)
        if number is None or math.isinf(number):
            raise ValueError(
                f"data: row {row + 1}, column {name!r}: {cell!r} is not a finite number; leave such a column out "
                "(columns), or name it as the time (time_column)"
            )
        numbers[row] = number
    return numbers


def _times(cells: Sequence[Any], name: str) -> np.ndarray:
    numbers = [_number(cell) if isinstance(cell, (str, int, float, np.number)) else None for cell in cells]
    if all(number is not None and math.isfinite(number) for number in numbers):
        return np.array(numbers)
    times = []
    for row, cell in enumerate(cells):
        try:
            read = datetime.fromisoformat(cell.replace("/", "-")) if isinstance(cell, str) else cell
            if isinstance(read, datetime) and read.tzinfo is not None:
                read = (read - read.utcoffset()).replace(tzinfo=None)  # type: ignore[operator]
            time = np.datetime64(read, "us")
        except (TypeError, ValueError):
            time = np.datetime64("NaT", "us")
        if np.isnat(time):
            raise ValueError(
                f"data: row {row + 1}, column {name!r}: {cell!r} is no time; expected a number or ISO 8601, for instance "
                "2010-01-31 or 2010-01-31 06:00"
            )
        times.append(time)
    return np.array(times)


def shown_time(time: Any) -> str:
    """A point in time as it is written, without a fraction of zero seconds."""
    return str(time).removesuffix(".000000")


def _even(values: np.ndarray, times: np.ndarray, name: str, *, fill: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows at even steps: where some are not there, a row of NaN each, if they may be filled."""
    steps = np.diff(times)
    if not len(steps):
        return values, times
    zero = steps[0] - steps[0]
    if (steps <= zero).any():
        row = int(np.argmax(steps <= zero)) + 1
        now, before = shown_time(times[row]), shown_time(times[row - 1])
        raise ValueError(
            f"data: row {row + 1}, column {name!r}: {now} does not come after {before}; sort the rows by time and keep "
            "one of each"
        )
    usual = np.median(steps.astype(np.float64))
    # Months and years are not of one length, and clocks are read a little late: only what a whole row is missing from.
    absent = np.maximum(0, np.round(steps.astype(np.float64) / usual).astype(np.int64) - 1)
    if not absent.any():
        return values, times
    first = int(np.argmax(absent > 0)) + 1
    if not fill:
        before, after = shown_time(times[first - 1]), shown_time(times[first])
        raise ValueError(
            f"data: {int(absent.sum())} rows are not there, the first after row {first} ({before}; the next is {after}); "
            "fill them by missing='interpolate'"
        )
    if absent.sum() > 10 * len(values):
        raise ValueError(
            f"data: column {name!r}: the steps are uneven; {int(absent.sum())} rows would have to be added"
        )
    places = np.arange(len(times)) + np.concatenate([[0], np.cumsum(absent)])
    filled = np.full((places[-1] + 1, values.shape[1]), math.nan)
    filled[places] = values
    wanted = np.arange(len(filled))
    if np.issubdtype(times.dtype, np.datetime64):
        since = (times - times[0]) / np.timedelta64(1, "us")
        even = times[0] + np.round(np.interp(wanted, places, since)).astype("timedelta64[us]")
    else:
        even = np.interp(wanted, places, times)
    return filled, even


def _whole(values: np.ndarray, columns: Sequence[str], *, fill: bool) -> np.ndarray:
    """The values without any missing."""
    for channel, name in enumerate(columns):
        absent = np.isnan(values[:, channel])
        if not absent.any():
            continue
        if absent.all():
            raise ValueError(f"data: column {name!r} holds no number at all")
        if not fill:
            raise ValueError(
                f"data: {int(absent.sum())} numbers of column {name!r} are missing, the first in row "
                f"{int(np.argmax(absent)) + 1}; fill them by missing='interpolate'"
            )
        rows = np.arange(len(values))
        values[absent, channel] = np.interp(rows[absent], rows[~absent], values[~absent, channel])
    return values
