"""Scans at two resolutions: one walk of the grid, the others of a coarser one. Shi et al. 2024, "Multi-Scale VMamba",
arXiv 2405.14174."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from statescan import routes
from statescan.layers.grid._parts import GridConvolution, SqueezeExcite, depthwise, grid_activation, resize_grid
from statescan.layers.grid._route_scan import RouteScan
from statescan.routes import Route

#: The walks of the coarse grid, in the published order.
LOW_ROUTE = "raster_reversed+column+column_reversed"


class MultiScaleSS2D(nn.Module):
    """x, z = W_in u; a raster scan of silu(depthwise 3x3(x)) on the grid, the other walks of silu(depthwise 7x7 of
    stride 2(x)) on half the grid, summed and enlarged; both added, squeeze and excitation, gated by silu(z), W_out.

    As published, the coarse walks are joined into ONE sequence with one set of parameters: the state runs on from the
    end of one walk into the next. Set 0 of the parameters is the coarse grid's, set 1 the full one's.

    Arguments:
        dim: channels of input and output.
        state_dim: N, states of each inner channel.
        expand: inner channels over dim.
        dt_rank: rank of the step sizes; ``auto`` is dim / 16, rounded up.
        conv_kernel, low_kernel: sides of the two depthwise convolutions.
        conv_bias: whether they have biases.
        activation: after them, by name.
        gate: activation of the gate z; ``identity`` for none.
        route, low_route: walks of the grid (a single one) and of the coarse grid.
        joined: see above; False scans the coarse walks apart, as the paper's figure shows.
        squeeze: whether there is squeeze and excitation.
        separate_norms: a norm for each resolution instead of one for both.
        initialisation: of the scans; see `RouteScan`.
        dropout: of the output.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 1,
        expand: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        conv_kernel: int = 3,
        low_kernel: int = 7,
        conv_bias: bool = True,
        activation: str = "silu",
        gate: str = "silu",
        route: str | Route = "raster",
        low_route: str | Route = LOW_ROUTE,
        joined: bool = True,
        squeeze: bool = True,
        separate_norms: bool = False,
        initialisation: Literal["v0", "v1", "v2"] = "v0",
        dropout: float = 0.0,
    ):
        super().__init__()
        inner = int(expand * dim)
        self.dim, self.inner_dim, self.joined = dim, inner, joined
        self.route, self.low_route = routes.get(route), routes.get(low_route)
        if self.route.walks != 1:
            raise ValueError(f"route: a single walk of the full grid, got {self.route.name!r} of {self.route.walks}")
        self.input_projection = nn.Linear(dim, 2 * inner, bias=False)
        self.convolution = depthwise(inner, conv_kernel, bias=conv_bias)
        self.low_convolution = GridConvolution(
            inner, inner, low_kernel, stride=2, padding=low_kernel // 2, groups=inner, bias=conv_bias
        )
        self.activation = grid_activation(activation)
        self.gate = grid_activation(gate)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.scan = RouteScan(inner, 2, state_dim=state_dim, dt_rank=rank, initialisation=initialisation)
        self.output_norm = nn.LayerNorm(inner)
        self.full_norm = nn.LayerNorm(inner) if separate_norms else None
        self.squeeze = SqueezeExcite(inner, inner // 8, bias=False) if squeeze else nn.Identity()
        self.output_projection = nn.Linear(inner, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        height, width = x.shape[1:3]
        hidden, z = self.input_projection(x).chunk(2, dim=-1)
        full = self.activation(self.convolution(hidden))
        low = self.activation(self.low_convolution(hidden))
        full = self.scan.scan(self.route.walk(full), slice(1, 2))
        full = (self.output_norm if self.full_norm is None else self.full_norm)(full)
        low = resize_grid(self._scan_low(low), height, width, mode="bilinear")
        y = self.squeeze(self.route.merge(full, height, width) + low)
        return self.dropout(self.output_projection(y * self.gate(z)))

    def _scan_low(self, grid: Tensor) -> Tensor:
        sequences = self.low_route.walk(grid).transpose(1, 2)  # (batch, walks, length, channels)
        walks = sequences.shape[:2]
        line = sequences.flatten(1, 2) if self.joined else sequences.flatten(0, 1)
        y = self.output_norm(self.scan.scan(line.unsqueeze(2), slice(0, 1)).squeeze(2))
        y = y.reshape(*walks, -1, y.shape[-1]).transpose(1, 2)
        return self.low_route.merge(y, *grid.shape[1:3])

    def extra_repr(self) -> str:
        """The routes."""
        return f"route={self.route.name!r}, low_route={self.low_route.name!r}, joined={self.joined}"
