"""Structured state-space duality, the scan of Mamba-2. Dao and Gu 2024, arXiv 2405.21060, sections 3, 5 and 6."""

from __future__ import annotations

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

_NAME = "ssd"
_INFINITY = float("inf")


def ssd(
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
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan with one decay a head: ``S_t = exp(d_t A) S_{t-1} + d_t x_t B_t^T``, ``y_t = S_t C_t + D x_t``, times silu(z_t).

    The step d is delta + delta_bias, through softplus if asked, clamped to `delta_limit` after it.

    Arguments:
        x: (batch, length, heads, head_dim); float32, bfloat16, float16 or float64.
        delta: (batch, length, heads).
        A: (heads,), negative.
        B, C: (batch, length, groups, state_dim); head h belongs to group h // (heads / groups).
        D: (heads,) or (heads, head_dim).
        z: gate, shaped as x.
        delta_bias: (heads,).
        delta_softplus, delta_limit: see above; the gradient is zero where a step is clamped.
        chunk_size: positions that are taken as one quadratic form, at most: CPU kernels take fewer where that is faster;
            changes speed, not results.
        initial_state: (batch, heads, head_dim, state_dim); with offsets, (sequences, …).
        resets: (batch, length) bool; where True, the state is zeroed before that position.
        offsets: (sequences + 1,) int64, cumulative lengths of sequences packed into a batch of 1.
        return_last_state: return the state after the last position of each sequence as well.

    Returns:
        y, shaped and typed as x; with `return_last_state` the pair (y, last state), the state in float32 (float64 for
        float64). Differentiable in every floating input.
    """
    args, gate = _prepare(
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
        chunk_size=chunk_size,
        initial_state=initial_state,
        resets=resets,
        offsets=offsets,
    )
    y, last = OPERATOR(*args)
    if gate is not None:
        y = y * F.silu(gate.to(y.dtype))
    return (y, last) if return_last_state else y


def ssd_reference(
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
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`ssd` as its recurrence, a position at a time in plain PyTorch."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = _steps(delta.to(wide), delta_bias, delta_softplus, delta_limit)
    u = x.to(wide)
    heads = x.shape[2]
    per_group = heads // B.shape[2]
    bounds = [0, x.shape[1]] if offsets is None else offsets.tolist()
    count = x.shape[0] if offsets is None else len(bounds) - 1
    state = initial_state
    if state is None:
        state = u.new_zeros(count, heads, x.shape[3], B.shape[3])
    outputs, last = [], []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        S = state.to(wide) if offsets is None else state[number : number + 1].to(wide)
        for t in range(start, end):
            if resets is not None:
                S = torch.where(resets[:, t, None, None, None], torch.zeros_like(S), S)
            b, c = (w[:, t].to(wide).repeat_interleave(per_group, dim=1)[:, :, None] for w in (B, C))
            decay = torch.exp(step[:, t] * A.to(wide))[..., None, None]
            S = decay * S + (step[:, t, :, None] * u[:, t])[..., None] * b
            outputs.append((S * c).sum(-1))
        last.append(S)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(u)
    if D is not None:
        y = y + (D[:, None] if D.ndim == 1 else D).to(wide) * u
    if z is not None:
        y = y * F.silu(z.to(wide))
    return (y.to(x.dtype), torch.cat(last)) if return_last_state else y.to(x.dtype)


def _steps(delta: Tensor, bias: Tensor | None, softplus: bool, limit: tuple[float, float]) -> Tensor:
    if bias is not None:
        delta = delta + bias.to(delta.dtype)
    if softplus:
        delta = F.softplus(delta)
    low, high = limit
    if high < _INFINITY:
        return delta.clamp(low, high)
    return delta if low == 0.0 and softplus else delta.clamp(low)  # one bound costs half of what two do


def _prepare(
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
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> tuple[tuple[Any, ...], Tensor | None]:
    """Check the public arguments; give those of the registered operator, and the gate, which is applied after it."""
    checks.floating(_NAME, "x", x, ndim=4)
    batch, length, heads, head_dim = x.shape
    checks.floating(_NAME, "delta", delta, shape=(batch, length, heads))
    checks.floating(_NAME, "A", A, shape=(heads,))
    checks.floating(_NAME, "B", B, ndim=4)
    checks.fits(_NAME, "B", B, (batch, length, None, None))
    groups, state_dim = B.shape[2:]
    checks.floating(_NAME, "C", C, shape=(batch, length, groups, state_dim))
    if heads and (groups == 0 or heads % groups):
        raise ValueError(f"{_NAME}: B has {groups} groups, which do not divide {heads} heads")
    checks.floating(_NAME, "D", D)
    if D is not None and D.shape not in ((heads,), (heads, head_dim)):
        raise ValueError(f"{_NAME}: D has shape {tuple(D.shape)}; accepted: ({heads},) or ({heads}, {head_dim})")
    checks.floating(_NAME, "z", z, shape=x.shape)
    checks.floating(_NAME, "delta_bias", delta_bias, shape=(heads,))
    sequences = checks.boundaries(_NAME, resets, offsets, batch, length)
    checks.floating(_NAME, "initial_state", initial_state, shape=(sequences, heads, head_dim, state_dim))
    checks.same_device(
        _NAME, x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state
    )
    if not delta_limit[0] <= delta_limit[1]:
        raise ValueError(f"{_NAME}: delta_limit must be (low, high) with low <= high, not {delta_limit}")
    if chunk_size < 1:
        raise ValueError(f"{_NAME}: chunk_size must be at least 1, not {chunk_size}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = _steps(delta.to(wide), delta_bias, delta_softplus, (float(delta_limit[0]), float(delta_limit[1])))
    args = (
        x,
        step,
        A.to(wide),
        B.to(x.dtype),
        C.to(x.dtype),
        None if D is None else D.to(wide),
        None if initial_state is None else initial_state.to(wide),
        resets,
        offsets,
        int(chunk_size),
    )
    return args, z


def _bind(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return _prepare(*args, **kwargs)[0]


OPERATOR = register(Operator(_NAME, _bind))


def _fake(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, state: Any, *args: Any
) -> tuple[Tensor, ...]:
    offsets = args[1]
    count = x.shape[0] if offsets is None else offsets.shape[0] - 1
    last = delta.new_empty(count, x.shape[2], x.shape[3], B.shape[3])
    return torch.empty_like(x, memory_format=torch.contiguous_format), last


def _check_values(*args: Any) -> None:
    checks.no_nan(_NAME, "A", args[2])
    checks.offsets_values(_NAME, args[8], args[0].shape[1])


define(
    OPERATOR,
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? initial_state, Tensor? resets, "
    "Tensor? offsets, SymInt chunk_size",
    inputs=7,
    outputs=2,
    fake=_fake,
    check=_check_values,
)


def _reference(*args: Any) -> tuple[Tensor, Tensor]:
    x, step, A, B, C, D, state, resets, offsets, chunk_size = args
    y, last = ssd_reference(
        x,
        step,
        A,
        B,
        C,
        D,
        delta_limit=(-_INFINITY, _INFINITY),
        chunk_size=chunk_size,
        initial_state=state,
        resets=resets,
        offsets=offsets,
        return_last_state=True,
    )
    return y, last.clone() if last is state else last


def _reference_backward(grad_y: Tensor | None, grad_last: Tensor | None, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_reference, args, 7, (grad_y, grad_last))


def _triton_accepts(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, *args: Any) -> str | None:
    if x.shape[3] > 128 or not B.shape[3]:
        return f"no kernel for a head_dim of {x.shape[3]} and a state_dim of {B.shape[3]}; from 1 to 128, and from 1"
    return triton_accepts(x)


OPERATOR.implementations += [
    Implementation("cpu", lambda *args: cpu_accepts(*args[:7]), cpu_ssd.forward, cpu_ssd.backward),
    triton_implementation("ssd", _triton_accepts),
    Implementation("reference", lambda *args: None, _reference, _reference_backward),
]
