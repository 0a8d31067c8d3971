"""The mixers of Based: Taylor linear attention, sliding-window attention, the gated short convolution.

Arora et al. 2024, "Simple linear attention language models balance the recall-throughput tradeoff", arXiv 2402.18668.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._convolution import CausalConv1d
from statescan.layers._precision import widened
from statescan.layers._rotary import rotate
from statescan.layers._segments import walk_segments
from statescan.layers._state import State


class TaylorLinearAttention(nn.Module):
    """Linear attention whose weights are 1 + s + s^2 / 2 with s = q.k / sqrt(feature_dim). Section 4.1.

    Its state is one matrix a head, of a size that `feature_dim` sets: recall grows with it.

    Arguments:
        dim: channels of input and output.
        heads: attention heads.
        feature_dim: channels of queries and keys a head.
        head_dim: channels of values a head; None: dim / heads.
        eps: added to the sum of weights (1e-6 in the kernels of flash-linear-attention).
        form, chunk_size: see `ops.taylor_linear_attention`; they change speed, not results.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 16,
        feature_dim: int = 16,
        head_dim: int | None = None,
        eps: float = 1e-12,
        form: Literal["chunked", "parallel"] = "chunked",
        chunk_size: int = 64,
    ):
        super().__init__()
        if head_dim is None:
            if dim % heads:
                raise ValueError(f"heads: {heads} does not divide {dim} channels; give head_dim")
            head_dim = dim // heads
        self.dim, self.heads, self.feature_dim, self.head_dim = dim, heads, feature_dim, head_dim
        self.eps, self.form, self.chunk_size = eps, form, chunk_size
        self.query_projection = nn.Linear(dim, heads * feature_dim, bias=False)
        self.key_projection = nn.Linear(dim, heads * feature_dim, bias=False)
        self.value_projection = nn.Linear(dim, heads * head_dim, bias=False)
        self.output_projection = nn.Linear(heads * head_dim, dim, bias=False)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``memory`` (batch, heads, head_dim + 1, features) in float32; the last row sums the keys' features."""
        weight = self.output_projection.weight
        shape = (batch_size, self.heads, self.head_dim + 1, ops.taylor_feature_count(self.feature_dim))
        return State({"memory": weight.new_zeros(shape, dtype=widened(weight.dtype), device=device)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it; resets, offsets as in `ops`."""
        q, k, v = self._project(x)
        y, memory = ops.taylor_linear_attention(
            q,
            k,
            v,
            eps=self.eps,
            form=self.form,
            chunk_size=self.chunk_size,
            initial_state=state["memory"] if state else None,
            resets=resets,
            offsets=offsets,
            return_last_state=True,
        )
        return self.output_projection(y.flatten(-2)), State({"memory": memory})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        y, memory = ops.taylor_linear_attention_step(state["memory"], *self._project(x), eps=self.eps)
        return self.output_projection(y.flatten(-2)), State({"memory": memory})

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1))
            for projection in (self.query_projection, self.key_projection, self.value_projection)
        )
        return q, k, v


class SlidingAttention(nn.Module):
    """Softmax attention to the last few positions, with rotary positions and a cache that does not grow. Section 4.2.

    Arguments:
        dim: channels of input and output.
        heads: query heads.
        window: earlier positions that each position sees beside itself (half of `window_size` in the published code).
        kv_heads: key and value heads, a divisor of heads; None: as many as heads.
        rotary_dim: channels of each head that carry rotary positions; None: all, 0: none.
        rotary_base: base of their angles.
        rotary_interleaved: pair neighbouring channels instead of the two halves.
        scale: of the scores; None: head_dim^-1/2.
        qkv_bias, output_bias: of the projections.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 16,
        window: int = 64,
        kv_heads: int | None = None,
        rotary_dim: int | None = None,
        rotary_base: float = 10000.0,
        rotary_interleaved: bool = False,
        scale: float | None = None,
        qkv_bias: bool = False,
        output_bias: bool = False,
    ):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if dim % heads:
            raise ValueError(f"heads: {heads} does not divide {dim} channels")
        if heads % kv_heads:
            raise ValueError(f"kv_heads: {kv_heads} does not divide {heads} heads")
        head_dim = dim // heads
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if rotary_dim % 2 or not 0 <= rotary_dim <= head_dim:
            raise ValueError(f"rotary_dim: even and at most head_dim {head_dim}, got {rotary_dim}")
        if window < 0:
            raise ValueError(f"window: 0 or more earlier positions, got {window}")
        self.dim, self.heads, self.kv_heads, self.head_dim, self.window = dim, heads, kv_heads, head_dim, window
        self.rotary_dim, self.rotary_base, self.rotary_interleaved = rotary_dim, rotary_base, rotary_interleaved
        self.scale = scale
        self.input_projection = nn.Linear(dim, head_dim * (heads + 2 * kv_heads), bias=qkv_bias)
        self.output_projection = nn.Linear(dim, dim, bias=output_bias)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``keys``, ``values`` (batch, kv_heads, window, head_dim), and ``seen`` (batch,), positions so far."""
        weight = self.output_projection.weight
        empty = weight.new_zeros(batch_size, self.kv_heads, self.window, self.head_dim, dtype=dtype, device=device)
        seen = torch.zeros(batch_size, dtype=torch.int64, device=device or weight.device)
        return State({"keys": empty, "values": empty.clone(), "seen": seen})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it; resets, offsets as in `ops`."""
        if offsets is not None:
            return walk_segments(lambda part, before: self(part, before), x, state or None, offsets=offsets)
        batch, length, _ = x.shape
        before = state or self.initial_state(batch, dtype=x.dtype, device=x.device)
        projected = self.input_projection(x)
        if length == 0:
            return self.output_projection(projected[..., : self.dim]), before
        sizes = [self.head_dim * n for n in (self.heads, self.kv_heads, self.kv_heads)]
        queries, keys, values = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, length, head_dim)
            for part in projected.split(sizes, dim=-1)
        )
        place = torch.arange(length, device=x.device)
        since = -before["seen"][:, None].expand(batch, length)  # where each position's own sequence begins
        if resets is not None:
            marks = torch.where(resets, place, torch.full_like(place, -1)).cummax(dim=1).values
            since = torch.where(marks >= 0, marks, since)
        if self.rotary_dim:
            queries, keys = (
                rotate(
                    part,
                    place - since,
                    self.rotary_dim,
                    base=self.rotary_base,
                    interleaved=self.rotary_interleaved,
                )
                for part in (queries, keys)
            )
        keys = torch.cat([before["keys"].to(keys.dtype), keys], dim=2)
        values = torch.cat([before["values"].to(values.dtype), values], dim=2)
        context = self._attend(queries, keys, values, since)
        seen = length - since[:, -1]
        # What an earlier sequence left is cleared, so that equal states are equal tensors.
        alive = torch.arange(self.window, 0, -1, device=x.device) <= seen[:, None]
        kept = {
            name: cache[:, :, length:].masked_fill(~alive[:, None, :, None], 0.0)
            for name, cache in (("keys", keys), ("values", values))
        }
        return self.output_projection(context), State({**kept, "seen": seen})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        y, state = self(x[:, None], state)
        return y[:, 0], state

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, since: Tensor) -> Tensor:
        """Blocks as long as the window, each with the window before it: time linear in the length.

        Queries stand at 0 ... length - 1, keys and values at -window ... length - 1.
        """
        batch, heads, length, _ = queries.shape
        window = self.window
        block = min(length, max(window, 1))
        missing = -length % block
        queries = F.pad(queries, (0, 0, 0, missing)).unflatten(2, (-1, block))
        keys, values = (
            F.pad(cache, (0, 0, 0, missing)).unfold(2, window + block, block).transpose(-1, -2)
            for cache in (keys, values)
        )  # (batch, kv_heads, blocks, window + block, head_dim)
        if self.kv_heads != heads:
            keys, values = (span.repeat_interleave(heads // self.kv_heads, dim=1) for span in (keys, values))
        starts = torch.arange(0, length + missing, block, device=queries.device)
        i = torch.arange(block, device=queries.device)[:, None]
        j = torch.arange(window + block, device=queries.device)
        own = F.pad(since, (0, missing)).unflatten(1, (-1, block))  # (batch, blocks, block)
        place = starts[:, None, None] + j - window
        # A padded query sees whatever stands in its window: a row without any key would be NaN.
        padded = (starts[:, None, None] + i >= length) & (j == i + window)
        seen = (j >= i) & (j <= i + window) & ((place >= own[..., None]) | padded)
        context = F.scaled_dot_product_attention(queries, keys, values, seen[:, None], scale=self.scale)
        return context.flatten(2, 3)[:, :, :length].transpose(1, 2).flatten(-2)


class BaseConv(nn.Module):
    """u1, u2 = W_in x; y = W_out (silu(conv(u1)) u2), with a short causal convolution. Zoology, arXiv 2312.04927.

    Arguments:
        dim: channels of input and output.
        conv_kernel: taps of the convolution.
        expand: channels of u1 and u2 together over dim; expand x dim must be even.
        bias: whether the projections have biases.
        conv_bias: whether the convolution has one (it has in the published CUDA variant).
    """

    def __init__(self, dim: int, *, conv_kernel: int = 3, expand: int = 4, bias: bool = True, conv_bias: bool = False):
        super().__init__()
        if expand < 1 or expand * dim % 2:
            raise ValueError(f"expand: expand x dim must be even and positive, got {expand} x {dim}")
        inner = expand * dim // 2
        self.dim, self.inner_dim = dim, inner
        self.input_projection = nn.Linear(dim, 2 * inner, bias=bias)
        self.convolution = CausalConv1d(inner, conv_kernel, bias=conv_bias, activation="silu")
        self.output_projection = nn.Linear(inner, dim, bias=bias)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``conv`` (batch, conv_kernel - 1, inner)."""
        return State({"conv": self.convolution.initial_state(batch_size, dtype=dtype, device=device)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it; resets, offsets as in `ops`."""
        convolved, gate = self.input_projection(x).chunk(2, dim=-1)
        convolved, conv = self.convolution(convolved, state["conv"] if state else None, resets=resets, offsets=offsets)
        return self.output_projection(convolved * gate), State({"conv": conv})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        convolved, gate = self.input_projection(x).chunk(2, dim=-1)
        convolved, conv = self.convolution.step(convolved, state["conv"])
        return self.output_projection(convolved * gate), State({"conv": conv})
