"""State-space duality whose mixing is done on its few states instead of on the many cells. Lee et al. 2025,
"EfficientViM", arXiv 2411.15241."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.grid._parts import depthwise


class HiddenStateMixer(nn.Module):
    """B, C, dt = depthwise(W x); h = sum over cells of softmax(dt + a) B x; h', z = V h; h = W_out (h' silu(z) + d h');
    y = C h.

    The softmax is over cells, so that `a`, one number a state, cancels: it changes nothing and is kept because published
    weights have it. Costs L C N + N C^2 for L cells and N states instead of L C^2.

    Arguments:
        dim: channels of input and output.
        state_dim: N, states.
        expand: inner channels over dim.
    """

    def __init__(self, dim: int, *, state_dim: int = 64, expand: float = 1.0):
        super().__init__()
        inner = int(expand * dim)
        if inner < 1 or state_dim < 1:
            raise ValueError(f"expand, state_dim: at least one channel and state, got {expand} x {dim}, {state_dim}")
        self.state_dim = state_dim
        self.selection_projection = nn.Linear(dim, 3 * state_dim, bias=False)
        self.convolution = depthwise(3 * state_dim, 3, bias=False)
        self.input_projection = nn.Linear(dim, 2 * inner, bias=False)
        self.output_projection = nn.Linear(inner, dim, bias=False)
        self.A = nn.Parameter(torch.empty(state_dim).uniform_(1, 16))
        self.D = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, height, width, dim) -> the same shape, and the mixed states (batch, state_dim, dim)."""
        selected = self.convolution(self.selection_projection(x)).flatten(1, 2)
        B, C, dt = selected.chunk(3, dim=-1)
        weights = B * torch.softmax(dt + self.A, dim=1)
        pooled = weights.transpose(1, 2) @ x.flatten(1, 2)
        hidden, z = self.input_projection(pooled).chunk(2, dim=-1)
        states = self.output_projection(hidden * F.silu(z) + hidden * self.D)
        return (C @ states).view_as(x), states


class HiddenStateBlock(nn.Module):
    """Depthwise convolution, hidden state mixer, depthwise convolution, channel mixer; each step moves x towards its
    result by a learned share of each channel: x = (1 - g) x + g f(x), g = sigmoid(alpha).

    Arguments:
        mixer: a `HiddenStateMixer`.
        norm: before it.
        convolutions: the two, modules on grids.
        channel_mixer: a module on grids.
        dim: channels.
        drop_path: probability that a sample skips a step in training.
    """

    def __init__(
        self,
        mixer: HiddenStateMixer,
        norm: nn.Module,
        convolutions: tuple[nn.Module, nn.Module],
        channel_mixer: nn.Module,
        dim: int,
        *,
        drop_path: nn.Module,
    ):
        super().__init__()
        self.convolution1, self.convolution2 = convolutions
        self.norm, self.mixer, self.channel_mixer = norm, mixer, channel_mixer
        self.alpha = nn.Parameter(torch.full((4, dim), 1e-4))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, height, width, dim) -> the same shape, and the mixer's states (batch, state_dim, dim)."""
        gates = torch.sigmoid(self.alpha)
        x = self._move(x, self.convolution1(x), gates[0])
        y, states = self.mixer(self.norm(x))
        x = self._move(x, y, gates[1])
        x = self._move(x, self.convolution2(x), gates[2])
        return self._move(x, self.channel_mixer(x), gates[3]), states

    def _move(self, x: Tensor, target: Tensor, gate: Tensor) -> Tensor:
        return x + self.drop_path(gate * (target - x))
