"""Calls of the compiled scan along routes (`csrc/selective_scan.cpp`), with the registered operator's arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.kernels import cpu
from statescan.kernels.cpu_selective_scan import CHECKPOINT_INTERVAL, LANES, PROBLEM, ScanCall


def states_shape(x: Tensor, A: Tensor, order: Tensor) -> tuple[int, int, int]:
    """Shape of the saved states: (checkpoints, states, walks x channels)."""
    return x.shape[0] * order.shape[1] // CHECKPOINT_INTERVAL + x.shape[0], A.shape[1], A.shape[0]


class _Call(ScanCall):
    """The arguments that both directions share."""

    def __init__(
        self,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        order: Tensor,
        delta_softplus: bool,
    ):
        batch, cells, width = x.shape
        walks, length = order.shape
        channels, states = A.shape
        x_rows = _rows(x)
        delta = walk_rows(delta)
        B_rows, C_rows = (rows if rows.stride(3) == 1 else rows.contiguous() for rows in (B, C))
        B_rows, C_rows = B_rows.reshape(-1, walks, states), C_rows.reshape(-1, walks, states)
        A, order = A.contiguous(), order.to(torch.int32).contiguous()
        others = [None if t is None else t.contiguous() for t in (D, delta_bias)]
        pointers = [x_rows, delta, None, A, B_rows, C_rows, *others, None, None, None]
        sizes = (walks, walks, batch, channels, states, 0)
        super().__init__((*pointers, order), sizes, length, walks * -(-width // LANES))
        self.arguments = (
            *(cpu.pointer(t) for t in pointers),
            x_rows.stride(0),
            delta.stride(1),
            0,
            B_rows.stride(0),
            C_rows.stride(0),
            B_rows.stride(1),
            C_rows.stride(1),
            walks,
            walks,
            batch,
            length,
            channels,
            states,
            *(cpu.DTYPES[t.dtype] for t in (x, delta, x, B, C)),
            int(delta_softplus),
            0,
            self.threads,
            order.data_ptr(),
            cells,
            delta.stride(2),
        )


def _rows(tensor: Tensor) -> Tensor:
    """(batch, cells, channels) as rows whose elements lie side by side; a view where strides allow."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def walk_rows(tensor: Tensor) -> Tensor:
    """(batch, cells, walks, channels) with rows at even distances: as it is, whether walks lie side by side or one after
    another (as a batch of matrix products leaves them), else a copy."""
    batch, cells = tensor.shape[:2]
    even = batch == 1 or tensor.stride(0) == cells * tensor.stride(1)
    dense = tensor.is_contiguous() or tensor.transpose(1, 2).transpose(0, 1).is_contiguous()
    return tensor if even and dense else tensor.contiguous()


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
    *,
    whole: bool,
) -> tuple[Tensor, Tensor]:
    """y (batch, cells, walks, channels), and the saved states (none unless asked for)."""
    batch, cells, width = x.shape
    walks = order.shape[0]
    new = torch.empty if whole else torch.zeros  # cells that a walk never comes to
    y = new(batch, cells, walks, width, dtype=x.dtype)
    checkpoints, states, channels = states_shape(x, A, order)
    # grids leave gaps between their checkpoints, which a graph that compares outputs would read
    saved = (A.new_empty if batch == 1 else A.new_zeros)(checkpoints if save_states else 0, states, channels)
    if y.numel() == 0 or order.numel() == 0:
        return y.zero_(), saved
    call = _Call(x, delta, A, B, C, D, delta_bias, order, delta_softplus)
    memory = call.workspace(backward=False)
    last_state = A.new_empty(batch, channels, states)
    cpu.function("route_scan_forward", PROBLEM + "pll" + "pppp")(
        *call.arguments,
        y.data_ptr(),
        last_state.data_ptr(),
        saved.data_ptr() if save_states else None,
        memory.data_ptr(),
    )
    return y, saved


def backward(
    grad_y: Tensor,
    saved: Tensor,
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
    *,
    whole: bool,
) -> list[Tensor | None]:
    """The gradients of the first seven arguments; None where one is absent."""
    arguments = (x, delta, A, B, C, D, delta_bias)
    batch, cells, width = x.shape
    walks = order.shape[0]
    if x.numel() == 0 or order.numel() == 0 or A.numel() == 0:
        return [None if t is None else torch.zeros_like(t) for t in arguments]
    if saved.shape != states_shape(x, A, order):  # the forward pass ran on another implementation
        saved = forward(*arguments, order, delta_softplus, True, whole=whole)[1]
    delta = walk_rows(delta)  # its gradient lies as it does
    new = torch.empty if whole else torch.zeros
    gradients: list[Tensor | None] = [
        new(batch, cells, walks, width, dtype=x.dtype),
        torch.empty_like(delta) if whole else torch.zeros_like(delta),
        *(None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in arguments[2:]),
    ]
    call = _Call(x, delta, A, B, C, D, delta_bias, order, delta_softplus)
    grad_rows = _rows(grad_y.to(x.dtype).flatten(2))
    parts = [torch.empty(call.threads, *weights.shape, dtype=A.dtype) for weights in (B, C)]
    memory = call.workspace(backward=True)
    cpu.function("route_scan_backward", PROBLEM + "pll" + "pl" + "p" * 11)(
        *call.arguments,
        grad_rows.data_ptr(),
        grad_rows.stride(0),
        saved.data_ptr(),
        *(cpu.pointer(gradient) for gradient in gradients),
        *(part.data_ptr() for part in parts),
        memory.data_ptr(),
    )
    assert gradients[0] is not None
    gradients[0] = gradients[0].sum(2)
    return gradients
