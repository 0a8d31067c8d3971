"""What operators check of their arguments, in one voice: operator, argument, given, accepted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


def floating(
    name: str,
    label: str,
    tensor: Tensor | None,
    *,
    ndim: int | None = None,
    shape: Sequence[int | None] | None = None,
    complex_too: bool = False,
) -> None:
    """Check that an argument is a floating tensor (or complex, if allowed) of a shape; None passes."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {label} must be a tensor, not {type(tensor).__name__}")
    accepted = FLOATING + COMPLEX if complex_too else FLOATING
    if tensor.dtype not in accepted:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
        given = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: {label} has dtype {given}; accepted: {names}")
    if ndim is not None and tensor.ndim != ndim:
        raise ValueError(f"{name}: {label} has shape {tuple(tensor.shape)}; expected {ndim} dimensions")
    if shape is not None and tensor.shape != shape:
        fits(name, label, tensor, shape)


def complex_valued(name: str, label: str, tensor: Tensor, *, ndim: int) -> None:
    """Check that an argument is a complex tensor of `ndim` dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: {label} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype not in COMPLEX:
        given = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: {label} has dtype {given}; accepted: complex64, complex128")
    if tensor.ndim != ndim:
        raise ValueError(f"{name}: {label} has shape {tuple(tensor.shape)}; expected {ndim} dimensions")


def fits(name: str, label: str, tensor: Tensor, shape: Sequence[int | None]) -> None:
    """Check a tensor's shape; None in `shape` stands for any size."""
    same = tensor.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not same:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: {label} has shape {tuple(tensor.shape)}; expected ({wanted})")


def same_device(name: str, **tensors: Tensor | None) -> None:
    """Check that all tensors are on the device of the first."""
    first: tuple[str, torch.device] | None = None
    for label, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = label, tensor.device
        elif tensor.device != first[1]:
            raise ValueError(f"{name}: {label} is on {tensor.device} but {first[0]} on {first[1]}")


def boundaries(name: str, resets: Tensor | None, offsets: Tensor | None, batch: int, length: int) -> int:
    """Check the marks of sequence boundaries; gives the number of sequences, which is that of states."""
    if resets is not None and offsets is not None:
        raise ValueError(f"{name}: resets and offsets say the same thing; give one of them")
    if resets is not None:
        _typed(name, "resets", resets, torch.bool)
        fits(name, "resets", resets, (batch, length))
    if offsets is None:
        return batch
    _typed(name, "offsets", offsets, torch.int64)
    if batch != 1:
        raise ValueError(f"{name}: offsets pack sequences end to end into a batch of 1, not {batch}")
    if offsets.ndim != 1 or offsets.shape[0] < 2:
        raise ValueError(f"{name}: offsets has shape {tuple(offsets.shape)}; expected (sequences + 1,)")
    return offsets.shape[0] - 1


def _typed(name: str, label: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        given = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
        raise TypeError(f"{name}: {label} must be a {str(dtype).removeprefix('torch.')} tensor, not {given}")


def offsets_values(name: str, offsets: Tensor | None, length: int) -> None:
    """Check that offsets rise from 0 to the length, on a CPU; reading them on a GPU would stop its stream.

    It looks at values, so it belongs in registered bodies, where tensors are real.
    """
    if offsets is None or offsets.device.type != "cpu":
        return
    values = offsets.tolist()
    if values[0] != 0 or values[-1] != length or any(a > b for a, b in itertools.pairwise(values)):
        shown = values if len(values) <= 8 else f"[{values[0]}, {values[1]}, …, {values[-1]}]"
        raise ValueError(f"{name}: offsets must rise from 0 to the length {length}, not {shown}")


def no_nan(name: str, label: str, tensor: Tensor) -> None:
    """Refuse NaN in a small parameter, on a CPU. It looks at values, so it belongs in registered bodies."""
    # The sum is cheap and NaN if any element is. Infinities of both signs make it NaN too: a second look.
    if tensor.device.type == "cpu" and torch.isnan(tensor.sum()) and torch.isnan(tensor).any():
        count = int(torch.isnan(tensor).sum())
        raise ValueError(f"{name}: {label} holds NaN ({count} of {tensor.numel()} elements)")


def cells(name: str, order: Tensor, count: int) -> None:
    """Check that walks come to cells of a grid of so many, or to padding; where they lie on a CPU."""
    if order.numel() and order.device.type == "cpu":
        least, most = (int(v) for v in order.aminmax())
        if least < -1 or most >= count:
            raise ValueError(
                f"{name}: order holds cells from 0 to {count - 1} and -1 for padding, got {least} to {most}"
            )


def vector_jacobian_product(
    function: Callable[..., tuple[Tensor, ...]],
    arguments: Sequence[Any],
    inputs: int,
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of a reference in its first `inputs` arguments, by autograd; None where one is absent."""
    with torch.enable_grad():
        leaves = [a if a is None else a.detach().requires_grad_() for a in arguments[:inputs]]
        outputs = function(*leaves, *arguments[inputs:])
        both = zip(outputs, grad_outputs, strict=True)
        pairs = [(y, g) for y, g in both if g is not None and y.requires_grad]
        present = [leaf for leaf in leaves if leaf is not None]
        if not pairs:
            return [None if leaf is None else torch.zeros_like(leaf) for leaf in leaves]
        found = torch.autograd.grad(
            [y for y, _ in pairs], present, [g for _, g in pairs], allow_unused=True, materialize_grads=True
        )
    gradients = iter(found)
    return [None if leaf is None else next(gradients) for leaf in leaves]
