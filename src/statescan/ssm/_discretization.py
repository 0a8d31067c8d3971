"""From continuous time to steps: x' = A x + B u sampled at intervals `dt` becomes x_k = dA x_{k-1} + dB u_k."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan._names import nearest

#: The methods that `discretize` knows.
METHODS = ("bilinear", "zoh", "euler", "backward", "gbt", "impulse", "dirac")


def discretize(
    A: Tensor, B: Tensor, dt: Tensor | float, method: str = "bilinear", *, alpha: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Discretise a dense system.

    Arguments:
        A: (..., state_dim, state_dim).
        B: (..., state_dim).
        dt: the step, a number or a tensor (...) that broadcasts against the leading axes.
        method: ``zoh`` (the input is held constant over a step: dB = A^-1 (e^(dt A) - I) B, also for singular A),
            ``gbt`` (generalised bilinear transform with weight `alpha` on the new value), its cases ``euler`` (0),
            ``bilinear`` (1/2) and ``backward`` (1), ``impulse`` (dB = dt e^(dt A) B), ``dirac`` (dB = B, for events).

    Returns:
        dA (..., state_dim, state_dim) and dB (..., state_dim).
    """
    if method not in METHODS:
        hint = nearest(method, METHODS)
        raise ValueError(f"method: unknown {method!r}; known: {', '.join(METHODS)}{hint}")
    if A.shape[-1] != A.shape[-2] or B.shape[-1] != A.shape[-1]:
        raise ValueError(f"A, B: expected (..., N, N) and (..., N), got {tuple(A.shape)} and {tuple(B.shape)}")
    step = torch.as_tensor(dt, dtype=A.dtype, device=A.device)[..., None, None]
    scaled = step * A
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    column = step * B[..., None]
    if method == "zoh":
        # exp([[dt A, dt B], [0, 0]]) holds both parts and does not divide by A.
        size = A.shape[-1]
        block = torch.zeros(*scaled.shape[:-2], size + 1, size + 1, dtype=A.dtype, device=A.device)
        block[..., :size, :size] = scaled
        block[..., :size, size:] = column
        exponential = torch.linalg.matrix_exp(block)
        return exponential[..., :size, :size], exponential[..., :size, size]
    if method in ("impulse", "dirac"):
        dA = torch.linalg.matrix_exp(scaled)
        dB = (dA @ column)[..., 0] if method == "impulse" else B.expand(dA.shape[:-1])
        return dA, dB
    weight = {"euler": 0.0, "bilinear": 0.5, "backward": 1.0, "gbt": alpha}[method]
    left = eye - weight * scaled
    dA = torch.linalg.solve(left, eye + (1 - weight) * scaled)
    return dA, torch.linalg.solve(left, column.expand(*left.shape[:-1], 1))[..., 0]


def discretize_diagonal(A: Tensor, B: Tensor, dt: Tensor | float, method: str = "zoh") -> tuple[Tensor, Tensor]:
    """Discretise a diagonal system: A, B and dt broadcast, everything is elementwise.

    `method` is ``zoh``, ``bilinear`` or ``dirac``. Returns dA and dB.
    """
    scaled = dt * A
    if method == "zoh":
        # (e^a - 1) / a with its limit 1 at a = 0, and without cancellation near it
        safe = torch.where(scaled == 0, torch.ones_like(scaled), scaled)
        ratio = torch.where(scaled == 0, torch.ones_like(scaled), _expm1(safe) / safe)
        return torch.exp(scaled), ratio * dt * B
    if method == "bilinear":
        denominator = 1 / (1 - scaled / 2)
        return denominator * (1 + scaled / 2), denominator * dt * B
    if method == "dirac":
        return torch.exp(scaled), B.expand_as(scaled)
    hint = nearest(method, ("zoh", "bilinear", "dirac"))
    raise ValueError(f"method: unknown {method!r}; known: zoh, bilinear, dirac{hint}")


def _expm1(value: Tensor) -> Tensor:
    """e^value - 1; torch has no complex expm1, so: expm1(x) cos y - 2 sin^2(y/2) + i e^x sin y."""
    if not value.is_complex():
        return torch.expm1(value)
    x, y = value.real, value.imag
    half = torch.sin(y / 2)
    return torch.complex(torch.expm1(x) * torch.cos(y) - 2 * half * half, torch.exp(x) * torch.sin(y))
