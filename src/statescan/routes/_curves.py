"""Spirals and curves that fill the grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from statescan.routes._route import Rule
from statescan.routes._snakes import cells


def spiral_of(view: np.ndarray) -> np.ndarray:
    """The border clockwise from the top left, then what is inside it."""
    parts = []
    while view.size:
        parts.append(view[0])
        view = np.rot90(view[1:])  # what was the right side is now the top
    return np.concatenate(parts)


def spiral(height: int, width: int) -> np.ndarray:
    """Clockwise inwards from the top left. Ji 2024, "MHS-VM", arXiv 2406.05992 (there S0); also of one cell, where the
    published walk is empty."""
    return spiral_of(cells(height, width))


def spiral_mirrored(height: int, width: int) -> np.ndarray:
    """Counterclockwise inwards from the bottom left (there S1)."""
    return spiral_of(cells(height, width)[::-1])


def hilbert(height: int, width: int) -> np.ndarray:
    """Hilbert's curve over the next square with a power of two as its side, cells outside of the grid left out; it jumps
    where they are."""
    curve, side = np.zeros((1, 2), dtype=int), 1
    while side < max(height, width):
        turned = curve[:, ::-1]
        quarters = [turned, curve + [0, side], curve + [side, side], [2 * side - 1, side - 1] - turned]
        curve, side = np.concatenate(quarters), 2 * side
    rows, columns = curve.T
    inside = (rows < height) & (columns < width)
    return rows[inside] * width + columns[inside]


def gilbert(height: int, width: int) -> np.ndarray:
    """A Hilbert curve for rectangles, from neighbour to neighbour but for one diagonal step where the longer side is odd
    and the shorter even. Červený 2018, https://github.com/jakubcerveny/gilbert."""
    across, down = np.array([0, width]), np.array([height, 0])
    long, short = (across, down) if width >= height else (down, across)
    return np.array([row * width + column for row, column in _rectangle(np.zeros(2, int), long, short)])


def _rectangle(at: np.ndarray, long: np.ndarray, short: np.ndarray) -> Iterator[np.ndarray]:
    """Cells of the rectangle with a corner `at` and sides `long` and `short`, ending at the far end of `long`."""
    length, breadth = abs(long.sum()), abs(short.sum())
    along, aside = np.sign(long), np.sign(short)
    if breadth == 1 or length == 1:
        yield from (at + step * (along if breadth == 1 else aside) for step in range(max(length, breadth)))
        return
    half, side = long // 2, short // 2
    if 2 * length > 3 * breadth:
        half = half + along * (abs(half.sum()) % 2 and length > 2)  # even halves
        yield from _rectangle(at, half, short)
        yield from _rectangle(at + half, long - half, short)
    else:
        side = side + aside * (abs(side.sum()) % 2 and breadth > 2)
        yield from _rectangle(at, side, half)
        yield from _rectangle(at + side, long, short - side)
        yield from _rectangle(at + long - along + side - aside, -side, half - long)


def z_order(height: int, width: int) -> np.ndarray:
    """By Morton's code: bits of column and row in turn, the column's lower; cells outside of the grid left out."""
    rows, columns = np.indices((height, width))
    code = np.zeros((height, width), dtype=np.int64)
    for bit in range(max(height, width).bit_length()):
        code |= (columns >> bit & 1) << 2 * bit | (rows >> bit & 1) << 2 * bit + 1
    return np.argsort(code.reshape(-1))


def shuffle(height: int, width: int, *, seed: int) -> np.ndarray:
    """A random permutation, the same for a seed and a size. Chen et al. 2024, "RSMamba", arXiv 2403.19654; Huang et al.
    2024, "ShuffleMamba", arXiv 2408.17081."""
    return np.random.default_rng((seed, height, width)).permutation(height * width)


RULES: dict[str, Rule] = {
    "spiral": spiral,
    "spiral_mirrored": spiral_mirrored,
    "hilbert": hilbert,
    "gilbert": gilbert,
    "z_order": z_order,
}
