"""Direction-aware scans along snakes. Yang et al. 2024, "PlainMamba", arXiv 2403.17695, section 3.3."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from statescan import ops, routes
from statescan.layers._initialisation import delta_bias
from statescan.layers._precision import widen
from statescan.layers.grid._parts import depthwise
from statescan.routes import Route


class DirectionalSS2D(nn.Module):
    """u, z = W_in x; u = silu(depthwise(u)); delta, B, C from u; y = sum over walks of scans; out = W_out (y silu(z)).

    All walks share their parameters; to B is added a learned row for the direction in which a cell was entered.

    Arguments:
        dim: channels of input and output.
        state_dim: N, states of each inner channel.
        expand: inner channels over dim.
        dt_rank: rank of the step sizes; ``auto`` is dim / 16, rounded up.
        dt_min, dt_max, dt_floor: first step sizes are log-uniform between the first two, at least the third.
        dt_init, dt_scale: the step projection's first weights: uniform (``random``) or ``constant``, times the scale.
        conv_kernel: side of the depthwise convolution, odd.
        conv_bias: whether it has a bias.
        bias: whether the outer projections have biases.
        layer_scale: first value of a learned factor a channel of the output; None for none.
        route: the walks, by name or as a `routes.Route`.
        reorder: ``input``, as published: the scan takes u in a walk's order, but delta, B and C in raster order; ``all``:
            everything in the walk's order.
        double_bias: add the step sizes' bias twice, as published.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 16,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        conv_kernel: int = 7,
        conv_bias: bool = True,
        bias: bool = False,
        layer_scale: float | None = None,
        route: str | Route = "snake",
        reorder: Literal["input", "all"] = "input",
        double_bias: bool = True,
    ):
        super().__init__()
        if conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel: odd, got {conv_kernel}")
        if reorder not in ("input", "all"):
            raise ValueError(f"reorder: unknown {reorder!r}; known: input, all")
        inner = int(expand * dim)
        self.route, self.reorder, self.double_bias = routes.get(route), reorder, double_bias
        self.state_dim, self.dt_rank = state_dim, math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.input_projection = nn.Linear(dim, 2 * inner, bias=bias)
        self.convolution = depthwise(inner, conv_kernel, bias=conv_bias)
        self.selection_projection = nn.Linear(inner, self.dt_rank + 2 * state_dim, bias=False)
        self.delta_projection = nn.Linear(self.dt_rank, inner, bias=False)
        spread = self.dt_rank**-0.5 * dt_scale
        if dt_init == "constant":
            nn.init.constant_(self.delta_projection.weight, spread)
        else:
            nn.init.uniform_(self.delta_projection.weight, -spread, spread)
        self.delta_bias = nn.Parameter(delta_bias(inner, minimum=dt_min, maximum=dt_max, floor=dt_floor))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state_dim + 1).float()).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.direction_B = nn.Parameter(torch.empty(5, state_dim))
        nn.init.trunc_normal_(self.direction_B, std=0.02)
        self.output_projection = nn.Linear(inner, dim, bias=bias)
        self.layer_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(
        self,
        x: Tensor,
        *,
        cells: Tensor | None = None,
        shape: tuple[int, int] | None = None,
        ages: bool = False,
    ) -> Tensor:
        """(batch, height, width, dim) to the same shape; (batch, kept, dim) if only some cells of a grid are left.

        Arguments:
            x: the grid, or what is left of it.
            cells: (batch, kept) int64, the cells that are left, rising.
            shape: height and width of their grid.
            ages: whether a walk's state ages over the cells that it passes (`ops.aligned_scan`) or is held.
        """
        if cells is not None and shape is not None:
            return self._kept(x, cells, shape, ages)
        batch, height, width, _ = x.shape
        hidden, gate = self.input_projection(x).chunk(2, dim=-1)
        hidden = nn.functional.silu(self.convolution(hidden))
        dt, B, C = self.selection_projection(hidden).split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        delta = self.delta_projection(dt)
        walks = self.route.walks
        directions = self.direction_B[self.route.directions(height, width, x.device)]  # (walks, length, states)
        B = self._walked(B).unflatten(0, (batch, walks)) + directions.to(B.dtype)
        bias = widen(self.delta_bias)
        y = ops.selective_scan(
            self.route.walk(hidden).transpose(1, 2).flatten(0, 1),
            self._walked(delta),
            -torch.exp(widen(self.A_log)),
            B.flatten(0, 1),
            self._walked(C),
            widen(self.D),
            delta_bias=2 * bias if self.double_bias else bias,
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        y = self.route.merge(y.unflatten(0, (batch, walks)).transpose(1, 2), height, width)
        out = self.output_projection(y * nn.functional.silu(gate))
        return out if self.layer_scale is None else out * self.layer_scale

    def _kept(self, x: Tensor, cells: Tensor, shape: tuple[int, int], ages: bool) -> Tensor:
        batch, kept, _ = x.shape
        walks = self.route.walks
        hidden, gate = self.input_projection(x).chunk(2, dim=-1)
        hidden = nn.functional.silu(take_cells(self.convolution(place_cells(hidden, cells, shape)), cells))
        dt, B, C = self.selection_projection(hidden).split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        # Where each walk over the whole grid comes to the cells that are left, and in which order: (batch, walks, kept).
        visits = self.route.inverse(*shape, x.device)[:, cells].transpose(0, 1)
        steps, order = visits.sort(dim=2)

        def walked(part: Tensor) -> Tensor:  # (batch x walks, kept, channels)
            spread = part[:, None].expand(-1, walks, -1, -1)
            return spread.gather(2, order[..., None].expand(-1, -1, -1, part.shape[2])).flatten(0, 1)

        def met(part: Tensor) -> Tensor:
            return walked(part) if self.reorder == "all" else part[:, None].expand(-1, walks, -1, -1).flatten(0, 1)

        entered = self.route.directions(*shape, x.device).expand(batch, -1, -1).gather(2, steps)
        bias = widen(self.delta_bias)
        y = ops.aligned_scan(
            walked(hidden),
            met(self.delta_projection(dt)),
            -torch.exp(widen(self.A_log)),
            met(B) + self.direction_B[entered].flatten(0, 1).to(B.dtype),
            met(C),
            widen(self.D),
            positions=steps.flatten(0, 1) if ages else None,
            delta_bias=2 * bias if self.double_bias else bias,
            delta_softplus=True,
        )
        back = order.argsort(dim=2)[..., None].expand(-1, -1, -1, y.shape[2])
        y = y.unflatten(0, (batch, walks)).gather(2, back).sum(1)
        out = self.output_projection(y * nn.functional.silu(gate))
        return out if self.layer_scale is None else out * self.layer_scale

    def _walked(self, grid: Tensor) -> Tensor:
        """A grid (batch, height, width, channels) as it meets the walks: (batch x walks, length, channels)."""
        if self.reorder == "all":
            return self.route.walk(grid).transpose(1, 2).flatten(0, 1)
        return grid.flatten(1, 2)[:, None].expand(-1, self.route.walks, -1, -1).flatten(0, 1)

    def extra_repr(self) -> str:
        """The route."""
        return f"route={self.route.name!r}, reorder={self.reorder!r}"


def place_cells(tokens: Tensor, cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """Tokens (batch, kept, channels) at `cells` (batch, kept) of a grid (batch, height, width, channels) of zeros."""
    grid = tokens.new_zeros(tokens.shape[0], shape[0] * shape[1], tokens.shape[2])
    index = cells[..., None].expand(-1, -1, tokens.shape[2])
    return grid.scatter(1, index, tokens).unflatten(1, shape)


def take_cells(grid: Tensor, cells: Tensor) -> Tensor:
    """What a grid (batch, height, width, channels) holds at `cells` (batch, kept): (batch, kept, channels)."""
    return grid.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, grid.shape[3]))
