"""What a layer gave added to the residual stream, and the norm of the sum, on a GPU: the stream is read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from statescan.kernels.triton._common import FUSED, on_device, power_of_two, stride

#: The widest stream that one program holds.
WIDEST = 65536


@triton.jit
def step_kernel(residual, x, weight, y, stride_x, size, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    mask = c < size
    h = tl.load(residual + row * size + c, mask=mask, other=0.0).to(tl.float32)
    if x is not None:
        h += tl.load(x + row * stride_x + c, mask=mask, other=0.0).to(tl.float32)
        tl.store(residual + row * size + c, h.to(residual.dtype.element_ty), mask=mask)
    h = h.to(residual.dtype.element_ty).to(y.dtype.element_ty).to(tl.float32)  # as the layers round it
    h *= tl.rsqrt(tl.sum(h * h, 0) / size + eps)
    h *= tl.load(weight + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * size + c, h.to(y.dtype.element_ty), mask=mask)


def forward(residual: Tensor, x: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """The norm (batch, dim) in the weight's type; the contiguous residual (batch, dim) is overwritten by the sum."""
    y = torch.empty(residual.shape, dtype=weight.dtype, device=residual.device)
    if not residual.numel():
        return y
    batch, size = residual.shape
    x = x if x is None or x.stride(-1) == 1 else x.contiguous()
    block = power_of_two(size, 1, WIDEST)
    with on_device(residual):
        step_kernel[(batch,)](
            residual, x, weight.contiguous(), y, stride(x), size, eps,
            BLOCK=block, num_warps=4 if block <= 4096 else 8 if block <= 16384 else 16, **FUSED,
        )  # fmt: skip
    return y
