"""The compiled FFT convolution: sizes and tables of its transform, and the calls."""

from __future__ import annotations

import functools
import math
from ctypes import byref, c_int64

import torch
from torch import Tensor

from statescan.kernels import cpu

#: The least columns of a transform: a multiple of the lanes of every instruction set.
_LEAST = 16


def _shape(length: int) -> tuple[int, int]:
    """Rows and columns of the smallest transform that holds `length` positions."""
    size = max(_LEAST * 4, 1 << max(0, length - 1).bit_length())
    columns = max(_LEAST, 1 << ((size.bit_length() - 1) // 2))
    if size // 4 * 3 >= length and size // columns >= 4:  # three quarters do: the rows are 3 2^a
        return size // columns // 4 * 3, columns
    return size // columns, columns


def _order(size: int) -> Tensor:
    """The frequencies that decimation leaves in places 0, 1, ...: 3 first where it divides, then 4, 2 last."""
    if size == 1:
        return torch.zeros(1, dtype=torch.int64)
    radix = next(r for r in (3, 4, 2) if size % r == 0)
    inner = _order(size // radix)
    return torch.cat([radix * inner + first for first in range(radix)])


def _unit(turns: Tensor) -> Tensor:
    """exp(-2 pi i turns) as pairs of floats."""
    angle = -2 * math.pi * turns
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float().contiguous()


@functools.lru_cache(maxsize=8)
def _plan(length: int) -> tuple[int, int, tuple[Tensor, ...]]:
    with torch.inference_mode(False), torch.device("cpu"):
        rows, columns = _shape(length)
        row, column = (torch.arange(n, dtype=torch.float64) for n in (rows, columns))
        turns = (_order(rows).double() + 0.25)[:, None] * column
        tables = _unit(row / rows), _unit(column / columns), _unit(turns / (rows * columns)), _unit(row / (4 * rows))
        return rows, columns, tables


def _workspace(rows: int, columns: int, kept: int) -> Tensor:
    floats = c_int64()
    cpu.function("fft_conv_workspace", "lllp")(rows, columns, kept, byref(floats))
    return torch.empty(floats.value * cpu.threads())


def forward(x: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, future: Tensor | None) -> Tensor:
    """y, from x and the gate of one type, and float32 weights; taps are no more than the length."""
    batch, length, channels = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, columns, tables = _plan(length)
    workspace = _workspace(rows, columns, 2)
    future = kernel.new_empty(channels, 0) if future is None else future
    x, kernel, future = x.contiguous(), kernel.contiguous(), future.contiguous()
    D, gate = (t if t is None else t.contiguous() for t in (D, gate))
    tensors = (x, gate, kernel, future, D, y, *tables, workspace)
    cpu.function("fft_conv_forward", "p" * 11 + "l" * 7 + "ii")(
        *map(cpu.pointer, tensors),
        *(batch, length, channels, kernel.shape[1], future.shape[1], rows, columns, cpu.DTYPES[x.dtype], cpu.threads()),
    )
    return y


def backward(
    grad: Tensor, x: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, future: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """Gradients of x, kernel, D, gate and future; those of weights in float32."""
    batch, length, channels = x.shape
    rows, columns, tables = _plan(length)
    workspace = _workspace(rows, columns, 4)
    future = kernel.new_empty(channels, 0) if future is None else future
    grad, x, kernel, future = (t.contiguous() for t in (grad, x, kernel, future))
    D, gate = (t if t is None else t.contiguous() for t in (D, gate))
    grad_x, grad_kernel, grad_future = (torch.empty_like(t) for t in (x, kernel, future))
    grad_gate, grad_D = (None if t is None else torch.empty_like(t) for t in (gate, D))
    grads = (grad_x, grad_gate, grad_kernel, grad_future, grad_D)
    tensors = (grad, x, gate, kernel, future, D, *grads, *tables, workspace)
    cpu.function("fft_conv_backward", "p" * 16 + "l" * 7 + "ii")(
        *map(cpu.pointer, tensors),
        *(batch, length, channels, kernel.shape[1], future.shape[1], rows, columns, cpu.DTYPES[x.dtype], cpu.threads()),
    )
    return grad_x, grad_kernel, grad_D, grad_gate, grad_future
