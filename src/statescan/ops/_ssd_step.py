"""One step of structured state-space duality, for decoding token by token (Dao and Gu 2024, section 7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.kernels import cpu_ssd
from statescan.ops import _checks as checks
from statescan.ops._dispatch import (
    Implementation,
    Operator,
    cpu_accepts,
    register,
    triton_accepts,
    triton_implementation,
)
from statescan.ops._registration import define
from statescan.ops._ssd import _INFINITY, _steps

_NAME = "ssd_step"


def ssd_step(
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
    delta_limit: tuple[float, float] = (0.0, _INFINITY),
) -> tuple[Tensor, Tensor]:
    """Advance the state of `ssd` by one position: ``S = exp(d A) S + d x B^T``, ``y = (S C + D x) silu(z)``.

    Arguments:
        state: (batch, heads, head_dim, state_dim), as `ssd` returns it; left as it is.
        x: (batch, heads, head_dim).
        delta: (batch, heads).
        A: (heads,).
        B, C: (batch, groups, state_dim).
        D: (heads,) or (heads, head_dim).
        z: gate, shaped as x.
        delta_bias, delta_softplus, delta_limit: as in `ssd`.

    Returns:
        y (batch, heads, head_dim), typed as x, and the next state. Differentiable in every floating input.
    """
    y, after = OPERATOR(
        *_bind(
            state,
            x,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            delta_limit=delta_limit,
        )
    )
    return y, after


def ssd_step_reference(
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
    delta_limit: tuple[float, float] = (0.0, _INFINITY),
) -> tuple[Tensor, Tensor]:
    """`ssd_step` through the recurrence of `ssd_reference` at length 1."""
    from statescan.ops._ssd import ssd_reference

    y, after = ssd_reference(
        x[:, None],
        delta[:, None],
        A,
        B[:, None],
        C[:, None],
        D,
        None if z is None else z[:, None],
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        delta_limit=delta_limit,
        initial_state=state,
        return_last_state=True,
    )
    return y[:, 0], after


def _bind(
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
    delta_limit: tuple[float, float] = (0.0, _INFINITY),
) -> tuple[Any, ...]:
    checks.floating(_NAME, "x", x, ndim=3)
    batch, heads, head_dim = x.shape
    checks.floating(_NAME, "state", state, shape=(batch, heads, head_dim, None))
    checks.floating(_NAME, "delta", delta, shape=(batch, heads))
    checks.floating(_NAME, "A", A, shape=(heads,))
    checks.floating(_NAME, "B", B, shape=(batch, None, state.shape[3]))
    checks.floating(_NAME, "C", C, shape=B.shape)
    checks.floating(_NAME, "D", D)
    checks.floating(_NAME, "z", z, shape=x.shape)
    checks.floating(_NAME, "delta_bias", delta_bias, shape=(heads,))
    groups = B.shape[1]
    if heads and (groups == 0 or heads % groups):
        raise ValueError(f"{_NAME}: B has {groups} groups, which do not divide {heads} heads")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = _steps(delta.to(wide), delta_bias, delta_softplus, (float(delta_limit[0]), float(delta_limit[1])))
    return state.to(wide), x, step, A.to(wide), B, C, None if D is None else D.to(wide), z


OPERATOR = register(Operator(_NAME, _bind))
define(
    OPERATOR,
    "Tensor state, Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z",
    inputs=8,
    outputs=2,
    fake=lambda state, x, *args: (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(state, memory_format=torch.contiguous_format),
    ),
)


def _plain(
    state: Tensor, x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, heads, head_dim = x.shape
    groups = B.shape[1]
    u = x.to(step.dtype)
    grouped = (batch, groups, heads // max(groups, 1), head_dim)
    driven = (step[..., None] * u).view(grouped)
    outer = driven[..., None] * B.to(u.dtype)[:, :, None, None]
    after = torch.addcmul(outer.view(state.shape), state, torch.exp(step * A)[..., None, None])
    y = (after.view(*grouped, -1) @ C.to(u.dtype)[:, :, None, :, None])[..., 0].view(x.shape)
    if D is not None:
        y = y + (D[:, None] if D.ndim == 1 else D) * u
    if z is not None:
        y = y * F.silu(z.to(u.dtype))
    return y.to(x.dtype), after


def _cpu_forward(
    state: Tensor, x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, after = cpu_ssd.step(state, x, step, A, B, C, D)
    if z is not None:
        y = y * F.silu(z.float())
    return y.to(x.dtype), after


def _gradient(grad_y: Tensor | None, grad_state: Tensor | None, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_plain, args, 8, (grad_y, grad_state))


def _triton_accepts(state: Tensor, x: Tensor, *args: Any) -> str | None:
    return triton_accepts(x) if state.shape[3] else "the state is empty"


OPERATOR.implementations += [
    replace(triton_implementation("ssd_step", _triton_accepts), backward=_gradient),
    Implementation("cpu", cpu_accepts, _cpu_forward, _gradient),
    Implementation("reference", lambda *args: None, _plain, _gradient),
]
