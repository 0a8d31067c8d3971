"""The Haar wavelet transform of grids, and the mixer of MobileMamba that has it beside a scan."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.grid._parts import ConvolutionNorm, GridConvolution
from statescan.layers.grid._ss2d import SS2D
from statescan.routes import Route


def haar_filters(channels: int) -> Tensor:
    """The four 2 x 2 filters of Haar's orthonormal transform for each channel, (4 channels, 1, 2, 2): means, differences
    of rows, differences of columns, differences of both. The inverse transform has the same."""
    low = torch.full((2,), math.sqrt(0.5))
    high = torch.tensor([1.0, -1.0]) * math.sqrt(0.5)
    bands = [torch.outer(rows, columns) for columns in (low, high) for rows in (low, high)]
    return torch.stack(bands)[:, None].repeat(channels, 1, 1, 1)


def wavelet_transform(grid: Tensor, filters: Tensor) -> Tensor:
    """(batch, height, width, channels) -> (batch, ceil(height / 2), ceil(width / 2), 4 channels), the bands of a channel
    side by side. Odd sides are padded with zeros at the bottom and the right."""
    height, width = grid.shape[1:3]
    padded = F.pad(grid, (0, 0, 0, width % 2, 0, height % 2))
    bands = F.conv2d(padded.permute(0, 3, 1, 2), filters, stride=2, groups=grid.shape[-1])
    return bands.permute(0, 2, 3, 1)


def inverse_wavelet_transform(bands: Tensor, filters: Tensor, height: int, width: int) -> Tensor:
    """The inverse: bands (batch, rows, columns, 4 channels) -> (batch, height, width, channels), what was padded cut."""
    channels = bands.shape[-1] // 4
    grid = F.conv_transpose2d(bands.permute(0, 3, 1, 2), filters, stride=2, groups=channels)
    return grid[:, :, :height, :width].permute(0, 2, 3, 1)


class WaveletConvolution(nn.Module):
    """Haar's transform, a depthwise convolution of the bands, a weight a band, and back. Finder et al. 2024, "Wavelet
    Convolutions for Large Receptive Fields", arXiv 2407.05848, of one level.

    The two filter banks are parameters that are not trained: published counts and checkpoints have them.

    Arguments:
        channels: of input and output.
        kernel: side of the depthwise kernels, odd.
        scale: first value of the weights.
    """

    def __init__(self, channels: int, kernel: int, *, scale: float = 0.1):
        super().__init__()
        self.analysis = nn.Parameter(haar_filters(channels), requires_grad=False)
        self.synthesis = nn.Parameter(haar_filters(channels), requires_grad=False)
        self.convolution = GridConvolution(
            4 * channels, 4 * channels, kernel, padding=kernel // 2, groups=4 * channels, bias=False
        )
        self.scale = nn.Parameter(torch.full((4 * channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same shape."""
        bands = self.convolution(wavelet_transform(x, self.analysis)) * self.scale
        return inverse_wavelet_transform(bands, self.synthesis, x.shape[1], x.shape[2])


class MultiReceptiveMixer(nn.Module):
    """Channels in three parts: a two-dimensional scan and a wavelet convolution added; two depthwise convolutions;
    nothing. Then ReLU and a 1 x 1 convolution over all. He et al. 2025, "MobileMamba", arXiv 2411.15941, section 3.3.

    Arguments:
        dim: channels of input and output.
        global_ratio: share of the first part, rounded to a multiple of 16 channels.
        local_ratio: share of the second part, cut to what is left.
        kernel: side of the depthwise kernels, odd.
        expand: inner channels of the scan over those of the first part.
        route: of the scan, by name or as a `routes.Route`.
        scan_activation: after the scan's norm, by name.
    """

    def __init__(
        self,
        dim: int,
        *,
        global_ratio: float,
        local_ratio: float,
        kernel: int,
        expand: float = 2.0,
        route: str | Route = "bidirectional",
        scan_activation: str = "identity",
    ):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel: odd, got {kernel}")
        first = int(int(global_ratio * dim) / 16 + 0.5) * 16
        second = min(int(local_ratio * dim), dim - first)
        if first < 0 or second < 0:
            raise ValueError(f"global_ratio: at most all {dim} channels after rounding to 16, got {global_ratio}")
        self.parts = (first, second, dim - first - second)
        if first:
            self.scan = SS2D(
                first,
                state_dim=1,
                expand=expand,
                route=route,
                initialisation="v2",
                projection=ConvolutionNorm,
                output_activation=scan_activation,
            )
            self.scan_scale = nn.Parameter(torch.ones(first))
            self.wavelet = WaveletConvolution(first, kernel)
        self.local = nn.Sequential()
        if second:
            self.local.append(ConvolutionNorm(second, second, kernel, groups=second, activation="relu"))
            self.local.append(ConvolutionNorm(second, second, groups=second))
        self.output_projection = ConvolutionNorm(dim, dim, norm_weight=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        first, second, third = x.split(self.parts, dim=-1)
        if self.parts[0]:
            first = self.scan(first) * self.scan_scale + self.wavelet(first)
        mixed = torch.cat([first, self.local(second), third], dim=-1)
        return self.output_projection(F.relu(mixed))
