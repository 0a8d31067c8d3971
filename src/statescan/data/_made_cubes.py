"""A hyperspectral cube made for tests and demonstrations: fields of six materials, mixed, lit unevenly, with noise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from statescan.data._cubes import Cube

#: Materials measured in laboratories that come with the package `spectral` (ECOSTRESS and RELAB), whole from 0.4 to 2.5 µm.
_MEASURED = {
    "concrete": "ecostress/a.spectrum.txt",
    "lichen": "ecostress/b.spectrum.txt",
    "maple leaf": "ecostress/c.spectrum.txt",
    "mineral": "relab/data/mem/mm/bkr1mm074ws.asc",
}
#: Materials of the made cube as parts of these.
_MIXTURES = {
    "concrete": {"concrete": 1.0},
    "lichen": {"lichen": 1.0},
    "maple leaf": {"maple leaf": 1.0},
    "mineral": {"mineral": 1.0},
    "leaves over concrete": {"maple leaf": 0.5, "concrete": 0.5},
    "lichen over mineral": {"lichen": 0.5, "mineral": 0.5},
}


def material_spectra(bands: int = 100) -> tuple[np.ndarray, tuple[str, ...], bool]:
    """Reflectance of six materials (6, bands) from 0.4 to 2.5 µm, their names, and whether measured spectra are in them.

    Four were measured in laboratories and come with the package `spectral`; two are equal mixtures of those. Without that
    package all are smooth curves drawn by a fixed seed.
    """
    wavelengths = np.linspace(0.4, 2.5, bands)
    names = tuple(_MIXTURES)
    try:
        import spectral
    except ImportError:
        spectral = None
    folder = Path(spectral.__file__).parent / "tests" / "data" if spectral is not None else None
    if folder is None or not all((folder / name).is_file() for name in _MEASURED.values()):
        return smooth_spectra(len(names), bands), tuple(f"curve {n + 1}" for n in range(len(names))), False
    measured = {}
    for name, file in _MEASURED.items():
        pairs = re.findall(
            r"^\s*([\d.]+)\s+([\d.eE+-]+)\s*$", (folder / file).read_text(errors="replace"), re.MULTILINE
        )
        table = np.array([pair for pair in pairs if float(pair[0]) > 0], dtype=np.float64)
        # ECOSTRESS counts in micrometres and percent, RELAB in nanometres and parts of one.
        scale = (1.0, 0.01) if file.startswith("ecostress") else (1e-3, 1.0)
        table = table[np.argsort(table[:, 0])] * scale
        measured[name] = np.interp(wavelengths, table[:, 0], table[:, 1])
    mixed = [sum(part * measured[name] for name, part in parts.items()) for parts in _MIXTURES.values()]
    return np.stack(mixed), names, True


def smooth_spectra(materials: int, bands: int, *, seed: int = 0) -> np.ndarray:
    """Smooth curves between 0.05 and 0.7, sums of wide bumps: (materials, bands)."""
    generator = np.random.default_rng(seed)
    place = np.linspace(0, 1, bands)
    curves = np.zeros((materials, bands))
    for curve in curves:
        for _ in range(5):
            centre, width, height = generator.uniform(0, 1), generator.uniform(0.05, 0.3), generator.uniform(-1, 1)
            curve += height * np.exp(-0.5 * ((place - centre) / width) ** 2)
        curve -= curve.min()
        curve *= generator.uniform(0.3, 0.65) / max(curve.max(), 1e-9)
        curve += 0.05
    return curves


def make_cube(
    rows: int = 128,
    columns: int = 128,
    *,
    bands: int = 100,
    noise: float = 0.15,
    mixing: float = 0.35,
    lighting: float = 0.3,
    unlabelled: float = 0.3,
    field_size: float = 5.0,
    seed: int = 0,
) -> Cube:
    """A cube of fields of six materials, made for the purpose: no camera took it.

    Arguments:
        rows, columns: pixels.
        bands: from 0.4 to 2.5 µm.
        noise: deviation of the noise of each value, in reflectance.
        mixing: greatest part of a second material within a pixel.
        lighting: how unevenly the scene is lit, over some pixels, as a part of the light.
        unlabelled: part of the pixels without a label, most of them where fields meet.
        field_size: smoothness of the fields, in pixels.
        seed: of everything.
    """
    if rows < 8 or columns < 8 or bands < 4:
        raise ValueError(f"rows, columns, bands: at least 8, 8 and 4, got {rows}, {columns}, {bands}")
    generator = np.random.default_rng(seed)
    spectra, names, _ = material_spectra(bands)
    heights = np.stack([_smooth(generator, rows, columns, field_size) for _ in names], -1)
    order = np.argsort(heights, -1)
    here, other = order[..., -1], order[..., -2]
    top = np.take_along_axis(heights, order[..., -2:], -1)
    clear = top[..., 1] - top[..., 0]  # how far the first material leads before the second
    part = mixing * np.exp(-clear / 0.5) * generator.uniform(0.3, 1.0, clear.shape)
    values = (1 - part)[..., None] * spectra[here] + part[..., None] * spectra[other]
    light = 1 + lighting * _smooth(generator, rows, columns, 2 * field_size) / 2
    values = values * np.clip(light, 0.3, 2.0)[..., None] + noise * generator.standard_normal(values.shape)
    labels = here + 1
    labels[clear < np.quantile(clear, unlabelled)] = 0
    return Cube(values.astype(np.float32), labels, names)


def _smooth(generator: np.random.Generator, rows: int, columns: int, size: float) -> np.ndarray:
    """Gaussian noise without what is finer than some pixels, of deviation 1."""
    noise = np.fft.rfft2(generator.standard_normal((rows, columns)))
    squared = np.fft.fftfreq(rows)[:, None] ** 2 + np.fft.rfftfreq(columns)[None] ** 2
    field = np.fft.irfft2(noise * np.exp(-2 * (np.pi * size) ** 2 * squared), (rows, columns))
    return (field - field.mean()) / field.std()
