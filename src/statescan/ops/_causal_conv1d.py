"""Short causal depthwise convolution, the local mixing in front of a scan. Dao 2023, the package `causal-conv1d`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.kernels import cpu_causal_conv1d
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

_NAME = "causal_conv1d"


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve every channel with its own few taps, looking back only.

    ``y_t = activation(bias + sum_j weight[:, j] x_{t - W + 1 + j})``, where inputs before the sequence are zero or those of
    `initial_state`.

    Arguments:
        x: (batch, length, channels); float32, bfloat16, float16 or float64.
        weight: (channels, W).
        bias: (channels,).
        activation: ``silu`` or None.
        initial_state: (batch, S, channels) with S >= W - 1, the last inputs before the sequence, oldest first; with
            offsets, (sequences, S, channels).
        resets: (batch, length) bool; where True, a sequence begins: taps do not reach before it.
        offsets: (sequences + 1,) int64, cumulative lengths of sequences packed into a batch of 1.
        return_last_state: return the last S inputs as well (W - 1 without an initial state), zero-padded on the left.

    Returns:
        y, shaped and typed as x; with `return_last_state` the pair (y, last state). Differentiable in every floating input.
    """
    args = _bind(x, weight, bias, activation=activation, initial_state=initial_state, resets=resets, offsets=offsets)
    y = OPERATOR(*args)
    if not return_last_state:
        return y
    return y, _last_inputs(x, weight.shape[1] - 1, initial_state, resets, offsets)


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`causal_conv1d`, a tap at a time in plain PyTorch: y_t = activation(bias + sum_k weight[:, W - 1 - k] x_{t - k})."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    width = weight.shape[1]
    bounds = [0, x.shape[1]] if offsets is None else offsets.tolist()
    outputs = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        rows = x[:, start:end].to(wide)
        before = initial_state if offsets is None or initial_state is None else initial_state[number : number + 1]
        if before is None:
            before = rows.new_zeros(rows.shape[0], width - 1, rows.shape[2])
        past = before.shape[1]
        padded = torch.cat([before.to(wide), rows], dim=1)
        segment = None
        if resets is not None:
            segment = F.pad(resets.long().cumsum(1), (past, 0))  # 0 before the first reset, and in the state
        y = torch.zeros_like(rows) if bias is None else bias.to(wide).expand_as(rows)
        for k in range(width):
            tap = padded[:, past - k : past - k + rows.shape[1]]
            if segment is not None:
                same = segment[:, past - k : past - k + rows.shape[1]] == segment[:, past:]
                tap = torch.where(same[..., None], tap, torch.zeros_like(tap))
            y = y + weight[:, width - 1 - k].to(wide) * tap
        outputs.append(y)
    y = torch.cat(outputs, dim=1)
    y = (F.silu(y) if activation == "silu" else y).to(x.dtype)
    if not return_last_state:
        return y
    return y, _last_inputs(x, width - 1, initial_state, resets, offsets)


def causal_conv1d_step(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> tuple[Tensor, Tensor]:
    """One position of `causal_conv1d`.

    Arguments:
        state: (batch, S, channels) with S >= W - 1, the last inputs, oldest first; left as it is.
        x: (batch, channels).
        weight, bias, activation: as in `causal_conv1d`.

    Returns:
        y (batch, channels) and the next state, shaped as state.
    """
    if x.ndim != 2:
        raise ValueError(f"causal_conv1d_step: x has shape {tuple(x.shape)}; expected 2 dimensions")
    y, after = causal_conv1d(
        x[:, None], weight, bias, activation=activation, initial_state=state, return_last_state=True
    )
    return y[:, 0], after


def _last_inputs(
    x: Tensor, past: int, initial_state: Tensor | None, resets: Tensor | None, offsets: Tensor | None
) -> Tensor:
    """The last inputs of each sequence, those before its last reset zeroed. Plain indexing: autograd sees through it."""
    batch, length, channels = x.shape
    if offsets is not None:
        count = offsets.shape[0] - 1
        before = x.new_zeros(count, past, channels) if initial_state is None else initial_state.to(x.dtype)
        past = before.shape[1]
        lengths = offsets.diff()
        slot = torch.arange(past, device=x.device) - past + lengths[:, None]  # position of each entry in its sequence
        pool = torch.cat([before.flatten(0, 1), x[0]])
        older = torch.arange(count, device=x.device)[:, None] * past + past + slot
        newer = count * past + offsets[:-1, None] + slot
        return pool[torch.where(slot < 0, older, newer)]
    before = x.new_zeros(batch, past, channels) if initial_state is None else initial_state.to(x.dtype)
    past = before.shape[1]
    kept = torch.cat([before[:, min(length, past) :], x[:, length - min(length, past) :]], dim=1)
    if resets is None:
        return kept
    segment = F.pad(resets.long().cumsum(1), (past, 0))
    same = segment[:, length:] == segment[:, -1:]
    return torch.where(same[..., None], kept, torch.zeros_like(kept))


def _bind(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> tuple[Any, ...]:
    checks.floating(_NAME, "x", x, ndim=3)
    batch, length, channels = x.shape
    checks.floating(_NAME, "weight", weight, ndim=2)
    checks.fits(_NAME, "weight", weight, (channels, None))
    if weight.shape[1] < 1:
        raise ValueError(f"{_NAME}: weight needs at least one tap, got shape {tuple(weight.shape)}")
    checks.floating(_NAME, "bias", bias, shape=(channels,))
    if activation not in (None, "silu"):
        raise ValueError(f"{_NAME}: activation must be None or 'silu', not {activation!r}")
    sequences = checks.boundaries(_NAME, resets, offsets, batch, length)
    checks.floating(_NAME, "initial_state", initial_state, shape=(sequences, None, channels))
    if initial_state is not None and initial_state.shape[1] < weight.shape[1] - 1:
        raise ValueError(
            f"{_NAME}: initial_state holds {initial_state.shape[1]} inputs; a width of {weight.shape[1]} needs "
            f"{weight.shape[1] - 1}"
        )
    checks.same_device(
        _NAME, x=x, weight=weight, bias=bias, initial_state=initial_state, resets=resets, offsets=offsets
    )
    return x, weight, bias, initial_state, resets, offsets, activation == "silu"


_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? resets, Tensor? offsets, bool silu"
OPERATOR = register(Operator(_NAME, _bind))


def _fake(x: Tensor, *args: Any) -> tuple[Tensor]:
    return (torch.empty_like(x, memory_format=torch.contiguous_format),)


def _check_values(x: Tensor, weight: Tensor, bias: Any, state: Any, resets: Any, offsets: Any, silu: bool) -> None:
    checks.offsets_values(_NAME, offsets, x.shape[1])


define(OPERATOR, _ARGUMENTS, inputs=4, outputs=1, fake=_fake, check=_check_values)


def _reference(
    x: Tensor, weight: Tensor, bias: Any, state: Any, resets: Any, offsets: Any, silu: bool
) -> tuple[Tensor]:
    y = causal_conv1d_reference(
        x,
        weight,
        bias,
        activation="silu" if silu else None,
        initial_state=state,
        resets=resets,
        offsets=offsets,
    )
    assert isinstance(y, Tensor)
    return (y,)


def _reference_backward(grad: Tensor | None, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_reference, args, 4, (grad,))


OPERATOR.implementations += [
    Implementation("cpu", lambda *args: cpu_accepts(*args[:4]), cpu_causal_conv1d.forward, cpu_causal_conv1d.backward),
    triton_implementation("causal_conv1d", lambda *args: triton_accepts(*args[:4])),
    Implementation("reference", lambda *args: None, _reference, _reference_backward),
]
