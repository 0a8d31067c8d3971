"""The compiled FFT convolution: sizes and tables of its transform, and the calls."""

from __future__ import annotations

import functools
import math
from ctypes import byref, c_int64

import torch
from torch import Tensor

from statescan.kernels import cpu

#: Points of the last pass: a leaf fills a part of the first-level cache.
_LEAF, _SMALL_LEAF = 64, 16
#: The most points of a column of any other pass.
_MOST = 64


def _radices(length: int) -> list[int]:
    """Radices of the smallest transform that holds `length` positions; the last is the leaf's."""
    size = max(4 * _SMALL_LEAF, 1 << max(0, length - 1).bit_length())
    leaf = _LEAF if size > 16 * _SMALL_LEAF else _SMALL_LEAF
    first = min(size // leaf, _MOST)
    rest, between = size // leaf // first, []
    while rest > 1:
        between.append(min(rest, _MOST))
        rest //= between[-1]
    if first > 4 and size // 4 * 3 >= length:  # three quarters do
        first = first // 4 * 3
    return [first, *between, leaf]


def _steps(radix: int) -> tuple[int, int]:
    """The two factors A and B by which a pass of this radix goes (`pass` in csrc/fft_conv.cpp)."""
    return {12: (3, 4), 16: (4, 4), 24: (3, 8), 32: (4, 8), 48: (6, 8), 64: (8, 8)}.get(radix, (1, radix))


def _unit(turns: Tensor) -> Tensor:
    """exp(-2 pi i turns) as pairs of floats, in one row."""
    angle = -2 * math.pi * turns
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float().flatten()


@functools.lru_cache(maxsize=8)
def _plan(length: int) -> tuple[Tensor, Tensor]:
    """The radices, and the roots of unity in the order that csrc/fft_conv.cpp asks for."""

    def whole(count: int) -> Tensor:
        return torch.arange(count, dtype=torch.float64)

    def inner(first: int, second: int) -> Tensor:
        return _unit(whole(second)[:, None] * whole(first) / (first * second))

    with torch.inference_mode(False), torch.device("cpu"):
        radices = _radices(length)
        tables = []
        for level, radix in enumerate(radices[:-1]):
            first, second = _steps(radix)
            columns = math.prod(radices[level + 1 :])
            frequency = whole(first)[:, None] + first * whole(second) + (0 if level else 0.25)
            tables += [inner(first, second), _unit(whole(columns)[:, None, None] * frequency / (radix * columns))]
        side = math.isqrt(radices[-1])
        tilt = _unit(whole(radices[0]) / (4 * radices[0]))
        tables += [inner(side, side), tilt, tilt / math.prod(radices)]
        return torch.tensor(radices), torch.cat(tables)


def _workspace(radices: Tensor, kept: int, ahead: int) -> Tensor:
    floats = c_int64()
    cpu.function("fft_conv_workspace", "plllp")(cpu.pointer(radices), len(radices), kept, ahead, byref(floats))
    return torch.empty(floats.value * cpu.threads())


def forward(x: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, future: Tensor | None) -> Tensor:
    """y, from x and the gate of one type, and float32 weights; taps are no more than the length."""
    batch, length, channels = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    radices, tables = _plan(length)
    future = kernel.new_empty(channels, 0) if future is None else future
    workspace = _workspace(radices, 2, future.shape[1])
    x, kernel, future = x.contiguous(), kernel.contiguous(), future.contiguous()
    D, gate = (t if t is None else t.contiguous() for t in (D, gate))
    tensors = (x, gate, kernel, future, D, y, radices, tables, workspace)
    cpu.function("fft_conv_forward", "p" * 9 + "l" * 6 + "ii")(
        *map(cpu.pointer, tensors),
        *(len(radices), batch, length, channels, kernel.shape[1], future.shape[1]),
        *(cpu.DTYPES[x.dtype], cpu.threads()),
    )
    return y


def backward(
    grad: Tensor, x: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, future: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """Gradients of x, kernel, D, gate and future; those of weights in float32."""
    batch, length, channels = x.shape
    radices, tables = _plan(length)
    future = kernel.new_empty(channels, 0) if future is None else future
    workspace = _workspace(radices, 3 if batch == 1 else 4, future.shape[1])
    grad, x, kernel, future = (t.contiguous() for t in (grad, x, kernel, future))
    D, gate = (t if t is None else t.contiguous() for t in (D, gate))
    grad_x, grad_kernel, grad_future = (torch.empty_like(t) for t in (x, kernel, future))
    grad_gate, grad_D = (None if t is None else torch.empty_like(t) for t in (gate, D))
    grads = (grad_x, grad_gate, grad_kernel, grad_future, grad_D)
    tensors = (grad, x, gate, kernel, future, D, *grads, radices, tables, workspace)
    cpu.function("fft_conv_backward", "p" * 14 + "l" * 6 + "ii")(
        *map(cpu.pointer, tensors),
        *(len(radices), batch, length, channels, kernel.shape[1], future.shape[1]),
        *(cpu.DTYPES[x.dtype], cpu.threads()),
    )
    return grad_x, grad_kernel, grad_D, grad_gate, grad_future
