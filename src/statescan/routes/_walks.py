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


def cross_unidirectional(height: int, width: int) -> list[np.ndarray]:
    """Rows, four times: the ablation of the same paper."""
    return [raster(height, width)] * 4


def cross_bidirectional(height: int, width: int) -> list[np.ndarray]:
    """Rows twice, rows reversed twice: the ablation of the same paper."""
    rows = raster(height, width)
    return [rows, rows, rows[::-1], rows[::-1]]


def quarter_turns(height: int, width: int) -> list[np.ndarray]:
    """Rows of the grid turned by no, one, two and three quarters, counterclockwise; a variant in VMamba's code."""
    grid = raster(height, width).reshape(height, width)
    return [np.rot90(grid, turns).reshape(-1) for turns in range(4)]


def column_of_transposed(height: int, width: int) -> np.ndarray:
    """What LocalMamba's published code takes for the way back from columns: that of a grid of width x height."""
    return column(width, height)


RULES: dict[str, Rule] = {
    "raster": raster,
    "column": column,
    "column_of_transposed": column_of_transposed,
    "cross": cross,
    "bidirectional": bidirectional,
    "cross_unidirectional": cross_unidirectional,
    "cross_bidirectional": cross_bidirectional,
    "quarter_turns": quarter_turns,
}
