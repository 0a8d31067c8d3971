"""Cauchy products: sums of simple poles at given nodes, the generating functions of diagonal-plus-low-rank systems.

Gu, Goel and Re, "Efficiently Modeling Long Sequences with Structured State Spaces" (2022, arXiv 2111.00396),
appendix C.3.
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


def cauchy(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Sum simple poles with conjugates.

    ``out[r, h, j] = sum_n v[r, h, n] / (z[j] - w[h, n]) + conj(v[r, h, n]) / (z[j] - conj(w[h, n]))``

    Arguments:
        v: complex (rows, heads, states): numerators; several rows share their poles.
        z: complex (nodes,): where to evaluate; finite, and no pole. No gradient.
        w: complex (heads, states): poles.

    Returns:
        complex (rows, heads, nodes). Memory grows with rows x heads x nodes, never with states x nodes.
        Differentiable in v and w.
    """
    return torch.ops.statescan.cauchy(*_bind(v, z, w))


def cauchy_reference(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """`cauchy` as the formula says it, with the (heads, states, nodes) matrix of quotients."""
    z = z.detach()
    direct = torch.einsum("rhn,hnj->rhj", v, 1 / (z - w[..., None]))
    return direct + torch.einsum("rhn,hnj->rhj", v.conj_physical(), 1 / (z - w.conj_physical()[..., None]))


def _bind(v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    name = "cauchy"
    for label, tensor, ndim in (("v", v, 3), ("z", z, 1), ("w", w, 2)):
        checks.complex_valued(name, label, tensor, ndim=ndim)
    checks.fits(name, "w", w, v.shape[1:])
    checks.same_device(name, v=v, z=z, w=w)
    dtype = torch.promote_types(v.dtype, w.dtype)
    return v.to(dtype), z.detach().to(dtype), w.to(dtype)


LIBRARY.define("cauchy(Tensor v, Tensor z, Tensor w) -> Tensor")
LIBRARY.define("cauchy_backward(Tensor grad, Tensor v, Tensor z, Tensor w) -> (Tensor v, Tensor w)")
OPERATOR = register(Operator("cauchy", _bind))


def _run(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return OPERATOR.choose(v, z, w).forward(v, z, w)


def _run_backward(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    implementation = OPERATOR.choose(v, z, w)
    assert implementation.backward is not None
    return tuple(implementation.backward(grad, v, z, w))


def _fake(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return v.new_empty(*v.shape[:2], z.shape[0])


def _fake_backward(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), w.new_empty(w.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_v, grad_w = torch.ops.statescan.cauchy_backward(grad, *ctx.saved_tensors)
    return grad_v, None, grad_w


LIBRARY.impl("cauchy", _run, "CompositeExplicitAutograd")
LIBRARY.impl("cauchy_backward", _run_backward, "CompositeExplicitAutograd")
torch.library.register_fake("statescan::cauchy", _fake, lib=LIBRARY)
torch.library.register_fake("statescan::cauchy_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("statescan::cauchy", _differentiate, setup_context=_save, lib=LIBRARY)


def _accepts(v: Tensor, z: Tensor, w: Tensor) -> str | None:
    if v.dtype != torch.complex64:
        return f"no kernel for {v.dtype}"
    return cpu_accepts(*(t.real for t in (v, z, w)))


def _triton_accepts(v: Tensor, z: Tensor, w: Tensor) -> str | None:
    if v.dtype != torch.complex64:
        return f"no kernel for {v.dtype}"
    return triton_accepts(*(t.real for t in (v, z, w)))


def _plain(*tensors: Tensor) -> list[Tensor]:
    """In memory as their values are: no lazy conjugation, no strides."""
    return [tensor.resolve_conj().resolve_neg().contiguous() for tensor in tensors]


def _planes(tensor: Tensor, *, repeat_first: bool = False) -> Tensor:
    """Real and imaginary planes, the last axis padded to a multiple of the kernels' 16 lanes with zeros or its first.

    Nodes repeat the first: it is as far from the poles as the caller's own, so zero gradients there stay zero.
    """
    nodes = tensor.shape[-1]
    planes = tensor.real.new_zeros(2, *tensor.shape[:-1], -(-nodes // 16) * 16)
    planes[0, ..., :nodes], planes[1, ..., :nodes] = tensor.real, tensor.imag
    if repeat_first and nodes:
        planes[..., nodes:] = planes[..., :1]
    return planes


def _cpu_forward(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    from statescan.kernels import cpu

    v, w = _plain(v, w)
    rows, heads, states = v.shape
    nodes = z.shape[0]
    z = _planes(z, repeat_first=True)
    out = z.new_empty(2, rows, heads, z.shape[-1])
    cpu.function("cauchy_forward", "ppppllll" + "i")(
        *(cpu.pointer(t) for t in (v, z, w, out)), rows, heads, states, z.shape[-1], cpu.threads()
    )
    return torch.complex(out[0, ..., :nodes], out[1, ..., :nodes])


def _cpu_backward(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    from statescan.kernels import cpu

    v, w = _plain(v, w)
    rows, heads, states = v.shape
    z, grad = _planes(z, repeat_first=True), _planes(grad)
    grad_v, grad_w = torch.empty_like(v), torch.empty_like(w)
    cpu.function("cauchy_backward", "ppppppllll" + "i")(
        *(cpu.pointer(t) for t in (grad, v, z, w, grad_v, grad_w)), rows, heads, states, z.shape[-1], cpu.threads()
    )
    return grad_v, grad_w


def _reference_backward(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> list[Tensor | None]:
    def run(numerators: Tensor, poles: Tensor) -> tuple[Tensor, ...]:
        return (cauchy_reference(numerators, z, poles),)

    return checks.vector_jacobian_product(run, (v, w), 2, (grad,))


OPERATOR.implementations += [
    Implementation("cpu", _accepts, _cpu_forward, _cpu_backward),
    triton_implementation("cauchy", _triton_accepts),
    Implementation("reference", lambda *args: None, cauchy_reference, _reference_backward),
]
