"""Root-mean-square normalisation on a GPU: a group of channels is one line of a tile, its statistics stay in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import FUSED, INTERPRETED, on_device, power_of_two, processors, sigmoid, stride

#: The longest group that one program holds.
LONGEST = 65536

#: Elements of a tile.
SIZE = 64 if INTERPRETED else 4096


@triton.jit
def load_lines(source, row, stride_row, group, size, c, mask):
    place = source + row.to(tl.int64)[:, None] * stride_row + (group[:, None] * size + c[None, :])
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_lines(target, line, size, c, values, mask):
    place = target + line.to(tl.int64)[:, None] * size + c[None, :]
    tl.store(place, values.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("lines",))
def outputs(
    x, weight, gate, y, stride_x, stride_gate, lines, groups, size, eps,
    GATE_LAST: tl.constexpr, LINES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    row, group = line // groups, line % groups
    c = tl.arange(0, BLOCK)
    mask = (line < lines)[:, None] & (c < size)[None, :]
    h = load_lines(x, row, stride_x, group, size, c, mask)
    if gate is not None:
        g = load_lines(gate, row, stride_gate, group, size, c, mask)
        g *= sigmoid(g)
        if not GATE_LAST:
            h *= g
    h *= tl.rsqrt(tl.sum(h * h, 1) / size + eps)[:, None]
    if weight is not None:
        h *= load_lines(weight, row, 0, group, size, c, mask)
    if gate is not None and GATE_LAST:
        h *= g
    store_lines(y, line, size, c, h, mask)


@triton.jit(do_not_specialize=("rows",))
def gradients(
    x, weight, gate, grad_y, grad_x, grad_weight, grad_gate,
    stride_x, stride_gate, stride_y, rows, groups, size, eps,
    GATE_LAST: tl.constexpr, LINES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of one group of channels in every so many rows, and their part of the weights'."""
    group = tl.zeros((LINES,), tl.int32) + tl.program_id(1)
    c = tl.arange(0, BLOCK)
    c_mask = c < size
    place = tl.program_id(1) * size + c
    w = tl.full((BLOCK,), 1.0, tl.float32)
    if weight is not None:
        w = tl.load(weight + place, mask=c_mask, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.program_id(0) * LINES, rows, tl.num_programs(0) * LINES):
        row = start + tl.arange(0, LINES)
        mask = (row < rows)[:, None] & c_mask[None, :]
        line = row * groups + tl.program_id(1)
        h = load_lines(x, row, stride_x, group, size, c, mask)
        grad = load_lines(grad_y, row, stride_y, group, size, c, mask)
        if gate is not None:
            g = load_lines(gate, row, stride_gate, group, size, c, mask)
            slope = sigmoid(g)
            silu = g * slope
            slope += silu * (1.0 - slope)
            if GATE_LAST:
                grad_gate_ = grad * slope
                grad *= silu
            else:
                grad_gate_ = h * slope
                h *= silu
        scale = tl.rsqrt(tl.sum(h * h, 1) / size + eps)[:, None]
        h *= scale
        total += tl.sum(grad * h, 0)
        if gate is not None and GATE_LAST:
            store_lines(grad_gate, line, size, c, grad_gate_ * h * w[None, :], mask)
        grad *= w[None, :]
        grad = scale * (grad - h * (tl.sum(grad * h, 1) / size)[:, None])
        if gate is not None and not GATE_LAST:
            store_lines(grad_gate, line, size, c, grad_gate_ * grad, mask)
            grad *= silu
        store_lines(grad_x, line, size, c, grad, mask)
    if weight is not None:
        tl.store(grad_weight + tl.program_id(0) * groups * size + place, total, mask=c_mask)


def _lines(tensor: Tensor) -> Tensor:
    """(..., channels) as (rows, channels), channels contiguous."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _tile(size: int) -> dict[str, int]:
    block = power_of_two(size, 1, LONGEST)
    return {
        "BLOCK": block,
        "LINES": max(1, SIZE // block),
        "num_warps": 4 if block <= 2 * SIZE else 8 if block <= 4 * SIZE else 16,
    }


def forward(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, group_size: int, norm_before_gate: bool
) -> tuple[Tensor]:
    """The registered operator's body."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        with on_device(x):
            flat, flat_gate = _lines(x), None if gate is None else _lines(gate)
            groups = flat.shape[1] // group_size
            lines, tile = flat.shape[0] * groups, _tile(group_size)
            outputs[(-(-lines // tile["LINES"]),)](
                flat, None if weight is None else weight.contiguous(), flat_gate, y,
                stride(flat), stride(flat_gate), lines, groups, group_size, eps,
                GATE_LAST=norm_before_gate, **tile, **FUSED,
            )  # fmt: skip
    return (y,)


def backward(
    grad_y: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    gate: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> list[Tensor | None]:
    """The registered gradient's body: the gradients of x, weight and gate."""
    if grad_y is None or not x.numel():
        return [None if t is None else t.new_zeros(t.shape) for t in (x, weight, gate)]
    with on_device(x):
        flat, flat_y = _lines(x), _lines(grad_y)
        flat_gate = None if gate is None else _lines(gate)
        count, channels = flat.shape
        groups, tile = channels // group_size, _tile(group_size)
        programs = max(1, min(-(-count // tile["LINES"]), 4 * processors(x.device) // groups))
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_gate = None if gate is None else torch.empty_like(gate, memory_format=torch.contiguous_format)
        parts = None if weight is None else torch.empty(programs, channels, dtype=torch.float32, device=x.device)
        gradients[(programs, groups)](
            flat, None if weight is None else weight.contiguous(), flat_gate, flat_y, grad_x, parts, grad_gate,
            stride(flat), stride(flat_gate), stride(flat_y), count, groups, group_size, eps,
            GATE_LAST=norm_before_gate, **tile, **FUSED,
        )  # fmt: skip
        return [grad_x, None if parts is None or weight is None else parts.sum(0).to(weight.dtype), grad_gate]
