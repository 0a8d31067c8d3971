"""One position of the causal convolution on a GPU: the state, the last inputs, moves on where it lies."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import FUSED, INTERPRETED, on_device, power_of_two, sigmoid, stride


@triton.jit
def step_kernel(
    state, x, weight, bias, y, stride_x, channels, SILU: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < channels
    state += row * (WIDTH - 1) * channels + d
    weight += d * WIDTH
    newest = tl.load(x + row * stride_x + d, mask=mask, other=0.0)
    total = newest.to(tl.float32) * tl.load(weight + WIDTH - 1, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=mask, other=0.0).to(tl.float32)
    # A channel is one thread's: it reads an entry before it writes the next one there.
    for k in tl.static_range(WIDTH - 1):
        tap = tl.load(state + k * channels, mask=mask, other=0.0)
        total += tap.to(tl.float32) * tl.load(weight + k, mask=mask, other=0.0).to(tl.float32)
        if k > 0:
            tl.store(state + (k - 1) * channels, tap, mask=mask)
    if WIDTH > 1:
        tl.store(state + (WIDTH - 2) * channels, newest.to(state.dtype.element_ty), mask=mask)
    if SILU:
        total *= sigmoid(total)
    tl.store(y + row * channels + d, total.to(y.dtype.element_ty), mask=mask)


def forward(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """y (batch, channels); the contiguous state (batch, width - 1, channels) is overwritten."""
    batch, channels = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not x.numel():
        return y
    x = x if x.stride(-1) == 1 else x.contiguous()
    block = power_of_two(channels, 8, 16 if INTERPRETED else 256)
    with on_device(x):
        step_kernel[(batch, -(-channels // block))](
            state, x, weight.contiguous(), None if bias is None else bias.contiguous(), y, stride(x), channels,
            SILU=silu, WIDTH=weight.shape[1], BLOCK=block, num_warps=4, **FUSED,
        )  # fmt: skip
    return y
