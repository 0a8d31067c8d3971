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


def column_of_transposed(height: int, width: int) -> np.ndarray:
    """What LocalMamba's published code takes for the way back from columns: that of a grid of width x height."""
    return column(width, height)


def cross(height: int, width: int) -> list[np.ndarray]:
    """Rows, columns, and both reversed. Liu et al. 2024, "VMamba", arXiv 2401.10166."""
    rows, columns = raster(height, width), column(height, width)
    return [rows, columns, rows[::-1], columns[::-1]]


def bidirectional(height: int, width: int) -> list[np.ndarray]:
    """Rows and rows reversed. Zhu et al. 2024, "Vision Mamba", arXiv 2401.09417."""
    rows = raster(height, width)
    return [rows, rows[::-1]]


def raster_x4(height: int, width: int) -> list[np.ndarray]:
    """Rows four times, each with parameters of its own. VMamba's ablation of routes."""
    return [raster(height, width)] * 4


def raster_x2_reverse_x2(height: int, width: int) -> list[np.ndarray]:
    """Rows twice, rows reversed twice. VMamba's ablation of routes."""
    rows = raster(height, width)
    return [rows, rows, rows[::-1], rows[::-1]]


def quarter_turns(height: int, width: int) -> list[np.ndarray]:
    """Rows of the grid turned anticlockwise by 0, 1, 2 and 3 quarters. VMamba, scan mode 3 of its single-file copy."""
    cells = raster(height, width).reshape(height, width)
    return [np.rot90(cells, turns).reshape(-1) for turns in range(4)]


def backwards(rule: Rule) -> Rule:
    """A rule's walks from their ends; padded places come first then."""

    def rule_backwards(height: int, width: int) -> list[np.ndarray]:
        walks = rule(height, width)
        return [walks[::-1]] if isinstance(walks, np.ndarray) else [walk[::-1] for walk in walks]

    return rule_backwards


def windows(side: int) -> Rule:
    """Windows of side x side in raster order, their cells in raster order; the grid is padded to whole windows. Huang
    et al. 2024, "LocalMamba", arXiv 2403.09338."""

    def rule(height: int, width: int) -> np.ndarray:
        rows, columns = -(-height // side), -(-width // side)
        padded = np.full((rows * side, columns * side), -1)
        padded[:height, :width] = raster(height, width).reshape(height, width)
        return padded.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1)

    return rule


def atrous_step2(height: int, width: int) -> list[np.ndarray]:
    """Four grids of every second cell: even rows and even columns by rows, odd rows and even columns by columns, even
    rows and odd columns by rows, odd and odd by columns. Pei et al. 2024, "EfficientVMamba", arXiv 2403.09977."""
    padded = np.full((height + height % 2, width + width % 2), -1)
    padded[:height, :width] = raster(height, width).reshape(height, width)
    parts = [padded[0::2, 0::2], padded[1::2, 0::2].T, padded[0::2, 1::2], padded[1::2, 1::2].T]
    return [part.reshape(-1) for part in parts]


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
    "raster_reversed": backwards(raster),
    "column": column,
    "column_reversed": backwards(column),
    "column_of_transposed": column_of_transposed,
    "column_of_transposed_reversed": backwards(column_of_transposed),
    "cross": cross,
    "bidirectional": bidirectional,
    "raster_x4": raster_x4,
    "raster_x2_reverse_x2": raster_x2_reverse_x2,
    "quarter_turns": quarter_turns,
    "atrous_step2": atrous_step2,
    "window2": windows(2),
    "window2_flip": backwards(windows(2)),
    "window7": windows(7),
    "window7_flip": backwards(windows(7)),
    "snake": snake,
}
