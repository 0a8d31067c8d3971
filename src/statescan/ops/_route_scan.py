"""Selective scans along several walks over a grid, that read and write cells in place.

Liu et al. 2024, "VMamba" (arXiv 2401.10166), section 4.2: cross-scan, four selective scans, cross-merge. Here the grid
is not copied once for each walk: a scan reads its cells where they lie, in the walk's order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.kernels import cpu_route_scan
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
from statescan.ops._selective_scan import selective_scan_reference


def route_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    order: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Scan the cells of a grid along walks, each walk with its own step sizes, A, B, C and D.

    For walk k and its t-th cell ``c = order[k, t]``, with step ``d = softplus(delta[c, k] + delta_bias[k])``::

        h_t = exp(d A_k) h_{t-1} + d B[c, k] x[c]          h_{-1} = 0
        y[c, k] = sum_n C[c, k, n] h_t[n] + D_k x[c]

    Where ``order[k, t]`` is -1 the walk passes through padding: x, B, C and delta before its bias are zero there, so
    the state decays by the bias alone, and nothing is written.

    Arguments:
        x: the grid, (batch, cells, channels).
        delta: step sizes before bias and softplus, (batch, cells, walks, channels).
        A: (walks x channels, states), real.
        B, C: (batch, cells, walks, states).
        D: weight of the direct path, (walks x channels,).
        order: the walks (walks, length) int64, as `routes.Route.table` gives them; no walk comes to a cell twice.
        delta_bias: added to delta, (walks x channels,).
        delta_softplus: whether the step is the softplus of delta + delta_bias.

    Returns:
        y (batch, cells, walks, channels), typed as x; zero where a walk never came. Gradients in every floating input.
        In float64 it runs step by step.

    Raises:
        ValueError: a shape does not fit, or A holds NaN.
        TypeError: a dtype is not accepted.
    """
    arguments = _bind(x, delta, A, B, C, D, order=order, delta_bias=delta_bias, delta_softplus=delta_softplus)
    return OPERATOR(*arguments)[0]


def route_scan_reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    order: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """`route_scan` with a copy of the grid for each walk: walk, scan, put back."""
    batch, cells, width = x.shape
    walks, length = order.shape
    padding = cells  # index of a row of zeros
    index = order.where(order >= 0, padding).transpose(0, 1)  # (length, walks)
    which = torch.arange(walks, device=x.device)

    def walk(rows: Tensor) -> Tensor:
        padded = torch.cat([rows, rows.new_zeros(batch, 1, *rows.shape[2:])], 1)
        return padded[:, index, which]  # (batch, length, walks, …)

    y = selective_scan_reference(
        walk(x[:, :, None].expand(-1, -1, walks, -1)).flatten(2),
        walk(delta).flatten(2),
        A,
        walk(B),
        walk(C),
        D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
    )
    assert isinstance(y, Tensor)
    out = x.new_zeros(batch, cells + 1, walks, width)
    out[:, index, which] = y.view(batch, length, walks, width)
    return out[:, :cells]


def _bind(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    order: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Any, ...]:
    """Check the public arguments and give those of the registered operator."""
    name = "route_scan"
    checks.floating(name, "x", x, ndim=3)
    batch, cells, width = x.shape
    if order.ndim != 2 or order.dtype != torch.int64:
        raise ValueError(f"{name}: order (walks, length) of int64, got {tuple(order.shape)} of {order.dtype}")
    walks = order.shape[0]
    channels = walks * width
    checks.floating(name, "delta", delta, shape=(batch, cells, walks, width))
    checks.floating(name, "A", A, ndim=2)
    checks.fits(name, "A", A, (channels, None))
    states = A.shape[1]
    checks.floating(name, "B", B, shape=(batch, cells, walks, states))
    checks.floating(name, "C", C, shape=(batch, cells, walks, states))
    checks.floating(name, "D", D, shape=(channels,))
    checks.floating(name, "delta_bias", delta_bias, shape=(channels,))
    checks.same_device(name, x=x, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias, order=order)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32

    def narrow(tensor: Tensor) -> Tensor:
        return tensor.to(wide) if torch.float64 in (tensor.dtype, wide) else tensor

    tensors = (
        x,
        narrow(delta),
        A.to(wide),
        narrow(B),
        narrow(C),
        None if D is None else D.to(wide),
        None if delta_bias is None else delta_bias.to(wide),
    )
    save_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return (*tensors, order, bool(delta_softplus), save_states)


# ---- registration ----------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor order, "
    "bool delta_softplus, bool save_states"
)
_INPUTS = 7  # the leading arguments that have a gradient

OPERATOR = register(Operator("route_scan", _bind))


def _check_values(*args: Any) -> None:
    x, A, order = args[0], args[2], args[7]
    checks.no_nan("route_scan", "A", A)
    checks.cells("route_scan", order, x.shape[1])


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    x, A, order, save_states = args[0], args[2], args[7], args[9]
    saves = save_states and OPERATOR.choose(*args).name != "reference"
    checkpoints, states, channels = cpu_route_scan.states_shape(x, A, order)
    y = x.new_empty(x.shape[0], x.shape[1], order.shape[0], x.shape[2])
    return y, A.new_empty(checkpoints if saves else 0, states, channels)


define(
    OPERATOR,
    _ARGUMENTS,
    inputs=_INPUTS,
    outputs=1,
    fake=_fake,
    check=_check_values,
    saves=True,
    layouts={1: lambda delta: torch.empty_like(cpu_route_scan.walk_rows(delta))},  # steps may lie walk after walk
)


# ---- implementations ---------------------------------------------------------------------------------------


def _whole(x: Tensor, order: Tensor) -> bool:
    """Whether every walk comes to every cell: nobody comes twice, so it is a matter of counting."""
    return int((order >= 0).sum()) == order.shape[0] * x.shape[1]


def _cpu_forward(*args: Any) -> tuple[Tensor, Tensor]:
    return cpu_route_scan.forward(*args, whole=_whole(args[0], args[7]))


def _cpu_backward(grad_y: Tensor, states: Tensor, *args: Any) -> list[Tensor | None]:
    return cpu_route_scan.backward(grad_y, states, *args, whole=_whole(args[0], args[7]))


def _call_reference(*args: Any) -> tuple[Tensor]:
    x, delta, A, B, C, D, delta_bias, order, delta_softplus, _ = args
    return (
        route_scan_reference(x, delta, A, B, C, D, order=order, delta_bias=delta_bias, delta_softplus=delta_softplus),
    )


def _reference_forward(*args: Any) -> tuple[Tensor, Tensor]:
    return _call_reference(*args)[0].contiguous(), args[2].new_empty(0, args[2].shape[1], args[2].shape[0])


def _reference_backward(grad_y: Tensor, states: Tensor, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_call_reference, args, _INPUTS, (grad_y,))


def _cpu_accepts(*args: Any) -> str | None:
    return cpu_accepts(*args[:_INPUTS])


def _triton_accepts(*args: Any) -> str | None:
    x, A = args[0], args[2]
    return triton_accepts(x) if A.numel() else "A is empty"


OPERATOR.implementations += [
    triton_implementation("route_scan", _triton_accepts),
    Implementation("cpu", _cpu_accepts, _cpu_forward, _cpu_backward),
    Implementation("reference", lambda *args: None, _reference_forward, _reference_backward),
]
