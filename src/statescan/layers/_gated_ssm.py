"""The gated SSM of Birdie, causal or with a prefix that is read in both directions. Blouir et al. 2024, arXiv 2411.01030."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from statescan import ops
from statescan.layers._precision import widen, widened
from statescan.layers._state import State


class SplitRMSNorm(nn.Module):
    """x / (rms(x) + eps) times two learned scales, of which the second begins at 0.1.

    Arguments:
        dim: channels.
        eps: added to the root mean square, not to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-8):
        super().__init__()
        self.eps = eps
        self.inner_scale = nn.Parameter(torch.ones(dim))
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape and dtype."""
        wide = widen(x)
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return (wide / (size + self.eps) * widen(self.inner_scale) * widen(self.scale)).to(x.dtype)


class GatedSSM(nn.Module):
    """K = sigmoid(W_K x); u, i, o = W x; h_t = K_t h_{t-1} + (1 - K_t) sigmoid(i_t) u_t; y = W_y (sigmoid(o) h).

    Arguments:
        dim: channels of input and output.
        state_dim: channels of h; 2 dim if None.
        gate: whose K carries the state over to position t: that of t (``current``, the paper's), or that of t - 1
            (``previous``, the published code's).
        bidirectional: the second half of h walks backwards, within prefixes only (see `forward`). Elsewhere it holds what
            its own position brings, so that without a prefix the layer is causal.
        initial_decay: lowest and highest first K of the channels; a learned bias spreads them so that memories 1 / (1 - K)
            are evenly spaced in their logarithm. None, as published: no bias, and every K begins near 1/2.

    Raises:
        ValueError: an unknown gate, sizes below 1, decays outside of 0 to 1, or what does not go with `bidirectional`.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int | None = None,
        gate: Literal["current", "previous"] = "current",
        bidirectional: bool = False,
        initial_decay: tuple[float, float] | None = None,
    ):
        super().__init__()
        state_dim = 2 * dim if state_dim is None else state_dim
        for name, size in (("dim", dim), ("state_dim", state_dim)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if gate not in ("current", "previous"):
            raise ValueError(f"gate: unknown {gate!r}; known: current, previous")
        if bidirectional and gate == "previous":
            raise ValueError("gate: 'previous' with bidirectional=True is not supported; supported: 'current'")
        if bidirectional and state_dim % 2:
            raise ValueError(f"state_dim: expected an even number with bidirectional=True, got {state_dim}")
        self.dim, self.state_dim, self.gate, self.bidirectional = dim, state_dim, gate, bidirectional
        self.forward_dim = state_dim // 2 if bidirectional else state_dim
        self.decay_projection = nn.Linear(dim, state_dim, bias=False)
        self.decay_bias: nn.Parameter | None = None
        if initial_decay is not None:
            low, high = initial_decay
            if not 0 < low <= high < 1:
                raise ValueError(f"initial_decay: expected 0 < lowest <= highest < 1, got {tuple(initial_decay)}")
            halves = (self.forward_dim, state_dim - self.forward_dim)
            gone = [torch.logspace(math.log10(1 - low), math.log10(1 - high), count) for count in halves]
            self.decay_bias = nn.Parameter(torch.special.logit(1 - torch.cat(gone)))
        self.input_projection = nn.Linear(dim, 3 * state_dim, bias=False)
        self.output_projection = nn.Linear(state_dim, dim, bias=False)

    @property
    def takes_prefix(self) -> bool:
        """Whether `forward` takes a prefix."""
        return self.bidirectional

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``ssm`` (batch, channels that walk forwards) in float32.

        With the previous position's gate also ``decay``, of the same shape; with `bidirectional` also ``in_prefix``
        (batch,) bool, whether the last position belonged to a prefix.
        """
        weight = self.decay_projection.weight
        device = weight.device if device is None else device
        ssm = weight.new_zeros((batch_size, self.forward_dim), dtype=widened(weight.dtype), device=device)
        return self._state(ssm, ssm.clone(), torch.zeros(batch_size, dtype=torch.bool, device=device))

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        `resets` (batch, length) bool and `offsets` (sequences + 1,) mark where sequences begin, as in `ops`. `prefix`
        (batch, length) bool marks positions that may see each other in both directions: each unbroken run of them within
        a sequence is one prefix.

        Raises:
            ValueError: a prefix for a layer of one direction, of another shape or type, or continued from an earlier call.
        """
        batch, length, _ = x.shape
        count = batch if offsets is None else offsets.shape[0] - 1
        state = state or self.initial_state(count, device=x.device)
        decay, driven, read = self._project(x)
        ahead = self.forward_dim
        begins = _beginnings(x, resets, offsets)
        carried = decay
        if self.gate == "previous":
            carried, last_decay = _shifted(decay, state["decay"], offsets)
        hidden, ssm = ops.linear_scan(
            carried[..., :ahead].contiguous(),
            driven[..., :ahead].contiguous(),
            initial_state=state["ssm"],
            resets=resets,
            offsets=offsets,
            return_last_state=True,
        )
        in_prefix = None
        if prefix is not None:
            self._check_prefix(prefix, x, state, begins, offsets)
        if self.bidirectional:
            marks = x.new_zeros((batch, length), dtype=torch.bool) if prefix is None else prefix
            _, in_prefix = _shifted(marks, state["in_prefix"], offsets)
            backward = driven[..., ahead:]
            if prefix is not None:
                # A position takes over from the one behind it only where both are of one prefix of one sequence.
                linked = prefix.clone()
                linked[:, :-1] &= prefix[:, 1:] & ~begins[:, 1:]
                linked[:, -1:] = False
                carried = decay[..., ahead:] * linked[..., None]
                scanned = ops.linear_scan(carried.contiguous(), backward.contiguous(), reverse=True)
                assert isinstance(scanned, Tensor)
                backward = scanned
            hidden = torch.cat([hidden, backward], dim=-1)
        y = self.output_projection((hidden * read).to(x.dtype))
        return y, self._state(ssm, last_decay if self.gate == "previous" else None, in_prefix)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position outside of a prefix: x (batch, dim) -> output (batch, dim) and the next state."""
        y, state = self(x[:, None], state)
        return y[:, 0], state

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K, what enters the state, and what its reading is multiplied by: all wide."""
        logits = widen(self.decay_projection(x))
        decay = torch.sigmoid(logits if self.decay_bias is None else logits + widen(self.decay_bias))
        u, enter, read = widen(self.input_projection(x)).chunk(3, dim=-1)
        return decay, u * torch.sigmoid(enter) * (1 - decay), torch.sigmoid(read)

    def _state(self, ssm: Tensor, decay: Tensor | None, in_prefix: Tensor | None) -> State:
        entries: dict[str, Tensor | State] = {"ssm": ssm}
        if self.gate == "previous":
            assert decay is not None
            entries["decay"] = decay
        if self.bidirectional:
            assert in_prefix is not None
            entries["in_prefix"] = in_prefix
        return State(entries)

    def _check_prefix(self, prefix: Tensor, x: Tensor, state: State, begins: Tensor, offsets: Tensor | None) -> None:
        if not self.bidirectional:
            raise ValueError("prefix: this layer walks in one direction; build it with bidirectional=True")
        if prefix.shape != x.shape[:2] or prefix.dtype != torch.bool:
            want = tuple(x.shape[:2])
            raise ValueError(f"prefix: expected bool of shape {want}, got {prefix.dtype} of {tuple(prefix.shape)}")
        before, _ = _shifted(torch.zeros_like(prefix), state["in_prefix"], offsets)
        goes_on = before & prefix
        if offsets is None:
            goes_on = goes_on & ~begins
        if not torch.compiler.is_compiling() and goes_on.any():
            raise ValueError("prefix: one goes on from an earlier call; a prefix must be read whole, in one call")


class GatedSSMBlock(nn.Module):
    """x + GatedSSM(norm(x)), as it was published: `SplitRMSNorm`, and the gate of the previous position.

    Arguments:
        dim: channels.
        options: of `GatedSSM`.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int | None = None,
        gate: Literal["current", "previous"] = "previous",
        bidirectional: bool = False,
    ):
        super().__init__()
        self.norm = SplitRMSNorm(dim)
        self.mixer = GatedSSM(dim, state_dim=state_dim, gate=gate, bidirectional=bidirectional)

    @property
    def takes_prefix(self) -> bool:
        """Whether `forward` takes a prefix."""
        return self.mixer.takes_prefix

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """The mixer's."""
        return self.mixer.initial_state(batch_size, dtype=dtype, device=device)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> the same shape, and the mixer's state; see `GatedSSM.forward`."""
        y, state = self.mixer(self.norm(x), state, resets=resets, offsets=offsets, prefix=prefix)
        return x + y, state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: (batch, dim)."""
        y, state = self.mixer.step(self.norm(x), state)
        return x + y, state


def _beginnings(x: Tensor, resets: Tensor | None, offsets: Tensor | None) -> Tensor:
    """Where sequences begin within the call, (batch, length) bool."""
    if resets is not None:
        return resets
    begins = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    if offsets is not None:
        starts = offsets[:-1]
        begins[0, starts[starts < x.shape[1]]] = True
    return begins


def _shifted(values: Tensor, before: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values (batch, length, ...) of the positions before, `before` (sequences, ...) at the first; and the last values."""
    length = values.shape[1]
    if offsets is None:
        joined = torch.cat([before[:, None].to(values.dtype), values], dim=1)
        return joined[:, :length], joined[:, length]
    before = before.to(values.dtype)
    joined = torch.cat([values.new_zeros((1, 1, *values.shape[2:])), values], dim=1)
    filled = offsets[1:] > offsets[:-1]
    shifted = joined[:, :length].index_put(
        (torch.zeros_like(offsets[:-1][filled]), offsets[:-1][filled]), before[filled]
    )
    mask = filled.view(-1, *[1] * (values.ndim - 2))
    return shifted, torch.where(mask, joined[0, offsets[1:]], before)
