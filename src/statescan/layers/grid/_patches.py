"""From images to grids of patches, and from a grid to the next coarser one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.grid._parts import GridConvolution, grid_activation, resize_grid

#: Makes a norm of so many channels.
Norm = Callable[[int], nn.Module]


def pad_corner(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros at the bottom and the right of (batch, height, width, channels), so that a window of side `kernel` begins at
    every multiple of `stride`."""
    rows, columns = ((corner_cells(size, stride) - 1) * stride + kernel - size for size in x.shape[1:3])
    return F.pad(x, (0, 0, 0, max(columns, 0), 0, max(rows, 0)))


def corner_cells(size: int, stride: int) -> int:
    """How many windows begin along a side of so many cells, padded as in `pad_corner`."""
    return -(-size // stride)


class PatchEmbedding(nn.Module):
    """One convolution, then a norm if there is one. Dosovitskiy et al. 2021, arXiv 2010.11929.

    Arguments:
        in_channels: of the image.
        dim: channels of the patches.
        patch: side of a patch.
        stride: distance of neighbouring patches; below `patch` they overlap.
        norm: makes a norm of `dim` channels; None for none.
        bias: whether the convolution has one.
        corner: pad at the bottom and the right, so that a patch begins at every multiple of the stride.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        patch: int,
        *,
        stride: int | None = None,
        norm: Norm | None = None,
        bias: bool = True,
        corner: bool = False,
    ):
        super().__init__()
        self.corner = corner
        self.projection = GridConvolution(in_channels, dim, patch, stride=stride or patch, bias=bias)
        self.norm = norm(dim) if norm is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, in_channels) -> (batch, rows, columns, dim)."""
        if self.corner:
            x = pad_corner(x, self.projection.kernel_size[0], self.projection.stride[0])
        return self.norm(self.projection(x))


class OverlappingStem(nn.Sequential):
    """Two 3 x 3 convolutions of stride 2 with biases, a norm after each, an activation between: stride 4.

    Arguments:
        in_channels: of the image.
        dim: channels of the grid; half as many between.
        norm: makes a norm; None for none.
        inner_norm: whether there is one between the convolutions.
        patch: stride in all, even; each convolution has stride patch / 2 and a kernel one wider, padded by 1.
        activation: between the convolutions, by name.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        norm: Norm | None = nn.LayerNorm,
        inner_norm: bool = True,
        patch: int = 4,
        activation: str = "gelu",
    ):
        super().__init__()
        stride = patch // 2
        self.convolution1 = GridConvolution(in_channels, dim // 2, stride + 1, stride=stride, padding=1)
        self.norm1 = norm(dim // 2) if norm is not None and inner_norm else nn.Identity()
        self.activation = grid_activation(activation)
        self.convolution2 = GridConvolution(dim // 2, dim, stride + 1, stride=stride, padding=1)
        self.norm2 = norm(dim) if norm is not None else nn.Identity()


class PatchMerging(nn.Module):
    """Four neighbours into one: (0, 0), (1, 0), (0, 1), (1, 1) concatenated, norm, linear without bias. Liu et al.
    2021, "Swin Transformer", arXiv 2103.14030.

    Odd sides are padded with zeros at the bottom and the right.

    Arguments:
        dim: channels of the input.
        out_dim: channels of the output, 2 dim unless given.
        norm: makes a norm of 4 dim channels.
    """

    def __init__(self, dim: int, out_dim: int | None = None, *, norm: Norm = nn.LayerNorm):
        super().__init__()
        self.norm = norm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim or 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> (batch, ceil(height / 2), ceil(width / 2), out_dim)."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class ConvolutionDownsample(nn.Module):
    """A strided convolution with bias, then a norm.

    Arguments:
        dim, out_dim: channels.
        kernel: 2 (no padding) or 3 (padded by 1), of stride 2.
        norm: makes a norm.
        norm_first: whether it stands before the convolution.
    """

    def __init__(self, dim: int, out_dim: int, *, kernel: int = 3, norm: Norm = nn.LayerNorm, norm_first: bool = False):
        super().__init__()
        self.norm_first = norm_first
        self.convolution = GridConvolution(dim, out_dim, kernel, stride=2, padding=(kernel - 1) // 2)
        self.norm = norm(dim if norm_first else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> (batch, about half, about half, out_dim)."""
        if self.norm_first:
            return self.convolution(self.norm(x))
        return self.norm(self.convolution(x))


class PositionGrid(nn.Module):
    """A learned vector for each cell, added to the grid; interpolated bicubically where the grid has another size.

    Arguments:
        dim: channels.
        rows, columns: the grid of training.
        std: of its first values.
    """

    def __init__(self, dim: int, rows: int, columns: int, *, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, rows, columns, dim))
        nn.init.trunc_normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        return x + resize_grid(self.weight, x.shape[1], x.shape[2])
