"""The rules of the published routes: (height, width) -> cell indices in visiting order.

Sources are named at each rule. A rule of several walks gives them in the order in which the published parameters are
stacked.
"""

from __future__ import annotations

import numpy as np

from statescan.routes._route import Rule


def raster(height: int, width: int) -> np.ndarray:
    """Row by row."""
    return np.arange(height * width)


def column(height: int, width: int) -> np.ndarray:
    """Column by column, each from the top."""
    return raster(height, width).reshape(height, width).T.reshape(-1)


def cross(height: int, width: int) -> list[np.ndarray]:
    """Rows, columns, and both reversed. Liu et al. 2024, "VMamba", arXiv 2401.10166."""
    rows, columns = raster(height, width), column(height, width)
    return [rows, columns, rows[::-1], columns[::-1]]


def bidirectional(height: int, width: int) -> list[np.ndarray]:
    """Rows and rows reversed. Zhu et al. 2024, "Vision Mamba", arXiv 2401.09417."""
    rows = raster(height, width)
    return [rows, rows[::-1]]


def snake(height: int, width: int) -> list[np.ndarray]:
    """Rows, each turning back where the last ended; the same backwards; columns likewise. Yang et al. 2024,
    "PlainMamba", arXiv 2403.17695, section 3.3."""

    def turning(cells: np.ndarray) -> np.ndarray:
        cells = cells.copy()
        cells[1::2] = cells[1::2, ::-1]
        return cells.reshape(-1)

    grid = raster(height, width).reshape(height, width)
    rows, columns = turning(grid), turning(grid.T)
    return [rows, rows[::-1], columns, columns[::-1]]


RULES: dict[str, Rule] = {
    "raster": raster,
    "column": column,
    "cross": cross,
    "bidirectional": bidirectional,
    "snake": snake,
}
