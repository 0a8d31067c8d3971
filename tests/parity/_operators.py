"""What operator fixtures have in common: gradients of sum(out * w), and complex numbers as pairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.parity._fixture import Fixture, normal


def complex_inputs(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with every pair X_real, X_imag joined to a complex X."""
    joined = {}
    for name, value in named.items():
        if name.endswith("_real"):
            joined[name.removesuffix("_real")] = torch.complex(value, named[name.removesuffix("_real") + "_imag"])
        elif not name.endswith("_imag"):
            joined[name] = value
    return joined


def with_gradients(
    fixture: Fixture, named: Mapping[str, Tensor], function: Callable[[dict[str, Tensor]], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The function's output, and the gradients that the fixture asks for, of sum(output * w).

    w is a normal input whose seed the notes give, such as ``10w``.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in named.items()}
    output = function(leaves)
    wanted = [name for name in leaves if f"grad_{name}" in fixture.outputs]
    gradients = {}
    if wanted:
        seed = fixture.note(r'seed "([^"]+)"') or f"{re.match('[0-9]*', fixture.data['inputs'][0]['seed'])[0]}w"
        weight = torch.from_numpy(normal(f"input{seed}", output.shape).astype("float32"))
        found = torch.autograd.grad((output * weight).sum(), [leaves[name] for name in wanted])
        gradients = {f"grad_{name}": as_stored(value) for name, value in zip(wanted, found, strict=True)}
    return output.detach(), gradients


def as_stored(value: Tensor) -> Tensor:
    """Complex tensors as fixtures store them: (..., 2), real and imaginary parts."""
    return torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
