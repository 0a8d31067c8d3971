"""Electrocardiograms in WFDB files with diagnoses in their headers, as the PhysioNet/CinC challenges of 2020, 2021 have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

#: The twelve leads in the challenges' order.
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
#: Scored diagnoses that the challenges count as one.
EQUIVALENT_DIAGNOSES = (
    ("713427006", "59118001"),
    ("284470004", "63593006"),
    ("427172004", "17338001"),
    ("733534002", "164909002"),
)
#: What a unit is in millivolts.
_UNITS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "v": 1e3}


@dataclass(frozen=True)
class RecordHeader:
    """What a header file says of a record.

    Fields:
        path: of the files, without their suffixes.
        rate: samples a second.
        samples: of each lead.
        leads: their names.
        units: of the leads.
        codes: SNOMED CT codes of the diagnoses.
        age: years; None where it is not known.
        sex: as written.
    """

    path: str
    rate: float
    samples: int
    leads: tuple[str, ...]
    units: tuple[str, ...]
    codes: tuple[str, ...] = ()
    age: float | None = None
    sex: str = ""

    @property
    def name(self) -> str:
        """Of the record."""
        return Path(self.path).name

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples / self.rate


def read_record_header(path: str | os.PathLike[str]) -> RecordHeader:
    """The header of a record.

    Arguments:
        path: of its files, with or without the suffix ``.hea``.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is no header of a record with signals.
    """
    import wfdb

    place = Path(path)
    place = place.with_suffix("") if place.suffix in (".hea", ".mat", ".dat") else place
    if not place.with_name(place.name + ".hea").is_file():
        raise FileNotFoundError(f"record: no file {str(place) + '.hea'!r}")
    try:
        header = wfdb.rdheader(str(place))
        leads, units = header.sig_name, header.units
        rate, samples = float(header.fs), int(header.sig_len)
    except Exception as error:  # wfdb raises whatever its parser meets
        raise ValueError(f"record: {str(place)!r}.hea is no header of a WFDB record: {error}") from None
    if not leads or not samples or not rate > 0:
        raise ValueError(f"record: {str(place)!r}.hea names no signals")
    fields: dict[str, str] = {}
    for comment in header.comments:
        key, colon, value = comment.strip().lstrip("#").partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    codes = tuple(code.strip() for code in fields.get("dx", "").split(",") if code.strip())
    try:
        age: float | None = float(fields.get("age", ""))
    except ValueError:
        age = None
    return RecordHeader(
        str(place), rate, samples, tuple(leads), tuple(units), codes, None if age != age else age, fields.get("sex", "")
    )


def read_record(
    path: str | os.PathLike[str] | RecordHeader,
    *,
    rate: float | None = 500,
    leads: Sequence[str] = LEADS,
    missing: Literal["error", "zeros"] = "error",
    start: int = 0,
    stop: int | None = None,
) -> np.ndarray:
    """The signals of a record in millivolts: (samples, leads), float32.

    Arguments:
        path: of its files, or its header.
        rate: samples a second that are wanted; the record's own for None. Other rates are resampled (polyphase filter).
        leads: that are wanted, by name, in this order; capital letters do not matter.
        missing: what is done about leads that are not there, and samples without a value: an error, or ``zeros``.
        start, stop: samples of the file to read; all unless given.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: missing leads or samples, or a file that cannot be read.
    """
    header = path if isinstance(path, RecordHeader) else read_record_header(path)
    up, down = _ratio(header, rate)
    return _resampled(_raw(header, leads, missing, start, stop), up, down)


def record_parts(
    path: str | os.PathLike[str] | RecordHeader,
    *,
    seconds: float = 60.0,
    rate: float | None = 500,
    leads: Sequence[str] = LEADS,
    missing: Literal["error", "zeros"] = "error",
) -> Iterator[np.ndarray]:
    """The signals of a record part by part, in memory for one part: (samples, leads) each.

    One after the other they are what `read_record` gives: where a record is resampled, parts are read with as much of
    their neighbours as the filter sees.

    Arguments:
        seconds: of a part, about.
        path, rate, leads, missing: as `read_record`.
    """
    header = path if isinstance(path, RecordHeader) else read_record_header(path)
    if not seconds > 0:
        raise ValueError(f"seconds: expected a positive number, got {seconds}")
    up, down = _ratio(header, rate)
    step = max(1, round(seconds * header.rate / down)) * down
    # scipy's filter has 10 max(up, down) taps on either side, at up times the rate.
    halo = 0 if up == down else (10 * max(up, down) // (up * down) + 1) * down
    for start in range(0, header.samples, step):
        before = min(start, halo)
        stop = min(header.samples, start + step)
        some = _raw(header, leads, missing, start - before, min(header.samples, stop + halo))
        made = _resampled(some, up, down)
        first = before * up // down
        yield made[first : first + -(-(stop - start) * up // down)]


def _ratio(header: RecordHeader, rate: float | None) -> tuple[int, int]:
    if rate is None:
        return 1, 1
    if not rate > 0:
        raise ValueError(f"rate: expected a positive number of samples a second, got {rate}")
    ratio = (Fraction(rate) / Fraction(header.rate)).limit_denominator(10_000)
    return ratio.numerator, ratio.denominator


def _resampled(signals: np.ndarray, up: int, down: int) -> np.ndarray:
    if up == down:
        return signals
    from scipy.signal import resample_poly

    return np.ascontiguousarray(resample_poly(signals.astype(np.float64), up, down, axis=0), dtype=np.float32)


def _raw(header: RecordHeader, leads: Sequence[str], missing: str, start: int, stop: int | None) -> np.ndarray:
    import wfdb

    if missing not in ("error", "zeros"):
        raise ValueError(f"missing: unknown {missing!r}; known: error, zeros")
    there = {name.lower(): index for index, name in enumerate(header.leads)}
    absent = [name for name in leads if name.lower() not in there]
    if absent and (missing == "error" or len(absent) == len(leads)):
        raise ValueError(
            f"record: {header.name} has no lead {', '.join(absent)}; it has {', '.join(header.leads)}; name the leads to "
            "read (leads) or have the missing ones filled with zeros (missing='zeros')"
        )
    try:
        read = wfdb.rdrecord(header.path, sampfrom=start, sampto=stop, return_res=32).p_signal
    except FileNotFoundError as error:
        raise FileNotFoundError(f"record: {header.name}: its signals are not there: {error.filename}") from None
    except Exception as error:  # wfdb raises whatever it meets in a damaged file
        raise ValueError(f"record: the signals of {header.path!r} cannot be read: {error}") from None
    signals = np.zeros((len(read), len(leads)), dtype=np.float32)
    for column, name in enumerate(leads):
        index = there.get(name.lower())
        if index is not None:
            signals[:, column] = read[:, index] * _UNITS.get(header.units[index].lower(), 1.0)
    unknown = ~np.isfinite(signals)
    if unknown.any():
        if missing == "error":
            bad = ", ".join(leads[int(column)] for column in np.flatnonzero(unknown.any(0)))
            raise ValueError(
                f"record: {header.name} has {int(unknown.sum())} samples without a value in lead {bad}; have them filled "
                "with zeros (missing='zeros'), or leave the record out"
            )
        signals[unknown] = 0.0
    return signals


# -- sets of records --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordSet:
    """Records with diagnoses, read from their files when they are asked for.

    Fields:
        headers: of the records.
        targets: (records, classes), bool.
        classes: codes; several of one meaning joined by ``|``.
        rate, leads, missing: as `read_record`.
        keep: records whose signals are kept in memory once read.
    """

    headers: tuple[RecordHeader, ...]
    targets: np.ndarray
    classes: tuple[str, ...]
    rate: float = 500
    leads: tuple[str, ...] = LEADS
    missing: Literal["error", "zeros"] = "error"
    keep: int = 2000
    _read: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.headers)

    def signals(self, index: int) -> np.ndarray:
        """(samples, leads), millivolts."""
        if index not in self._read:
            signals = read_record(self.headers[index], rate=self.rate, leads=self.leads, missing=self.missing)
            if len(self._read) >= self.keep:
                return signals
            self._read[index] = signals
        return self._read[index]

    def select(self, index: Sequence[int] | np.ndarray) -> RecordSet:
        """Those of these numbers, in this order."""
        headers = tuple(self.headers[i] for i in index)
        chosen = self.targets[np.asarray(index, dtype=np.int64)]
        return RecordSet(headers, chosen, self.classes, self.rate, self.leads, self.missing, self.keep)

    def split(self, fraction: float, *, seed: int) -> tuple[RecordSet, RecordSet]:
        """About this fraction of the records of each set of diagnoses, and the others; at least one of each."""
        if len(self) < 2:
            raise ValueError(f"records: {len(self)} cannot be split in two")
        order = np.random.default_rng(seed).permutation(len(self))
        # Like next to like, then every n-th one: both parts have the same diagnoses, as far as that goes.
        order = order[np.lexsort(self.targets[order].T)]
        wanted = min(len(self) - 1, max(1, round(fraction * len(self))))
        places = np.unique((np.arange(wanted) + 0.5) * len(self) / wanted).astype(np.int64)
        chosen = np.zeros(len(self), dtype=bool)
        chosen[order[places]] = True
        return self.select(np.flatnonzero(chosen)), self.select(np.flatnonzero(~chosen))


def read_records(
    folder: str | os.PathLike[str],
    *,
    classes: Sequence[str] = (),
    least: int = 10,
    rate: float = 500,
    leads: Sequence[str] = LEADS,
    missing: Literal["error", "zeros"] = "error",
) -> RecordSet:
    """All records in a folder and the folders in it that have a diagnosis.

    Diagnoses that the challenges count as one (`EQUIVALENT_DIAGNOSES`) are one class.

    Arguments:
        folder: with ``.hea`` files and their signals.
        classes: codes to tell, several of one meaning joined by ``|``; unless given, all that at least `least` records have.
        least: see `classes`.
        rate, leads, missing: as `read_record`.

    Raises:
        FileNotFoundError: where there is no such folder.
        ValueError: without records, diagnoses or classes.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"records: no folder {str(place)!r}")
    headers = [read_record_header(path) for path in sorted(place.rglob("*.hea"))]
    if not headers:
        raise ValueError(f"records: no .hea file in {str(place)!r}")
    headers = [header for header in headers if header.codes]
    if not headers:
        raise ValueError(f"records: no header in {str(place)!r} has a comment Dx with codes of diagnoses")
    same = {code: "|".join(group) for group in EQUIVALENT_DIAGNOSES for code in group}
    names: tuple[str, ...]
    if classes:
        names = tuple(same.get(code, code) for code in classes)
    else:
        counts = Counter(name for header in headers for name in {same.get(code, code) for code in header.codes})
        names = tuple(sorted(name for name, count in counts.items() if count >= least))
        if not names:
            raise ValueError(
                f"classes: no diagnosis has {least} records (the most frequent of {len(headers)} records: "
                f"{max(counts.values())}); name some, or lower `least`"
            )
    names = tuple(dict.fromkeys(names))
    return RecordSet(tuple(headers), targets_of(headers, names), names, rate, tuple(leads), missing)


def targets_of(headers: Sequence[RecordHeader], classes: Sequence[str]) -> np.ndarray:
    """Which class each record has: (records, classes), bool; a class ``a|b`` is there with either code."""
    groups = [set(name.split("|")) for name in classes]
    return np.array([[bool(group & set(header.codes)) for group in groups] for header in headers], dtype=bool)
