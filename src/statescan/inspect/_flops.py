"""Floating-point operations: torch's counter, and what our operators add to it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _selective_scan(x: Any, delta: Any, A: Any, *rest: Any, **_: Any) -> int:
    # Nine a state, as publications count: exp(delta A), delta B x, the step and the read-out. Exp counts as one.
    batch, length, channels = x
    return batch * length * channels * (9 * A[1])


def _local_scan(x: Any, delta: Any, A: Any, *rest: Any, **_: Any) -> int:
    # and r = a (r + b), f + r: three more
    batch, length, channels = x
    return batch * length * channels * (12 * A[1])


def _route_scan(
    x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, delta_bias: Any, order: Any, *rest: Any, **_: Any
) -> int:
    return x[0] * order[1] * A[0] * (9 * A[1])


def _ssd(x: Any, delta: Any, A: Any, B: Any, *rest: Any, **_: Any) -> int:
    # the recurrence's own count (outer product and read-out, a multiply-add each, and the decay): the chunked form does
    # more, on faster units
    batch, length, heads, head_dim = x
    return batch * length * heads * head_dim * (5 * B[3])


def _causal_conv1d(x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    return prod(x) * 2 * weight[1]


def _linear_scan(a: Any, b: Any, *rest: Any, **_: Any) -> int:
    return 2 * prod(b)


_FORMULAS = {
    "selective_scan": _selective_scan,
    "local_scan": _local_scan,
    "route_scan": _route_scan,
    "ssd": _ssd,
    "causal_conv1d": _causal_conv1d,
    "linear_scan": _linear_scan,
}


def counter() -> FlopCounterMode:
    """A context that counts matrix products, convolutions, attention and the library's operators."""
    mapping = {}
    for name, formula in _FORMULAS.items():
        packet = getattr(torch.ops.statescan, name, None)
        if packet is not None:
            mapping[packet] = _with_output(formula)
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _with_output(formula: Any) -> Any:
    def count(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return formula(*args, **kwargs)

    return count
