"""State-space duality on grids: without causality, or causal along the rows. Shi et al. 2025, "VSSD", arXiv 2407.18559."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._initialisation import delta_bias
from statescan.layers.grid._parts import depthwise

Direction = Literal["none", "causal", "bidirectional"]


class GridSSD(nn.Module):
    """z, [x, B, C], dt = W_in u; x, B, C = silu(depthwise([x, B, C])); out = W_out (norm(y) z).

    With direction ``none`` every cell reads one sum over all cells: S = sum_j m_j B_j x_j^T, y_i = C_i^T S + D x_i,
    m_j = softplus(dt_j + b) exp(A_log); the order of cells does not matter. The gate z has no activation.

    Arguments:
        dim: channels of input and output.
        heads: of the inner channels.
        state_dim: N, rows of S for each group.
        expand: inner channels over dim.
        groups: sets of B and C. With direction ``none`` head h belongs to group h mod groups; else to group
            h // (heads / groups), as in Mamba-2.
        direction: ``none``; ``causal``: Mamba-2's scan row by row; ``bidirectional``: half of the heads and groups
            row by row, the other half backwards.
        negative: with direction ``none``, m_j is -softplus(dt_j + b) exp(A_log) instead (an ablation of the paper).
        conv_kernel: side of the depthwise kernel, odd.
        conv_bias: whether it has a bias.
        bias: whether the outer projections have biases.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        state_dim: int = 64,
        expand: int = 2,
        groups: int = 1,
        direction: Direction = "none",
        negative: bool = False,
        conv_kernel: int = 3,
        conv_bias: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        inner = int(expand * dim)
        groups = heads if groups == -1 else groups
        if heads < 1 or inner % heads:
            raise ValueError(f"heads: a divisor of the {inner} inner channels, got {heads}")
        if groups < 1 or heads % groups:
            raise ValueError(f"groups: a divisor of the {heads} heads, got {groups}")
        if direction not in ("none", "causal", "bidirectional"):
            raise ValueError(f"direction: none, causal or bidirectional, got {direction!r}")
        if direction == "bidirectional" and groups % 2:
            raise ValueError(f"groups: an even number for both directions, half of them for each, got {groups}")
        if conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel: odd, got {conv_kernel}")
        self.heads, self.groups, self.state_dim = heads, groups, state_dim
        self.direction, self.negative = direction, negative
        self.mixed = inner + 2 * groups * state_dim
        self.parts = (inner, groups * state_dim, groups * state_dim)
        self.input_projection = nn.Linear(dim, inner + self.mixed + heads, bias=bias)
        self.convolution = depthwise(self.mixed, conv_kernel, bias=conv_bias)
        self.delta_bias = nn.Parameter(delta_bias(heads, minimum=1e-3, maximum=0.1, floor=1e-4))
        self.A_log = nn.Parameter(torch.log(torch.empty(heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.LayerNorm(inner)
        self.output_projection = nn.Linear(inner, dim, bias=bias)

    def forward(self, u: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        z, mixed, dt = self.input_projection(u).split([self.parts[0], self.mixed, self.heads], dim=-1)
        mixed = F.silu(self.convolution(mixed)).flatten(1, 2)
        x, B, C = mixed.split(self.parts, dim=-1)
        x = x.unflatten(-1, (self.heads, -1))
        B = B.unflatten(-1, (self.groups, -1))
        C = C.unflatten(-1, (self.groups, -1))
        dt = dt.flatten(1, 2)
        y = self.summed(x, dt, B, C) if self.direction == "none" else self.scanned(x, dt, B, C)
        return self.output_projection(self.norm(y.flatten(2).view_as(z)) * z)

    def summed(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """The non-causal form of x (batch, cells, heads, head channels), dt (batch, cells, heads) and B, C (batch, cells,
        groups, state_dim)."""
        weight = F.softplus(dt + self.delta_bias) * torch.exp(self.A_log)
        if self.negative:
            weight = -weight
        weighted = (x * weight[..., None]).unflatten(2, (-1, self.groups))  # head h belongs to group h mod groups
        grouped = weighted.movedim(3, 1)  # (batch, groups, cells, heads of a group, head channels)
        state = B.movedim(2, 1).transpose(-1, -2) @ grouped.flatten(3)
        y = (C.movedim(2, 1) @ state).view_as(grouped)
        return y.movedim(1, 3).flatten(2, 3) + x * self.D[:, None]

    def scanned(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """The causal forms, of the same tensors."""
        A = -torch.exp(self.A_log)
        if self.direction == "causal":
            return _scan(x, dt, A, B, C, self.D, self.delta_bias)
        halves = [tensor.chunk(2, 2) for tensor in (x, dt, B, C)]
        rates = [tensor.chunk(2) for tensor in (A, self.D, self.delta_bias)]
        (x1, x2), (dt1, dt2), (B1, B2), (C1, C2) = halves
        (A1, A2), (D1, D2), (b1, b2) = rates
        forwards = _scan(x1, dt1, A1, B1, C1, D1, b1)
        backwards = _scan(x2.flip(1), dt2.flip(1), A2, B2.flip(1), C2.flip(1), D2, b2).flip(1)
        return torch.cat([forwards, backwards], 2)

    def extra_repr(self) -> str:
        """What the direction is."""
        return f"direction={self.direction!r}"


def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    y = ops.ssd(x, dt, A, B, C, D, delta_bias=bias, delta_softplus=True)
    assert isinstance(y, Tensor)
    return y
