"""Steps that overwrite their state: for decoding in buffers that stay where they are, as a CUDA graph needs them.

Each computes what the operator without the underscore does. On a GPU it is one kernel, which takes its arguments in whatever
types they have, the state in half precision too; elsewhere the operator runs and its new state is copied. They have no
gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.ops._causal_conv1d import causal_conv1d_step
from statescan.ops._dispatch import triton_accepts
from statescan.ops._gated_rms_norm import gated_rms_norm
from statescan.ops._selective_state_step import selective_state_step
from statescan.ops._ssd_step import ssd_step


def selective_state_step_(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """`selective_state_step` whose new state takes the place of `state`, which must be contiguous; gives y."""
    _check("selective_state_step_", state)
    if triton_accepts(x, delta, B, C, z) is None and not A.is_complex() and x.numel():
        from statescan.kernels.triton import selective_state_step as kernels

        # The bare kernel knows one form of B and C: (batch, groups, states).
        B, C = _rows(B, state), _rows(C, state)
        return kernels.forward(state, x, delta, A, B, C, D, z, delta_bias, delta_softplus, in_place=True)[0]
    y, after = selective_state_step(
        state, x, delta, A, B, C, D, z, delta_bias=delta_bias, delta_softplus=delta_softplus
    )
    state.copy_(after)
    return y


def ssd_step_(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_limit: tuple[float, float] = (0.0, float("inf")),
) -> Tensor:
    """`ssd_step`, softplus taken, whose new state takes the place of `state`, which must be contiguous; gives y."""
    _check("ssd_step_", state)
    if triton_accepts(state, x, delta, B, C, z) is None and x.numel():
        from statescan.kernels.triton import ssd_step as kernels

        return kernels.forward(state, x, delta, A, B, C, D, z, delta_bias, delta_limit, in_place=True)[0]
    options: dict[str, Any] = dict(delta_bias=delta_bias, delta_softplus=True, delta_limit=delta_limit)
    y, after = ssd_step(state, x, delta, A, B, C, D, z, **options)
    state.copy_(after)
    return y


def causal_conv1d_step_(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """`causal_conv1d_step` whose next state takes the place of `state`, which must be contiguous; gives y."""
    _check("causal_conv1d_step_", state)
    if triton_accepts(state, x, weight, bias) is None and state.shape[1] == weight.shape[1] - 1:
        from statescan.kernels.triton import causal_conv1d_step as kernels

        return kernels.forward(state, x, weight, bias, activation == "silu")
    y, after = causal_conv1d_step(state, x, weight, bias, activation=activation)
    state.copy_(after)
    return y


def add_rms_norm_(residual: Tensor, x: Tensor | None, weight: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Add x to a contiguous residual stream, there, and give the RMS norm of the sum.

    Arguments:
        residual: (batch, dim), overwritten; its values are rounded to the weight's type before they are normalised.
        x: (batch, dim), or None: nothing is added.
        weight: (dim,), of the norm.
        eps: added to the mean square.

    Returns:
        (batch, dim) in the weight's type.
    """
    _check("add_rms_norm_", residual)
    if triton_accepts(residual, x, weight) is None:
        from statescan.kernels.triton import add_rms_norm as kernels

        if residual.shape[1] <= kernels.WIDEST:
            return kernels.forward(residual, x, weight, eps)
    if x is not None:
        residual.add_(x)
    return gated_rms_norm(residual.to(weight.dtype), weight, eps=eps)


def _rows(weights: Tensor, state: Tensor) -> Tensor:
    batch, channels, states = state.shape
    if weights.ndim == 3:
        return weights
    return weights[:, None] if weights.shape == (batch, states) else weights.expand(batch, channels, states)


def _check(name: str, state: Tensor) -> None:
    if not state.is_contiguous():
        raise ValueError(f"{name}: what is overwritten must be contiguous")
    if torch.is_grad_enabled() and state.requires_grad:
        raise ValueError(f"{name}: what is overwritten has no gradient; call it under torch.no_grad()")
