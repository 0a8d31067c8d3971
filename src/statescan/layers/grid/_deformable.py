"""Deformable aggregation: each cell gathers nine others at learned places. Xiong et al. 2024, "DCNv4", arXiv 2401.06197."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.grid._parts import depthwise

#: Points of a kernel, and numbers for each: two offsets and a weight.
_POINTS = 9
_NUMBERS = 3 * _POINTS


def offset_channels(groups: int) -> int:
    """Channels of the offsets and weights of so many groups: 27 each, rounded up to a multiple of 8."""
    return math.ceil(_NUMBERS * groups / 8) * 8


def deformable_aggregation(values: Tensor, offsets: Tensor, *, groups: int, offset_scale: float = 1.0) -> Tensor:
    """y(r, c) = sum over nine points of w times the value at (r + s (j + dy), c + s (i + dx)), i and j from -1 to 1,
    between cells bilinear, outside of the grid zero. Points are counted column by column: i is the outer.

    Arguments:
        values: (batch, height, width, channels), split into groups of neighbouring channels.
        offsets: (batch, height, width, `offset_channels`): for each group nine pairs (dx, dy), then nine weights w, which
            are taken as they are; what is left over at the end is not read.
        groups: a divisor of the channels.
        offset_scale: s.

    Returns:
        (batch, height, width, channels).

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, height, width, channels = values.shape
    if groups < 1 or channels % groups:
        raise ValueError(f"groups: a divisor of the {channels} channels, got {groups}")
    expected = (batch, height, width, offset_channels(groups))
    if tuple(offsets.shape) != expected:
        raise ValueError(f"offsets: {expected} for {groups} groups, got {tuple(offsets.shape)}")
    numbers = offsets[..., : _NUMBERS * groups].unflatten(-1, (groups, _NUMBERS))
    numbers = numbers.permute(0, 3, 1, 2, 4).flatten(0, 1)  # (batch x groups, height, width, 27)
    steps, weights = numbers.split([2 * _POINTS, _POINTS], -1)
    image = values.unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    like: dict[str, Any] = {"device": values.device, "dtype": values.dtype}
    row, column = torch.arange(height, **like)[:, None, None], torch.arange(width, **like)[:, None]
    outer = torch.arange(_POINTS, device=values.device) // 3 - 1  # i; the inner one, j, runs fastest
    inner = torch.arange(_POINTS, device=values.device) % 3 - 1
    steps = steps.unflatten(-1, (_POINTS, 2))
    x_at = column + offset_scale * (outer + steps[..., 0])  # (batch x groups, height, width, 9)
    y_at = row + offset_scale * (inner + steps[..., 1])
    # `grid_sample` has the first cell's middle at 1 / size - 1. All points at once, as rows of one tall grid.
    places = torch.stack([(2 * x_at + 1) / width - 1, (2 * y_at + 1) / height - 1], -1).permute(0, 3, 1, 2, 4)
    sampled = F.grid_sample(image, places.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False)
    y = (sampled.unflatten(2, (_POINTS, height)) * weights.permute(0, 3, 1, 2).unsqueeze(1)).sum(2)
    return y.unflatten(0, (batch, groups)).permute(0, 3, 4, 1, 2).flatten(3)


class DeformableAggregation(nn.Module):
    """W_out deformable_aggregation(W_in x, W_o x), with offsets and weights that begin at zero.

    Arguments:
        channels: of input and output.
        groups: of channels that share offsets and weights.
        offset_scale: of the offsets.
        offset_kernel: side of a depthwise convolution before W_o; 0 for none.
        pointwise: whether W_in (with bias) and W_out (without) are there.
        output_bias: whether W_out has one after all.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        offset_scale: float = 1.0,
        offset_kernel: int = 0,
        pointwise: bool = True,
        output_bias: bool = False,
    ):
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"groups: a divisor of the {channels} channels, got {groups}")
        self.groups, self.offset_scale = groups, offset_scale
        self.offset_convolution = depthwise(channels, offset_kernel) if offset_kernel else nn.Identity()
        self.offset_projection = nn.Linear(channels, offset_channels(groups))
        self.input_projection = nn.Linear(channels, channels) if pointwise else nn.Identity()
        self.output_projection = nn.Linear(channels, channels, bias=output_bias) if pointwise else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets and weights zero; the projections Glorot uniform."""
        nn.init.zeros_(self.offset_projection.weight)
        nn.init.zeros_(self.offset_projection.bias)
        for projection in (self.input_projection, self.output_projection):
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same shape."""
        offsets = self.offset_projection(self.offset_convolution(x))
        y = deformable_aggregation(
            self.input_projection(x), offsets, groups=self.groups, offset_scale=self.offset_scale
        )
        return self.output_projection(y)
