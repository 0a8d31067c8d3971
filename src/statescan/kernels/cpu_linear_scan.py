"""Calls of the compiled linear scan (`csrc/linear_scan.cpp`), with the registered operator's arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.kernels import cpu

_WORK_PER_THREAD = 1 << 15  # floats; less, and waking a thread costs more than it brings


class _Call:
    def __init__(self, a: Tensor, b: Tensor, state: Any, resets: Any, offsets: Any, reverse: bool):
        batch, length, channels = b.shape
        floats = 2 if b.is_complex() else 1
        self.a, self.b = a.resolve_conj().contiguous(), b.resolve_conj().contiguous()
        self.state = None if state is None else state.resolve_conj().contiguous()
        self.resets = None if resets is None else resets.contiguous()
        self.offsets = cpu.row_offsets(batch, length, offsets)
        self.count = self.offsets.shape[0] - 1
        threads = max(1, min(cpu.threads(), b.numel() * floats // _WORK_PER_THREAD))
        stride = 0 if a.ndim == 1 else channels * floats
        self.options = (channels * floats, self.count, stride, int(b.is_complex()), int(reverse), threads)


def forward(a: Tensor, b: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """All states and the last."""
    call = _Call(a, b, *args)
    h = torch.empty_like(call.b)
    last = b.new_empty(call.count, b.shape[2])
    tensors = (call.a, call.b, call.state, call.offsets, call.resets, h, last)
    cpu.function("linear_scan_forward", "p" * 7 + "lll" + "iii")(*(cpu.pointer(t) for t in tensors), *call.options)
    return h, last


def backward(
    grad_h: Tensor | None, grad_last: Tensor | None, a: Tensor, b: Tensor, state: Any, *args: Any
) -> tuple[Tensor | None, ...]:
    """Gradients of a, b and the initial state; the states are computed again."""
    call = _Call(a, b, state, *args)
    h, _ = forward(a, b, state, *args)
    given = [None if g is None else g.resolve_conj().to(b.dtype).contiguous() for g in (grad_h, grad_last)]
    constant = a.ndim == 1
    grad_a = b.new_empty(call.count, b.shape[2]) if constant else torch.empty_like(call.b)
    grad_b = torch.empty_like(call.b)
    grad_state = None if call.state is None else torch.empty_like(call.state)
    tensors = (*given, call.a, h, call.state, call.offsets, call.resets, grad_a, grad_b, grad_state)
    cpu.function("linear_scan_backward", "p" * 10 + "lll" + "iii")(*(cpu.pointer(t) for t in tensors), *call.options)
    return grad_a.sum(0) if constant else grad_a, grad_b, grad_state
