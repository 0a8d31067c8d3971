"""Walks window by window."""

from __future__ import annotations

import numpy as np

from statescan.routes._snakes import cells


def window(height: int, width: int, *, size: int, column_first: bool = False) -> np.ndarray:
    """Windows of size x size cells in raster order, the cells of each in raster order; the grid padded at the bottom and
    at the right. With `column_first` both are in column order. Huang et al. 2024, "LocalMamba", arXiv 2403.09338."""
    if size < 1:
        raise ValueError(f"size: a window of at least 1, got {size}")
    padded = np.pad(cells(height, width), ((0, -height % size), (0, -width % size)), constant_values=-1)
    rows, columns = padded.shape[0] // size, padded.shape[1] // size
    windows = padded.reshape(rows, size, columns, size)
    return windows.transpose((2, 0, 3, 1) if column_first else (0, 2, 1, 3)).reshape(-1)
