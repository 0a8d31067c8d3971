"""Walks along diagonals."""

from __future__ import annotations

import numpy as np

from statescan.routes._route import Rule
from statescan.routes._snakes import cells, corners
from statescan.routes._walks import cross


def zigzag_of(view: np.ndarray) -> np.ndarray:
    """Anti-diagonals, the odd ones downwards, the even ones upwards."""
    rows, columns = np.indices(view.shape)
    diagonal = rows + columns
    order = np.lexsort((np.where(diagonal % 2, rows, -rows).reshape(-1), diagonal.reshape(-1)))
    return view.reshape(-1)[order]


def zigzag(height: int, width: int) -> np.ndarray:
    """Anti-diagonals from the top left, to and fro. Ji 2024, "MHS-VM", arXiv 2406.05992 (there X0)."""
    return zigzag_of(cells(height, width))


def zigzag_mirrored(height: int, width: int) -> np.ndarray:
    """The zigzag from the top right (there X1)."""
    return zigzag_of(cells(height, width)[:, ::-1])


def corners_jpeg(height: int, width: int) -> list[np.ndarray]:
    """The zigzag and its transpose from the four corners. Phung et al. 2024, "DiMSUM", arXiv 2411.04168; complete on
    grids of any size, where the published walks by rows leave cells out for odd sides."""
    return [zigzag_of(view) for view in corners(height, width)]


def diagonal(height: int, width: int) -> np.ndarray:
    """Anti-diagonals from the top left, each from its top."""
    rows, columns = np.indices((height, width))
    return np.argsort((rows + columns).reshape(-1), kind="stable")


def eight(height: int, width: int) -> list[np.ndarray]:
    """The cross, then falling and rising diagonals that go on at the other side, and both reversed. Ma et al. 2024,
    "FER-YOLO-Mamba", arXiv 2405.01828."""
    rows, start = np.arange(height), np.arange(width)[:, None]
    falling = (rows * width + (start + rows) % width).reshape(-1)
    rising = (rows * width + (start - rows) % width).reshape(-1)
    return [*cross(height, width), falling, rising, falling[::-1], rising[::-1]]


RULES: dict[str, Rule] = {
    "zigzag": zigzag,
    "zigzag_mirrored": zigzag_mirrored,
    "corners_jpeg": corners_jpeg,
    "diagonal": diagonal,
    "eight": eight,
}
