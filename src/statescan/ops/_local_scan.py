"""The locally bidirectional scan: a selective scan that looks ahead within windows.

Zhang et al., "LBMamba: Locally Bi-directional Mamba" (2025, arXiv 2506.15976), section 3.2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.kernels import cpu_selective_scan
from statescan.ops import _checks as checks
from statescan.ops import _selective_scan as plain
from statescan.ops._dispatch import Implementation, Operator, register, triton_accepts
from statescan.ops._registration import define
from statescan.ops._selective_scan import selective_scan

#: (greatest length, window): what one thread of the published kernel holds; longer sequences take the last one.
_WINDOWS = ((128, 4), (256, 8))
_LONGEST_WINDOW = 16


def local_window(window: int | Literal["auto"], length: int) -> int:
    """The window for a sequence of so many positions; ``auto`` is 4 up to 128, 8 up to 256, 16 beyond.

    Raises:
        ValueError: neither a positive whole number nor ``auto``.
    """
    if window == "auto":
        return next((size for most, size in _WINDOWS if length <= most), _LONGEST_WINDOW)
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(f"window: a positive whole number or 'auto', got {window!r}")
    return window


def local_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    window: int | Literal["auto"] = "auto",
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan a sequence forwards, and within windows of it backwards too.

    With step ``d_t``, decay ``a_t = exp(d_t A)`` and input ``b_t = d_t B_t x_t``, positions being cut into windows from
    the first one on::

        f_t = a_t f_{t-1} + b_t                        from window to window
        r_t = a_t (r_{t+1} + b_{t+1})                  zero at the last position of each window
        y_t = (sum_n C_t[n] (f_t[n] + r_t[n]) + D x_t) silu(z_t)

    Window 1 is `selective_scan`; a window of the whole length is a scan in both directions that counts each position's
    own input once. On a CPU, windows of 2, 4, … 64 positions are computed within the one scan; elsewhere as two scans, the
    second one reset at the windows.

    Arguments:
        x: the input, (batch, length, channels).
        delta: the step sizes before bias and softplus, (batch, length, channels).
        A: (channels, states), real.
        B, C: (batch, length, states), or (batch, length, groups, states).
        D: weight of the direct path, (channels,).
        z: gate, (batch, length, channels).
        window: positions in a window; ``auto`` follows the length as the published kernel does: 4 up to 128 positions,
            8 up to 256, 16 beyond.
        delta_bias: added to delta, (channels,).
        delta_softplus: whether the step is the softplus of delta + delta_bias.
        initial_state: of the forward recurrence, (batch, channels, states).
        return_last_state: return that recurrence's state after the last position as well.

    Returns:
        y, shaped and typed as x; with `return_last_state` the pair (y, last state). A sequence cut at a multiple of the
        window and continued from the last state gives what one call gives, if `window` is a number.

    Raises:
        ValueError: complex A, constant B or C, a window that is none, or a shape that does not fit.
    """
    arguments = _bind(
        x,
        delta,
        A,
        B,
        C,
        D,
        z,
        window=window,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
    )
    if x.device.type in ("cpu", "meta"):
        y, last_state = OPERATOR(*arguments)[:2]
    else:
        y, last_state = _two_scans(*arguments)
    return (y, last_state) if return_last_state else y


def _bind(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    window: int | Literal["auto"] = "auto",
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
) -> tuple[Any, ...]:
    """Check the public arguments and give those of the registered operator."""
    name = "local_scan"
    checks.floating(name, "x", x, ndim=3)
    checks.floating(name, "A", A, ndim=2, complex_too=True)
    if A.is_complex():
        raise ValueError(f"{name}: A must be real; complex states have no local scan")
    for label, weights in (("B", B), ("C", C)):
        if weights.ndim not in (3, 4):
            raise ValueError(
                f"{name}: {label} has shape {tuple(weights.shape)}; accepted: (batch, length, states) or "
                "(batch, length, groups, states)"
            )
    *tensors, _, _, softplus, save_states = plain._bind(
        x, delta, A, B, C, D, z, delta_bias=delta_bias, delta_softplus=delta_softplus, initial_state=initial_state
    )
    return (*tensors, softplus, save_states, local_window(window, x.shape[1]))


def _two_scans(*args: Any) -> tuple[Tensor, Tensor]:
    """`local_scan` of the registered operator's arguments as two selective scans, for any window and device."""
    x, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, _, size = args
    batch, length, _ = x.shape
    y, last_state = selective_scan(
        x,
        delta,
        A,
        B,
        C,
        D,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
        return_last_state=True,
    )
    if size > 1 and length > 1:
        position = torch.arange(length, device=x.device)
        ends = (position % size == size - 1).flip(0).expand(batch, length).contiguous()
        backward = selective_scan(
            x.flip(1),
            delta.flip(1),
            A,
            B.flip(1),
            C.flip(1),
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            resets=ends,
        )
        assert isinstance(backward, Tensor)
        # The way back counted each position's own input too; the way forth has it already.
        y = y + backward.flip(1) - _own(x, delta, B, C, delta_bias, delta_softplus)
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    return y.to(x.dtype), last_state


def _own(x: Tensor, delta: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, softplus: bool) -> Tensor:
    """What each position's own input adds to its output, (batch, length, channels)."""
    step = _steps(delta, delta_bias, softplus)
    wide = step.dtype
    weight = (B.to(wide) * C.to(wide)).sum(-1)  # (batch, length), with groups (batch, length, groups)
    weight = weight[..., None] if B.ndim == 3 else weight.repeat_interleave(x.shape[2] // B.shape[2], dim=2)
    return (step * x.to(wide) * weight).to(x.dtype)


def _steps(delta: Tensor, delta_bias: Tensor | None, softplus: bool) -> Tensor:
    step = delta.to(torch.promote_types(delta.dtype, torch.float32))
    if delta_bias is not None:
        step = step + delta_bias
    return F.softplus(step) if softplus else step


def local_scan_reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    window: int | Literal["auto"] = "auto",
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`local_scan`, a position at a time in plain PyTorch, with B and C of one group."""
    wide = torch.promote_types(x.dtype, torch.float32)
    length = x.shape[1]
    size = local_window(window, length)
    step = _steps(delta.to(wide), delta_bias, delta_softplus)
    u = x.to(wide)
    decay = torch.exp(step[..., None] * A)  # (batch, length, channels, states)
    added = (step * u)[..., None] * B[:, :, None]
    state = torch.zeros_like(added[:, 0]) if initial_state is None else initial_state
    forth = []
    for t in range(length):
        state = decay[:, t] * state + added[:, t]
        forth.append(state)
    back = [torch.zeros_like(state)] * length
    for t in reversed(range(length - 1)):
        if t % size != size - 1:
            back[t] = decay[:, t] * (back[t + 1] + added[:, t + 1])
    y = ((torch.stack(forth, 1) + torch.stack(back, 1)) * C[:, :, None]).sum(-1)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z.to(wide))
    return (y.to(x.dtype), state) if return_last_state else y.to(x.dtype)


# ---- registration ----------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, bool delta_softplus, bool save_states, int window"
)
_INPUTS = 9  # the leading arguments that have a gradient

OPERATOR = register(Operator("local_scan", _bind))


def _as_plain(*args: Any) -> tuple[Any, ...]:
    """The arguments of the selective scan."""
    *tensors, delta_softplus, save_states, _ = args
    return (*tensors, None, None, delta_softplus, save_states)


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, A, save_states = args[0], args[2], args[10]
    saves = save_states and OPERATOR.choose(*args).forward is _cpu_forward
    checkpoints, states, channels = cpu_selective_scan.states_shape(x, A, None)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        A.new_empty(x.shape[0], channels, states),
        A.new_empty(checkpoints if saves else 0, states, channels),
    )


define(
    OPERATOR,
    _ARGUMENTS,
    inputs=_INPUTS,
    outputs=2,
    fake=_fake,
    check=lambda *args: checks.no_nan("local_scan", "A", args[2]),
    saves=True,
)


def _cpu_accepts(*args: Any) -> str | None:
    window = args[11]
    if window > cpu_selective_scan.CHECKPOINT_INTERVAL or cpu_selective_scan.CHECKPOINT_INTERVAL % window:
        return f"no kernel for windows of {window}"
    return plain._cpu_accepts(*_as_plain(*args))


def _cpu_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return cpu_selective_scan.forward(*_as_plain(*args), window=args[11])


def _cpu_backward(
    grad_y: Tensor | None, grad_last_state: Tensor | None, saved: Tensor, *args: Any
) -> list[Tensor | None]:
    return cpu_selective_scan.backward(grad_y, grad_last_state, saved, *_as_plain(*args), window=args[11])


def _composed_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, last_state = _two_scans(*args)
    given = args[8]  # an output must not be an input
    last_state = last_state.clone() if given is not None and last_state.data_ptr() == given.data_ptr() else last_state
    return y.contiguous(), last_state, last_state.new_empty(0, last_state.shape[2], last_state.shape[1])


def _composed_backward(
    grad_y: Tensor | None, grad_last_state: Tensor | None, saved: Tensor, *args: Any
) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_two_scans, args, _INPUTS, (grad_y, grad_last_state))


OPERATOR.implementations += [
    Implementation("cpu", _cpu_accepts, _cpu_forward, _cpu_backward),
    Implementation("cpu", lambda *args: plain._cpu_accepts(*_as_plain(*args)), _composed_forward, _composed_backward),
    Implementation("triton", lambda *args: triton_accepts(args[0]), _composed_forward, _composed_backward),
    Implementation("reference", lambda *args: None, _composed_forward, _composed_backward),
]
