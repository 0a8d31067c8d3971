"""Electrocardiograms made for tests and demonstrations: beats drawn as a moving dipole, with some abnormalities."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from statescan.data._records import LEADS

#: What made records can show: SNOMED CT codes and how it is drawn.
MADE_DIAGNOSES = {
    "426783006": "sinus rhythm: nothing of the others",
    "164889003": "atrial fibrillation: irregular beats without P waves, a fine tremor between them",
    "427172004": "premature ventricular contractions: some beats early, wide and without P wave",
    "164909002": "left bundle branch block: all beats wide",
    "429622005": "ST depression: a lowered line after each beat",
    "59931005": "T wave inversion: the last wave of each beat turned over",
}
#: Directions of the leads: right to left, down, back to front.
_FRONTAL = {"I": 0, "II": 60, "III": 120, "aVR": -150, "aVL": -30, "aVF": 90}
_CHEST = {"V1": 115, "V2": 94, "V3": 70, "V4": 45, "V5": 22, "V6": 0}


def _directions() -> np.ndarray:
    """(leads, 3)."""
    rows = [(np.cos(np.radians(_FRONTAL[lead])), np.sin(np.radians(_FRONTAL[lead])), 0.0) for lead in LEADS[:6]]
    rows += [(np.cos(np.radians(_CHEST[lead])), 0.15, np.sin(np.radians(_CHEST[lead]))) for lead in LEADS[6:]]
    return np.array(rows)


def made_diagnoses(generator: np.random.Generator) -> tuple[str, ...]:
    """Codes of one record: each abnormality by itself with probability 1/4, sinus rhythm where there is none."""
    codes = tuple(code for code in list(MADE_DIAGNOSES)[1:] if generator.random() < 0.25)
    return codes or ("426783006",)


def make_ecg(
    codes: tuple[str, ...], generator: np.random.Generator, *, seconds: float = 10.0, rate: float = 500
) -> np.ndarray:
    """One record with these of `MADE_DIAGNOSES`, in millivolts: (samples, 12). Made for the purpose, of no heart.

    Arguments:
        codes: of the diagnoses.
        generator: of everything random: rhythm, sizes and directions of the waves, noise.
        seconds, rate: of the record.
    """
    unknown = [code for code in codes if code not in MADE_DIAGNOSES]
    if unknown:
        raise ValueError(f"codes: unknown {unknown[0]!r}; known: {', '.join(MADE_DIAGNOSES)}")
    fibrillation, ectopic = "164889003" in codes, "427172004" in codes
    block, depression, inversion = (code in codes for code in ("164909002", "429622005", "59931005"))
    time = np.arange(round(seconds * rate)) / rate
    beat = 60 / generator.uniform(60, 110)
    dipole = np.zeros((len(time), 3))

    def add(centre: float, width: float, size: float, direction: tuple[float, float, float]) -> None:
        first, last = np.searchsorted(time, (centre - 5 * width, centre + 5 * width))
        bump = size * np.exp(-0.5 * ((time[first:last] - centre) / width) ** 2)
        dipole[first:last] += bump[:, None] * np.array(direction)

    tilt = generator.normal(0, 0.15, 3)
    sizes = generator.uniform(0.8, 1.25, 4)
    now = generator.uniform(-beat, 0)
    early = False
    while now < seconds + 1:
        wide = early
        spread = 2.4 if wide else 1.9 if block else 1.0
        turn = np.array([-0.7, 0.9, -0.6]) if wide else np.array([0.75, 0.75, -0.25]) + tilt
        axis = (float(turn[0]), float(turn[1]), float(turn[2]))
        if not (fibrillation or wide):
            add(now - 0.16, 0.022, 0.13 * sizes[0], (0.6, 0.8, 0.2))
        add(now - 0.028 * spread, 0.009 * spread, -0.12 * sizes[1], axis)
        add(now, 0.012 * spread, 1.15 * sizes[1] * (1.2 if wide else 1.0), axis)
        add(now + 0.03 * spread, 0.011 * spread, -0.22 * sizes[2], axis)
        if depression:
            add(now + 0.13, 0.035, -0.16 * sizes[2], (0.6, 0.7, 0.4))
        # A wide beat's last wave goes against it.
        sign = -1.0 if inversion != wide else 1.0
        add(now + 0.27 * min(1.2, beat / 0.75) ** 0.5, 0.05, 0.3 * sign * sizes[3], (0.6, 0.7, 0.3))
        length = beat * (generator.uniform(0.6, 1.5) if fibrillation else 1 + generator.normal(0, 0.02))
        # After an early beat there is a pause.
        length *= 1.35 if early else 1.0
        early = ectopic and not early and generator.random() < 0.3
        now += max(0.3, length * (0.62 if early else 1.0))
    if fibrillation:
        tremor = generator.uniform(5, 8)
        phase = 2 * np.pi * tremor * time + 1.5 * np.sin(2 * np.pi * 0.7 * time + generator.uniform(0, 6))
        dipole += 0.04 * np.sin(phase)[:, None] * np.array([0.5, 0.7, 0.6])
    signals = dipole @ _directions().T
    drift = np.sin(2 * np.pi * generator.uniform(0.1, 0.4) * time[:, None] + generator.uniform(0, 6, 12))
    mains = np.sin(2 * np.pi * 50 * time)[:, None] * generator.uniform(0, 0.01, 12)
    signals += generator.uniform(0, 0.15, 12) * drift + mains + generator.normal(0, 0.025, signals.shape)
    return (signals - signals.mean(0)).astype(np.float32)  # recorders let no constant through


def make_records(
    folder: str | os.PathLike[str],
    count: int = 200,
    *,
    seconds: float = 10.0,
    rate: float = 500,
    form: Literal["mat", "dat"] = "mat",
    seed: int = 0,
) -> None:
    """Write records of `make_ecg` in the published form of the challenges: WFDB headers with diagnoses, signals beside them.

    Arguments:
        folder: made if it is not there; files are named A00001, A00002, …
        count: records.
        seconds, rate: of each.
        form: of the signals: ``mat``, as in the challenges, or ``dat``.
        seed: record n depends on it and n alone.

    Raises:
        ValueError: for a number of records that is not positive, or an unknown form.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if form not in ("mat", "dat"):
        raise ValueError(f"form: unknown {form!r}; known: mat, dat")
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        generator = np.random.default_rng([seed, number])
        codes = made_diagnoses(generator)
        signals = make_ecg(codes, generator, seconds=seconds, rate=rate)
        name = f"A{number:05d}"
        comments = [f"Age: {generator.integers(20, 90)}", f"Sex: {'Female' if generator.random() < 0.5 else 'Male'}"]
        comments += [f"Dx: {','.join(codes)}", "Rx: Unknown", "Hx: Unknown", "Sx: Unknown"]
        if form == "dat":
            _write_dat(place, name, signals, rate, comments)
        else:
            _write_mat(place, name, signals, rate, comments)


def _write_dat(place: Path, name: str, signals: np.ndarray, rate: float, comments: list[str]) -> None:
    import wfdb

    wfdb.wrsamp(
        name,
        fs=rate,
        units=["mV"] * len(LEADS),
        sig_name=list(LEADS),
        p_signal=signals.astype(np.float64),
        fmt=["16"] * len(LEADS),
        adc_gain=[1000.0] * len(LEADS),
        baseline=[0] * len(LEADS),
        comments=comments,
        write_dir=str(place),
    )


def _write_mat(place: Path, name: str, signals: np.ndarray, rate: float, comments: list[str]) -> None:
    """A version 4 MATLAB file, whose first 24 bytes a WFDB header counts as an offset."""
    import scipy.io

    digital = np.clip(np.round(1000 * signals), -32767, 32767).astype(np.int16)
    scipy.io.savemat(place / f"{name}.mat", {"val": digital.T}, format="4")
    lines = [f"{name} {len(LEADS)} {rate:g} {len(digital)}"]
    for column, lead in zip(digital.T, LEADS, strict=True):
        check = int(column.sum(dtype=np.int64)) & 0xFFFF
        check -= (check > 0x7FFF) * 0x10000
        lines.append(f"{name}.mat 16+24 1000/mV 16 0 {column[0]} {check} 0 {lead}")
    lines += [f"#{comment}" for comment in comments]
    (place / f"{name}.hea").write_text("\n".join(lines) + "\n")
