"""The Mamba mixer: convolution, selective scan, gate. Gu and Dao 2023, arXiv 2312.00752, figure 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._convolution import CausalConv1d
from statescan.layers._initialisation import delta_bias
from statescan.layers._norms import RMSNorm
from statescan.layers._precision import widen, widened
from statescan.layers._recompute import recomputed
from statescan.layers._state import State
from statescan.layers._tree import forward_tree, pick, replay, slide


class Mamba(nn.Module):
    """x, z = W_in u; x = silu(conv(x)); delta, B, C from x; y = selective_scan(x) silu(z); out = W_out y.

    Arguments:
        dim: channels of input and output.
        state_dim: N, states of each inner channel.
        conv_kernel: taps of the convolution.
        expand: inner channels over dim; need not be whole.
        dt_rank: rank of the projection to step sizes; ``auto`` is dim / 16, rounded up.
        dt_min, dt_max, dt_floor: first step sizes are log-uniform between the first two, at least the third.
        dt_init, dt_scale: the step projection's first weights: uniform (``random``) or ``constant``, times the scale.
        bias: whether the outer projections have biases.
        conv_bias: whether the convolution has one.
        inner_norm: RMSNorm on delta, B and C before use: ``weightless`` (FalconMamba), ``weighted`` (Jamba) or None.
        inner_norm_eps: its eps.
        selective: False makes the step sizes, B and C constants: a time-invariant system, the paper's ablation.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 16,
        conv_kernel: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        bias: bool = False,
        conv_bias: bool = True,
        inner_norm: Literal["weightless", "weighted"] | None = None,
        inner_norm_eps: float = 1e-6,
        selective: bool = True,
    ):
        super().__init__()
        inner = int(expand * dim)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.dim, self.inner_dim, self.state_dim, self.dt_rank = dim, inner, state_dim, rank
        self.selective = selective
        #: Called with all step sizes (batch, length, inner); gives those that the scan takes (see `generation.LongContext`).
        self.token_filter: Callable[[Tensor], Tensor] | None = None
        self.input_projection = nn.Linear(dim, 2 * inner, bias=bias)
        self.convolution = CausalConv1d(inner, conv_kernel, bias=conv_bias, activation="silu")
        if selective:
            self.selection_projection = nn.Linear(inner, rank + 2 * state_dim, bias=False)
            self.delta_projection = nn.Linear(rank, inner, bias=False)
            spread = rank**-0.5 * dt_scale
            if dt_init == "constant":
                nn.init.constant_(self.delta_projection.weight, spread)
            else:
                nn.init.uniform_(self.delta_projection.weight, -spread, spread)
        else:
            self.B = nn.Parameter(torch.randn(inner, state_dim))
            self.C = nn.Parameter(torch.randn(inner, state_dim) / math.sqrt(state_dim))
        # The bias is not the projection's: it is added in float32, within the scan, where it decides the timescale.
        self.delta_bias = nn.Parameter(delta_bias(inner, minimum=dt_min, maximum=dt_max, floor=dt_floor))
        self.inner_norms = None
        if inner_norm is not None and selective:
            weighted = inner_norm == "weighted"
            self.inner_norms = nn.ModuleList(
                RMSNorm(width, inner_norm_eps, weighted=weighted) for width in (rank, state_dim, state_dim)
            )
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
        positions: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        `resets` (batch, length) bool and `offsets` (sequences + 1,) mark where sequences begin, as in `ops`. `positions`
        (batch, length) say where the tokens of a longer sequence stood: the state ages over gaps (`ops.aligned_scan`);
        then one whole sequence a row is read, and the state after it is empty.
        """
        inputs, gate = self.input_projection(x).chunk(2, dim=-1)
        marks: dict[str, Any] = dict(state=state["conv"] if state else None, resets=resets, offsets=offsets)
        hidden, conv = self.convolution(inputs, **marks)
        with recomputed(hidden, lambda: self.convolution.forward(inputs.detach(), **marks)[0]):
            reduced, B, C = self._selected(hidden)
            delta = self._delta(reduced)
            with recomputed(delta, lambda: self._delta(reduced.detach())):
                steps, stepping = self._stepping(delta)
                if positions is not None:
                    if state or resets is not None or offsets is not None:
                        raise ValueError("positions: for one whole sequence a row, without state, resets and offsets")
                    y = ops.aligned_scan(
                        hidden,
                        steps,
                        self._A(),
                        B,
                        C,
                        widen(self.D),
                        gate,
                        positions=positions,
                        **stepping,
                    )
                    return self.output_projection(y), State()
                y, ssm = ops.selective_scan(
                    hidden,
                    steps,
                    self._A(),
                    B,
                    C,
                    widen(self.D),
                    gate,
                    **stepping,
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
        if not self.selective:
            B, C = B.expand(x.shape[0], -1, -1), C.expand(x.shape[0], -1, -1)
        delta, stepping = self._stepping(delta[:, None])
        delta = delta[:, 0]
        y, ssm = ops.selective_state_step(
            state["ssm"],
            hidden,
            delta,
            self._A(),
            B,
            C,
            widen(self.D),
            gate,
            **stepping,
        )
        return self.output_projection(y), State({"conv": conv, "ssm": ssm})

    def advance(self, x: Tensor, state: State) -> State:
        """The state that `step` leaves, without its output: gate and output projection are not computed."""
        if type(self.input_projection) is not nn.Linear:
            return self.step(x, state)[1]
        bias = self.input_projection.bias
        rows = slice(0, self.inner_dim)
        hidden = F.linear(x, self.input_projection.weight[rows], None if bias is None else bias[rows])
        hidden, conv = self.convolution.step(hidden, state["conv"])
        delta, B, _ = self._select(hidden)
        if not self.selective:
            B = B.expand(x.shape[0], -1, -1)
        delta, stepping = self._stepping(delta[:, None])
        _, ssm = ops.selective_state_step(state["ssm"], hidden, delta[:, 0], self._A(), B, B, **stepping)
        return State({"conv": conv, "ssm": ssm})

    def forward_tree(self, x: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """All nodes of a token tree in one pass.

        Arguments:
            x: (batch, nodes, dim).
            parents: (nodes,) or (batch, nodes) int64, each before its children; -1 continues from the state.
            state: before the tree.

        Returns:
            the output at every node, and the trace from which `replay` makes the state after a path.
        """
        if not self.selective:
            return forward_tree(_Stepping(self), x, parents, state)
        inputs, gate = self.input_projection(x).chunk(2, dim=-1)
        convolution = self.convolution
        hidden = ops.tree_causal_conv1d(
            inputs,
            convolution.weight,
            convolution.bias,
            parents=parents,
            activation=convolution.activation,
            initial_state=state["conv"],
        )
        delta, B, C = self._select(hidden)
        steps = self.step_sizes(delta)
        if self.token_filter is not None:
            steps = self.token_filter(steps)
        y = ops.selective_tree_scan(
            hidden, steps, self._A(), B, C, widen(self.D), gate, parents=parents, initial_state=state["ssm"]
        )
        return self.output_projection(y), State({"inputs": inputs, "hidden": hidden, "B": B, "steps": steps})

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The state after the nodes `path` (batch, steps) int64, -1 behind the end of a shorter one, from `state` on."""
        if not self.selective:
            return replay(_Stepping(self), trace, path, state)
        steps = pick(trace["steps"], path).masked_fill((path < 0)[..., None], 0.0)  # a step of 0 changes nothing
        B = pick(trace["B"], path)
        _, ssm = ops.selective_scan(
            pick(trace["hidden"], path),
            steps,
            self._A(),
            B,
            B,
            initial_state=state["ssm"],
            return_last_state=True,
        )
        return State({"conv": slide(state["conv"], trace["inputs"], path), "ssm": ssm})

    def step_sizes(self, delta: Tensor) -> Tensor:
        """What the projection gave (…, inner), with bias and softplus: in float32 or wider."""
        return nn.functional.softplus(widen(delta) + widen(self.delta_bias))

    def _stepping(self, delta: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Step sizes for the scan, and what is left for it to do with them."""
        if self.token_filter is not None:
            return self.token_filter(self.step_sizes(delta)), {}
        return delta, dict(delta_bias=widen(self.delta_bias), delta_softplus=True)

    def _A(self) -> Tensor:
        return -torch.exp(widen(self.A_log))

    def _select(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes before bias and softplus (..., inner); B, C (..., state_dim), or constants (inner, state_dim)."""
        reduced, B, C = self._selected(hidden)
        return self._delta(reduced), B, C

    def _selected(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `_delta` reads, and B and C."""
        if not self.selective:
            return hidden, self.B, self.C
        selected = self.selection_projection(hidden)
        delta, B, C = selected.split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        if self.inner_norms is not None:
            delta, B, C = (norm(t) for norm, t in zip(self.inner_norms, (delta, B, C), strict=True))
        return delta, B, C

    def _delta(self, reduced: Tensor) -> Tensor:
        return self.delta_projection(reduced) if self.selective else torch.zeros_like(reduced)


class _Stepping:
    """A mixer of which a tree sees the single step alone."""

    def __init__(self, mixer: Mamba):
        self.step = mixer.step
