"""The selective scan of Mamba-1: a diagonal recurrence whose step, input and output depend on the input.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023, arXiv 2312.00752),
equation 2 with the zero-order hold for A and Euler's rule for B, as its published code computes it.
"""

from __future__ import annotations

import itertools
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


def selective_scan(
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
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan a sequence with a state of N numbers a channel.

    For every channel, with step ``d_t = softplus(delta_t + delta_bias)`` (or without softplus, or bias)::

        h_t = exp(d_t A) h_{t-1} + d_t B_t x_t          h_{-1} = initial_state, or zero
        y_t = (sum_n C_t[n] h_t[n] + D x_t) silu(z_t)

    With complex A the sum is ``2 Re(sum_n C_t[n] h_t[n])``: each state stands for a conjugate pair.

    Arguments:
        x: the input, (batch, length, channels); float32, bfloat16, float16 or float64.
        delta: the step sizes before bias and softplus, (batch, length, channels).
        A: (channels, states), real or complex; negative real parts make the state decay.
        B: constant (channels, states), or a row a position (batch, length, states), or a row a group of
            neighbouring channels (batch, length, groups, states). May be complex where A is.
        C: shaped like B, independently of it.
        D: weight of the direct path, (channels,).
        z: gate, (batch, length, channels).
        delta_bias: added to delta, (channels,).
        delta_softplus: whether the step is the softplus of delta + delta_bias.
        initial_state: (batch, channels, states); with offsets, (sequences, channels, states).
        resets: (batch, length) bool; where True, the state is zeroed before that position.
        offsets: (sequences + 1,) int64, cumulative lengths, from 0 to length, of sequences packed into one row.
        return_last_state: return the state after the last position (of each sequence) as well.

    Returns:
        y, shaped and typed as x; with `return_last_state` the pair (y, last state). The state is float32 (complex64
        for complex A), or float64 (complex128) for float64 input. Both have gradients in every floating input.

    Raises:
        ValueError: a shape does not fit, A holds NaN, or resets and offsets are both given.
        TypeError: a dtype is not accepted.
    """
    y, last_state, _ = OPERATOR(
        *_bind(
            x,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            initial_state=initial_state,
            resets=resets,
            offsets=offsets,
        )
    )
    return (y, last_state) if return_last_state else y


def selective_scan_reference(
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
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan`, a step at a time in plain PyTorch: h_t = exp(d_t A) h_{t-1} + d_t B_t x_t."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    u, step = x.to(wide), delta.to(wide)
    if delta_bias is not None:
        step = step + delta_bias
    if delta_softplus:
        step = F.softplus(step)
    batch, length, channels = x.shape
    sequences = batch if offsets is None else len(offsets) - 1
    kind = torch.promote_types(A.dtype, wide)
    if initial_state is None:
        initial_state = A.new_zeros(sequences, channels, A.shape[1], dtype=kind)
    state = initial_state.to(kind)
    outputs: list[Tensor] = []
    last_states: list[Tensor] = []
    bounds = [0, length] if offsets is None else offsets.tolist()
    for sequence, (start, end) in enumerate(itertools.pairwise(bounds)):
        h = state if offsets is None else state[sequence : sequence + 1]
        for t in range(start, end):
            if resets is not None:
                h = torch.where(resets[:, t, None, None], torch.zeros_like(h), h)
            decay = torch.exp(step[:, t, :, None] * A)
            h = decay * h + (step[:, t] * u[:, t])[..., None] * _row(B, t, channels)
            y = (h * _row(C, t, channels)).sum(-1)
            outputs.append(2 * y.real if A.is_complex() else y)
        last_states.append(h)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(u)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z.to(wide))
    last_state = torch.cat(last_states) if last_states else state
    return (y.to(x.dtype), last_state) if return_last_state else y.to(x.dtype)


def _row(weights: Tensor, t: int, channels: int) -> Tensor:
    """B or C at position t for every channel: (batch or 1, channels, states)."""
    if weights.ndim == 2:
        return weights[None]
    if weights.ndim == 3:
        return weights[:, t, None]
    return weights[:, t].repeat_interleave(channels // weights.shape[2], dim=1)


def _bind(
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
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> tuple[Any, ...]:
    """Check the public arguments and give those of the registered operator."""
    name = "selective_scan"
    checks.floating(name, "x", x, ndim=3)
    batch, length, channels = x.shape
    checks.floating(name, "delta", delta, shape=(batch, length, channels))
    checks.floating(name, "A", A, ndim=2, complex_too=True)
    checks.fits(name, "A", A, (channels, None))
    states = A.shape[1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    kind = wide.to_complex() if A.is_complex() else wide
    rows = {}
    for label, weights in (("B", B), ("C", C)):
        checks.floating(name, label, weights, complex_too=A.is_complex())
        rows[label] = _bind_rows(name, label, weights, (batch, length, channels, states), kind)
    checks.floating(name, "D", D, shape=(channels,))
    checks.floating(name, "z", z, shape=(batch, length, channels))
    checks.floating(name, "delta_bias", delta_bias, shape=(channels,))
    sequences = checks.boundaries(name, resets, offsets, batch, length)
    checks.floating(
        name, "initial_state", initial_state, shape=(sequences, channels, states), complex_too=A.is_complex()
    )
    checks.same_device(
        name,
        x=x,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        initial_state=initial_state,
        resets=resets,
        offsets=offsets,
    )
    tensors = (
        x,
        _narrow(delta, wide),
        A.to(kind),
        rows["B"],
        rows["C"],
        None if D is None else D.to(wide),
        None if z is None else _narrow(z, wide),
        None if delta_bias is None else delta_bias.to(wide),
        None if initial_state is None else initial_state.to(kind),
    )
    save_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return (*tensors, resets, offsets, bool(delta_softplus), save_states)


def _bind_rows(name: str, label: str, weights: Tensor, sizes: tuple[int, int, int, int], kind: torch.dtype) -> Tensor:
    """B or C as the registered operator takes it: (channels, states) or (batch, length, groups, states)."""
    batch, length, channels, states = sizes
    if weights.ndim == 2:
        checks.fits(name, label, weights, (channels, states))
        return weights.to(kind)
    if weights.ndim == 3:
        checks.fits(name, label, weights, (batch, length, states))
        weights = weights.unsqueeze(2)
    elif weights.ndim == 4:
        checks.fits(name, label, weights, (batch, length, None, states))
        groups = weights.shape[2]
        if groups == 0 or channels % groups:
            raise ValueError(f"{name}: {label} has {groups} groups, which do not divide {channels} channels")
    else:
        raise ValueError(
            f"{name}: {label} has shape {tuple(weights.shape)}; accepted: (channels, states), "
            "(batch, length, states) or (batch, length, groups, states)"
        )
    return weights.to(kind) if kind.is_complex else _narrow(weights, kind)


def _narrow(tensor: Tensor, wide: torch.dtype) -> Tensor:
    """Kernels read all narrow types side by side, but float64 only by itself."""
    return tensor.to(wide) if torch.float64 in (tensor.dtype, wide) else tensor


# ---- registration ----------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, Tensor? initial_state, Tensor? resets, Tensor? offsets, bool delta_softplus, bool save_states"
)
_INPUTS = 9  # the leading arguments that have a gradient

OPERATOR = register(Operator("selective_scan", _bind))


def _sequences(x: Tensor, offsets: Tensor | None) -> int:
    return x.shape[0] if offsets is None else offsets.shape[0] - 1


def _check_values(*args: Any) -> None:
    checks.no_nan("selective_scan", "A", args[2])
    checks.offsets_values("selective_scan", args[10], args[0].shape[1])


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, A, offsets, save_states = args[0], args[2], args[10], args[12]
    saves = save_states and OPERATOR.choose(*args).name != "reference"
    checkpoints, states, channels = cpu_selective_scan.states_shape(x, A, offsets)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        A.new_empty(_sequences(x, offsets), channels, states),
        A.new_empty(checkpoints if saves else 0, states, channels),
    )


define(OPERATOR, _ARGUMENTS, inputs=_INPUTS, outputs=2, fake=_fake, check=_check_values, saves=True)


# ---- reference ---------------------------------------------------------------------------------------------


def _call_reference(*args: Any) -> tuple[Tensor, Tensor]:
    x, delta, A, B, C, D, z, delta_bias, initial_state, resets, offsets, delta_softplus, _ = args
    y, last_state = selective_scan_reference(
        x,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
        resets=resets,
        offsets=offsets,
        return_last_state=True,
    )
    return y, last_state


def _reference_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, last_state = _call_reference(*args)
    if last_state is args[8]:
        last_state = last_state.clone()
    return y, last_state, last_state.new_empty(0, last_state.shape[2], last_state.shape[1])


def _reference_backward(
    grad_y: Tensor | None, grad_last_state: Tensor | None, states: Tensor, *args: Any
) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_call_reference, args, _INPUTS, (grad_y, grad_last_state))


def _cpu_accepts(*args: Any) -> str | None:
    x, delta, A, B, C, D, z, delta_bias, initial_state = args[:_INPUTS]
    if A.dtype not in (torch.float32, torch.complex64):
        return f"no kernel for {A.dtype} A"
    reason = cpu_accepts(x, delta, D, z, delta_bias)
    if reason is None and not A.is_complex():
        reason = cpu_accepts(A, B, C, initial_state)
    return reason


def _triton_accepts(*args: Any) -> str | None:
    x, A = args[0], args[2]
    return triton_accepts(x) if A.numel() else "A is empty"


OPERATOR.implementations += [
    triton_implementation("selective_scan", _triton_accepts),
    Implementation("cpu", _cpu_accepts, cpu_selective_scan.forward, cpu_selective_scan.backward),
    Implementation("reference", lambda *args: None, _reference_forward, _reference_backward),
]
