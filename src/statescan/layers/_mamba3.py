"""The Mamba-3 mixer: trapezoidal steps, a turning state, several inputs at a time. Lahoti et al. 2026, arXiv 2603.15569."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers._initialisation import delta_bias
from statescan.layers._norms import GatedRMSNorm, RMSNorm
from statescan.layers._precision import widen, widened
from statescan.layers._state import State
from statescan.layers._trapezoid import Segments, angles, trapezoidal_scan, trapezoidal_step, turn, turns


class _Projected(NamedTuple):
    gate: Tensor
    x: Tensor
    B: Tensor  # (…, ranks, groups, state_dim), normalised
    C: Tensor
    step: Tensor  # (…, heads)
    rate: Tensor
    mix: Tensor
    turned: Tensor  # (…, heads, angles)


class Mamba3(nn.Module):
    """z, x, B, C, delta, A, lambda, theta = W_in u; B, C = norm(B, C) + bias, turned; out = W_out (scan(x) silu(z)).

    There is no convolution: the trapezoidal rule mixes each position with the one before it.

    Arguments:
        dim: channels of input and output.
        state_dim: N, width of the state.
        head_dim: P, channels that share a decay.
        expand: inner channels over dim.
        groups: G, sets of heads that share B and C before their biases.
        rope_fraction: which part of the state's channels turns: 0.5 and 1 are published.
        mimo_rank: R, inputs and outputs at a time ("MIMO"); None: one, without the weights that spread and gather them.
        output_norm: RMSNorm over each head's channels before the gate; without it z gates the scan itself.
        A_floor: the least rate of decay.
        dt_min, dt_max, dt_floor: step sizes at initialisation, as in `Mamba`.
        norm_eps: of all norms.
        chunk_size: positions, times R, that the scan takes at a time; changes speed, not results.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 128,
        head_dim: int = 64,
        expand: float = 2,
        groups: int = 1,
        rope_fraction: float = 0.5,
        mimo_rank: int | None = None,
        output_norm: bool = False,
        A_floor: float = 1e-4,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
    ):
        super().__init__()
        inner = int(expand * dim)
        if inner % head_dim:
            raise ValueError(f"head_dim: {head_dim} does not divide the {inner} inner channels")
        heads = inner // head_dim
        if groups < 1 or heads % groups:
            raise ValueError(f"groups: {groups} does not divide {heads} heads")
        if state_dim < 2 or state_dim % 2:
            raise ValueError(f"state_dim: channels turn in pairs; expected an even number, got {state_dim}")
        if not 0 < rope_fraction <= 1:
            raise ValueError(f"rope_fraction: expected more than 0 and at most 1, got {rope_fraction}")
        turning = int(state_dim * rope_fraction) // 2
        if not turning:
            raise ValueError(f"rope_fraction: {rope_fraction} of {state_dim} channels is not one pair; take more")
        if mimo_rank is not None and mimo_rank < 1:
            raise ValueError(f"mimo_rank: expected at least 1 or None, got {mimo_rank}")
        ranks = mimo_rank or 1
        self.dim, self.inner_dim, self.state_dim = dim, inner, state_dim
        self.heads, self.head_dim, self.groups, self.ranks, self.angles = heads, head_dim, groups, ranks, turning
        self.A_floor, self.chunk_size = float(A_floor), chunk_size
        # The published kernels pair channels (2 i, 2 i + 1) for one input, (i, i + N / 2) for several.
        self.interleaved = mimo_rank is None
        wide = state_dim * groups * ranks
        self.widths = [inner, inner, wide, wide, heads, heads, heads, turning]
        self.input_projection = nn.Linear(dim, sum(self.widths), bias=False)
        self.delta_bias = nn.Parameter(delta_bias(heads, minimum=dt_min, maximum=dt_max, floor=dt_floor))
        self.B_bias = nn.Parameter(torch.ones(heads, ranks, state_dim))
        self.C_bias = nn.Parameter(torch.ones(heads, ranks, state_dim))
        self.B_norm = RMSNorm(state_dim, norm_eps)
        self.C_norm = RMSNorm(state_dim, norm_eps)
        self.mimo_x: Tensor | None = None
        self.mimo_z: Tensor | None = None
        self.mimo_o: Tensor | None = None
        if mimo_rank is not None:
            shape = (heads, ranks, head_dim)
            self.mimo_x = nn.Parameter(torch.full(shape, 1 / ranks))
            self.mimo_z = nn.Parameter(torch.ones(shape))
            self.mimo_o = nn.Parameter(torch.full(shape, 1 / ranks))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, norm_eps, groups=heads, norm_before_gate=True) if output_norm else None
        self.output_projection = nn.Linear(inner, dim, bias=False)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros, in float32 or wider whatever `dtype` is.

        ``angle`` (batch, H, angles), ``ssm`` (batch, H, P, N), and of the position before: ``key`` (batch, R, H, N), turned,
        and ``value`` (batch, H, P).
        """
        shapes = {
            "angle": (self.heads, self.angles),
            "ssm": (self.heads, self.head_dim, self.state_dim),
            "key": (self.ranks, self.heads, self.state_dim),
            "value": (self.heads, self.head_dim),
        }
        kind = widened(self.D.dtype)
        return State({n: self.D.new_zeros((batch_size, *s), dtype=kind, device=device) for n, s in shapes.items()})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it; resets, offsets as in `ops`."""
        sequences = x.shape[0] if offsets is None else offsets.shape[0] - 1
        before = state or self.initial_state(sequences, device=x.device)
        if not x.shape[1]:
            return self.output_projection(x.new_zeros(*x.shape[:2], self.inner_dim)), before
        segments = Segments.of(x.shape[1], resets, offsets)
        given = self._project(x)
        angle = angles(given.turned, state["angle"] if state else None, segments)
        keys, queries = self._turned(given, angle)
        y, ssm = trapezoidal_scan(
            self._spread(given.x, self.mimo_x),
            given.step,
            given.rate,
            given.mix,
            keys,
            queries,
            widen(self.D),
            state=state["ssm"] if state else None,
            last_x=self._spread(state["value"], self.mimo_x) if state else None,
            last_key=state["key"] if state else None,
            segments=segments,
            chunk_size=self.chunk_size,
        )
        after = {
            "angle": segments.last(angle, before["angle"]),
            "ssm": ssm,
            "key": segments.last(keys, before["key"]),
            "value": segments.last(widen(given.x), before["value"]),
        }
        return self._finish(y, given.gate, x.dtype), State(after)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        given = self._project(x)
        angle = torch.remainder(state["angle"] + given.turned, 2 * torch.pi)
        key, query = self._turned(given, angle)
        value = widen(given.x)
        y, ssm = trapezoidal_step(
            state["ssm"],
            self._spread(state["value"], self.mimo_x),
            state["key"],
            self._spread(value, self.mimo_x),
            given.step,
            given.rate,
            given.mix,
            key,
            query,
            widen(self.D),
        )
        return self._finish(y, given.gate, x.dtype), State({"angle": angle, "ssm": ssm, "key": key, "value": value})

    def _project(self, u: Tensor) -> _Projected:
        gate, x, B, C, step, rate, mix, rates = self.input_projection(u).split(self.widths, dim=-1)
        step = F.softplus(widen(step) + widen(self.delta_bias))
        rate = widen(rate)
        # Linear above zero, a hyperbola below: decay never stops, and its gradient never vanishes suddenly.
        rate = (rate.clamp(min=0) + 1 / (1 - rate.clamp(max=0))).clamp(min=self.A_floor)
        grouped = (self.ranks, self.groups, self.state_dim)
        return _Projected(
            gate.unflatten(-1, (self.heads, self.head_dim)),
            x.unflatten(-1, (self.heads, self.head_dim)),
            self.B_norm(B.unflatten(-1, grouped)),
            self.C_norm(C.unflatten(-1, grouped)),
            step,
            rate,
            torch.sigmoid(widen(mix)),
            turns(rates, step),
        )

    def _turned(self, given: _Projected, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and queries: B and C (…, R, G, N) -> (…, R, H, N) with the heads' biases, turned."""
        cosine, sine = (part[..., None, :, :] for part in (angle.cos(), angle.sin()))
        both = []
        for rows, bias in ((given.B, self.B_bias), (given.C, self.C_bias)):
            heads = widen(bias).transpose(0, 1).unflatten(1, (self.groups, -1))
            biased = (widen(rows)[..., None, :] + heads).flatten(-3, -2)
            both.append(turn(biased, cosine, sine, interleaved=self.interleaved))
        return both[0], both[1]

    @staticmethod
    def _spread(x: Tensor, weight: Tensor | None) -> Tensor:
        """(…, H, P) -> (…, R, H, P)."""
        return x[..., None, :, :] if weight is None else x[..., None, :, :] * weight.transpose(0, 1).to(x.dtype)

    def _finish(self, y: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
        gate = self._spread(gate, self.mimo_z).to(y.dtype)
        if self.norm is None:
            y = y * F.silu(gate)
        else:
            y = self.norm(y.flatten(-2), gate.flatten(-2)).unflatten(-1, (self.heads, self.head_dim))
        if self.mimo_o is None:
            y = y.squeeze(-3)
        else:
            y = (y * self.mimo_o.transpose(0, 1).to(y.dtype)).sum(-3)
        return self.output_projection(y.flatten(-2).to(dtype))
