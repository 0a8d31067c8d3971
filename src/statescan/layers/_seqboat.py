"""Sparse modular activation: a moving average that decides, position by position, whether to call attention.

Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling" (SeqBoat), arXiv 2306.11197. The moving average
is that of Ma et al. 2022 (Mega), arXiv 2209.10655.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._precision import widen, widened
from statescan.layers._rotary import rotate
from statescan.layers._segments import walk_segments
from statescan.layers._state import State

#: Positions whose contribution to the last state is summed at once.
_CHUNK = 64
#: What a masked score is before the softmax: finite, so that a row that sees nothing is no NaN.
_MASKED = -5e4


def _normal(tensor: Tensor, std: float = 0.02) -> Tensor:
    """Normal, cut off at two standard deviations."""
    return nn.init.trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std)


def compress(x: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the active positions of every sequence, in order.

    Arguments:
        x: (batch, length, channels).
        active: (batch, length) bool.

    Returns:
        the compressed sequence (batch, count, channels) with zeros behind its end, where count is that of the sequence with
        the most active positions (1 at least); the positions they come from (batch, count); and a bool of that
        shape, True where there is an element.
    """
    counts = active.sum(dim=1)
    count = max(int(counts.max()), 1)
    index = torch.argsort((~active).to(torch.uint8), dim=1, stable=True)[:, :count]
    valid = torch.arange(count, device=x.device) < counts[:, None]
    gathered = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
    return gathered.masked_fill(~valid[..., None], 0.0), index, valid


def extract(compressed: Tensor, active: Tensor) -> Tensor:
    """The inverse of `compress`: (batch, count, channels) to (batch, length, channels), zeros where not active."""
    index = (active.long().cumsum(dim=1) - 1).clamp(min=0)
    found = compressed.gather(1, index[..., None].expand(-1, -1, compressed.shape[-1]))
    return found.masked_fill(~active[..., None], 0.0)


class SequenceNorm(nn.Module):
    """``layer`` norm, or ``batch`` norm over batch and time, of (batch, length, dim)."""

    def __init__(self, kind: str, dim: int, *, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        if kind not in ("layer", "batch"):
            raise ValueError(f"norm: unknown {kind!r}; known: layer, batch")
        self.norm: nn.Module
        if kind == "layer":
            self.norm = nn.LayerNorm(dim, eps=eps, elementwise_affine=affine)
        else:
            self.norm = nn.BatchNorm1d(dim, eps=eps, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, dim) to the same shape."""
        return self.norm(x) if isinstance(self.norm, nn.LayerNorm) else self.norm(x.mT).mT


class MultiHeadEMA(nn.Module):
    """Damped moving averages, `state_dim` a channel: a real diagonal state-space system. Mega, section 3.2.

    ``h_t = q h_{t-1} + p beta x_t`` with p = sigmoid(delta), q = 1 - p sigmoid(alpha), and
    ``y_t = sum_n gamma h_t / sqrt(state_dim) + omega x_t``.

    Arguments:
        dim: channels.
        state_dim: averages a channel.
        bidirectional: add averages of the future, with weights of their own.
        truncation: taps of the kernel; None: all.
    """

    def __init__(self, dim: int, *, state_dim: int = 2, bidirectional: bool = False, truncation: int | None = None):
        super().__init__()
        if truncation is not None and truncation < 1:
            raise ValueError(f"truncation: at least 1 tap, or None, got {truncation}")
        self.dim, self.state_dim, self.bidirectional, self.truncation = dim, state_dim, bidirectional, truncation
        rows = 2 * dim if bidirectional else dim
        self.delta = nn.Parameter(_normal(torch.empty(rows, state_dim), 0.2))
        self.alpha = nn.Parameter(_normal(torch.empty(rows, state_dim), 0.2))
        signs = 1.0 - 2.0 * (torch.arange(state_dim) % 2)
        self.beta = nn.Parameter(_normal(torch.empty(rows, state_dim)) + signs)
        self.gamma = nn.Parameter(_normal(torch.empty(rows, state_dim), 1.0))
        self.omega = nn.Parameter(_normal(torch.empty(dim), 1.0))

    @property
    def recurrent(self) -> bool:
        """Whether it has a state."""
        return not self.bidirectional and self.truncation is None

    def initial_state(self, batch_size: int, *, device: torch.device | None = None) -> Tensor:
        """Zeros (batch, dim, state_dim), float32."""
        shape = (batch_size, self.dim, self.state_dim)
        return self.delta.new_zeros(shape, dtype=widened(self.delta.dtype), device=device)

    def forward(
        self, x: Tensor, state: Tensor | None = None, *, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (batch, length, dim) -> output of that shape, and the state after it (None for one that has none).

        `padding` (batch, length) bool marks positions that enter no average.
        """
        length = x.shape[1]
        q, scale_in, scale_out = self._coefficients()
        u = widen(x) if padding is None else widen(x).masked_fill(padding[..., None], 0.0)
        taps = length if self.truncation is None else min(self.truncation, length)
        weights = 0.5 * scale_in * scale_out  # of an exponential and its conjugate
        kernel = ops.vandermonde(_complex(weights)[None], _complex(torch.log(q)), taps)[0]
        future = None
        if self.bidirectional:
            kernel, backward = kernel.chunk(2)
            # Both directions see the position itself.
            kernel = torch.cat([kernel[:, :1] + backward[:, :1], kernel[:, 1:]], dim=1)
            future = backward[:, 1:]
        y = ops.fft_conv(u, kernel, anticausal_kernel=future)
        last = None
        if self.recurrent:
            if state is not None:
                position = torch.arange(1, length + 1, device=x.device, dtype=q.dtype)
                decayed = torch.exp(torch.log(q)[..., None] * position)
                y = y + torch.einsum("bdn,dnl->bld", state.to(q.dtype) * scale_out, decayed)
            last = self._last_state(u, q, scale_in, state)
        return (y + widen(self.omega) * widen(x)).to(x.dtype), last

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        q, scale_in, scale_out = self._coefficients()
        wide = widen(x)
        state = q * state.to(q.dtype) + scale_in * wide[..., None]
        return ((state * scale_out).sum(-1) + widen(self.omega) * wide).to(x.dtype), state

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Decay, weight of the input and of the output, each (rows, state_dim)."""
        p = torch.sigmoid(widen(self.delta))
        q = 1.0 - p * torch.sigmoid(widen(self.alpha))
        return q, p * widen(self.beta), widen(self.gamma) / math.sqrt(self.state_dim)

    def _last_state(self, u: Tensor, q: Tensor, scale_in: Tensor, state: Tensor | None) -> Tensor:
        last = self.initial_state(u.shape[0], device=u.device) if state is None else state.to(q.dtype)
        back = torch.arange(_CHUNK - 1, -1, -1, device=u.device, dtype=q.dtype)
        powers = torch.exp(torch.log(q)[..., None] * back)  # (dim, state_dim, chunk), the newest last
        for part in u.split(_CHUNK, dim=1) if u.shape[1] else ():
            size = part.shape[1]
            fresh = torch.einsum("bld,dnl->bdn", part, powers[..., _CHUNK - size :])
            last = last * q**size + fresh * scale_in
        return last


def _complex(tensor: Tensor) -> Tensor:
    return torch.complex(tensor, torch.zeros_like(tensor))


class SeqBoat(nn.Module):
    """A layer of SeqBoat: y = silu(W_d m + gate attention(m) + x), with m = silu(EMA(norm(x))). Section 3.

    At positions where the router says so, and there alone, a gated attention unit reads m; it sees the `window` nearest
    *active* positions. Norm and residual are part of the layer.

    Arguments:
        dim: channels of input and output.
        qk_dim: channels of queries and keys.
        hidden_dim: channels of values; None: 2 dim.
        ema_dim: averages a channel.
        window: active positions that are seen to each side.
        bidirectional: see both sides.
        truncation: taps of the moving average's kernel; None: all.
        attention: ``relu2`` or ``softmax``.
        position: ``simple``: a learned bias by distance, at most `max_length`, between original positions; ``local``: one by
            distance between active positions; ``rotary``: rotary original positions.
        max_length: see position.
        norm: ``layer`` or ``batch``.
        prenorm: norm of the input; else of the output.
        norm_affine: whether the norm has weights.
        temperature: the router's softmax begins with this temperature, times sqrt(dim).
        compression: ``always``: attention runs over active positions, packed. ``never``: over all, inactive ones masked, and
            the window counts all positions. ``auto``, the published code: ``never`` for a batch in which some sequence
            is wholly active, else ``always``; so a result depends on its neighbours in the batch.
        dropout, hidden_dropout, attention_dropout: of averages and output, values, attention weights.
    """

    def __init__(
        self,
        dim: int,
        *,
        qk_dim: int = 96,
        hidden_dim: int | None = None,
        ema_dim: int = 16,
        window: int = 128,
        bidirectional: bool = False,
        truncation: int | None = None,
        attention: Literal["relu2", "softmax"] = "relu2",
        position: Literal["simple", "local", "rotary"] = "simple",
        max_length: int = 1024,
        norm: Literal["layer", "batch"] = "layer",
        prenorm: bool = True,
        norm_affine: bool = True,
        temperature: float = 1.0,
        compression: Literal["always", "auto", "never"] = "always",
        dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        for name, value, known in (
            ("attention", attention, ("relu2", "softmax")),
            ("position", position, ("simple", "local", "rotary")),
            ("compression", compression, ("always", "auto", "never")),
        ):
            if value not in known:
                raise ValueError(f"{name}: unknown {value!r}; known: {', '.join(known)}")
        if window < 1:
            raise ValueError(f"window: at least 1 position, got {window}")
        if position == "rotary" and qk_dim % 2:
            raise ValueError(f"qk_dim: even with rotary positions, got {qk_dim}")
        hidden = 2 * dim if hidden_dim is None else hidden_dim
        self.dim, self.qk_dim, self.hidden_dim, self.window = dim, qk_dim, hidden, window
        self.bidirectional, self.prenorm, self.compression = bidirectional, prenorm, compression
        self.attention, self.position, self.max_length = attention, position, max_length
        self.norm = SequenceNorm(norm, dim, affine=norm_affine)
        self.ema = MultiHeadEMA(dim, state_dim=ema_dim, bidirectional=bidirectional, truncation=truncation)
        self.query_key_scale = nn.Parameter(_normal(torch.empty(2, qk_dim)))
        self.query_key_shift = nn.Parameter(torch.zeros(2, qk_dim))
        # Distances to each side that have a bias of their own.
        self.reach = {"simple": max_length, "local": 3 * window, "rotary": 0}[position]
        self.position_bias = nn.Parameter(_normal(torch.empty(2 * self.reach - 1))) if self.reach else None
        self.log_temperature = nn.Parameter(torch.full((1,), math.log(temperature * dim**0.5)))
        self.attention_projection = nn.Linear(dim, qk_dim + 2 * hidden)
        self.input_projection = nn.Linear(dim, 2 + dim)
        self.output_projection = nn.Linear(hidden, dim)
        for projection in (self.attention_projection, self.input_projection, self.output_projection):
            _normal(projection.weight)
            nn.init.zeros_(projection.bias)
        self.dropout = nn.Dropout(dropout)
        self.hidden_dropout = nn.Dropout(hidden_dropout)
        self.attention_dropout = nn.Dropout(attention_dropout)

    @property
    def recurrent(self) -> bool:
        """Whether it has a state: it is causal, its average not truncated, and it does not look at the batch."""
        return self.ema.recurrent and self.compression != "auto"

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``ema`` (batch, dim, ema_dim) in float32; of the last `window` active positions ``keys``, ``values``,
        ``positions`` and ``valid`` (batch, window, ...); ``seen`` (batch,), positions so far.

        Raises:
            NotImplementedError: the layer is not `recurrent`.
        """
        self._require_state()
        weight = self.output_projection.weight
        device = device or weight.device
        dtype = dtype or weight.dtype
        shape = (batch_size, self.window)
        return State(
            {
                "ema": self.ema.initial_state(batch_size, device=device),
                "keys": torch.zeros(*shape, self.qk_dim, dtype=dtype, device=device),
                "values": torch.zeros(*shape, self.hidden_dim, dtype=dtype, device=device),
                "positions": torch.zeros(shape, dtype=torch.int64, device=device),
                "valid": torch.zeros(shape, dtype=torch.bool, device=device),
                "seen": torch.zeros(batch_size, dtype=torch.int64, device=device),
            }
        )

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        padding: Tensor | None = None,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        Arguments:
            x: input.
            state: what an earlier call returned; a bidirectional layer takes none.
            padding: (batch, length) bool, positions that no other sees.
            resets, offsets: where sequences begin, as in `ops`; the stretches between are walked one after the other.

        Raises:
            ValueError: resets are given to a layer that is not `recurrent`.
            NotImplementedError: a state is given to a layer that is not `recurrent`.
        """
        if state:
            self._require_state()
        if resets is not None or offsets is not None:
            if resets is not None and not self.recurrent:
                raise ValueError("resets: this layer carries no state from stretch to stretch; pass offsets instead")
            return walk_segments(
                lambda part, before: self(part, before), x, state or None, resets=resets, offsets=offsets
            )
        if x.numel() == 0:
            if not self.recurrent:
                return x, State()
            return x, state or self.initial_state(x.shape[0], dtype=x.dtype, device=x.device)
        normed = self.norm(x) if self.prenorm else x
        averaged, ema = self.ema(normed, state["ema"] if state else None, padding=padding)
        return self._finish(x, averaged, ema, state, padding)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        self._require_state()
        if x.numel() == 0:
            return x, state
        normed = self.norm(x[:, None])[:, 0] if self.prenorm else x
        averaged, ema = self.ema.step(normed, state["ema"])
        y, state = self._finish(x[:, None], averaged[:, None], ema, state, None)
        return y[:, 0], state

    def route(self, averaged: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the router decides of averages m (batch, length, dim).

        Returns:
            active (batch, length) bool; the gate (batch, length), zero where not active; and the direct path of m.
        """
        options, direct = self.input_projection(averaged).split([2, self.dim], dim=-1)
        odds = torch.softmax(widen(options) / torch.exp(widen(self.log_temperature)), dim=-1)
        gate, choice = odds.to(averaged.dtype).max(dim=-1)
        active = choice == 1
        if padding is not None:
            active = active & ~padding
        return active, gate * active, direct

    def _finish(
        self, x: Tensor, averaged: Tensor, ema: Tensor | None, state: State | None, padding: Tensor | None
    ) -> tuple[Tensor, State]:
        m = self.dropout(F.silu(averaged))
        active, gate, direct = self.route(m, padding)
        called, cache = self._call(m, active, state)
        added = direct + called * gate[..., None]
        y = F.silu((added if self.bidirectional else self.dropout(added)) + x)
        if not self.prenorm:
            y = self.norm(y)
        if ema is None or not self.recurrent:
            return y, State()
        before = state["seen"] if state else torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return y, State({"ema": ema, **cache, "seen": before + x.shape[1]})

    def _call(self, m: Tensor, active: Tensor, state: State | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The gated attention unit at the active positions: (batch, length, dim), zeros elsewhere, and the new cache."""
        batch, length, _ = m.shape
        full = self.compression == "auto" and bool((active.sum(dim=1) == length).any())
        dense = full or self.compression == "never"
        if dense:
            taken, valid = m, active
            places = torch.arange(length, device=m.device).expand(batch, length)
        else:
            taken, places, valid = compress(m, active)
        if state:
            places = places + state["seen"][:, None]
        shared, gate, values = F.silu(self.attention_projection(taken)).split(
            [self.qk_dim, self.hidden_dim, self.hidden_dim], dim=-1
        )
        queries, keys = (shared[..., None, :] * self.query_key_scale + self.query_key_shift).unbind(dim=-2)
        if self.position == "rotary":
            queries, keys = (
                rotate(part[:, None], places, self.qk_dim, interleaved=True)[:, 0] for part in (queries, keys)
            )
        cache = {"keys": keys, "values": self.hidden_dropout(values), "positions": places, "valid": valid}
        cache = {
            name: torch.cat(
                [
                    state[name].to(new.dtype) if state else new.new_zeros(batch, self.window, *new.shape[2:]),
                    new,
                ],
                dim=1,
            )
            for name, new in cache.items()
        }
        h = self.output_projection(self._attend(queries, places, cache) * gate)
        if self.bidirectional:
            h = self.dropout(h)
        counts = torch.full_like(places[:, 0], length) if dense else active.sum(dim=1)
        kept = counts[:, None] + torch.arange(self.window, device=m.device)
        return (h if dense else extract(h, active)), _keep(cache, kept)

    def _attend(self, queries: Tensor, places: Tensor, cache: dict[str, Tensor]) -> Tensor:
        """Attention in blocks as long as the window: each sees itself, the one before and, if bidirectional, after.

        queries (batch, count, qk_dim) at `places`; the cache has `window` entries before theirs. Time is linear in count.
        """
        batch, count, _ = queries.shape
        window = self.window
        missing = -count % window
        after = window if self.bidirectional else 0
        span = 2 * window + after
        blocks = F.pad(queries, (0, 0, 0, missing)).unflatten(1, (-1, window))
        spans = {}
        for name in ("keys", "values"):
            padded = F.pad(cache[name], (0, 0, 0, missing + after))
            spans[name] = padded.unfold(1, span, window).transpose(-1, -2)  # (batch, blocks, span, channels)
        valid = F.pad(cache["valid"], (0, missing + after)).unfold(1, span, window)[:, :, None]
        i = torch.arange(window, device=queries.device)[:, None]
        j = torch.arange(span, device=queries.device)
        seen = valid & (j >= i) & (j <= i + window + after)
        scale = self.qk_dim**-0.5 if self.attention == "softmax" else 1 / (window + after)
        scores = (blocks * scale) @ spans["keys"].transpose(-1, -2)
        if self.position == "local":
            assert self.position_bias is not None
            scores = scores + self.position_bias[(self.reach - 1) + j - i]
        elif self.position == "simple":
            assert self.position_bias is not None
            theirs = F.pad(cache["positions"], (0, missing + after)).unfold(1, span, window)[:, :, None]
            own = F.pad(places, (0, missing)).unflatten(1, (-1, window))[..., None]
            distance = (theirs - own + self.reach - 1).clamp(0, 2 * self.reach - 2)
            scores = scores + self.position_bias[distance]
        if self.attention == "softmax":
            weights = torch.softmax(widen(scores).masked_fill(~seen, _MASKED), dim=-1).to(scores.dtype)
        else:
            weights = F.relu(scores.masked_fill(~seen, 0.0)).square()
        return (self.attention_dropout(weights) @ spans["values"]).flatten(1, 2)[:, :count]

    def _require_state(self) -> None:
        if self.bidirectional:
            raise NotImplementedError("SeqBoat: a bidirectional layer has no state; call it on whole sequences")
        if not self.ema.recurrent:
            raise NotImplementedError("SeqBoat: a truncated average has no state; leave truncation at None")
        if self.compression == "auto":
            raise NotImplementedError(
                "SeqBoat: with compression='auto' chunks differ from a whole; use 'always' or 'never'"
            )


def _keep(cache: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """The entries at `index` (batch, window) of every tensor; what is not valid becomes zero."""
    valid = cache["valid"].gather(1, index)
    kept = {"valid": valid}
    for name in ("keys", "values", "positions"):
        whole = cache[name]
        where, alive = (index, valid) if whole.ndim == 2 else (index[..., None], valid[..., None])
        found = whole.gather(1, where.expand(*index.shape, *whole.shape[2:]))
        kept[name] = found.masked_fill(~alive, 0)
    return {name: kept[name] for name in ("keys", "values", "positions", "valid")}
