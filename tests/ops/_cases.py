"""What tests of operators share: random arguments, and agreement of values and all gradients with a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Kernels accumulate in float32; their results are compared with float64 in units of the largest value.
FLOAT32 = 3e-5
#: Rounding of the stored result: 8 bits (bfloat16) and 11 bits (float16) of mantissa, gradients sum many of them.
HALF = {torch.bfloat16: 3e-2, torch.float16: 5e-3}


def random(*shape: int, seed: int = 0, complex_valued: bool = False) -> Tensor:
    """Standard normal float64 values that depend on shape and seed alone."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape) + len(shape))
    dtype = torch.complex128 if complex_valued else torch.float64
    return torch.randn(*shape, dtype=dtype, generator=generator)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A floating or complex tensor in another precision; anything else as it is."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.to(dtype.to_complex() if value.is_complex() and dtype != torch.bfloat16 else dtype)


def run(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Outputs and the gradient of a random weighting of them in every floating argument, by name."""
    leaves = {
        name: value.detach().clone().requires_grad_()
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        else value
        for name, value in arguments.items()
    }
    result = function(**leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    loss = torch.zeros((), dtype=torch.float64)
    for index, output in enumerate(outputs):
        weight = random(*output.shape, 2, seed=7 + index)
        loss = loss + (output.real.double() * weight[..., 0]).sum()
        if output.is_complex():
            loss = loss + (output.imag.double() * weight[..., 1]).sum()
    inputs = {name: value for name, value in leaves.items() if isinstance(value, Tensor) and value.requires_grad}
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    named = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    return named | {f"gradient of {name}": grad for name, grad in zip(inputs, grads, strict=True)}


def assert_agree(have: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Compare by name, in units of the largest wanted value."""
    assert have.keys() == want.keys()
    for name, wanted in want.items():
        value = have[name]
        assert value.shape == wanted.shape, name
        if wanted.numel() == 0:
            continue
        scale = max(float(wanted.abs().max()), 1e-2)
        error = float((value.to(wanted.dtype) - wanted).abs().max()) / scale
        assert error <= tolerance, f"{name}: error {error:.2e}"


def check_against_reference(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    narrow: tuple[str, ...] | None = None,
    tolerance: float = FLOAT32,
) -> None:
    """A kernel in `dtype` (of the arguments named in `narrow`, others float32) against the reference in float64."""
    given = {
        name: cast(value, dtype if narrow is None or name in narrow else torch.float32)
        for name, value in arguments.items()
    }
    exact = {name: cast(value, torch.float64) for name, value in given.items()}
    assert_agree(run(function, given), run(reference, exact), tolerance)
