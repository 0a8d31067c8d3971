"""Calls of the compiled gated RMSNorm (`csrc/gated_rms_norm.cpp`), with the registered operator's arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.kernels import cpu

_WORK_PER_THREAD = 1 << 15  # elements; less, and waking a thread costs more than it brings


def _rows(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


class _Call:
    def __init__(self, x: Tensor, weight: Any, gate: Any, eps: float, group_size: int, norm_before_gate: bool):
        self.x, self.gate = _rows(x), _rows(gate)
        self.weight = None if weight is None else weight.float().contiguous()
        assert self.x is not None
        threads = max(1, min(cpu.threads(), x.numel() // _WORK_PER_THREAD))
        gate_stride = 0 if self.gate is None else self.gate.stride(0)
        self.sizes = (*self.x.shape, group_size, self.x.stride(0), gate_stride)
        self.options = (eps, int(norm_before_gate), cpu.DTYPES[x.dtype], threads)

    def pointers(self) -> tuple[int | None, ...]:
        return tuple(cpu.pointer(t) for t in (self.x, self.gate, self.weight))


def forward(x: Tensor, *args: Any) -> tuple[Tensor]:
    """y."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        call = _Call(x, *args)
        function = cpu.function("gated_rms_norm_forward", "pppp" + "l" * 5 + "fiii")
        function(*call.pointers(), y.data_ptr(), *call.sizes, *call.options)
    return (y,)


def backward(grad: Tensor, x: Tensor, weight: Any, gate: Any, *args: Any) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and gate."""
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_gate = None if gate is None else torch.empty_like(gate, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros(x.shape[-1])
    if x.numel():
        call = _Call(x, weight, gate, *args)
        grad = grad.to(x.dtype).contiguous()
        function = cpu.function("gated_rms_norm_backward", "p" * 7 + "l" * 5 + "fiii")
        function(
            grad.data_ptr(),
            *call.pointers(),
            grad_x.data_ptr(),
            cpu.pointer(grad_gate),
            grad_weight.data_ptr(),
            *call.sizes,
            *call.options,
        )
    return grad_x, None if weight is None else grad_weight, grad_gate
