"""The Mamba-2 mixer: one scalar decay a head, wide states. Dao and Gu 2024, arXiv 2405.21060, figure 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._convolution import CausalConv1d
from statescan.layers._initialisation import delta_bias
from statescan.layers._norms import GatedRMSNorm
from statescan.layers._precision import widen, widened
from statescan.layers._recompute import recomputed
from statescan.layers._state import State
from statescan.layers._tree import pick, slide


class Mamba2(nn.Module):
    """z, x, B, C, delta = W_in u; x, B, C = silu(conv(x, B, C)); y = ssd(x); out = W_out norm(y silu(z)).

    Arguments:
        dim: channels of input and output.
        state_dim: N, width of the state.
        head_dim: P, channels that share a decay.
        conv_kernel: taps of the convolution.
        expand: inner channels over dim.
        inner_dim: inner channels, where expand does not say; None: expand * dim.
        ssm_dim: how many of the inner channels go through the scan; the others are a gated MLP beside it. None: all.
        groups: G, sets of heads that share B and C.
        A_range: decay rates at initialisation are uniform in it.
        dt_min, dt_max, dt_floor: step sizes at initialisation, as in `Mamba`.
        dt_limit: step sizes are clamped to it after softplus.
        D_per_channel: a direct weight for every channel instead of every head.
        gated_norm: RMSNorm before the output projection; without it z gates the scan itself.
        norm_before_gate: norm(y) silu(z) instead of norm(y silu(z)).
        norm_groups: the norm's statistics are over ssm_dim / norm_groups channels; None: groups.
        norm_eps: its eps.
        learned_initial_state: the state before the sequence is a parameter (Mamba2Simple).
        bias, conv_bias: of the outer projections and the convolution.
        output_bias: of the output projection, where it differs from `bias`.
        multipliers: fixed factors of the projected z, x, B, C and delta (Falcon-H1); None: none.
        conv_init: the convolution's first weights are uniform within +-conv_init; None: torch's default.
        chunk_size: positions that the scan takes at a time; changes speed, not results.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 128,
        head_dim: int = 64,
        conv_kernel: int = 4,
        expand: float = 2,
        inner_dim: int | None = None,
        ssm_dim: int | None = None,
        groups: int = 1,
        A_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        D_per_channel: bool = False,
        gated_norm: bool = True,
        norm_before_gate: bool = False,
        norm_groups: int | None = None,
        norm_eps: float = 1e-5,
        learned_initial_state: bool = False,
        bias: bool = False,
        conv_bias: bool = True,
        output_bias: bool | None = None,
        conv_init: float | None = None,
        multipliers: Sequence[float] | None = None,
        chunk_size: int = 64,
    ):
        super().__init__()
        inner = int(expand * dim) if inner_dim is None else inner_dim
        scanned = inner if ssm_dim is None else ssm_dim
        if scanned % head_dim:
            raise ValueError(f"head_dim: {head_dim} does not divide the {scanned} channels of the scan")
        heads = scanned // head_dim
        if heads % groups:
            raise ValueError(f"groups: {groups} does not divide {heads} heads")
        if not 0 < scanned <= inner:
            raise ValueError(f"ssm_dim: between 1 and the {inner} inner channels, got {scanned}")
        if multipliers is not None and len(multipliers) != 5:
            raise ValueError(f"multipliers: five, of z, x, B, C and delta, got {len(multipliers)}")
        self.multipliers = None if multipliers is None or set(multipliers) == {1.0} else tuple(multipliers)
        self.dim, self.inner_dim, self.ssm_dim, self.state_dim = dim, inner, scanned, state_dim
        self.heads, self.head_dim, self.groups, self.chunk_size = heads, head_dim, groups, chunk_size
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        #: Called with all step sizes (batch, length, heads); gives those that the scan takes (see `generation.LongContext`).
        self.token_filter: Callable[[Tensor], Tensor] | None = None
        conv_dim = scanned + 2 * groups * state_dim
        mlp_dim = inner - scanned
        self.widths = [mlp_dim, mlp_dim, scanned, conv_dim, heads]
        self.input_projection = nn.Linear(dim, sum(self.widths), bias=bias)
        self.convolution = CausalConv1d(conv_dim, conv_kernel, bias=conv_bias, activation="silu")
        if conv_init is not None:
            nn.init.uniform_(self.convolution.weight, -conv_init, conv_init)
        self.delta_bias = nn.Parameter(delta_bias(heads, minimum=dt_min, maximum=dt_max, floor=dt_floor))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*A_range).log())
        self.D = nn.Parameter(torch.ones(scanned if D_per_channel else heads))
        self.learned_state = nn.Parameter(torch.zeros(heads, head_dim, state_dim)) if learned_initial_state else None
        self.norm = (
            GatedRMSNorm(scanned, norm_eps, groups=norm_groups or groups, norm_before_gate=norm_before_gate)
            if gated_norm
            else None
        )
        self.output_projection = nn.Linear(inner, dim, bias=bias if output_bias is None else output_bias)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros or the learned state: ``conv`` (batch, conv_kernel - 1, channels), ``ssm`` (batch, H, P, N) float32."""
        shape = (batch_size, self.heads, self.head_dim, self.state_dim)
        ssm = self.A_log.new_zeros(shape, dtype=widened(self.A_log.dtype), device=device)
        if self.learned_state is not None:
            ssm = ssm + widen(self.learned_state)
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
        """x (batch, length, dim) -> output of the same shape, and the state after it; resets, offsets as in `ops`.

        `positions` (batch, length) as in `Mamba.forward`.
        """
        if state is None and self.learned_state is not None:
            sequences = x.shape[0] if offsets is None else offsets.shape[0] - 1
            state = self.initial_state(sequences, dtype=x.dtype, device=x.device)
        if self.learned_state is not None and resets is not None:
            raise ValueError("resets: a learned initial state cannot be reset to within a sequence; pass offsets")
        mlp_gate, mlp, gate, inputs, delta = self._project(x)
        marks: dict[str, Any] = dict(state=state["conv"] if state else None, resets=resets, offsets=offsets)
        scanned, conv = self.convolution(inputs, **marks)
        hidden, B, C = self._split(scanned)
        delta, stepping = self._stepping(delta)
        with recomputed(scanned, lambda: self.convolution.forward(inputs.detach(), **marks)[0]):
            if positions is not None:
                if state or resets is not None or offsets is not None:
                    raise ValueError("positions: for one whole sequence a row, without state, resets and offsets")
                y = ops.aligned_ssd(
                    hidden,
                    delta,
                    -torch.exp(widen(self.A_log)),
                    B,
                    C,
                    self._D(),
                    self._heads(gate) if self.norm is None else None,
                    positions=positions,
                    **stepping,
                    chunk_size=self.chunk_size,
                )
                return self._finish(y, gate, mlp_gate, mlp), State()
            y, ssm = ops.ssd(
                hidden,
                delta,
                -torch.exp(widen(self.A_log)),
                B,
                C,
                self._D(),
                self._heads(gate) if self.norm is None else None,
                **stepping,
                chunk_size=self.chunk_size,
                initial_state=state["ssm"] if state else None,
                resets=resets,
                offsets=offsets,
                return_last_state=True,
            )
        return self._finish(y, gate, mlp_gate, mlp), State({"conv": conv, "ssm": ssm})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        mlp_gate, mlp, gate, scanned, delta = self._project(x)
        scanned, conv = self.convolution.step(scanned, state["conv"])
        hidden, B, C = self._split(scanned)
        delta, stepping = self._stepping(delta[:, None])
        delta = delta[:, 0]
        y, ssm = ops.ssd_step(
            state["ssm"],
            hidden,
            delta,
            -torch.exp(widen(self.A_log)),
            B,
            C,
            self._D(),
            self._heads(gate) if self.norm is None else None,
            **stepping,
        )
        return self._finish(y, gate, mlp_gate, mlp), State({"conv": conv, "ssm": ssm})

    def advance(self, x: Tensor, state: State) -> State:
        """The state that `step` leaves, without its output: gates, norm and output projection are not computed."""
        if self.multipliers is not None or type(self.input_projection) is not nn.Linear:
            return self.step(x, state)[1]
        bias = self.input_projection.bias
        rows = slice(sum(self.widths[:3]), None)
        projected = F.linear(x, self.input_projection.weight[rows], None if bias is None else bias[rows])
        scanned, delta = projected.split(self.widths[3:], dim=-1)
        scanned, conv = self.convolution.step(scanned, state["conv"])
        hidden, B, _ = self._split(scanned)
        delta, stepping = self._stepping(delta[:, None])
        _, ssm = ops.ssd_step(state["ssm"], hidden, delta[:, 0], -torch.exp(widen(self.A_log)), B, B, **stepping)
        return State({"conv": conv, "ssm": ssm})

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Gate and value of the MLP beside the scan, z, what the convolution reads, and delta."""
        mlp_gate, mlp, gate, scanned, delta = self.input_projection(x).split(self.widths, dim=-1)
        if self.multipliers is None:
            return mlp_gate, mlp, gate, scanned, delta
        of_gate, of_x, of_B, of_C, of_delta = self.multipliers
        wide = self.groups * self.state_dim
        hidden, B, C = scanned.split([self.ssm_dim, wide, wide], dim=-1)
        scanned = torch.cat([hidden * of_x, B * of_B, C * of_C], dim=-1)
        return mlp_gate, mlp, gate * of_gate, scanned, delta * of_delta

    def forward_tree(self, x: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """All nodes of a token tree in one pass.

        Arguments:
            x: (batch, nodes, dim).
            parents: (nodes,) or (batch, nodes) int64, each before its children; -1 continues from the state.
            state: before the tree.

        Returns:
            the output at every node, and the trace from which `replay` makes the state after a path.
        """
        mlp_gate, mlp, gate, scanned, delta = self._project(x)
        convolution = self.convolution
        mixed = ops.tree_causal_conv1d(
            scanned,
            convolution.weight,
            convolution.bias,
            parents=parents,
            activation=convolution.activation,
            initial_state=state["conv"],
        )
        hidden, B, C = self._split(mixed)
        steps = self.step_sizes(delta)
        if self.token_filter is not None:
            steps = self.token_filter(steps)
        y = ops.tree_scan(
            hidden,
            steps,
            -torch.exp(widen(self.A_log)),
            B,
            C,
            self._D(),
            self._heads(gate) if self.norm is None else None,
            parents=parents,
            initial_state=state["ssm"],
        )
        trace = State({"inputs": scanned, "hidden": hidden, "B": B, "steps": steps})
        return self._finish(y, gate, mlp_gate, mlp), trace

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The state after the nodes `path` (batch, steps) int64, -1 behind the end of a shorter one, from `state` on."""
        steps = pick(trace["steps"], path).masked_fill((path < 0)[..., None], 0.0)  # a step of 0 changes nothing
        B = pick(trace["B"], path)
        _, ssm = ops.ssd(
            pick(trace["hidden"], path),
            steps,
            -torch.exp(widen(self.A_log)),
            B,
            B,
            chunk_size=self.chunk_size,
            initial_state=state["ssm"],
            return_last_state=True,
        )
        return State({"conv": slide(state["conv"], trace["inputs"], path), "ssm": ssm})

    def step_sizes(self, delta: Tensor) -> Tensor:
        """What the projection gave (…, heads), with bias, softplus and limits: in float32 or wider."""
        return nn.functional.softplus(widen(delta) + widen(self.delta_bias)).clamp(*self.dt_limit)

    def _stepping(self, delta: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Step sizes for the scan, and what is left for it to do with them."""
        if self.token_filter is not None:
            return self.token_filter(self.step_sizes(delta)), {}
        return delta, dict(delta_bias=widen(self.delta_bias), delta_softplus=True, delta_limit=self.dt_limit)

    def _heads(self, channels: Tensor) -> Tensor:
        return channels.unflatten(-1, (self.heads, self.head_dim))

    def _split(self, scanned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = self.groups * self.state_dim
        hidden, B, C = scanned.split([self.ssm_dim, wide, wide], dim=-1)
        grouped = (self.groups, self.state_dim)
        return self._heads(hidden), B.unflatten(-1, grouped), C.unflatten(-1, grouped)

    def _D(self) -> Tensor:
        return widen(self.D if self.D.shape[0] == self.heads else self._heads(self.D))

    def _finish(self, y: Tensor, gate: Tensor, mlp_gate: Tensor, mlp: Tensor) -> Tensor:
        y = y.flatten(-2)
        norm = self.norm
        normed = y if norm is None else norm(y, gate)
        if self.widths[0]:
            return self.output_projection(torch.cat([nn.functional.silu(mlp_gate) * mlp, normed], dim=-1))
        if norm is None:
            return self.output_projection(y)
        with recomputed(normed, lambda: norm.forward(y.detach(), gate.detach())):
            return self.output_projection(normed)
