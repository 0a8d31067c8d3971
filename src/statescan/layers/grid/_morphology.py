"""Grey-scale morphology as layers: dilation, erosion, and the convolutions that MorpMamba's code has in their place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dilation(x: Tensor, size: int, *, spectral: bool = False) -> Tensor:
    """The greatest value around each cell: δ(x)(p) = max over b in B of x(p + b), within the grid.

    Arguments:
        x: (batch, height, width, channels).
        size: B is a square of so many cells (odd), or with `spectral` so many neighbouring channels of one cell.

    Returns:
        the shape of x.
    """
    _check_size(size)
    if spectral:
        return F.max_pool1d(x.flatten(0, 2), size, 1, size // 2).view(x.shape)
    return F.max_pool2d(x.permute(0, 3, 1, 2), size, 1, size // 2).permute(0, 2, 3, 1)


def erosion(x: Tensor, size: int, *, spectral: bool = False) -> Tensor:
    """The smallest value around each cell, ε(x) = -δ(-x); arguments as `dilation`."""
    return -dilation(-x, size, spectral=spectral)


class Morphology(nn.Module):
    """Erosion and dilation of a grid's cells, side by side: (batch, height, width, channels) -> (…, 2 channels).

    Arguments:
        size: of the structuring element, odd.
        spectral: along the channels of each cell instead of over the grid.
    """

    def __init__(self, size: int, *, spectral: bool = False):
        super().__init__()
        _check_size(size)
        self.size, self.spectral = size, spectral

    def forward(self, x: Tensor) -> Tensor:
        """Erosion in the first half of the channels, dilation in the second."""
        return torch.cat([kind(x, self.size, spectral=self.spectral) for kind in (erosion, dilation)], -1)


class ConvolvedMorphology(nn.Module):
    """What MorpMamba's published code computes by those names: -conv(x) and conv(x), a kernel each, first all ones.

    No greatest or smallest value is ever taken. Along the spectrum the kernels slide over (channel, row), one a column of
    the grid, so that their number is the grid's width.

    Arguments:
        kernels: channels of the grid, or with `spectral` its columns.
        size: of the kernels, odd.
        spectral: over (channel, row) instead of (row, column).
    """

    def __init__(self, kernels: int, size: int, *, spectral: bool = False):
        super().__init__()
        _check_size(size)
        self.kernels, self.size, self.spectral = kernels, size, spectral
        self.erosion = nn.Parameter(torch.ones(kernels, 1, size, size))
        self.dilation = nn.Parameter(torch.ones(kernels, 1, size, size))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) -> the negative convolution, then the positive one (…, 2 channels)."""
        # As channels first: (batch, column, channel, row), or (batch, channel, row, column).
        turned = x.permute(0, 2, 3, 1) if self.spectral else x.permute(0, 3, 1, 2)
        if turned.shape[1] != self.kernels:
            axis = "columns" if self.spectral else "channels"
            raise ValueError(f"x: a grid of {self.kernels} {axis}, got shape {tuple(x.shape)}")
        halves = []
        for sign, weight in ((-1, self.erosion), (1, self.dilation)):
            made = sign * F.conv2d(turned, weight, padding=self.size // 2, groups=self.kernels)
            halves.append(made.permute(0, 3, 1, 2) if self.spectral else made.permute(0, 2, 3, 1))
        return torch.cat(halves, -1)


def _check_size(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size: an odd number of at least 1, got {size}")
