"""The first-order diagonal recurrence under S5, LRU and gated linear RNNs. Blelloch 1990; Martin and Cundy 2018."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.kernels import cpu_linear_scan
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

_NAME = "linear_scan"


def linear_scan(
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan ``h_t = a_t h_{t-1} + b_t`` along time, every channel by itself.

    Arguments:
        a: (batch, length, channels), or (channels,) for a constant; real or complex.
        b: (batch, length, channels), real or complex; the result is complex where either is.
        initial_state: h before the first position (after the last, in reverse), (batch, channels); with offsets,
            (sequences, channels).
        resets: (batch, length) bool; where True, the state is zeroed before that position is taken in.
        offsets: (sequences + 1,) int64, cumulative lengths of sequences packed into a batch of 1.
        reverse: scan from the end to the start.
        return_last_state: return the state after the last step of each sequence as well.

    Returns:
        h (batch, length, channels) in float32 or complex64 (float64, complex128 for such input); with `return_last_state`
        the pair (h, last state). Differentiable in a, b and the initial state.
    """
    h, last = OPERATOR(*_bind(a, b, initial_state=initial_state, resets=resets, offsets=offsets, reverse=reverse))
    return (h, last) if return_last_state else h


def linear_scan_reference(
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`linear_scan`, a step at a time in plain PyTorch."""
    kind = _kind(a, b)
    a, b = a.to(kind), b.to(kind)
    batch, length, channels = b.shape
    bounds = [0, length] if offsets is None else offsets.tolist()
    count = batch if offsets is None else len(bounds) - 1
    state = b.new_zeros(count, channels) if initial_state is None else initial_state.to(kind)
    rows: list[Tensor | None] = [None] * length
    last = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        h = state if offsets is None else state[number : number + 1]
        for t in reversed(range(start, end)) if reverse else range(start, end):
            if resets is not None:
                h = torch.where(resets[:, t, None], torch.zeros_like(h), h)
            h = (a if a.ndim == 1 else a[:, t]) * h + b[:, t]
            rows[t] = h
        last.append(h)
    stacked = torch.stack([row for row in rows if row is not None], dim=1) if length else b.clone()
    return (stacked, torch.cat(last)) if return_last_state else stacked


def _kind(a: Tensor, b: Tensor) -> torch.dtype:
    wide = torch.float64 in (a.real.dtype, b.real.dtype)
    if a.is_complex() or b.is_complex():  # spelt out, as torch.compile does not follow dtype.to_complex
        return torch.complex128 if wide else torch.complex64
    return torch.float64 if wide else torch.float32


def _bind(
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
) -> tuple[Any, ...]:
    checks.floating(_NAME, "b", b, ndim=3, complex_too=True)
    batch, length, channels = b.shape
    checks.floating(_NAME, "a", a, complex_too=True)
    if a.ndim not in (1, 3):
        raise ValueError(f"{_NAME}: a has shape {tuple(a.shape)}; accepted: (channels,) or (batch, length, channels)")
    checks.fits(_NAME, "a", a, (channels,) if a.ndim == 1 else b.shape)
    sequences = checks.boundaries(_NAME, resets, offsets, batch, length)
    checks.floating(_NAME, "initial_state", initial_state, shape=(sequences, channels), complex_too=True)
    checks.same_device(_NAME, b=b, a=a, initial_state=initial_state, resets=resets, offsets=offsets)
    kind = _kind(a, b)
    if initial_state is not None and initial_state.is_complex() and not kind.is_complex:
        raise TypeError(f"{_NAME}: initial_state is complex where a and b are real")
    state = None if initial_state is None else initial_state.to(kind)
    return a.to(kind), b.to(kind), state, resets, offsets, bool(reverse)


OPERATOR = register(Operator(_NAME, _bind))


def _fake(a: Tensor, b: Tensor, state: Any, resets: Any, offsets: Any, reverse: bool) -> tuple[Tensor, Tensor]:
    count = b.shape[0] if offsets is None else offsets.shape[0] - 1
    return torch.empty_like(b, memory_format=torch.contiguous_format), b.new_empty(count, b.shape[2])


def _check_values(a: Tensor, b: Tensor, state: Any, resets: Any, offsets: Any, reverse: bool) -> None:
    checks.offsets_values(_NAME, offsets, b.shape[1])


define(
    OPERATOR,
    "Tensor a, Tensor b, Tensor? initial_state, Tensor? resets, Tensor? offsets, bool reverse",
    inputs=3,
    outputs=2,
    fake=_fake,
    check=_check_values,
)


def _reference(a: Tensor, b: Tensor, state: Any, resets: Any, offsets: Any, reverse: bool) -> tuple[Tensor, Tensor]:
    h, last = linear_scan_reference(
        a, b, initial_state=state, resets=resets, offsets=offsets, reverse=reverse, return_last_state=True
    )
    return h, last.clone() if last is state else last


def _reference_backward(grad_h: Tensor | None, grad_last: Tensor | None, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_reference, args, 3, (grad_h, grad_last))


def _accepts(a: Tensor, b: Tensor, state: Any, *args: Any) -> str | None:
    if b.dtype not in (torch.float32, torch.complex64):
        return f"no kernel for {b.dtype}"
    return cpu_accepts(a.real, b.real)


def _triton_accepts(a: Tensor, b: Tensor, state: Any, *args: Any) -> str | None:
    return triton_accepts(b.real) if b.dtype in (torch.float32, torch.complex64) else f"no kernel for {b.dtype}"


OPERATOR.implementations += [
    Implementation("cpu", _accepts, cpu_linear_scan.forward, cpu_linear_scan.backward),
    triton_implementation("linear_scan", _triton_accepts),
    Implementation("reference", lambda *args: None, _reference, _reference_backward),
]
