"""Walks that turn back at every border, and walks from the corners."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from statescan.routes._route import Rule


def cells(height: int, width: int) -> np.ndarray:
    """The grid of cell indices: a walk over a mirrored, turned or transposed view of it is that walk of the grid."""
    return np.arange(height * width).reshape(height, width)


def snake_rows(view: np.ndarray) -> np.ndarray:
    """Rows from the top, to the right and to the left in turn."""
    turned = view.copy()
    turned[1::2] = view[1::2, ::-1]
    return turned.reshape(-1)


def snake(height: int, width: int) -> list[np.ndarray]:
    """Snakes by rows and by columns, each followed by its reverse. Yang et al. 2024, "PlainMamba", arXiv 2403.17695."""
    rows, columns = snake_pair(height, width)
    return [rows, rows[::-1], columns, columns[::-1]]


def snake_pair(height: int, width: int) -> list[np.ndarray]:
    """Snakes by rows and by columns. Ji 2024, "MHS-VM", arXiv 2406.05992 (there C0 and C1)."""
    grid = cells(height, width)
    return [snake_rows(grid), snake_rows(grid.T)]


def corners(height: int, width: int) -> Iterator[np.ndarray]:
    """Views of the grid from its corners, top left, top right, bottom left, bottom right: by rows, then by columns."""
    grid = cells(height, width)
    for view in (grid, grid[:, ::-1], grid[::-1], grid[::-1, ::-1]):
        yield view
        yield view.T


def corners_zigma(height: int, width: int) -> list[np.ndarray]:
    """Snakes from the four corners, by rows and by columns. Hu et al. 2024, "ZigMa", arXiv 2403.13802."""
    return [snake_rows(view) for view in corners(height, width)]


def corners_sweep(height: int, width: int) -> list[np.ndarray]:
    """The same without turning back. Phung et al. 2024, "DiMSUM", arXiv 2411.04168."""
    return [view.reshape(-1) for view in corners(height, width)]


def continuous(height: int, width: int) -> list[np.ndarray]:
    """Snakes by rows from top left and bottom left, by columns from bottom left and bottom right. Fu et al. 2024,
    "LaMamba-Diff", arXiv 2408.02615."""
    grid = cells(height, width)
    return [snake_rows(view) for view in (grid, grid[::-1], grid[::-1].T, grid[::-1, ::-1].T)]


def nested_s(height: int, width: int, *, stripe: int, shift: int = 0) -> list[np.ndarray]:
    """S-shaped stripes: of the grid, turned by 180 degrees, transposed, transposed and turned. Li et al. 2025, "MaIR",
    arXiv 2412.20066."""
    if stripe < 1 or not shift >= 0:
        raise ValueError(f"stripe, shift: at least 1 and 0, got {stripe} and {shift}")

    def walk(view: np.ndarray) -> np.ndarray:
        starts = [*([0] if shift else []), *range(shift, view.shape[1], stripe), view.shape[1]]
        parts = [view[:, start:stop] for start, stop in zip(starts[:-1], starts[1:], strict=True)]
        return np.concatenate([snake_rows(part[:: -1 if index % 2 else 1]) for index, part in enumerate(parts)])

    upright, transposed = walk(cells(height, width)), walk(cells(height, width).T)
    last = height * width - 1
    return [upright, last - upright, transposed, last - transposed]


RULES: dict[str, Rule] = {
    "snake": snake,
    "snake_pair": snake_pair,
    "corners_zigma": corners_zigma,
    "corners_sweep": corners_sweep,
    "continuous": continuous,
}
