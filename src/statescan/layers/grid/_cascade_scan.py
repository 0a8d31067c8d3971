"""Rows both ways, then columns both ways: VMamba's cascade, an ablation. Liu et al. 2024, arXiv 2401.10166."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.layers.grid._route_scan import RouteScan
from statescan.routes import Route


class CascadeScan(RouteScan):
    """Every row is a sequence scanned forwards and backwards, the two added; then every column of the result.

    A norm without parameters stands before each half. Rows use the parameters 0 and 1, columns 2 and 3.

    Arguments:
        channels, state_dim, dt_rank, initialisation: those of `RouteScan`.
        aligned: turn the backward scans round before they are added. The published code does not: a cell gets what
            its mirror image left, and trained weights rely on it.
    """

    def __init__(self, channels: int, *, aligned: bool = False, **options: object):
        super().__init__(channels, 4, **options)  # type: ignore[arg-type]
        self.aligned = aligned

    def forward(self, grid: Tensor, route: Route | None = None) -> Tensor:
        """(batch, height, width, channels) to the same shape; the route is not asked."""
        shape = grid.shape[-1:]
        rows = self._lines(F.layer_norm(grid, shape), slice(0, 2))
        return self._lines(F.layer_norm(rows, shape).transpose(1, 2), slice(2, 4)).transpose(1, 2)

    def _lines(self, grid: Tensor, which: slice) -> Tensor:
        lines = grid.flatten(0, 1)
        y = self.scan(torch.stack([lines, lines.flip(1)], 2), which)
        forwards, backwards = y.unbind(2)
        total = forwards + (backwards.flip(1) if self.aligned else backwards)
        return total.unflatten(0, grid.shape[:2])
