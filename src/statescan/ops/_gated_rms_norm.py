"""Root-mean-square normalisation with an optional gate. Zhang and Sennrich 2019; Dao and Gu 2024, section 7."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.kernels import cpu_gated_rms_norm
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

_NAME = "gated_rms_norm"


def gated_rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Tensor:
    """Normalise groups of channels by their root mean square.

    ``norm(h) = h / sqrt(mean(h^2) + eps) * weight``, the mean over `group_size` neighbouring channels; the result is
    ``norm(x)``, ``norm(x silu(gate))``, or with `norm_before_gate` ``norm(x) silu(gate)``.

    Arguments:
        x: (..., channels); float32, bfloat16, float16 or float64.
        weight: (channels,).
        gate: shaped as x.
        eps: added to the mean square.
        group_size: a divisor of channels; None: all channels.
        norm_before_gate: see above.

    Returns:
        shaped and typed as x; statistics are float32 (float64 for float64). Differentiable in x, weight and gate.
    """
    return OPERATOR(*_bind(x, weight, gate, eps=eps, group_size=group_size, norm_before_gate=norm_before_gate))


def gated_rms_norm_reference(
    x: Tensor,
    weight: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Tensor:
    """`gated_rms_norm` in plain PyTorch."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = x.to(wide)
    if gate is not None and not norm_before_gate:
        h = h * F.silu(gate.to(wide))
    size = group_size or max(x.shape[-1], 1)
    grouped = h.unflatten(-1, (x.shape[-1] // size, size))
    h = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    if weight is not None:
        h = h * weight.to(wide)
    if gate is not None and norm_before_gate:
        h = h * F.silu(gate.to(wide))
    return h.to(x.dtype)


def _bind(
    x: Tensor,
    weight: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> tuple[Any, ...]:
    checks.floating(_NAME, "x", x)
    if x.ndim < 1:
        raise ValueError(f"{_NAME}: x needs a channel axis, got a number")
    channels = x.shape[-1]
    checks.floating(_NAME, "weight", weight, shape=(channels,))
    checks.floating(_NAME, "gate", gate, shape=x.shape)
    size = channels if group_size is None else group_size
    if channels and (size < 1 or channels % size):
        raise ValueError(f"{_NAME}: group_size {size} does not divide {channels} channels")
    checks.same_device(_NAME, x=x, weight=weight, gate=gate)
    return x, weight, gate, float(eps), max(int(size), 1), bool(norm_before_gate)


OPERATOR = register(Operator(_NAME, _bind))
define(
    OPERATOR,
    "Tensor x, Tensor? weight, Tensor? gate, float eps, SymInt group_size, bool norm_before_gate",
    inputs=3,
    outputs=1,
    fake=lambda x, *args: (torch.empty_like(x, memory_format=torch.contiguous_format),),
)


def _reference(x: Tensor, weight: Any, gate: Any, eps: float, group_size: int, norm_before_gate: bool) -> tuple[Tensor]:
    y = gated_rms_norm_reference(x, weight, gate, eps=eps, group_size=group_size, norm_before_gate=norm_before_gate)
    return (y,)


def _reference_backward(grad: Tensor | None, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_reference, args, 3, (grad,))


def _accepts(x: Tensor, weight: Any, gate: Any, *args: Any) -> str | None:
    if gate is not None and gate.dtype != x.dtype:
        return f"x is {x.dtype}, gate {gate.dtype}"
    return cpu_accepts(x, weight, gate)


def _triton_accepts(
    x: Tensor, weight: Any, gate: Any, eps: float, group_size: int, norm_before_gate: bool
) -> str | None:
    if group_size > 65536:
        return f"no kernel for groups of {group_size} channels; 65536 are the most"
    return triton_accepts(x, weight, gate)


OPERATOR.implementations += [
    Implementation("cpu", _accepts, cpu_gated_rms_norm.forward, cpu_gated_rms_norm.backward),
    triton_implementation("gated_rms_norm", _triton_accepts),
    Implementation("reference", lambda *args: None, _reference, _reference_backward),
]
