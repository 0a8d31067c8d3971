"""Calls of the compiled structured state-space duality (`csrc/ssd.cpp`), with the registered operator's arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.kernels import cpu

_CHUNKS = (16, 64)  # shorter chunks waste registers, longer ones leave the cache; results are the same
_WORK_PER_THREAD = 1 << 16  # length x heads x head_dim x state_dim; less, and a second thread does not pay


def chunk(chunk_size: int, state_dim: int, *, backward: bool = False) -> int:
    """How many positions the kernel takes as one quadratic form where `chunk_size` were asked for.

    Work within a chunk grows with its length, work on the states at its borders shrinks, and the latter counts for more
    where states are large and, in the backward pass, where they are kept.
    """
    best = 3 * state_dim // 4 if backward else state_dim // 4
    shortest, longest = _CHUNKS
    return max(shortest, min(chunk_size, longest, -(-best // 16) * 16))


def _positions(tensor: Tensor) -> Tensor:
    """(batch, length, …) as rows of positions whose elements lie side by side; a view where strides allow."""
    rows = tensor.reshape(-1, *tensor.shape[2:])
    return rows if rows[0].is_contiguous() else rows.contiguous()


class _Call:
    def __init__(
        self,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        state: Tensor | None,
        resets: Tensor | None,
        offsets: Tensor | None,
        chunk_size: int,
        *,
        backward: bool = False,
    ):
        batch, length, heads, head_dim = x.shape
        groups, state_dim = B.shape[2:]
        self.x, self.delta, self.B, self.C = (_positions(t) for t in (x, delta, B, C))
        self.A = A.contiguous()
        self.D = None if D is None else D.contiguous()
        self.state = None if state is None else state.contiguous()
        self.resets = None if resets is None else resets.contiguous()
        self.offsets = cpu.row_offsets(batch, length, offsets)
        self.count = self.offsets.shape[0] - 1
        self.threads = max(1, min(cpu.threads(), x.numel() * state_dim // _WORK_PER_THREAD))
        self.sizes = (
            batch * length,
            heads,
            head_dim,
            groups,
            state_dim,
            self.count,
            chunk(chunk_size, state_dim, backward=backward),
            self.x.stride(0),
            self.delta.stride(0),
            self.B.stride(0),
            self.C.stride(0),
        )
        self.options = (int(D is not None and D.ndim == 2), cpu.DTYPES[x.dtype], self.threads)

    def pointers(self) -> tuple[int | None, ...]:
        tensors = (self.x, self.delta, self.A, self.B, self.C, self.D, self.state, self.offsets, self.resets)
        return tuple(cpu.pointer(t) for t in tensors)


def _empty(x: Tensor, B: Tensor) -> bool:
    return x.numel() == 0 or B.shape[3] == 0


def _sum(parts: Tensor) -> Tensor:
    """The sum over the first dimension, without a copy where there is but one."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _succeed(code: int) -> None:
    if code:
        raise MemoryError("ssd: no memory for the kernel's scratch")


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, state: Any, *args: Any
) -> tuple[Tensor, ...]:
    """y and the last state."""
    offsets = args[1]
    count = x.shape[0] if offsets is None else offsets.shape[0] - 1
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last = delta.new_empty(count, x.shape[2], x.shape[3], B.shape[3])
    if _empty(x, B):
        y.zero_()
        if D is not None and x.numel():
            y += x * (D[:, None] if D.ndim == 1 else D)
        return y, last.zero_() if state is None else last.copy_(state)
    call = _Call(x, delta, A, B, C, D, state, *args)
    function = cpu.function("ssd_forward", "p" * 11 + "l" * 11 + "iii")
    _succeed(function(*call.pointers(), y.data_ptr(), last.data_ptr(), *call.sizes, *call.options))
    return y, last


def backward(
    grad_y: Tensor | None,
    grad_last: Tensor | None,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Any,
    state: Any,
    *args: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, delta, A, B, C, D and the initial state."""
    heads, head_dim = x.shape[2:]
    grad_D = None
    if _empty(x, B):
        grads = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (x, delta, A, B, C)]
        if D is not None and grad_y is not None and x.numel():
            grads[0] = grad_y * (D[:, None] if D.ndim == 1 else D).to(grad_y.dtype)
            grad_D = (grad_y.float() * x.float()).sum((0, 1))
        grad_state = None
        if state is not None:
            grad_state = torch.zeros_like(state) if grad_last is None else grad_last
    else:
        call = _Call(x, delta, A, B, C, D, state, *args, backward=True)
        given = torch.zeros_like(x) if grad_y is None else grad_y.to(x.dtype)
        given = given.contiguous()
        carried = None if grad_last is None else grad_last.float().contiguous()
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_delta = torch.empty_like(delta, memory_format=torch.contiguous_format)
        grad_A = torch.empty(call.count, heads)
        # Many sequences keep all threads busy; for few of them heads are divided into parts, each with its own sums.
        parts = 1 if call.count >= 4 * call.threads else min(call.threads, heads)
        sums = [torch.zeros(parts, *B.shape) for _ in range(2)]
        of_heads = None if D is None else torch.zeros(call.count, heads, head_dim)
        grad_state = None if state is None else torch.empty_like(call.state)  # type: ignore[arg-type]
        function = cpu.function("ssd_backward", "p" * 18 + "l" * 11 + "iiil")
        code = function(
            given.data_ptr(),
            cpu.pointer(carried),
            *call.pointers(),
            *(cpu.pointer(t) for t in (grad_x, grad_delta, grad_A, *sums, of_heads, grad_state)),
            *call.sizes,
            *call.options,
            parts,
        )
        _succeed(code)
        grad_D = None if of_heads is None else _sum(of_heads)
        grads = [grad_x, grad_delta, _sum(grad_A), *map(_sum, sums)]
    if D is not None:
        grad_D = torch.zeros(heads, head_dim) if grad_D is None else grad_D
        grad_D = grad_D if D.ndim == 2 else grad_D.sum(1)
    return (*grads, grad_D, grad_state)


def step(
    state: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y in float32, before any gate, and the next state."""
    small = [None if t is None else t.float().contiguous() for t in (state, x, delta, A, B, C, D)]
    batch, heads, head_dim, state_dim = state.shape
    y, after = torch.empty(x.shape), torch.empty(state.shape)
    if state.numel() == 0:
        y = torch.zeros(x.shape) if D is None else (D[:, None] if D.ndim == 1 else D) * x.float()
        return y, after
    threads = max(1, min(cpu.threads(), state.numel() // _WORK_PER_THREAD))
    cpu.function("ssd_step", "p" * 9 + "lllllii")(
        *(cpu.pointer(t) for t in (*small, y, after)),
        batch,
        heads,
        head_dim,
        B.shape[1],
        state_dim,
        int(D is not None and D.ndim == 2),
        threads,
    )
    return y, after
