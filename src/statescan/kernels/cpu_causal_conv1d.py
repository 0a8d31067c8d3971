"""Calls of the compiled causal convolution (`csrc/causal_conv1d.cpp`), with the registered operator's arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.kernels import cpu

_WORK_PER_THREAD = 1 << 15  # elements; less, and waking a thread costs more than it brings


class _Call:
    def __init__(self, x: Tensor, weight: Tensor, bias: Any, state: Any, resets: Any, offsets: Any, silu: bool):
        batch, length, channels = x.shape
        rows = x.reshape(-1, channels)
        self.x = rows if rows.stride(1) == 1 else rows.contiguous()
        self.weight = weight.float().T.contiguous()
        self.bias = None if bias is None else bias.float().contiguous()
        self.state = None if state is None else state.float().contiguous()
        self.offsets = cpu.row_offsets(batch, length, offsets)
        self.first = None
        if resets is not None:
            position = torch.arange(length, dtype=torch.int32)
            before = torch.full((), -(1 << 30), dtype=torch.int32)
            self.first = torch.where(resets, position, before).cummax(1).values.contiguous()
        width = weight.shape[1]
        taps = width - 1 if state is None else state.shape[1]
        threads = max(1, min(cpu.threads(), x.numel() // _WORK_PER_THREAD))
        self.sizes = (rows.shape[0], channels, width, taps, self.offsets.shape[0] - 1, self.x.stride(0))
        self.options = (int(silu), cpu.DTYPES[x.dtype], threads)

    def pointers(self) -> tuple[int | None, ...]:
        tensors = (self.x, self.state, self.weight, self.bias, self.offsets, self.first)
        return tuple(cpu.pointer(t) for t in tensors)


def forward(x: Tensor, *args: Any) -> tuple[Tensor]:
    """y."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        call = _Call(x, *args)
        function = cpu.function("causal_conv1d_forward", "p" * 7 + "l" * 6 + "iii")
        function(*call.pointers(), y.data_ptr(), *call.sizes, *call.options)
    return (y,)


def backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Any, state: Any, *args: Any) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and the state."""
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros(weight.shape[1], weight.shape[0])
    grad_bias = torch.zeros(weight.shape[0])
    grad_state = None if state is None else torch.zeros(state.shape)
    if x.numel():
        call = _Call(x, weight, bias, state, *args)
        grad = grad.to(x.dtype).contiguous()
        function = cpu.function("causal_conv1d_backward", "p" * 11 + "l" * 6 + "iii")
        function(
            grad.data_ptr(),
            *call.pointers(),
            grad_x.data_ptr(),
            grad_weight.data_ptr(),
            grad_bias.data_ptr(),
            cpu.pointer(grad_state),
            *call.sizes,
            *call.options,
        )
    return grad_x, grad_weight.T, None if bias is None else grad_bias, grad_state
