"""One step of the selective scan, for decoding token by token.

The recurrence of `statescan.ops.selective_scan` (Gu and Dao 2023, equation 2) at a single position.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.kernels import cpu_selective_scan
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


def selective_state_step(
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
) -> tuple[Tensor, Tensor]:
    """Advance the state of a selective scan by one position.

    With step ``d = softplus(delta + delta_bias)`` (or without softplus, or bias)::

        new_state = exp(d A) state + d B x
        y = (sum_n C[n] new_state[n] + D x) silu(z)

    With complex A the sum is ``2 Re(sum_n C[n] new_state[n])``. The given state is left as it is.

    Arguments:
        state: (batch, channels, states), as `selective_scan` returns it.
        x: the input, (batch, channels).
        delta: the step size before bias and softplus, (batch, channels).
        A: (channels, states), real or complex.
        B: (batch, states), or a row a group of neighbouring channels (batch, groups, states), or constant
            (channels, states). A 2-dimensional B whose first axis fits both ways is taken as (batch, states).
        C: shaped like B, independently of it.
        D: weight of the direct path, (channels,).
        z: gate, (batch, channels).
        delta_bias: added to delta, (channels,).
        delta_softplus: whether the step is the softplus of delta + delta_bias.

    Returns:
        (y, new_state): y shaped and typed as x, the state in float32 (complex64 for complex A), or float64
        (complex128) for float64 input. Both are differentiable in every floating input.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype is not accepted.
    """
    return OPERATOR(*_bind(state, x, delta, A, B, C, D, z, delta_bias=delta_bias, delta_softplus=delta_softplus))


def selective_state_step_reference(
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
) -> tuple[Tensor, Tensor]:
    """`selective_state_step` in plain PyTorch: h = exp(d A) h + d B x, y = (C h + D x) silu(z)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    u, step = x.to(wide), delta.to(wide)
    if delta_bias is not None:
        step = step + delta_bias
    if delta_softplus:
        step = F.softplus(step)
    B, C = _per_channel(B, *x.shape), _per_channel(C, *x.shape)
    state = torch.exp(step[..., None] * A) * state + (step * u)[..., None] * B
    y = (state * C).sum(-1)
    if A.is_complex():
        y = 2 * y.real
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(x.dtype), state


def _per_channel(weights: Tensor, batch: int, channels: int) -> Tensor:
    """B or C for every channel: (batch or 1, channels or 1, states)."""
    if weights.ndim == 3:
        return weights.repeat_interleave(channels // weights.shape[1], dim=1)
    return weights[:, None] if weights.shape[0] == batch else weights[None]


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
) -> tuple[Any, ...]:
    """Check the public arguments and give those of the registered operator."""
    name = "selective_state_step"
    checks.floating(name, "x", x, ndim=2)
    batch, channels = x.shape
    checks.floating(name, "A", A, ndim=2, complex_too=True)
    checks.fits(name, "A", A, (channels, None))
    states = A.shape[1]
    is_complex = A.is_complex()
    checks.floating(name, "state", state, shape=(batch, channels, states), complex_too=is_complex)
    checks.floating(name, "delta", delta, shape=(batch, channels))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    kind = wide.to_complex() if is_complex else wide
    rows = []
    for label, weights in (("B", B), ("C", C)):
        checks.floating(name, label, weights, complex_too=is_complex)
        rows.append(_bind_row(name, label, weights, (batch, channels, states)).to(kind))
    checks.floating(name, "D", D, shape=(channels,))
    checks.floating(name, "z", z, shape=(batch, channels))
    checks.floating(name, "delta_bias", delta_bias, shape=(channels,))
    checks.same_device(name, x=x, state=state, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    return (
        state.to(kind),
        x,
        delta.to(wide),
        A.to(kind),
        *rows,
        None if D is None else D.to(wide),
        None if z is None else z.to(wide),
        None if delta_bias is None else delta_bias.to(wide),
        bool(delta_softplus),
    )


def _bind_row(name: str, label: str, weights: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """B or C as (batch, groups, states)."""
    batch, channels, states = sizes
    shape = tuple(weights.shape)
    if shape == (batch, states):
        return weights[:, None]
    if shape == (channels, states):
        return weights.expand(batch, channels, states)
    if len(shape) != 3 or shape[::2] != (batch, states):
        raise ValueError(
            f"{name}: {label} has shape {shape}; accepted: ({batch}, {states}) for (batch, states), "
            f"({batch}, groups, {states}), or ({channels}, {states}) for (channels, states)"
        )
    if shape[1] == 0 or channels % shape[1]:
        raise ValueError(f"{name}: {label} has {shape[1]} groups, which do not divide {channels} channels")
    return weights


# ---- registration ----------------------------------------------------------------------------------------------


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(args[1], memory_format=torch.contiguous_format),
        torch.empty_like(args[0], memory_format=torch.contiguous_format),
    )


OPERATOR = register(Operator("selective_state_step", _bind))
define(
    OPERATOR,
    "Tensor state, Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool delta_softplus",
    inputs=9,
    outputs=2,
    fake=_fake,
)


def _reference(*args: Any) -> tuple[Tensor, Tensor]:
    *tensors, delta_bias, delta_softplus = args
    return selective_state_step_reference(*tensors, delta_bias=delta_bias, delta_softplus=delta_softplus)


def _backward(grad_y: Tensor | None, grad_state: Tensor | None, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_reference, args, 9, (grad_y, grad_state))


def _triton_accepts(*args: Any) -> str | None:
    x, A = args[1], args[3]
    return triton_accepts(x) if A.numel() else "A is empty"


def _cpu_accepts(*args: Any) -> str | None:
    state, x, delta, A, _, _, D, z, delta_bias, _ = args
    if A.dtype not in (torch.float32, torch.complex64):
        return f"no kernel for {A.dtype} A"
    return cpu_accepts(x, delta, D, z, delta_bias)


def _cpu_forward(*args: Any) -> tuple[Tensor, Tensor]:
    """A scan of length 1: the scan's kernel is as fast at one position as one of its own would be."""
    state, x, delta, A, B, C, D, z, delta_bias, delta_softplus = args
    gate = None if z is None else z[:, None]
    y, after, _ = cpu_selective_scan.forward(
        x[:, None],
        delta[:, None],
        A,
        B[:, None],
        C[:, None],
        D,
        gate,
        delta_bias,
        state,
        None,
        None,
        delta_softplus,
        False,
    )
    return y[:, 0], after


OPERATOR.implementations += [
    triton_implementation("selective_state_step", _triton_accepts, _backward),
    Implementation("cpu", _cpu_accepts, _cpu_forward, _backward),
    Implementation("reference", lambda *args: None, _reference, _backward),
]
