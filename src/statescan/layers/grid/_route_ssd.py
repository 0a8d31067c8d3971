"""State-space duality along the walks of a route: the Mamba-2 form of `RouteScan`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from statescan import ops
from statescan.layers._precision import widen
from statescan.routes import Route


class RouteSSD(nn.Module):
    """For each walk k: [dt, B, C] = W_k x, delta = softplus(dt + b_k), then the scan with one decay a head. The ``m0``
    form in the code of VMamba (Liu et al. 2024, arXiv 2401.10166), after Dao and Gu 2024, arXiv 2405.21060.

    Arguments:
        channels: E, of the grid.
        walks: K.
        state_dim: N, states of each channel.
        heads: of each walk; they share the walk's B and C.
        initialisation: ``v1``: A_log normal, step biases 0.1 normal; ``v2``: A_log zero, step biases 0.1 uniform.
    """

    def __init__(
        self,
        channels: int,
        walks: int,
        *,
        state_dim: int = 64,
        heads: int,
        initialisation: Literal["v1", "v2"] = "v2",
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads: a divisor of the {channels} inner channels, got {heads}")
        if initialisation not in ("v1", "v2"):
            raise ValueError(f"initialisation: unknown {initialisation!r}; known with this scan: v1, v2")
        self.channels, self.walks, self.state_dim, self.heads = channels, walks, state_dim, heads
        self.selection_weight = nn.Parameter(torch.empty(walks, heads + 2 * state_dim, channels))
        bound = 1 / math.sqrt(channels)
        nn.init.uniform_(self.selection_weight, -bound, bound)
        normal = initialisation == "v1"
        self.A_log = nn.Parameter(torch.randn(walks, heads) if normal else torch.zeros(walks, heads))
        self.delta_bias = nn.Parameter(0.1 * (torch.randn(walks, heads) if normal else torch.rand(walks, heads)))
        self.D = nn.Parameter(torch.ones(walks, heads, channels // heads))

    def forward(self, grid: Tensor, route: Route) -> Tensor:
        """Walk a grid (batch, height, width, channels), scan, and put back: the sum over walks, of the same shape."""
        height, width = grid.shape[1:3]
        sequences = route.walk(grid)
        batch, length, walks, channels = sequences.shape
        selected = torch.einsum("blke,kre->blkr", sequences, self.selection_weight.to(sequences.dtype))
        dt, B, C = selected.split([self.heads, self.state_dim, self.state_dim], dim=-1)
        y = ops.ssd(
            sequences.reshape(batch, length, walks * self.heads, channels // self.heads),
            dt.reshape(batch, length, walks * self.heads),
            -torch.exp(widen(self.A_log)).flatten(),
            B,
            C,
            widen(self.D).flatten(0, 1),
            delta_bias=widen(self.delta_bias).flatten(),
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        return route.merge(y.reshape(batch, length, walks, channels), height, width)
