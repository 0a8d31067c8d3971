"""Calls of the compiled merged scan (`csrc/merged_scan.cpp`), for inference."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.kernels import cpu

#: Numbers of states that have a kernel.
STATES = (1, 2, 4)
_LANES = 16  # of the widest registers: weights are padded to it
_WORK_PER_THREAD = 1 << 13  # steps of a channel; less, and waking a thread costs more than it brings


def accepts(
    x: Tensor, selected: Tensor, delta_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, order: Tensor
) -> bool:
    """Whether there is a kernel for these arguments."""
    tensors = (x, selected, delta_weight, A, D, delta_bias)
    return (
        all(tensor.dtype == torch.float32 and tensor.is_cpu for tensor in tensors)
        and A.shape[1] in STATES
        and x.numel() > 0
        and order.numel() > 0
    )


class Weights(NamedTuple):
    """What a kernel reads beside the cells, channels side by side and padded to whole registers."""

    delta_weight: Tensor  # (walks, rank, width)
    A: Tensor  # (walks, states, width), over ln 2
    D: Tensor  # (walks, width)
    delta_bias: Tensor  # (walks, width)


def arrange(delta_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> Weights:
    """Weights as the kernel reads them."""
    walks, channels = delta_weight.shape[:2]
    padding = -channels % _LANES
    by_channel = (
        delta_weight.transpose(1, 2),
        (A.unflatten(0, (walks, channels)) / math.log(2)).transpose(1, 2),
        D.unflatten(0, (walks, channels)),
        delta_bias.unflatten(0, (walks, channels)),
    )
    return Weights(*((F.pad(tensor, (0, padding)) if padding else tensor).contiguous() for tensor in by_channel))


def forward(x: Tensor, selected: Tensor, weights: Weights, order: Tensor) -> Tensor:
    """The sum over walks, (batch, cells, channels); `order` is int32."""
    batch, cells, channels = x.shape
    walks, length = order.shape
    x = x if x.stride(2) == 1 and (batch == 1 or x.stride(0) == cells * x.stride(1)) else x.contiguous()
    selected = selected.contiguous()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    threads = max(1, min(cpu.threads(), batch * walks * length * channels // _WORK_PER_THREAD))
    cpu.function("merged_scan_forward", "plpll" + "p" * 5 + "l" * 8 + "pi")(
        x.data_ptr(),
        x.stride(1),
        selected.data_ptr(),
        selected.stride(1),
        selected.stride(2),
        *(tensor.data_ptr() for tensor in weights),
        order.data_ptr(),
        batch,
        cells,
        walks,
        length,
        channels,
        weights.D.shape[1],
        weights.delta_weight.shape[1],
        weights.A.shape[1],
        y.data_ptr(),
        threads,
    )
    return y
