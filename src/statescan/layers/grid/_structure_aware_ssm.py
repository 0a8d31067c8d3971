"""One scan whose states are mixed over the grid before they are read. Xiao et al. 2025, "Spatial-Mamba", arXiv
2410.15091."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops, routes
from statescan.layers._initialisation import delta_bias
from statescan.layers._precision import widen
from statescan.layers.grid._parts import depthwise
from statescan.routes import Route

Padding = Literal["replicate", "zeros"]


class StateFusion(nn.Module):
    """Depthwise 3 x 3 convolutions of several dilations, summed with learned weights.

    Published models train with one padding and are evaluated with another; the merged kernel is made anew at each call,
    so that it is never that of older weights.

    Arguments:
        channels: of the states.
        dilations: of the convolutions.
        train_padding, eval_padding: ``replicate`` or ``zeros``, in training and in evaluation.
        merged: in evaluation, one convolution with the sum of the kernels (11 x 11 for the dilations 1, 3, 5) instead of
            one a dilation: the same result.
    """

    def __init__(
        self,
        channels: int,
        *,
        dilations: tuple[int, ...] = (1, 3, 5),
        train_padding: Padding = "replicate",
        eval_padding: Padding = "zeros",
        merged: bool = True,
    ):
        super().__init__()
        for padding in (train_padding, eval_padding):
            if padding not in ("replicate", "zeros"):
                raise ValueError(f"padding: replicate or zeros, got {padding!r}")
        self.dilations = dilations
        self.train_padding, self.eval_padding, self.merged = train_padding, eval_padding, merged
        self.kernels = nn.ParameterList(nn.Parameter(torch.ones(channels, 1, 3, 3)) for _ in dilations)
        self.weights = nn.Parameter(torch.ones(len(dilations)))

    def forward(self, states: Tensor) -> Tensor:
        """(batch, height, width, channels[, states]) to the same shape."""
        return ops.state_fusion(
            states,
            list(self.kernels),
            self.weights,
            dilations=self.dilations,
            padding=self.train_padding if self.training else self.eval_padding,
            merged=self.merged and not self.training,
        )

    def extra_repr(self) -> str:
        """Dilations and paddings."""
        return f"dilations={self.dilations}, train_padding={self.train_padding!r}, eval_padding={self.eval_padding!r}"


class StructureAwareSSM(nn.Module):
    """x, z = W_in u; x = silu(depthwise(x)); h: states of one selective scan of x; y = sum_n C_n fusion(h)_n + D x;
    out = W_out (norm(y) silu(z)).

    Arguments:
        dim: channels of input and output.
        state_dim: N, states of each inner channel; published models have one.
        expand: inner channels over dim.
        dt_rank: rank of the step sizes; ``auto`` is dim / 16, rounded up.
        route: of the scan, one walk, by name or as a `routes.Route`.
        train_padding, eval_padding, merged: of the fusion, see `StateFusion`.
        fusion: whether states are mixed at all; without, this is a plain one-way scan.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 1,
        expand: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        route: str | Route = "raster",
        train_padding: Padding = "replicate",
        eval_padding: Padding = "zeros",
        merged: bool = True,
        fusion: bool = True,
    ):
        super().__init__()
        inner = int(expand * dim)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.route = routes.get(route)
        if self.route.walks != 1:
            raise ValueError(f"route: one walk for one scan, {self.route.name!r} has {self.route.walks}")
        self.parts = (rank, state_dim, state_dim)
        self.input_projection = nn.Linear(dim, 2 * inner, bias=False)
        self.convolution = depthwise(inner, 3)
        self.selection_weight = nn.Parameter(torch.empty(rank + 2 * state_dim, inner))
        nn.init.uniform_(self.selection_weight, -(inner**-0.5), inner**-0.5)
        self.delta_weight = nn.Parameter(torch.empty(inner, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.delta_bias = nn.Parameter(delta_bias(inner, minimum=1e-3, maximum=0.1, floor=1e-4))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state_dim + 1).float()).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.fusion: nn.Module = nn.Identity()
        if fusion:
            self.fusion = StateFusion(inner, train_padding=train_padding, eval_padding=eval_padding, merged=merged)
        self.norm = nn.LayerNorm(inner)
        self.output_projection = nn.Linear(inner, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        hidden, z = self.input_projection(u).chunk(2, dim=-1)
        hidden = F.silu(self.convolution(hidden))
        dt, B, C = F.linear(hidden, self.selection_weight).split(self.parts, dim=-1)
        states = self.scan(hidden, F.linear(dt, self.delta_weight), B)
        y = torch.einsum("bhwen,bhwn->bhwe", self.fusion(states), C.to(states.dtype)) + hidden * self.D
        return self.output_projection(self.norm(y) * F.silu(z))

    def scan(self, x: Tensor, delta: Tensor, B: Tensor) -> Tensor:
        """States (batch, height, width, channels, state_dim) of grids x, delta (…, channels) and B (…, state_dim)."""
        height, width = x.shape[1:3]
        h = ops.selective_states(
            *(self._walked(grid) for grid in (x, delta)),
            -torch.exp(widen(self.A_log)),
            self._walked(B),
            delta_bias=widen(self.delta_bias),
            delta_softplus=True,
        )
        if self.route.name == "raster":
            return h.unflatten(1, (height, width))
        return self.route.merge(h.flatten(2).unsqueeze(2), height, width).view(*x.shape, -1)

    def _walked(self, grid: Tensor) -> Tensor:
        # rows one after another are how a grid lies in memory
        return grid.flatten(1, 2) if self.route.name == "raster" else self.route.walk(grid).squeeze(2)
