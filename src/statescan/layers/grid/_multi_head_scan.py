"""Scans in parallel subspaces, each head along its own walks. Ji 2024, "MHS-VM", arXiv 2406.05992."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from statescan import routes
from statescan.layers.grid._parts import depthwise
from statescan.layers.grid._route_scan import RouteScan
from statescan.routes import Route

#: The published heads: C snakes, X zigzags, S spirals, Z rows and columns; each walk followed by its reverse.
HEADS = {
    "C": "snake",
    "X": "zigzag+zigzag_reversed+zigzag_mirrored+zigzag_mirrored_reversed",
    "S": "spiral+spiral_reversed+spiral_mirrored+spiral_mirrored_reversed",
    "Z": "raster+raster_reversed+column+column_reversed",
}


class MultiHeadScan(nn.Module):
    """Split W_in x into heads; scan each along its route; merge a head's walks by route attention; join the heads.

    Arguments:
        dim: channels of input and output.
        heads: the routes, one a head, by name or as `routes.Route`.
        state_dim: N, states of each channel.
        threshold: of the route attention (`routes.route_attention`).
        head_projection: a norm and a linear layer over the joined heads; without it the output has as many channels as
            the heads together, which is dim if their number divides it.
    """

    def __init__(
        self,
        dim: int,
        heads: Sequence[str | Route] = tuple(HEADS.values()),
        *,
        state_dim: int = 16,
        threshold: float = 0.0,
        head_projection: bool = True,
    ):
        super().__init__()
        if not heads or dim < len(heads):
            raise ValueError(f"heads: at least one route and at most one a channel of {dim}, got {len(heads)}")
        self.routes = tuple(routes.get(route) for route in heads)
        self.threshold = threshold
        self.head_dim = dim // len(heads)
        self.out_dim = dim if head_projection else self.head_dim * len(heads)
        joined = self.head_dim * len(heads)
        rank = math.ceil(self.head_dim / 16)
        self.input_projection = nn.Linear(dim, joined, bias=False)
        self.scans = nn.ModuleList(
            RouteScan(self.head_dim, route.walks, state_dim=state_dim, dt_rank=rank) for route in self.routes
        )
        self.norm = nn.LayerNorm(joined) if head_projection else nn.Identity()
        self.output_projection = nn.Linear(joined, dim, bias=False) if head_projection else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> (batch, height, width, out_dim)."""
        height, width = x.shape[1:3]
        merged = []
        for part, scan, route in zip(
            self.input_projection(x).split(self.head_dim, -1), self.scans, self.routes, strict=True
        ):
            assert isinstance(scan, RouteScan)
            y = route.unwalk(scan.scan(route.walk(part)), height, width)
            merged.append(routes.route_attention(y, threshold=self.threshold))
        return self.output_projection(self.norm(torch.cat(merged, -1)))

    def extra_repr(self) -> str:
        """The routes."""
        return f"routes={[route.name for route in self.routes]}, threshold={self.threshold}"


class GatedMultiHeadScan(nn.Module):
    """x, z = W_in u; norm(multi-head scan(silu(depthwise(x)))) silu(z). No projection follows the gate.

    It reads a whole grid at once and has no step.

    Arguments:
        dim: channels of input and output.
        conv_kernel: side of the depthwise convolution.
        gated: without a gate there is no input projection either.
        heads, state_dim, threshold, head_projection: those of `MultiHeadScan`.

    Raises:
        ValueError: without `head_projection`, a number of heads that does not divide dim.
    """

    def __init__(
        self,
        dim: int,
        heads: Sequence[str | Route] = tuple(HEADS.values()),
        *,
        state_dim: int = 16,
        conv_kernel: int = 3,
        threshold: float = 0.0,
        head_projection: bool = True,
        gated: bool = True,
    ):
        super().__init__()
        self.input_projection = nn.Linear(dim, 2 * dim, bias=False) if gated else None
        self.convolution = depthwise(dim, conv_kernel)
        self.activation = nn.SiLU()
        self.scan = MultiHeadScan(dim, heads, state_dim=state_dim, threshold=threshold, head_projection=head_projection)
        if self.scan.out_dim != dim:
            raise ValueError(
                f"heads: {len(heads)} do not divide {dim} channels; choose a divisor, or head_projection=True"
            )
        self.output_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        z = None
        if self.input_projection is not None:
            x, z = self.input_projection(x).chunk(2, -1)
        y = self.output_norm(self.scan(self.activation(self.convolution(x))))
        return y if z is None else y * self.activation(z)
