"""Mamba in heads: each head of channels selects for itself. Glorioso et al. 2024 (Zamba), arXiv 2405.16712."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from statescan import ops
from statescan.layers._convolution import CausalConv1d
from statescan.layers._initialisation import delta_bias
from statescan.layers._precision import widen, widened
from statescan.layers._state import State


class MultiHeadMamba(nn.Module):
    """`Mamba` whose inner channels are cut into heads, each with its own projection to delta, B and C.

    With one head it is `Mamba`.

    Arguments:
        dim: channels of input and output.
        heads: a divisor of the inner channels.
        state_dim, conv_kernel, expand, dt_rank, bias, conv_bias: as in `Mamba`; the rank is that of every head.
        dt_min, dt_max, dt_floor: step sizes at initialisation, as in `Mamba`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 2,
        state_dim: int = 16,
        conv_kernel: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
    ):
        super().__init__()
        inner = int(expand * dim)
        if inner % heads:
            raise ValueError(f"heads: {heads} does not divide the {inner} inner channels")
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.dim, self.inner_dim, self.heads, self.state_dim, self.dt_rank = dim, inner, heads, state_dim, rank
        width = inner // heads
        self.input_projection = nn.Linear(dim, 2 * inner, bias=bias)
        self.convolution = CausalConv1d(inner, conv_kernel, bias=conv_bias, activation="silu")
        bound = width**-0.5
        self.selection_weight = nn.Parameter(torch.empty(heads, rank + 2 * state_dim, width).uniform_(-bound, bound))
        spread = rank**-0.5
        self.delta_weight = nn.Parameter(torch.empty(heads, width, rank).uniform_(-spread, spread))
        self.delta_bias = nn.Parameter(delta_bias(inner, minimum=dt_min, maximum=dt_max, floor=dt_floor))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state_dim + 1).float()).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.output_projection = nn.Linear(inner, dim, bias=bias)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``conv`` (batch, conv_kernel - 1, inner), ``ssm`` (batch, inner, state_dim) in float32."""
        shape = (batch_size, self.inner_dim, self.state_dim)
        ssm = self.A_log.new_zeros(shape, dtype=widened(self.A_log.dtype), device=device)
        return State({"conv": self.convolution.initial_state(batch_size, dtype=dtype, device=device), "ssm": ssm})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it; resets, offsets as in `ops`."""
        hidden, gate = self.input_projection(x).chunk(2, dim=-1)
        hidden, conv = self.convolution(hidden, state["conv"] if state else None, resets=resets, offsets=offsets)
        delta, B, C = self._select(hidden)
        y, ssm = ops.selective_scan(
            hidden,
            delta,
            -torch.exp(widen(self.A_log)),
            B,
            C,
            widen(self.D),
            gate,
            delta_bias=widen(self.delta_bias),
            delta_softplus=True,
            initial_state=state["ssm"] if state else None,
            resets=resets,
            offsets=offsets,
            return_last_state=True,
        )
        return self.output_projection(y), State({"conv": conv, "ssm": ssm})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        hidden, gate = self.input_projection(x).chunk(2, dim=-1)
        hidden, conv = self.convolution.step(hidden, state["conv"])
        delta, B, C = self._select(hidden)
        y, ssm = ops.selective_state_step(
            state["ssm"],
            hidden,
            delta,
            -torch.exp(widen(self.A_log)),
            B,
            C,
            widen(self.D),
            gate,
            delta_bias=widen(self.delta_bias),
            delta_softplus=True,
        )
        return self.output_projection(y), State({"conv": conv, "ssm": ssm})

    def _select(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes before bias and softplus (..., inner); B, C (..., heads, state_dim)."""
        by_head = hidden.unflatten(-1, (self.heads, -1))
        selected = torch.einsum("...hc,hrc->...hr", by_head, self.selection_weight)
        delta, B, C = selected.split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        delta = torch.einsum("...hr,hcr->...hc", delta, self.delta_weight).flatten(-2)
        return delta, B.contiguous(), C.contiguous()
