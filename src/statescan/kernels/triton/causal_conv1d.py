"""The short causal convolution on a GPU: tiles of positions and channels, which find their neighbours in the cache.

The gradient runs in two passes: first that of what the activation received, with the parts of the weights'; then
every input gathers its own from the outputs it reached.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton import _tuning
from statescan.kernels.triton._common import (
    FUSED,
    INTERPRETED,
    Chunks,
    first_slot,
    flags,
    locate,
    on_device,
    power_of_two,
    rows,
    sigmoid,
    stride,
)


class Way(NamedTuple):
    """How kernels are launched: positions and channels of a tile, and warps."""

    tile: int
    block: int
    warps: int


#: Both directions choose from these.
WAYS: tuple[Way, ...] = (Way(32, 128, 8), Way(64, 128, 8), Way(32, 64, 4), Way(16, 256, 8), Way(128, 32, 4))
if INTERPRETED:
    WAYS = (Way(16, 16, 8), Way(32, 8, 4))

#: Not specialised, for their values change from call to call.
RUNTIME = ("length", "sequences", "past")


@triton.jit
def load_weight(weight, k, d, d_mask, WIDTH: tl.constexpr):
    """The weights of the inputs k positions back, (1, channels)."""
    return tl.load(weight + d * WIDTH + (WIDTH - 1 - k), mask=d_mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_tap(x, state, row, stride_x, stride_state, past, position, k, t, d, mask):
    """The inputs k positions before those of a tile, from the state where that is before the sequence."""
    before = position + t - k
    source = x + row * stride_x + ((t - k)[:, None] * stride_x + d[None, :])
    tap = tl.load(source, mask=mask & (before >= 0)[:, None], other=0.0).to(tl.float32)
    if state is not None:
        source = state + ((past + before)[:, None] * stride_state + d[None, :])
        tap += tl.load(source, mask=mask & (before < 0)[:, None], other=0.0).to(tl.float32)
    return tap


@triton.jit
def shorten(reached, resets, row, position, count, k, t):
    """What is left of a tile's positions that tap k - 1 reached, for tap k: sequences may begin in between."""
    if resets is not None:
        inside = (t < count) & (position + t - (k - 1) >= 0)
        reached = reached & (tl.load(resets + row + t - (k - 1), mask=inside, other=0) == 0)[:, None]
    return reached


@triton.jit
def convolve(
    x, weight, bias, state, resets, row, position, count, stride_x, stride_state, past, t, d, d_mask, mask,
    WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((TILE, BLOCK), tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=d_mask, other=0.0).to(tl.float32)[None, :]
    reached = mask
    for k in tl.static_range(WIDTH):
        if k > 0:
            reached = shorten(reached, resets, row, position, count, k, t)
        tap = load_tap(x, state, row, stride_x, stride_state, past, position, k, t, d, reached)
        total += load_weight(weight, k, d, d_mask, WIDTH) * tap
    return total


@triton.jit(do_not_specialize=RUNTIME)
def outputs(
    x, weight, bias, state, resets, offsets, y,
    stride_x, stride_state, stride_sequence, length, sequences, past, channels,
    SILU: tl.constexpr, PACKED: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequence, position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, TILE)
    if state is not None:
        state += sequence.to(tl.int64) * stride_sequence
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d_mask = d < channels
    t = tl.arange(0, TILE)
    mask = (t < count)[:, None] & d_mask[None, :]
    total = convolve(
        x, weight, bias, state, resets, row, position, count, stride_x, stride_state, past, t, d, d_mask, mask,
        WIDTH, TILE, BLOCK,
    )  # fmt: skip
    if SILU:
        total *= sigmoid(total)
    tl.store(y + row * channels + (t[:, None] * channels + d[None, :]), total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def weight_gradients(
    x, weight, bias, state, resets, offsets, grad_y, inner, grad_weight, grad_bias,
    stride_x, stride_state, stride_sequence, stride_y, length, sequences, past, channels,
    SILU: tl.constexpr, PACKED: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient `inner` of what the activation received, and this tile's part of those of weight and bias."""
    slot = tl.program_id(0).to(tl.int64)
    sequence, position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, TILE)
    if state is not None:
        state += sequence.to(tl.int64) * stride_sequence
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d_mask = d < channels
    t = tl.arange(0, TILE)
    mask = (t < count)[:, None] & d_mask[None, :]
    grad = tl.load(grad_y + row * stride_y + (t[:, None] * stride_y + d[None, :]), mask=mask, other=0.0).to(tl.float32)
    if SILU:
        total = convolve(
            x, weight, bias, state, resets, row, position, count, stride_x, stride_state, past, t, d, d_mask, mask,
            WIDTH, TILE, BLOCK,
        )  # fmt: skip
        slope = sigmoid(total)
        grad *= slope * (1.0 + total * (1.0 - slope))
        tl.store(inner + row * channels + (t[:, None] * channels + d[None, :]), grad, mask=mask)
    reached = mask
    for k in tl.static_range(WIDTH):
        if k > 0:
            reached = shorten(reached, resets, row, position, count, k, t)
        tap = load_tap(x, state, row, stride_x, stride_state, past, position, k, t, d, reached)
        part = grad_weight + (slot * channels + d) * WIDTH + (WIDTH - 1 - k)
        tl.store(part, tl.sum(grad * tap, 0), mask=d_mask)
    if bias is not None:
        tl.store(grad_bias + slot * channels + d, tl.sum(grad, 0), mask=d_mask)


@triton.jit(do_not_specialize=RUNTIME)
def input_gradients(
    inner, weight, resets, offsets, target, stride_inner, length, sequences, past, channels,
    PACKED: tl.constexpr, WIDTH: tl.constexpr, STATE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the inputs, or where STATE of the `past` inputs before every sequence."""
    if STATE:
        sequence, position = tl.program_id(0), tl.program_id(2) * TILE - past
        count = -position
        _slot, row, end = first_slot(sequence, offsets, length, PACKED, TILE)
        target += (sequence.to(tl.int64) * past + tl.program_id(2) * TILE) * channels
        row += position
    else:
        sequence, position, row, count = locate(tl.program_id(0), offsets, length, sequences, PACKED, TILE)
        _slot, _row, end = first_slot(sequence, offsets, length, PACKED, TILE)
        target += row * channels
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    d_mask = d < channels
    t = tl.arange(0, TILE)
    mask = (t < count)[:, None] & d_mask[None, :]
    total = tl.zeros((TILE, BLOCK), tl.float32)
    reached = mask
    for k in tl.static_range(WIDTH):
        after = position + t + k
        inside = (t < count) & (after >= 0) & (after < end)
        if resets is not None and k > 0:
            reached = reached & (tl.load(resets + row + t + k, mask=inside, other=0) == 0)[:, None]
        source = inner + row * stride_inner + ((t + k)[:, None] * stride_inner + d[None, :])
        grad = tl.load(source, mask=reached & inside[:, None], other=0.0).to(tl.float32)
        total += load_weight(weight, k, d, d_mask, WIDTH) * grad
    tl.store(target + (t[:, None] * channels + d[None, :]), total.to(target.dtype.element_ty), mask=mask)


class _Problem:
    """The arguments of both directions, as the kernels take them."""

    def __init__(self, x, weight, bias, initial_state, resets, offsets, silu, way: Way):
        self.tile = way.tile
        self.chunks = Chunks(x.shape[0], x.shape[1], offsets, self.tile)
        self.channels, self.width = weight.shape
        self.block = power_of_two(self.channels, 8, way.block)
        self.grid = (self.chunks.slots, -(-self.channels // self.block))
        state = initial_state
        if state is not None and state.stride(-1) != 1:
            state = state.contiguous()
        self.past = 0 if state is None else state.shape[1]
        self.x, self.weight = rows(x), weight.contiguous()
        self.bias = None if bias is None else bias.contiguous()
        self.resets, self.offsets = flags(resets), None if offsets is None else offsets.contiguous()
        self.inputs = (self.x, self.weight, self.bias, state, self.resets, self.offsets)
        self.strides = (stride(self.x), stride(state, 1), stride(state, 0))
        self.sizes = (self.chunks.length, self.chunks.sequences, self.past, self.channels)
        self.options = {
            "PACKED": self.chunks.packed, "WIDTH": self.width, "TILE": self.tile, "BLOCK": self.block,
            "num_warps": way.warps, **FUSED,
        }  # fmt: skip
        self.silu = silu


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    silu: bool,
) -> tuple[Tensor]:
    """The registered operator's body."""

    def run(way: Way) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        p = _Problem(x, weight, bias, initial_state, resets, offsets, silu, way)
        outputs[p.grid](*p.inputs, y, *p.strides, *p.sizes, SILU=silu, **p.options)
        return y

    if not x.numel():
        return (torch.empty_like(x, memory_format=torch.contiguous_format),)
    with on_device(x):
        return (_tuning.fastest("causal_conv1d", x, (weight.shape[1], offsets is None), WAYS, run),)


def backward(
    grad_y: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    silu: bool,
) -> list[Tensor | None]:
    """The registered gradient's body: the gradients of x, weight, bias and the initial state."""
    if grad_y is None or not x.numel():
        return [None if t is None else t.new_zeros(t.shape) for t in (x, weight, bias, initial_state)]
    grad_rows = rows(grad_y)

    def run(way: Way) -> list[Tensor | None]:
        p = _Problem(x, weight, bias, initial_state, resets, offsets, silu, way)
        inner = torch.empty(p.x.shape, dtype=torch.float32, device=x.device) if silu else grad_rows
        parts = torch.empty(p.chunks.slots, p.channels, p.width, dtype=torch.float32, device=x.device)
        parts_bias = None if bias is None else torch.empty_like(parts[..., 0])
        weight_gradients[p.grid](
            *p.inputs, grad_rows, inner, parts, parts_bias, *p.strides, stride(grad_rows), *p.sizes,
            SILU=silu, **p.options,
        )  # fmt: skip
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_state = None
        gathered = (inner, p.weight, p.resets, p.offsets)
        input_gradients[p.grid](*gathered, grad_x, stride(inner), *p.sizes, STATE=False, **p.options)
        if initial_state is not None:
            grad_state = torch.empty_like(initial_state, memory_format=torch.contiguous_format)
            if p.past:
                input_gradients[(p.chunks.sequences, p.grid[1], -(-p.past // p.tile))](
                    *gathered, grad_state, stride(inner), *p.sizes, STATE=True, **p.options
                )
        return [
            grad_x,
            parts.sum(0).to(weight.dtype),
            None if parts_bias is None or bias is None else parts_bias.sum(0).to(bias.dtype),
            grad_state,
        ]

    with on_device(x):
        return _tuning.fastest("causal_conv1d, back", x, (weight.shape[1], offsets is None), WAYS, run)
