"""Causal softmax attention as a sequence mixer: its keys and values are its state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._convolution import CausalConv1d
from statescan.layers._rotary import rotate
from statescan.layers._state import State
from statescan.layers._tree import pick, slide


class AttentionState(State):
    """``keys`` and ``values`` (batch, kv_heads, cached, head_dim), which grow, and ``start`` (batch,).

    Entries before ``start`` belong to an earlier sequence, or to none: caches of unequal length join at their newest.
    """

    @classmethod
    def _concatenate(cls, states: Sequence[Any]) -> Any:
        longest = max(state["keys"].shape[2] for state in states)
        return super()._concatenate([state._lengthened(longest) for state in states])

    def _lengthened(self, length: int) -> AttentionState:
        extra = length - self["keys"].shape[2]
        if extra == 0:
            return self
        padded = {name: F.pad(self[name], (0, 0, extra, 0)) for name in ("keys", "values")}
        return AttentionState({**self, **padded, "start": self["start"] + extra})


class Attention(nn.Module):
    """Multi-head causal attention with grouped keys and values (Vaswani et al. 2017; Ainslie et al. 2023).

    Arguments:
        dim: channels of the output, and of the input unless `input_dim` says otherwise.
        heads: query heads.
        kv_heads: key and value heads, a divisor of heads; None: as many as heads.
        head_dim: channels a head; None: dim / heads.
        rotary_dim: channels of each head that carry rotary positions; 0: none.
        rotary_base: base of their angles.
        rotary_interleaved: pair neighbouring channels instead of the two halves.
        conv_kernel: taps of a causal convolution on queries, keys and values together; 0: none.
        mlp_dim: channels of a gated MLP computed from the same projection beside the attention (0: none); rounded up
            to a multiple of 256, half of it value, half gate.
        scale: of the scores; None: head_dim^-1/2.
        qkv_bias, output_bias: of the projections.
        input_dim: channels of the input.
        causal: False lets every position see all others; such a layer takes no state, resets or offsets.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_dim: int = 0,
        rotary_base: float = 10000.0,
        rotary_interleaved: bool = False,
        conv_kernel: int = 0,
        mlp_dim: int = 0,
        scale: float | None = None,
        qkv_bias: bool = False,
        output_bias: bool = False,
        input_dim: int | None = None,
        causal: bool = True,
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads:
            raise ValueError(f"kv_heads: {kv_heads} does not divide {heads} heads")
        if head_dim is None:
            if dim % heads:
                raise ValueError(f"heads: {heads} does not divide {dim} channels; give head_dim")
            head_dim = dim // heads
        if rotary_dim % 2 or rotary_dim > head_dim:
            raise ValueError(f"rotary_dim: even and at most head_dim {head_dim}, got {rotary_dim}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rotary_dim, self.rotary_base, self.rotary_interleaved = rotary_dim, rotary_base, rotary_interleaved
        self.scale, self.causal = scale, causal
        self.mlp_dim = math.ceil(mlp_dim / 256) * 256
        self.qkv_dim = head_dim * (heads + 2 * kv_heads)
        self.input_projection = nn.Linear(input_dim or dim, self.qkv_dim + self.mlp_dim, bias=qkv_bias)
        self.convolution = CausalConv1d(self.qkv_dim, conv_kernel) if conv_kernel else None
        self.output_projection = nn.Linear(head_dim * heads + self.mlp_dim // 2, dim, bias=output_bias)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """An empty cache, and ``conv`` (batch, conv_kernel - 1, channels) where there is a convolution."""
        weight = self.output_projection.weight
        empty = weight.new_zeros(batch_size, self.kv_heads, 0, self.head_dim, dtype=dtype, device=device)
        start = torch.zeros(batch_size, dtype=torch.int64, device=device or weight.device)
        state: dict[str, Tensor | State] = {"keys": empty, "values": empty.clone(), "start": start}
        if self.convolution is not None:
            state["conv"] = self.convolution.initial_state(batch_size, dtype=dtype, device=device)
        return AttentionState(state)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        correction: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, input_dim) -> (batch, length, dim), and the state after it; resets, offsets as in `ops`.

        `correction` (batch, length, channels of the projection) is added to the projected queries, keys and values:
        what an adapter of a shared layer has to say. `valid` (batch, length) bool says which positions are seen, where
        `causal` is False; with causal attention padding at the end is never seen.
        """
        if valid is not None and self.causal:
            raise ValueError("valid: only attention with causal=False leaves positions out; pad at the end instead")
        if not self.causal and (state or resets is not None or offsets is not None):
            raise ValueError("state, resets, offsets: attention with causal=False sees one whole sequence at a time")
        if offsets is not None:
            return self._packed(x, state, offsets, correction)
        batch, length, _ = x.shape
        projected = self.input_projection(x)
        if correction is not None:
            projected = projected + correction
        qkv, mlp = projected.split([self.qkv_dim, self.mlp_dim], dim=-1)
        conv = None
        if self.convolution is not None:
            qkv, conv = self.convolution(qkv, state["conv"] if state else None, resets=resets)
        queries, keys, values = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, length, head_dim)
            for part in qkv.split([self.head_dim * n for n in (self.heads, self.kv_heads, self.kv_heads)], dim=-1)
        )
        past = state["keys"].shape[2] if state else 0
        place = torch.arange(past, past + length, device=x.device)  # of the new entries in the cache
        first = state["start"] if state else torch.zeros(batch, dtype=torch.int64, device=x.device)
        since = first[:, None].expand(batch, length)  # where each position's own sequence begins in the cache
        if resets is not None:
            marks = torch.where(resets, place, torch.full_like(place, -1)).cummax(dim=1).values
            since = torch.maximum(since, marks)
        if self.rotary_dim:
            positions = place - since
            queries, keys = (
                rotate(part, positions, self.rotary_dim, base=self.rotary_base, interleaved=self.rotary_interleaved)
                for part in (queries, keys)
            )
        if state:
            keys = torch.cat([state["keys"].to(keys.dtype), keys], dim=2)
            values = torch.cat([state["values"].to(values.dtype), values], dim=2)
        plain = state is None and resets is None
        context = self._attend(queries, keys, values, place, since, plain=plain, valid=valid)
        if self.mlp_dim:
            value, gate = mlp.chunk(2, dim=-1)
            context = torch.cat([context, value * F.silu(gate)], dim=-1)
        start = since[:, -1].clone() if length else first
        if resets is not None and batch and not torch.compiler.is_compiling():
            dead = int(start.min())  # what no sequence sees any more; carried on, it would pile up
            keys, values, start = keys[:, :, dead:], values[:, :, dead:], start - dead
        after: dict[str, Tensor | State] = {"keys": keys, "values": values, "start": start}
        if conv is not None:
            after["conv"] = conv
        return self.output_projection(context), AttentionState(after)

    def step(self, x: Tensor, state: State, *, correction: Tensor | None = None) -> tuple[Tensor, State]:
        """One position: x (batch, input_dim) -> (batch, dim) and the next state."""
        y, state = self(x[:, None], state, correction=None if correction is None else correction[:, None])
        return y[:, 0], state

    def advance(self, x: Tensor, state: State) -> State:
        """The state that `step` leaves, without its output: keys and values alone are computed, nothing is attended to."""
        if self.convolution is not None or type(self.input_projection) is not nn.Linear:
            return self.step(x, state)[1]
        bias = self.input_projection.bias
        rows = slice(self.head_dim * self.heads, self.qkv_dim)
        projected = F.linear(x, self.input_projection.weight[rows], None if bias is None else bias[rows])
        keys, values = (part.unflatten(-1, (-1, self.head_dim))[:, :, None] for part in projected.chunk(2, dim=-1))
        if self.rotary_dim:
            positions = (state["keys"].shape[2] - state["start"])[:, None]
            keys = rotate(keys, positions, self.rotary_dim, base=self.rotary_base, interleaved=self.rotary_interleaved)
        return AttentionState(
            {
                "keys": torch.cat([state["keys"].to(keys.dtype), keys], dim=2),
                "values": torch.cat([state["values"].to(values.dtype), values], dim=2),
                "start": state["start"],
            }
        )

    def forward_tree(
        self, x: Tensor, parents: Tensor, state: State, *, correction: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """All nodes of a token tree in one pass: each sees the whole cache, its ancestors and itself.

        Arguments:
            x: (batch, nodes, input_dim).
            parents: (nodes,) or (batch, nodes) int64, each before its children; -1 continues from the cache.
            state: before the tree.
            correction: as in `forward`.

        Returns:
            the output at every node, and the trace from which `replay` makes the state after a path.
        """
        if not self.causal:
            raise ValueError("forward_tree: attention with causal=False sees one whole sequence at a time")
        batch, nodes, _ = x.shape
        projected = self.input_projection(x)
        if correction is not None:
            projected = projected + correction
        qkv, mlp = projected.split([self.qkv_dim, self.mlp_dim], dim=-1)
        trace: dict[str, Tensor | State] = {}
        if self.convolution is not None:
            trace["inputs"], convolution = qkv, self.convolution
            qkv = ops.tree_causal_conv1d(
                qkv,
                convolution.weight,
                convolution.bias,
                parents=parents,
                activation=convolution.activation,
                initial_state=state["conv"],
            )
        queries, keys, values = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in qkv.split([self.head_dim * n for n in (self.heads, self.kv_heads, self.kv_heads)], dim=-1)
        )
        mask = ops.tree_mask(parents).expand(batch, nodes, nodes)
        past = state["keys"].shape[2]
        if self.rotary_dim:
            positions = past - state["start"][:, None] + mask.sum(-1) - 1
            queries, keys = (
                rotate(part, positions, self.rotary_dim, base=self.rotary_base, interleaved=self.rotary_interleaved)
                for part in (queries, keys)
            )
        trace["keys"], trace["values"] = keys.transpose(1, 2), values.transpose(1, 2)
        keys = torch.cat([state["keys"].to(keys.dtype), keys], dim=2)
        values = torch.cat([state["values"].to(values.dtype), values], dim=2)
        if self.kv_heads != self.heads:
            repeats = self.heads // self.kv_heads
            keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
        cached = torch.arange(past, device=x.device) >= state["start"][:, None]  # (batch, past)
        seen = torch.cat([cached[:, None].expand(batch, nodes, past), mask], dim=2)[:, None]
        context = F.scaled_dot_product_attention(queries, keys, values, seen, scale=self.scale)
        context = context.transpose(1, 2).flatten(-2)
        if self.mlp_dim:
            value, gate = mlp.chunk(2, dim=-1)
            context = torch.cat([context, value * F.silu(gate)], dim=-1)
        return self.output_projection(context), State(trace)

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The state after the nodes `path` (batch, steps) int64, -1 behind the end of a shorter one, from `state` on."""
        counts = (path >= 0).sum(1).tolist()
        if len(set(counts)) > 1:  # caches of unequal length join at their newest entry
            rows = [
                self.replay(trace.select([row]), path[row : row + 1, :count], state.select([row]))
                for row, count in enumerate(counts)
            ]
            return AttentionState.concatenate(rows)
        path = path[:, : counts[0]]
        after: dict[str, Tensor | State] = {
            name: torch.cat([state[name], pick(trace[name], path).transpose(1, 2).to(state[name].dtype)], dim=2)
            for name in ("keys", "values")
        }
        after["start"] = state["start"]
        if self.convolution is not None:
            after["conv"] = slide(state["conv"], trace["inputs"], path)
        return AttentionState(after)

    def _attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        place: Tensor,
        since: Tensor,
        *,
        plain: bool,
        valid: Tensor | None,
    ) -> Tensor:
        if self.kv_heads != self.heads:
            repeats = self.heads // self.kv_heads
            keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
        mask = None if valid is None else valid[:, None, None]
        if not plain:
            entry = torch.arange(keys.shape[2], device=keys.device)
            mask = ((entry <= place[:, None]) & (entry >= since[..., None]))[:, None]  # (batch, 1, length, cache)
        context = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=plain and self.causal, scale=self.scale
        )
        return context.transpose(1, 2).flatten(-2)

    def _packed(
        self, x: Tensor, state: State | None, offsets: Tensor, correction: Tensor | None
    ) -> tuple[Tensor, State]:
        """Every sequence by itself: they share nothing, and their caches have lengths of their own."""
        bounds = offsets.tolist()
        results = [
            self(
                x[:, start:end],
                state.select([index]) if state else None,
                correction=None if correction is None else correction[:, start:end],
            )
            for index, (start, end) in enumerate(itertools.pairwise(bounds))
        ]
        return torch.cat([y for y, _ in results], dim=1), State.concatenate([after for _, after in results])
