"""Selective scans along the walks of a route, parameters a walk."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._initialisation import delta_bias
from statescan.layers._precision import widen
from statescan.routes import Route


class RouteScan(nn.Module):
    """For each walk k: [dt, B, C] = W_k x, delta = softplus(V_k dt + b_k), then the selective scan. Liu et al. 2024,
    "VMamba", arXiv 2401.10166, section 4.2.

    Arguments:
        channels: E, of the grid.
        walks: K.
        state_dim: N, states of each channel.
        dt_rank: R, rank of the step sizes.
        initialisation: ``v0``: A = -1 … -N, D = 1, step sizes log-uniform in [1e-3, 0.1]; ``v1``: A_log normal, step
            weights and biases 0.1 normal; ``v2``: A_log zero, step weights and biases 0.1 uniform.
    """

    def __init__(
        self,
        channels: int,
        walks: int,
        *,
        state_dim: int = 16,
        dt_rank: int,
        initialisation: Literal["v0", "v1", "v2"] = "v0",
    ):
        super().__init__()
        self.channels, self.walks, self.state_dim, self.dt_rank = channels, walks, state_dim, dt_rank
        self.selection_weight = nn.Parameter(torch.empty(walks, dt_rank + 2 * state_dim, channels))
        bound = 1 / math.sqrt(channels)
        nn.init.uniform_(self.selection_weight, -bound, bound)
        self.delta_weight = nn.Parameter(torch.empty(walks, channels, dt_rank))
        self.D = nn.Parameter(torch.ones(walks * channels))
        if initialisation == "v0":
            spread = dt_rank**-0.5
            nn.init.uniform_(self.delta_weight, -spread, spread)
            first = delta_bias(walks * channels, minimum=1e-3, maximum=0.1, floor=1e-4)
            self.delta_bias = nn.Parameter(first.view(walks, channels))
            rates = torch.log(torch.arange(1, state_dim + 1).float()).repeat(walks * channels, 1)
        elif initialisation == "v1":
            nn.init.normal_(self.delta_weight, std=0.1)
            self.delta_bias = nn.Parameter(0.1 * torch.randn(walks, channels))
            rates = torch.randn(walks * channels, state_dim)
        elif initialisation == "v2":
            nn.init.uniform_(self.delta_weight, 0.0, 0.1)
            self.delta_bias = nn.Parameter(0.1 * torch.rand(walks, channels))
            rates = torch.zeros(walks * channels, state_dim)
        else:
            raise ValueError(f"initialisation: unknown {initialisation!r}; known: v0, v1, v2")
        self.A_log = nn.Parameter(rates)

    def forward(self, grid: Tensor, route: Route) -> Tensor:
        """Scan a grid (batch, height, width, channels) along a route: the sum over walks, of the same shape."""
        height, width = grid.shape[1:3]
        if route.misses(height, width) and route.shares(height, width):
            return route.merge(self.scan(route.walk(grid)), height, width)
        if route.misses(height, width) or not route.adds:
            return route.join(self.walks_of(grid, route))
        cells, selected = self._selected(grid, route)
        y = ops.merged_scan(
            cells,
            selected,
            self.delta_weight.to(selected.dtype),
            -torch.exp(widen(self.A_log)),
            widen(self.D),
            order=route.table(height, width, grid.device),
            delta_bias=widen(self.delta_bias).flatten(),
        )
        return y.unflatten(1, (height, width))

    def walks_of(self, grid: Tensor, route: Route) -> Tensor:
        """What each walk leaves at each cell, (batch, height, width, walks, channels); zero where it never comes."""
        height, width = grid.shape[1:3]
        if route.misses(height, width):  # a cell is not for every walk: project what is walked alone
            return route.unwalk(self.scan(route.walk(grid)), height, width)
        cells, selected = self._selected(grid, route)
        dt, B, C = selected.split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        delta = torch.einsum("bckr,ker->bcke", dt, self.delta_weight.to(dt.dtype))
        y = ops.route_scan(
            cells,
            delta,
            -torch.exp(widen(self.A_log)),
            B,
            C,
            widen(self.D),
            order=route.table(height, width, grid.device),
            delta_bias=widen(self.delta_bias).flatten(),
            delta_softplus=True,
        )
        return y.unflatten(1, (height, width))

    def _selected(self, grid: Tensor, route: Route) -> tuple[Tensor, Tensor]:
        """The cells (batch, cells, channels) and their [dt, B, C] for every walk (batch, cells, walks, selected)."""
        batch, height, width, channels = grid.shape
        if channels != self.channels or route.walks != self.walks:
            raise ValueError(
                f"grid: {self.channels} channels and a route of {self.walks} walks, got {channels} and {route.walks}"
            )
        cells = grid.reshape(batch, height * width, channels)
        # A position's projections do not depend on the walk's order: they are made where the cells lie.
        selected = F.linear(cells, self.selection_weight.to(cells.dtype).flatten(0, 1))
        return cells, selected.unflatten(2, (self.walks, -1))

    def scan(self, sequences: Tensor, which: slice = slice(None)) -> Tensor:
        """Scan sequences (batch, length, walks, channels), the same shape out; `which` chooses some of the walks."""
        batch, length, walks, channels = sequences.shape
        expected = len(range(self.walks)[which])
        if walks != expected or channels != self.channels:
            raise ValueError(
                f"sequences: (batch, length, {expected} walks, {self.channels} channels), got {tuple(sequences.shape)}"
            )
        selected = torch.einsum("blke,kre->blkr", sequences, self.selection_weight[which].to(sequences.dtype))
        dt, B, C = selected.split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        delta = torch.einsum("blkr,ker->blke", dt, self.delta_weight[which].to(dt.dtype))
        y = ops.selective_scan(
            sequences.reshape(batch, length, walks * channels),
            delta.reshape(batch, length, walks * channels),
            -torch.exp(widen(self.A_log)).unflatten(0, (self.walks, channels))[which].flatten(0, 1),
            B,
            C,
            widen(self.D).unflatten(0, (self.walks, channels))[which].flatten(),
            delta_bias=widen(self.delta_bias)[which].flatten(),
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        return y.view(batch, length, walks, channels)
