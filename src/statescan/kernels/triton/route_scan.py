"""Scans along walks over a grid on a GPU: the kernels of the selective scan, which read and write cells in place.

The walks are groups of channels. The gradient of x is written a walk at a time, and summed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.kernels.triton._common import CHUNK, on_device, rows
from statescan.kernels.triton.selective_scan import Problem, gradients, scan


def _problem(x, delta, A, B, C, D, delta_bias, order, delta_softplus) -> Problem:
    # Walks may lie side by side or one after another; rows of one walk must lie at even distances.
    even = x.shape[0] == 1 or delta.stride(0) == x.shape[1] * delta.stride(1)
    if not even or delta.stride(3) != 1:
        delta = delta.clone(memory_format=torch.contiguous_format)
    return Problem(
        x, delta[:, :, 0], A, B, C, D, None, delta_bias, None, None, delta_softplus, order, delta.stride(2)
    )  # fmt: skip


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """The registered operator's body: (y, states before every chunk)."""
    batch, cells, width = x.shape
    walks, length = order.shape
    y = x.new_zeros(batch, cells, walks, width)
    room = batch * length // CHUNK + batch if save_states else 0
    states = A.new_zeros(room, A.shape[1], A.shape[0])
    if y.numel() and order.numel():
        with on_device(x):
            p = _problem(x, delta, A, B, C, D, delta_bias, order, delta_softplus)
            scan(p, p.boundary(None), y, states if save_states else None)
    return y, states


def backward(
    grad_y: Tensor,
    states: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor,
    delta_softplus: bool,
    save_states: bool,
) -> list[Tensor | None]:
    """The registered gradient's body: the gradients of x, delta, A, B, C, D and delta_bias."""
    arguments = (x, delta, A, B, C, D, delta_bias)
    if not (x.numel() and order.numel()):
        return [None if t is None else t.new_zeros(t.shape) for t in arguments]
    if not states.shape[0]:  # forward ran on another implementation, or was not asked to keep them
        states = forward(*arguments, order, delta_softplus, True)[1]
    with on_device(x):
        p = _problem(x, delta, A, B, C, D, delta_bias, order, delta_softplus)
        grad_x = x.new_zeros(delta.shape)
        grad_delta = p.new_like(delta)
        grad_A, *others = gradients(
            p, rows(grad_y.flatten(2)), states, p.boundary(None), (B, C), grad_x, grad_delta, None
        )
        return [grad_x.sum(2), grad_delta, p.from_planes(grad_A, A.dtype), *others]
