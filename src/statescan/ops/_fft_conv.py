"""Convolution with a kernel as long as the sequence, through the fast Fourier transform.

Used by every layer that is trained as a convolution: S4, S4D, H3, long convolutions, SpaceTime.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.kernels import cpu_fft_conv
from statescan.ops import _checks as checks
from statescan.ops._dispatch import Implementation, Operator, cpu_accepts, register
from statescan.ops._registration import define

#: Channels transformed together: enough to vectorise over, few enough for their spectra to stay in the cache.
_CHUNK = 16
#: The compiled kernel has a channel a lane of a register: fewer channels leave most of it idle.
_LEAST_CHANNELS = 4


def fft_conv(
    x: Tensor,
    kernel: Tensor,
    D: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    anticausal_kernel: Tensor | None = None,
) -> Tensor:
    """Convolve every channel with its own long kernel.

    With ``u = gate * x`` (or x)::

        y[t] = sum_{j <= t} kernel[j] u[t - j] + sum_{j >= 0} anticausal_kernel[j] u[t + 1 + j] + D u[t]

    Arguments:
        x: (batch, length, channels), real.
        kernel: (channels, taps); taps beyond the length do nothing.
        D: weight of the direct path, (channels,).
        gate: multiplied onto x before the convolution, shaped as x (H3's ``k * v``).
        anticausal_kernel: (channels, taps), reads the future; tap 0 is one step ahead.

    Returns:
        y, shaped and typed as x; computed in float32 (float64 for float64). Differentiable in every argument.
    """
    return OPERATOR(*_bind(x, kernel, D, gate=gate, anticausal_kernel=anticausal_kernel))


def fft_conv_reference(
    x: Tensor,
    kernel: Tensor,
    D: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    anticausal_kernel: Tensor | None = None,
) -> Tensor:
    """`fft_conv` as the direct sum: a matrix product with a Toeplitz matrix for every channel."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    u = x.to(wide) if gate is None else x.to(wide) * gate.to(wide)
    length = x.shape[1]
    position = torch.arange(length, device=x.device)
    lag = position[:, None] - position[None, :]
    y = torch.zeros_like(u)
    for taps, delay in ((kernel, lag), (anticausal_kernel, -lag - 1)):
        if taps is None:
            continue
        reached = (delay >= 0) & (delay < taps.shape[1])
        padded = torch.cat([taps.to(wide), taps.new_zeros(taps.shape[0], 1).to(wide)], dim=1)
        toeplitz = padded[:, torch.where(reached, delay, taps.shape[1])]  # (channels, length, length)
        y = y + torch.einsum("dts,bsd->btd", toeplitz, u)
    return (y if D is None else y + D * u).to(x.dtype)


def _bind(
    x: Tensor,
    kernel: Tensor,
    D: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    anticausal_kernel: Tensor | None = None,
) -> tuple[Any, ...]:
    name = "fft_conv"
    checks.floating(name, "x", x, ndim=3)
    channels = x.shape[2]
    checks.floating(name, "kernel", kernel, shape=(channels, None))
    checks.floating(name, "anticausal_kernel", anticausal_kernel, shape=(channels, None))
    checks.floating(name, "D", D, shape=(channels,))
    checks.floating(name, "gate", gate, shape=x.shape)
    checks.same_device(name, x=x, kernel=kernel, D=D, gate=gate, anticausal_kernel=anticausal_kernel)
    return x, kernel, D, gate, anticausal_kernel


OPERATOR = register(Operator("fft_conv", _bind))
define(
    OPERATOR,
    "Tensor x, Tensor kernel, Tensor? D, Tensor? gate, Tensor? anticausal_kernel",
    inputs=5,
    outputs=1,
    fake=lambda x, *args: (torch.empty_like(x, memory_format=torch.contiguous_format),),
)


# ---- the transform, a few channels at a time -------------------------------------------------------------------


def _transform_size(length: int, *taps: int) -> int:
    """The least size of the form 2^a 3^b 5^c (a transform's fast sizes) that holds the sequence and the kernels."""
    needed = max(1, length + sum(taps) - 1)
    best = 1 << (needed - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three << max(0, (-(-needed // three) - 1).bit_length())
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def _crop(taps: Tensor | None, most: int, wide: torch.dtype) -> Tensor | None:
    return None if taps is None else taps[:, :most].to(wide)


def _spectrum(kernel: Tensor, anticausal: Tensor | None, size: int) -> Tensor:
    """The transform of the two-sided kernel: its anticausal half lies at negative delays, the end of the circle."""
    if anticausal is None or not anticausal.shape[1]:
        return torch.fft.rfft(kernel, n=size)
    circle = kernel.new_zeros(kernel.shape[0], size)
    circle[:, : kernel.shape[1]] = kernel
    circle[:, size - anticausal.shape[1] :] = anticausal.flip(-1)
    return torch.fft.rfft(circle)


def _plan(x: Tensor, kernel: Tensor, anticausal: Tensor | None) -> tuple[torch.dtype, Tensor, Tensor | None, int]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    length = x.shape[1]
    cropped, future = _crop(kernel, length, wide), _crop(anticausal, max(0, length - 1), wide)
    assert cropped is not None
    size = _transform_size(length, cropped.shape[1], 0 if future is None else future.shape[1])
    return wide, cropped, future, size


def _chunks(channels: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, channels)) for start in range(0, channels, _CHUNK)]


def _forward(
    x: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, anticausal: Tensor | None
) -> tuple[Tensor]:
    wide, taps, future, size = _plan(x, kernel, anticausal)
    length = x.shape[1]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return (y,)
    for part in _chunks(x.shape[2]):
        u = x[:, :, part].to(wide)
        if gate is not None:
            u = u * gate[:, :, part]
        rows = u.transpose(1, 2).contiguous()  # (batch, chunk, length)
        spectrum = _spectrum(taps[part], None if future is None else future[part], size)
        out = torch.fft.irfft(torch.fft.rfft(rows, n=size).mul_(spectrum), n=size)[..., :length]
        if D is not None:
            out = torch.addcmul(out, rows, D[part].to(wide)[:, None])
        y[:, :, part] = out.transpose(1, 2)
    return (y,)


def _backward(
    grad: Tensor, x: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, anticausal: Tensor | None
) -> tuple[Tensor | None, ...]:
    wide, taps, future, size = _plan(x, kernel, anticausal)
    length = x.shape[1]
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_gate = None if gate is None else torch.empty_like(gate, memory_format=torch.contiguous_format)
    grad_D = None if D is None else torch.zeros_like(D)
    grad_kernel = torch.zeros_like(kernel, memory_format=torch.contiguous_format)
    grad_future = None if anticausal is None else torch.zeros_like(anticausal, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return grad_x, grad_kernel, grad_D, grad_gate, grad_future
    for part in _chunks(x.shape[2]):
        plain = x[:, :, part].to(wide)
        u = plain if gate is None else plain * gate[:, :, part]
        rows, g = u.transpose(1, 2).contiguous(), grad[:, :, part].to(wide).transpose(1, 2).contiguous()
        g_spectrum, u_spectrum = torch.fft.rfft(g, n=size), torch.fft.rfft(rows, n=size)
        spectrum = _spectrum(taps[part], None if future is None else future[part], size)
        # Correlating with the kernel gives the input's gradient, correlating with the input the kernel's.
        # Conjugation is physical: below the dispatcher a compiled graph does not see the lazy kind.
        grad_u = torch.fft.irfft(g_spectrum * spectrum.conj_physical(), n=size)[..., :length]
        lags = torch.fft.irfft((g_spectrum * u_spectrum.conj_physical()).sum(0), n=size)
        grad_kernel[part, : taps.shape[1]] = lags[:, : taps.shape[1]].to(kernel.dtype)
        if future is not None and grad_future is not None and future.shape[1]:
            reach = future.shape[1]
            grad_future[part, :reach] = lags[:, size - reach :].flip(-1).to(grad_future.dtype)
        if D is not None and grad_D is not None:
            grad_u = torch.addcmul(grad_u, g, D[part].to(wide)[:, None])
            grad_D[part] = (g * rows).sum((0, 2)).to(D.dtype)
        grad_u = grad_u.transpose(1, 2)
        if gate is not None and grad_gate is not None:
            grad_gate[:, :, part] = grad_u * plain
            grad_u = grad_u * gate[:, :, part]
        grad_x[:, :, part] = grad_u
    return grad_x, grad_kernel, grad_D, grad_gate, grad_future


def _reference(x: Tensor, kernel: Tensor, D: Any, gate: Any, anticausal: Any) -> tuple[Tensor]:
    return (fft_conv_reference(x, kernel, D, gate=gate, anticausal_kernel=anticausal),)


def _reference_backward(grad: Tensor, *args: Any) -> list[Tensor | None]:
    return checks.vector_jacobian_product(_reference, args, 5, (grad,))


def _device_accepts(device: str) -> Any:
    """torch.fft is the kernel on CUDA devices, under the name by which that device's kernels are pinned."""
    return lambda x, *rest: None if x.device.type == device else f"a tensor is on {x.device}"


def _compiled(x: Tensor, gate: Tensor | None) -> bool:
    """Whether the compiled kernel runs: torch.fft has float64, and is as good for a few channels."""
    return (
        x.shape[2] >= _LEAST_CHANNELS
        and x.numel() > 0
        and (gate is None or gate.dtype == x.dtype)
        and cpu_accepts(x) is None
    )


def _cpu_forward(
    x: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, anticausal: Tensor | None
) -> tuple[Tensor]:
    if not _compiled(x, gate):
        return _forward(x, kernel, D, gate, anticausal)
    taps, future = _crop(kernel, x.shape[1], torch.float32), _crop(anticausal, x.shape[1] - 1, torch.float32)
    assert taps is not None
    return (cpu_fft_conv.forward(x, taps, None if D is None else D.float(), gate, future),)


def _cpu_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, D: Tensor | None, gate: Tensor | None, anticausal: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not _compiled(x, gate):
        return _backward(grad, x, kernel, D, gate, anticausal)
    taps, future = _crop(kernel, x.shape[1], torch.float32), _crop(anticausal, x.shape[1] - 1, torch.float32)
    assert taps is not None
    wide = None if D is None else D.float()
    grad_x, grad_taps, grad_D, grad_gate, grad_future = cpu_fft_conv.backward(
        grad.to(x.dtype), x, taps, wide, gate, future
    )
    return (
        grad_x,
        _uncrop(grad_taps, kernel),
        None if D is None or grad_D is None else grad_D.to(D.dtype),
        grad_gate,
        None if anticausal is None else _uncrop(grad_future, anticausal),
    )


def _uncrop(grad: Tensor, taps: Tensor) -> Tensor:
    """The gradient of all taps from that of those which do something."""
    if grad.shape[1] < taps.shape[1]:
        grad = torch.nn.functional.pad(grad, (0, taps.shape[1] - grad.shape[1]))
    return grad.to(taps.dtype)


OPERATOR.implementations += [
    Implementation("cpu", _device_accepts("cpu"), _cpu_forward, _cpu_backward),
    Implementation("triton", _device_accepts("cuda"), _forward, _backward),
    Implementation("reference", lambda *args: None, _reference, _reference_backward),
]
