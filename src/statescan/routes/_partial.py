"""Walks of a part of the grid each, walks that come again, and walks that visit tokens beside the grid."""

from __future__ import annotations

import numpy as np

from statescan.routes._snakes import cells
from statescan.routes._walks import column, raster


def atrous(height: int, width: int, *, step: int = 2) -> list[np.ndarray]:
    """One walk for each offset (row, column) below `step`, over every step-th cell: by rows where the row offset is
    even, by columns where it is odd. Together they visit every cell once. Pei et al. 2024, "EfficientVMamba", arXiv
    2403.09977, whose step is 2."""
    if step < 1:
        raise ValueError(f"step: at least 1, got {step}")
    padded = np.pad(cells(height, width), ((0, -height % step), (0, -width % step)), constant_values=-1)
    offsets = [(row, column) for column in range(step) for row in range(step)]
    parts = [padded[row::step, column::step] for row, column in offsets]
    return [(part.T if row % 2 else part).reshape(-1) for (row, _), part in zip(offsets, parts, strict=True)]


def multiscale_low(height: int, width: int) -> np.ndarray:
    """The coarse grid three times in one sequence: rows reversed, columns, columns reversed. Shi et al. 2024,
    "MSVMamba", arXiv 2405.14174."""
    columns = column(height, width)
    return np.concatenate([raster(height, width)[::-1], columns, columns[::-1]])


def middle_token(height: int, width: int) -> np.ndarray:
    """Rows, with one token in the middle. Zhu et al. 2024, "Vision Mamba", arXiv 2401.09417."""
    return np.insert(raster(height, width), height * width // 2, height * width)


def registers(height: int, width: int, *, count: int) -> np.ndarray:
    """Rows, with `count` tokens evenly between. Wang et al. 2024, "Mamba-R", arXiv 2405.14858."""
    if count < 1:
        raise ValueError(f"registers: at least 1, got {count}")
    length = height * width
    places = (np.arange(count) + 1) * (length // (count + 1))
    return np.insert(raster(height, width), places, length + np.arange(count))


def two_tokens(height: int, width: int) -> np.ndarray:
    """Rows, one token before and one after. Zhu et al. 2024, "Vision Mamba", arXiv 2401.09417."""
    length = height * width
    return np.concatenate([[length], raster(height, width), [length + 1]])
