"""Calls of the compiled scans along token trees (`csrc/tree_scan.cpp`), with the registered operators' arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.kernels import cpu

MOST_NODES = 128
_WORK_PER_THREAD = 1 << 16  # nodes x channels x states; less, and a second thread does not pay


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _threads(work: int) -> int:
    return max(1, min(cpu.threads(), work // _WORK_PER_THREAD))


def forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None, parents: Tensor
) -> tuple[Tensor]:
    """y of `tree_scan`."""
    batch, nodes, heads, head_dim = x.shape
    groups, state_dim = B.shape[2:]
    y = x.new_empty(x.shape, dtype=torch.float32)
    tensors = [_flat(t) for t in (x, delta, A, B, C, D, state)]  # held until the call returns
    above = parents.contiguous()
    cpu.function("tree_scan", "p" * 9 + "l" * 6 + "iii")(
        *(cpu.pointer(t) for t in (*tensors, above, y)),
        *(batch, nodes, heads, head_dim, groups, state_dim),
        int(D is not None and D.ndim == 2),
        int(parents.ndim == 2),
        _threads(x.numel() * state_dim),
    )
    return (y.to(x.dtype),)


def selective_forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None, parents: Tensor
) -> tuple[Tensor]:
    """y of `selective_tree_scan`."""
    batch, nodes, channels = x.shape
    y = x.new_empty(x.shape, dtype=torch.float32)
    tensors = [_flat(t) for t in (x, delta, A, B, C, D, state)]
    above = parents.contiguous()
    failed = cpu.function("selective_tree_scan", "p" * 9 + "l" * 4 + "ii")(
        *(cpu.pointer(t) for t in (*tensors, above, y)),
        *(batch, nodes, channels, A.shape[1]),
        int(parents.ndim == 2),
        _threads(x.numel() * A.shape[1]),
    )
    if failed:
        raise MemoryError("selective_tree_scan: no memory for the kernel's scratch")
    return (y.to(x.dtype),)
