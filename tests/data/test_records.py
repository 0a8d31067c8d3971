"""Electrocardiograms: WFDB files, diagnoses, parts, sets, and the made ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb

from statescan.data import (
    LEADS,
    MADE_DIAGNOSES,
    make_ecg,
    make_records,
    read_record,
    read_record_header,
    read_records,
    record_parts,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    make_records(folder / "mat", 12, seconds=4, seed=2)
    make_records(folder / "dat", 3, seconds=4, seed=2, form="dat")
    make_records(folder / "slow", 1, seconds=21.3, rate=257, seed=2)
    return folder


def write(folder: Path, name: str, signals: np.ndarray, leads: list[str], units: str = "mV", dx: str = "426783006"):
    wfdb.wrsamp(
        name,
        fs=500,
        units=[units] * len(leads),
        sig_name=leads,
        p_signal=signals,
        fmt=["16"] * len(leads),
        comments=[f" Dx: {dx}"] if dx else [],
        write_dir=str(folder),
    )


def test_both_published_forms_are_read(made: Path) -> None:
    header = read_record_header(made / "mat" / "A00001.hea")
    assert header.leads == LEADS and header.rate == 500 and header.samples == 2000 and header.seconds == 4
    assert header.name == "A00001" and header.age is not None and header.sex in ("Male", "Female")
    assert set(header.codes) <= set(MADE_DIAGNOSES)
    one, other = (read_record(made / form / "A00001") for form in ("mat", "dat"))
    assert one.shape == (2000, 12) and one.dtype == np.float32
    assert np.abs(one - other).max() < 2.1e-3, "both count in thousandths of a millivolt"
    digital = wfdb.rdrecord(str(made / "mat" / "A00001"), physical=False)
    sums = [(a - b) % 65536 for a, b in zip(digital.checksum, digital.calc_checksum(), strict=True)]
    assert not any(sums), "headers are whole; checksums count with a sign or without"


def test_leads_come_in_the_order_asked_for_in_millivolts(tmp_path: Path) -> None:
    signals = np.random.default_rng(0).normal(size=(50, 3))
    write(tmp_path, "a", signals, ["AVR", "ii", "V1"])
    write(tmp_path, "b", 1000 * signals, ["AVR", "ii", "V1"], units="uV")
    for name in ("a", "b"):
        assert np.allclose(read_record(tmp_path / name, leads=("II", "aVR")), signals[:, [1, 0]], atol=1e-3)
    with pytest.raises(
        ValueError, match=r"a has no lead I, III, .*V6; it has AVR, ii, V1; name the leads .*missing='zeros'"
    ):
        read_record(tmp_path / "a")
    filled = read_record(tmp_path / "a", missing="zeros")
    assert filled.shape == (50, 12) and not filled[:, 0].any() and filled[:, LEADS.index("V1")].any()


def test_samples_without_a_value_are_named_or_zero(tmp_path: Path) -> None:
    signals = np.random.default_rng(0).normal(size=(50, 2))
    signals[10:13, 1] = np.nan
    write(tmp_path, "a", signals, ["I", "II"])
    with pytest.raises(ValueError, match="a has 3 samples without a value in lead II"):
        read_record(tmp_path / "a", leads=("I", "II"))
    assert not read_record(tmp_path / "a", leads=("I", "II"), missing="zeros")[10:13, 1].any()


def test_other_rates_are_resampled(tmp_path: Path) -> None:
    time = np.arange(2000) / 500
    write(tmp_path, "a", np.sin(2 * np.pi * 3 * time)[:, None], ["I"])
    for rate in (250, 1000, 360):
        read = read_record(tmp_path / "a", leads=("I",), rate=rate)[:, 0]
        assert len(read) == -(-2000 * rate // 500)
        wanted = np.sin(2 * np.pi * 3 * np.arange(len(read)) / rate)
        assert np.abs(read - wanted)[rate // 5 : -rate // 5].max() < 0.01


@pytest.mark.parametrize("rate", [500, None, 100, 257])
@pytest.mark.parametrize("seconds", [2, 7.7, 1000])
def test_parts_are_the_whole(made: Path, rate: float | None, seconds: float) -> None:
    path = made / "slow" / "A00001"
    parts = list(record_parts(path, seconds=seconds, rate=rate))
    assert (len(parts) == 1) == (seconds == 1000)
    assert np.abs(np.concatenate(parts) - read_record(path, rate=rate)).max() < 1e-6


def test_sets_have_classes_of_diagnoses(made: Path) -> None:
    records = read_records(made / "mat", least=1)
    assert len(records) == 12 and records.targets.shape == (12, len(records.classes))
    for header, row in zip(records.headers, records.targets, strict=True):
        shown = {name for name, there in zip(records.classes, row, strict=True) if there}
        assert {name.split("|")[-1] for name in shown} == {c for c in header.codes if c != "427172004"} | (
            {"17338001"} if "427172004" in header.codes else set()
        )
    named = read_records(made / "mat", classes=("164909002", "733534002"))
    assert named.classes == ("733534002|164909002",), "two codes of one meaning are one class"
    assert records.signals(3).shape == (2000, 12) and records.signals(3) is records.signals(3)
    few, others = records.split(0.25, seed=0)
    assert len(few) == 3 and len(others) == 9
    assert {h.name for h in few.headers} | {h.name for h in others.headers} == {h.name for h in records.headers}
    assert [h.name for h in records.split(0.25, seed=0)[0].headers] == [h.name for h in few.headers]


def test_what_is_wrong_with_records_is_said(made: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="records: no folder"):
        read_records(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"records: no \.hea file in"):
        read_records(tmp_path)
    with pytest.raises(ValueError, match="classes: no diagnosis has 13 records"):
        read_records(made / "mat", least=13)
    write(tmp_path, "a", np.zeros((50, 1)), ["I"], dx="")
    with pytest.raises(ValueError, match="has a comment Dx with codes of diagnoses"):
        read_records(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"record: no file '.*b\.hea'"):
        read_record(tmp_path / "b")
    (tmp_path / "c.hea").write_text("this is no header\n")
    with pytest.raises(ValueError, match="is no header of a WFDB record"):
        read_record(tmp_path / "c")
    (tmp_path / "a.dat").unlink()
    with pytest.raises(FileNotFoundError, match="record: a: its signals are not there"):
        read_record(tmp_path / "a", leads=("I",))
    for call, message in (
        (lambda: read_record(made / "mat" / "A00001", rate=0), "rate: expected a positive number of samples"),
        (lambda: read_record(made / "mat" / "A00001", missing="skip"), "missing: unknown 'skip'; known: error, zeros"),  # type: ignore[arg-type]
        (lambda: list(record_parts(made / "mat" / "A00001", seconds=0)), "seconds: expected a positive number, got 0"),
        (lambda: make_records(tmp_path, 0), "count: expected at least 1, got 0"),
        (lambda: make_records(tmp_path, 1, form="edf"), "form: unknown 'edf'; known: mat, dat"),  # type: ignore[arg-type]
        (lambda: make_ecg(("1",), np.random.default_rng()), "codes: unknown '1'; known: 426783006"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_made_records_show_what_they_say() -> None:
    def record(code: str) -> np.ndarray:
        return make_ecg((code,), np.random.default_rng(5), seconds=30)

    def beats(signal: np.ndarray) -> np.ndarray:
        high = signal > 0.6 * signal.max()
        starts = np.flatnonzero(high[1:] & ~high[:-1])
        return starts[np.append(True, np.diff(starts) > 100)]

    regular, irregular = (np.diff(beats(record(code)[:, 1])) for code in ("426783006", "164889003"))
    assert regular.std() / regular.mean() < 0.05 < 0.12 < irregular.std() / irregular.mean()
    narrow, wide = ((record(code)[:, 1] > 0.5).mean() for code in ("426783006", "164909002"))
    assert wide > 1.3 * narrow
    assert np.array_equal(record("426783006"), record("426783006"))
