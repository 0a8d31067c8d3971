"""The bidirectional Mamba mixer of images. Zhu et al. 2024, "Vision Mamba", arXiv 2401.09417, algorithm 1."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan import ops
from statescan.layers._convolution import CausalConv1d
from statescan.layers._initialisation import delta_bias
from statescan.layers._precision import widen
from statescan.layers._state import State


class ScanBranch(nn.Module):
    """What one direction has for itself: x = silu(conv(x)); delta, B, C from x; y = selective_scan(x).

    Arguments:
        channels: inner channels.
        state_dim: N, states of each channel.
        conv_kernel: taps of the causal convolution.
        dt_rank: rank of the projection to step sizes.
        dt_min, dt_max, dt_floor: first step sizes are log-uniform between the first two, at least the third.
        dt_init, dt_scale: the step projection's first weights: uniform (``random``) or ``constant``, times the scale.
        conv_bias: whether the convolution has one.
        window: positions in a window of `ops.local_scan`, or ``auto``; None for a plain scan.
    """

    def __init__(
        self,
        channels: int,
        *,
        state_dim: int,
        conv_kernel: int,
        dt_rank: int,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        conv_bias: bool = True,
        window: int | Literal["auto"] | None = None,
    ):
        super().__init__()
        self.state_dim, self.dt_rank, self.window = state_dim, dt_rank, window
        self.convolution = CausalConv1d(channels, conv_kernel, bias=conv_bias, activation="silu")
        self.selection_projection = nn.Linear(channels, dt_rank + 2 * state_dim, bias=False)
        self.delta_projection = nn.Linear(dt_rank, channels, bias=False)
        spread = dt_rank**-0.5 * dt_scale
        if dt_init == "constant":
            nn.init.constant_(self.delta_projection.weight, spread)
        else:
            nn.init.uniform_(self.delta_projection.weight, -spread, spread)
        self.delta_bias = nn.Parameter(delta_bias(channels, minimum=dt_min, maximum=dt_max, floor=dt_floor))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state_dim + 1).float()).repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))

    def select(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (batch, length, channels) -> step sizes before bias and softplus, B, C."""
        dt, B, C = self.selection_projection(hidden).split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        return self.delta_projection(dt), B, C

    def scan(self, hidden: Tensor, delta: Tensor, B: Tensor, C: Tensor, A_log: Tensor | None = None) -> Tensor:
        """The selective scan, with this branch's rates of decay or others."""
        A = -torch.exp(widen(self.A_log if A_log is None else A_log))
        bias, D = widen(self.delta_bias), widen(self.D)
        if self.window is None:
            y = ops.selective_scan(hidden, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)
        else:
            y = ops.local_scan(hidden, delta, A, B, C, D, window=self.window, delta_bias=bias, delta_softplus=True)
        assert isinstance(y, Tensor)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, channels) to the same shape."""
        hidden, _ = self.convolution(x)
        return self.scan(hidden, *self.select(hidden))

    def chunk(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next part of a sequence, and the state after it; plain scans only."""
        if self.window is not None:
            raise ValueError(f"window: a scan in windows carries no state, got {self.window!r}")
        hidden, convolution = self.convolution(x, state["conv"] if state else None)
        delta, B, C = self.select(hidden)
        y, last = ops.selective_scan(
            hidden,
            delta,
            -torch.exp(widen(self.A_log)),
            B,
            C,
            widen(self.D),
            delta_bias=widen(self.delta_bias),
            delta_softplus=True,
            initial_state=state["ssm"] if state else None,
            return_last_state=True,
        )
        return y, State({"conv": convolution, "ssm": last})


class BidirectionalMamba(nn.Module):
    """x, z = W_in u; y = (f(x) + reverse(g(reverse(x)))) silu(z); out = W_out y, f and g being `ScanBranch`.

    It reads a whole sequence at once and has no step.

    Arguments:
        dim: channels of input and output.
        backward: what the way back has for itself: ``separate`` (everything but the outer projections: "v2") or
            ``shared`` (A alone; step sizes, B and C are those of the way forth, read backwards: "v1").
        halve: whether the sum of both ways is halved.
        layer_scale: first value of a learned factor a channel of the output; None for none.
        state_dim: N, states of each inner channel.
        conv_kernel: taps of the causal convolutions.
        expand: inner channels over dim.
        dt_rank: rank of the projection to step sizes; ``auto`` is dim / 16, rounded up.
        bias: whether the outer projections have biases.
        window: of the way forth; see `ScanBranch`.
        branch: further options of `ScanBranch`.
    """

    def __init__(
        self,
        dim: int,
        *,
        backward: Literal["separate", "shared"] = "separate",
        halve: bool = True,
        layer_scale: float | None = None,
        state_dim: int = 16,
        conv_kernel: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bias: bool = False,
        window: int | Literal["auto"] | None = None,
        **branch: object,
    ):
        super().__init__()
        if backward not in ("separate", "shared"):
            raise ValueError(f"backward: unknown {backward!r}; known: separate, shared")
        if window is not None and backward == "shared":
            raise ValueError("window: only with backward='separate', whose way forth has its own scan")
        inner = int(expand * dim)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.dim, self.inner_dim, self.halve = dim, inner, halve

        def make(window: int | Literal["auto"] | None = None) -> ScanBranch:
            options: Any = dict(state_dim=state_dim, conv_kernel=conv_kernel, dt_rank=rank, window=window, **branch)
            return ScanBranch(inner, **options)

        self.input_projection = nn.Linear(dim, 2 * inner, bias=bias)
        self.forwards = make(window)
        self.backwards = make() if backward == "separate" else None
        if backward == "shared":
            self.backward_A_log = nn.Parameter(self.forwards.A_log.detach().clone())
        self.output_projection = nn.Linear(inner, dim, bias=bias)
        self.layer_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and an empty state.

        Raises:
            ValueError: a state, resets or offsets: every output depends on the whole sequence.
        """
        if state or resets is not None or offsets is not None:
            raise ValueError(
                "state, resets, offsets: a bidirectional mixer reads one whole sequence a row and takes none of them; "
                "pad or batch sequences of one length, or use layers.Mamba"
            )
        hidden, gate = self.input_projection(x).chunk(2, dim=-1)
        if self.backwards is not None:
            y = self.forwards(hidden) + self.backwards(hidden.flip(1)).flip(1)
        else:
            hidden, _ = self.forwards.convolution(hidden)
            selected = self.forwards.select(hidden)
            back, delta, B, C = (part.flip(1) for part in (hidden, *selected))
            y = self.forwards.scan(hidden, *selected)
            y = y + self.forwards.scan(back, delta, B, C, self.backward_A_log).flip(1)
        y = y * nn.functional.silu(gate)
        out = self.output_projection(y / 2 if self.halve else y)
        return (out if self.layer_scale is None else out * self.layer_scale), State()

    def chunk(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next part of a sequence too long to be read at once: x (batch, length, dim) to its shape, and the state.

        The way forth carries its state from part to part. The way back begins anew at the end of each part, so that an
        output depends on all that came before it and on what follows it within the part. Of one part alone it is
        `forward`.

        Raises:
            ValueError: backward is ``shared``, or the way forth has windows.
        """
        if self.backwards is None:
            raise ValueError(
                "backward: parts of a sequence need two ways that have parameters of their own ('separate')"
            )
        hidden, gate = self.input_projection(x).chunk(2, dim=-1)
        y, state = self.forwards.chunk(hidden, state)
        y = (y + self.backwards(hidden.flip(1)).flip(1)) * nn.functional.silu(gate)
        out = self.output_projection(y / 2 if self.halve else y)
        return (out if self.layer_scale is None else out * self.layer_scale), state
