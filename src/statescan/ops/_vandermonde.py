"""Vandermonde products: sums of exponentials at whole positions, the convolution kernels of diagonal systems.

Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models" (2022, arXiv 2206.11893),
section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.ops import _checks as checks
from statescan.ops._dispatch import (
    LIBRARY,
    Implementation,
    Operator,
    cpu_accepts,
    register,
    triton_accepts,
    triton_implementation,
)

#: The kernels walk positions in strides of this many; rows are padded up to it.
_STRIDE = 64


def vandermonde(weights: Tensor, exponents: Tensor, length: int) -> Tensor:
    """Sum exponentials with conjugates: ``out[r, h, l] = 2 Re sum_n weights[r, h, n] exp(l exponents[h, n])``.

    Arguments:
        weights: complex (rows, heads, states); several rows share their exponents.
        exponents: complex (heads, states): the logarithm of the state's decay over one step, ``dt A``.
        length: how many positions, from 0.

    Returns:
        (rows, heads, length), float32 (float64 for complex128). Memory grows with rows x heads x length, never with
        states x length. Differentiable in weights and exponents.
    """
    return torch.ops.statescan.vandermonde(*_bind(weights, exponents, length))


def vandermonde_reference(weights: Tensor, exponents: Tensor, length: int) -> Tensor:
    """`vandermonde` as the formula says it, with the (heads, states, length) matrix of powers."""
    position = torch.arange(length, device=weights.device, dtype=exponents.real.dtype)
    powers = torch.exp(exponents[..., None] * position)
    return 2 * torch.einsum("rhn,hnl->rhl", weights, powers).real


def _bind(weights: Tensor, exponents: Tensor, length: int) -> tuple[Any, ...]:
    name = "vandermonde"
    for label, tensor, ndim in (("weights", weights, 3), ("exponents", exponents, 2)):
        checks.complex_valued(name, label, tensor, ndim=ndim)
    checks.fits(name, "exponents", exponents, weights.shape[1:])
    checks.same_device(name, weights=weights, exponents=exponents)
    if length < 0:
        raise ValueError(f"{name}: length must not be negative, got {length}")
    dtype = torch.promote_types(weights.dtype, exponents.dtype)
    return weights.to(dtype), exponents.to(dtype), int(length)


def vandermonde_transpose(signal: Tensor, exponents: Tensor) -> Tensor:
    """Weigh a signal by exponentials: ``out[r, h, n] = sum_l signal[r, h, l] exp(l exponents[h, n])``.

    With the signal reversed this is the state of a diagonal system after the signal.

    Arguments:
        signal: real (rows, heads, length).
        exponents: complex (heads, states).

    Returns:
        complex (rows, heads, states). Differentiable in both.
    """
    name = "vandermonde_transpose"
    checks.floating(name, "signal", signal, ndim=3)
    checks.complex_valued(name, "exponents", exponents, ndim=2)
    checks.fits(name, "exponents", exponents, (signal.shape[1], None))
    checks.same_device(name, signal=signal, exponents=exponents)
    double = exponents.dtype == torch.complex128 or signal.dtype == torch.float64
    return torch.ops.statescan.vandermonde_transpose(
        signal.to(torch.float64 if double else torch.float32),
        exponents.to(torch.complex128 if double else torch.complex64),
    )


def vandermonde_transpose_reference(signal: Tensor, exponents: Tensor) -> Tensor:
    """`vandermonde_transpose` as the formula says it."""
    position = torch.arange(signal.shape[2], device=signal.device, dtype=exponents.real.dtype)
    powers = torch.exp(exponents[..., None] * position)
    return torch.einsum("rhl,hnl->rhn", signal.to(powers.dtype), powers)


LIBRARY.define("vandermonde(Tensor weights, Tensor exponents, SymInt length) -> Tensor")
LIBRARY.define(
    "vandermonde_backward(Tensor grad, Tensor weights, Tensor exponents, SymInt length) -> "
    "(Tensor weights, Tensor exponents)"
)
LIBRARY.define("vandermonde_transpose(Tensor signal, Tensor exponents) -> Tensor")
OPERATOR = register(Operator("vandermonde", _bind))


def _run(weights: Tensor, exponents: Tensor, length: int) -> Tensor:
    return OPERATOR.choose(weights, exponents, length).forward(weights, exponents, length)


def _run_backward(grad: Tensor, weights: Tensor, exponents: Tensor, length: int) -> tuple[Tensor, ...]:
    implementation = OPERATOR.choose(weights, exponents, length)
    assert implementation.backward is not None
    return tuple(implementation.backward(grad, weights, exponents, length))


def _fake(weights: Tensor, exponents: Tensor, length: int) -> Tensor:
    return weights.new_empty(*weights.shape[:2], length, dtype=weights.dtype.to_real())


def _fake_backward(grad: Tensor, weights: Tensor, exponents: Tensor, length: int) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape), exponents.new_empty(exponents.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.length = inputs[2]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (*torch.ops.statescan.vandermonde_backward(grad, *ctx.saved_tensors, ctx.length), None)


LIBRARY.impl("vandermonde", _run, "CompositeExplicitAutograd")
LIBRARY.impl("vandermonde_backward", _run_backward, "CompositeExplicitAutograd")
torch.library.register_fake("statescan::vandermonde", _fake, lib=LIBRARY)
torch.library.register_fake("statescan::vandermonde_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("statescan::vandermonde", _differentiate, setup_context=_save, lib=LIBRARY)


def _run_transpose(signal: Tensor, exponents: Tensor) -> Tensor:
    # The gradient of `vandermonde` in its weights is twice the conjugate of this sum, so its kernel serves here too.
    zeros = exponents.new_zeros(signal.shape[0], *exponents.shape)
    if OPERATOR.choose(zeros, exponents, signal.shape[2]).name == "reference":
        return vandermonde_transpose_reference(signal, exponents)
    weights, _ = torch.ops.statescan.vandermonde_backward(signal, zeros, exponents, signal.shape[2])
    return weights.conj_physical() / 2


def _fake_transpose(signal: Tensor, exponents: Tensor) -> Tensor:
    return exponents.new_empty(*signal.shape[:2], exponents.shape[1])


def _save_transpose(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_transpose(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    signal, exponents = ctx.saved_tensors
    length = signal.shape[2]
    position = torch.arange(length, device=signal.device, dtype=signal.dtype)
    moment = vandermonde_transpose(signal * position, exponents)
    grad_signal = vandermonde(grad.conj_physical(), exponents, length) / 2
    return grad_signal, (grad * moment.conj_physical()).sum(0)


LIBRARY.impl("vandermonde_transpose", _run_transpose, "CompositeExplicitAutograd")
torch.library.register_fake("statescan::vandermonde_transpose", _fake_transpose, lib=LIBRARY)
torch.library.register_autograd(
    "statescan::vandermonde_transpose", _differentiate_transpose, setup_context=_save_transpose, lib=LIBRARY
)


def _accepts(weights: Tensor, exponents: Tensor, length: int) -> str | None:
    if weights.dtype != torch.complex64:
        return f"no kernel for {weights.dtype}"
    return cpu_accepts(*(t.real for t in (weights, exponents)))


def _triton_accepts(weights: Tensor, exponents: Tensor, length: int) -> str | None:
    if weights.dtype != torch.complex64:
        return f"no kernel for {weights.dtype}"
    return triton_accepts(weights.real, exponents.real)


def _cpu_forward(weights: Tensor, exponents: Tensor, length: int) -> Tensor:
    from statescan.kernels import cpu

    rows, heads, states = weights.shape
    padded = -(-length // _STRIDE) * _STRIDE
    weights, exponents = weights.resolve_conj().contiguous(), exponents.resolve_conj().contiguous()
    out = torch.empty(rows, heads, padded, device=weights.device)
    cpu.function("vandermonde_forward", "ppplllll" + "i")(
        cpu.pointer(weights),
        cpu.pointer(exponents),
        cpu.pointer(out),
        rows,
        heads,
        states,
        length,
        padded,
        cpu.threads(),
    )
    return out[..., :length].contiguous()


def _cpu_backward(grad: Tensor, weights: Tensor, exponents: Tensor, length: int) -> tuple[Tensor, Tensor]:
    from statescan.kernels import cpu

    rows, heads, states = weights.shape
    padded = -(-length // _STRIDE) * _STRIDE
    weights, exponents = weights.resolve_conj().contiguous(), exponents.resolve_conj().contiguous()
    grad = torch.nn.functional.pad(grad, (0, padded - length)).contiguous()
    grad_weights, grad_exponents = torch.empty_like(weights), torch.empty_like(exponents)
    cpu.function("vandermonde_backward", "ppppplllll" + "i")(
        cpu.pointer(grad),
        cpu.pointer(weights),
        cpu.pointer(exponents),
        cpu.pointer(grad_weights),
        cpu.pointer(grad_exponents),
        rows,
        heads,
        states,
        length,
        padded,
        cpu.threads(),
    )
    return grad_weights, grad_exponents


def _reference_backward(grad: Tensor, weights: Tensor, exponents: Tensor, length: int) -> list[Tensor | None]:
    def run(w: Tensor, e: Tensor) -> tuple[Tensor, ...]:
        return (vandermonde_reference(w, e, length),)

    return checks.vector_jacobian_product(run, (weights, exponents), 2, (grad,))


OPERATOR.implementations += [
    Implementation("cpu", _accepts, _cpu_forward, _cpu_backward),
    triton_implementation("vandermonde", _triton_accepts),
    Implementation("reference", lambda *args: None, vandermonde_reference, _reference_backward),
]
