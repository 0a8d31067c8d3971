"""The two-dimensional selective scan: a mixer of grids. Liu et al. 2024, "VMamba", arXiv 2401.10166, figure 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from statescan import routes
from statescan.layers.grid._parts import depthwise, grid_activation
from statescan.layers.grid._route_scan import RouteScan
from statescan.routes import Route


class SS2D(nn.Module):
    """x, z = W_in u; x = silu(depthwise(x)); y = norm(sum over walks of scans of x); out = W_out (y gate(z)).

    It reads a whole grid at once and has no step.

    Arguments:
        dim: channels of input and output.
        state_dim: N, states of each inner channel.
        expand: inner channels over dim.
        dt_rank: rank of the step sizes; ``auto`` is dim / 16, rounded up.
        conv_kernel: side of the depthwise convolution; 1 for none.
        conv_bias: whether it has a bias.
        bias: whether the outer projections have biases.
        activation: after the convolution, by name.
        gate: activation of the gate z (``identity`` for none); None for no gate.
        route: the walks, by name or as a `routes.Route`.
        output_norm: a module on (..., inner channels) after the scans; LayerNorm unless given.
        output_activation: after that norm, by name.
        initialisation: of the scans; see `RouteScan`.
        dropout: of the output.
        scan: a module from (a grid of inner channels, the route) to such a grid; `RouteScan` unless given, and then
            `state_dim`, `dt_rank` and `initialisation` are its own affair.
        projection: makes the outer projections from the sizes of their input and output; linear layers unless given.
    """

    activated = ("convolution",)

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 16,
        expand: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        conv_kernel: int = 3,
        conv_bias: bool = True,
        bias: bool = False,
        activation: str = "silu",
        gate: str | None = "silu",
        route: str | Route = "cross",
        output_norm: nn.Module | None = None,
        output_activation: str = "identity",
        initialisation: Literal["v0", "v1", "v2"] = "v0",
        dropout: float = 0.0,
        scan: nn.Module | None = None,
        projection: Callable[[int, int], nn.Module] | None = None,
    ):
        super().__init__()
        inner = int(expand * dim)
        projection = projection or partial(nn.Linear, bias=bias)
        self.dim, self.inner_dim, self.route = dim, inner, routes.get(route)
        self.input_projection = projection(dim, inner * (2 if gate is not None else 1))
        self.convolution = depthwise(inner, conv_kernel, bias=conv_bias) if conv_kernel > 1 else nn.Identity()
        self.activation = grid_activation(activation)
        self.gate = grid_activation(gate) if gate is not None else None
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        if scan is None:
            scan = RouteScan(inner, self.route.walks, state_dim=state_dim, dt_rank=rank, initialisation=initialisation)
        self.scan = scan
        self.output_norm = nn.LayerNorm(inner) if output_norm is None else output_norm
        self.output_activation = grid_activation(output_activation)
        self.output_projection = projection(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        hidden = self.input_projection(x)
        z = None
        if self.gate is not None:
            hidden, z = hidden.chunk(2, dim=-1)
            z = self.gate(z)
        hidden = self.activation(self.convolution(hidden))
        y = self.output_activation(self.output_norm(self.scan(hidden, self.route)))
        if z is not None:
            y = y * z
        return self.dropout(self.output_projection(y))

    def extra_repr(self) -> str:
        """The route."""
        return f"route={self.route.name!r}"
