"""Selective scans along several walks over a grid, with their step sizes, summed over the walks.

Liu et al. 2024, "VMamba" (arXiv 2401.10166), section 4.2: what stands between the selection of a cell and the
cross-merge, as one operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.kernels import cpu, cpu_merged_scan
from statescan.ops import _checks as checks
from statescan.ops._dispatch import unheard
from statescan.ops._route_scan import route_scan, route_scan_reference

_NAME = "merged_scan"


def merged_scan(
    x: Tensor,
    selected: Tensor,
    delta_weight: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    order: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """Scan the cells of a grid along walks as `route_scan` does, and add up what the walks leave at each cell.

    A cell's row for a walk is ``[dt, B, C]`` of rank, states and states channels; its step sizes are
    ``softplus(delta_weight[k] dt + delta_bias[k])``. Without gradients, and for 1, 2 or 4 states in float32, one
    kernel on the CPU makes the steps, scans and adds: neither steps nor the walks' results are kept. Else it is a
    product, `route_scan` and a sum.

    Arguments:
        x: the grid, (batch, cells, channels).
        selected: (batch, cells, walks, rank + 2 states).
        delta_weight: (walks, channels, rank).
        A: (walks x channels, states), real.
        D: weight of the direct path, (walks x channels,).
        order: the walks (walks, length) int64, as `routes.Route.table` gives them; no walk comes to a cell twice.
        delta_bias: (walks x channels,).

    Returns:
        (batch, cells, channels), typed as x. Gradients in every floating input.

    Raises:
        ValueError: a shape does not fit, or A holds NaN.
        TypeError: a dtype is not accepted.
    """
    states, rank = _check(x, selected, delta_weight, A, D, order, delta_bias)
    floats = (x, selected, delta_weight, A, D, delta_bias)
    if cpu_merged_scan.accepts(*floats, order) and unheard("cpu", *floats) and cpu.available():
        checks.no_nan(_NAME, "A", A)
        checks.cells(_NAME, order, x.shape[1])
        weights = cpu_merged_scan.arrange(delta_weight, A, D, delta_bias)
        return cpu_merged_scan.forward(x, selected, weights, order.to(torch.int32).contiguous())
    dt, B, C = selected.split([rank, states, states], dim=-1)
    delta = torch.einsum("bckr,ker->bcke", dt, delta_weight.to(dt.dtype))
    return route_scan(x, delta, A, B, C, D, order=order, delta_bias=delta_bias, delta_softplus=True).sum(2)


def merged_scan_reference(
    x: Tensor,
    selected: Tensor,
    delta_weight: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    order: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """`merged_scan` in plain PyTorch, on `route_scan_reference`."""
    states, rank = _check(x, selected, delta_weight, A, D, order, delta_bias)
    dt, B, C = selected.split([rank, states, states], dim=-1)
    delta = torch.einsum("bckr,ker->bcke", dt, delta_weight.to(dt.dtype))
    y = route_scan_reference(x, delta, A, B, C, D, order=order, delta_bias=delta_bias, delta_softplus=True)
    return y.sum(2)


def _check(
    x: Tensor, selected: Tensor, delta_weight: Tensor, A: Tensor, D: Tensor, order: Tensor, delta_bias: Tensor
) -> tuple[int, int]:
    """States and rank, where everything fits."""
    checks.floating(_NAME, "x", x, ndim=3)
    batch, cells, width = x.shape
    if order.ndim != 2 or order.dtype != torch.int64:
        raise ValueError(f"{_NAME}: order (walks, length) of int64, got {tuple(order.shape)} of {order.dtype}")
    walks = order.shape[0]
    checks.floating(_NAME, "A", A, ndim=2)
    checks.fits(_NAME, "A", A, (walks * width, None))
    states = A.shape[1]
    checks.floating(_NAME, "delta_weight", delta_weight, ndim=3)
    checks.fits(_NAME, "delta_weight", delta_weight, (walks, width, None))
    rank = delta_weight.shape[2]
    checks.floating(_NAME, "selected", selected, shape=(batch, cells, walks, rank + 2 * states))
    checks.floating(_NAME, "D", D, shape=(walks * width,))
    checks.floating(_NAME, "delta_bias", delta_bias, shape=(walks * width,))
    checks.same_device(
        _NAME, x=x, selected=selected, delta_weight=delta_weight, A=A, D=D, delta_bias=delta_bias, order=order
    )
    return states, rank
