"""States of a selective scan, and their fusion over a grid. Xiao et al. 2025, "Spatial-Mamba", arXiv 2410.15091."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops._linear_scan import linear_scan
from statescan.ops._selective_scan import selective_scan

Padding = Literal["replicate", "zeros"]


def selective_states(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """All states of a selective scan: ``h_t = exp(d_t A) h_{t-1} + d_t B_t x_t`` with d as in `selective_scan`.

    Arguments:
        x: (batch, length, channels).
        delta: (batch, length, channels).
        A: (channels, states), real and negative.
        B: (batch, length, states).
        delta_bias: (channels,).
        delta_softplus: whether the step is the softplus of delta + delta_bias.

    Returns:
        h (batch, length, channels, states), typed as x. Differentiable in every floating input.

    Raises:
        ValueError: shapes do not fit.
    """
    batch, length, channels = x.shape
    if A.ndim != 2 or A.shape[0] != channels or B.shape != (batch, length, A.shape[1]):
        raise ValueError(
            f"A, B: ({channels}, states) and ({batch}, {length}, states) for x {tuple(x.shape)}, got "
            f"{tuple(A.shape)} and {tuple(B.shape)}"
        )
    states = A.shape[1]
    if states == 1:  # with C = 1 and no D the scan's output is its state
        h = selective_scan(x, delta, A, B, torch.ones_like(B), delta_bias=delta_bias, delta_softplus=delta_softplus)
        assert isinstance(h, Tensor)
        return h.unsqueeze(-1)
    step = delta if delta_bias is None else delta + delta_bias
    step = (F.softplus(step) if delta_softplus else step).unsqueeze(-1)
    decay = torch.exp(step * A).flatten(2)
    drive = (step * x.unsqueeze(-1) * B.unsqueeze(2)).flatten(2)
    h = linear_scan(decay, drive)
    assert isinstance(h, Tensor)
    return h.view(batch, length, channels, states).to(x.dtype)


def merged_kernel(kernels: Sequence[Tensor], weights: Tensor, dilations: Sequence[int]) -> Tensor:
    """One kernel that equals the weighted sum of dilated ones.

    Arguments:
        kernels: (channels, 1, 3, 3) each.
        weights: one number a kernel.
        dilations: of each.

    Returns:
        (channels, 1, 2 d + 1, 2 d + 1) for the largest dilation d.
    """
    _check_kernels(kernels, weights, dilations)
    reach = max(dilations)
    parts = []
    for kernel, weight, dilation in zip(kernels, weights.unbind(), dilations, strict=True):
        spread = 2 * dilation + 1
        wide = kernel.new_zeros(*kernel.shape[:2], spread, spread)
        wide[..., ::dilation, ::dilation] = kernel * weight
        parts.append(F.pad(wide, [reach - dilation] * 4))
    return torch.stack(parts).sum(0)


def state_fusion(
    states: Tensor,
    kernels: Sequence[Tensor],
    weights: Tensor,
    *,
    dilations: Sequence[int] = (1, 3, 5),
    padding: Padding = "zeros",
    merged: bool = False,
) -> Tensor:
    """Mix each state with its neighbours: ``sum_k weight_k depthwise(states, kernel_k, dilation_k)``.

    Arguments:
        states: (batch, height, width, channels), or (batch, height, width, channels, states): every state of a channel is
            mixed by the same kernels.
        kernels: (channels, 1, 3, 3) each.
        weights: one number a kernel.
        dilations: of each kernel.
        padding: ``zeros``, or ``replicate`` for the border's own values.
        merged: convolve once with `merged_kernel` instead of once a dilation: the same result.

    Returns:
        A tensor shaped as states. Differentiable in states, kernels and weights.

    Raises:
        ValueError: shapes do not fit, or an unknown padding.
    """
    _check_kernels(kernels, weights, dilations)
    if padding not in ("zeros", "replicate"):
        raise ValueError(f"padding: zeros or replicate, got {padding!r}")
    if states.ndim not in (4, 5) or states.shape[3] != kernels[0].shape[0]:
        raise ValueError(
            f"states: (batch, height, width, {kernels[0].shape[0]} channels[, states]), got {tuple(states.shape)}"
        )
    if states.ndim == 5:
        batch, count = states.shape[0], states.shape[-1]
        flat = states.movedim(-1, 1).flatten(0, 1)
        mixed = state_fusion(flat, kernels, weights, dilations=dilations, padding=padding, merged=merged)
        return mixed.unflatten(0, (batch, count)).movedim(1, -1)
    x = states.permute(0, 3, 1, 2)
    if merged:
        y = _depthwise(x, merged_kernel(kernels, weights, dilations), 1, max(dilations), padding)
    else:
        y = torch.zeros_like(x)
        for kernel, weight, dilation in zip(kernels, weights.unbind(), dilations, strict=True):
            y = y + weight * _depthwise(x, kernel, dilation, dilation, padding)
    return y.permute(0, 2, 3, 1)


def _depthwise(x: Tensor, kernel: Tensor, dilation: int, reach: int, padding: Padding) -> Tensor:
    channels = x.shape[1]
    if padding == "zeros":
        return F.conv2d(x, kernel, padding=reach, dilation=dilation, groups=channels)
    return F.conv2d(F.pad(x, [reach] * 4, mode="replicate"), kernel, dilation=dilation, groups=channels)


def _check_kernels(kernels: Sequence[Tensor], weights: Tensor, dilations: Sequence[int]) -> None:
    if not kernels or len(kernels) != len(dilations) or weights.shape != (len(kernels),):
        raise ValueError(
            f"kernels, weights, dilations: as many of each, got {len(kernels)}, {tuple(weights.shape)} and "
            f"{len(dilations)}"
        )
    for kernel in kernels:
        if kernel.shape != kernels[0].shape or kernel.shape[1:] != (1, 3, 3):
            raise ValueError(f"kernels: (channels, 1, 3, 3) each, got {tuple(kernel.shape)}")
