"""Memories that run: a signal goes in step by step, its history can be read back from the state at any time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from statescan.ssm._discretization import discretize
from statescan.ssm._hippo import _canonical, transition


class ScaledLegendreMemory:
    """HiPPO-LegS in its original, time-varying form x' = (A x + B u) / t: the whole past, equally weighted.

    HiPPO (Gu et al. 2020), theorem 2 and section 2.4. It has no timescale: a signal played twice as fast gives the
    same coefficients.

    Arguments:
        state_dim: N coefficients.
        method: ``bilinear`` (the paper's), ``backward``, ``zoh``, or ``forward``, which
            diverges in its first N^2 steps.
    """

    def __init__(self, state_dim: int, *, method: str = "bilinear"):
        if method not in ("forward", "backward", "bilinear", "zoh"):
            raise ValueError(f"method: known are forward, backward, bilinear, zoh; got {method!r}")
        self.state_dim, self.method = state_dim, method
        self.A, self.B = transition("legs", state_dim)

    def matrices(self, step: int) -> tuple[Tensor, Tensor]:
        """dA and dB of step `step`, counted from 1."""
        if step < 1:
            raise ValueError(f"step: counted from 1, got {step}")
        if self.method == "zoh":
            # Over [k, k+1] the system runs for log(k+1) - log k in its own time; B is held, so dB = A^-1 (dA - I) B.
            return discretize(self.A, self.B, math.log(step + 1) - math.log(step), "zoh")
        method = {"forward": "euler"}.get(self.method, self.method)
        return discretize(self.A / step, self.B / step, 1.0, method)

    def __call__(self, signal: Tensor) -> Tensor:
        """States after every step: signal (length,) -> (length, state_dim), float64."""
        state = torch.zeros(self.state_dim, dtype=torch.float64)
        states = []
        for index, value in enumerate(signal.double()):
            dA, dB = self.matrices(index + 1)
            state = dA @ state + dB * value
            states.append(state)
        return torch.stack(states) if states else torch.zeros(0, self.state_dim, dtype=torch.float64)

    def reconstruct(self, state: Tensor, points: Tensor) -> Tensor:
        """The remembered history at `points` in [0, 1] (0 the start, 1 now): (..., state_dim) -> (..., points)."""
        n = torch.arange(self.state_dim, dtype=torch.float64)
        return (state.double() * torch.sqrt(2 * n + 1)) @ legendre(self.state_dim, 2 * points - 1)


def legendre(count: int, points: Tensor) -> Tensor:
    """Legendre polynomials P_0 .. P_{count-1} at `points` in [-1, 1], by Bonnet's recursion: (count, *points)."""
    x = points.double()
    values = [torch.ones_like(x), x]
    for n in range(1, count - 1):
        values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack(values[:count])


def reconstruct(measure: str, state: Tensor, lags: Tensor) -> Tensor:
    """What a time-invariant HiPPO memory remembers of its input `lags` >= 0 ago, in its own time units.

    Arguments:
        measure: ``legs`` (all lags), ``legt`` (lags in [0, 2]: the halved window) or ``fout`` (lags in [0, 1]).
        state: (..., state_dim), the last state.
        lags: (points,).

    Returns:
        (..., points), float64.
    """
    name = _canonical(measure)
    size = state.shape[-1]
    n = torch.arange(size, dtype=torch.float64)
    t = lags.double()
    if name == "legs":
        basis = (torch.sqrt(2 * n + 1) * (-1.0) ** n)[:, None] * legendre(size, 1 - 2 * torch.exp(-t))
    elif name == "legt":
        basis = torch.sqrt(2 * n + 1)[:, None] * legendre(size, 1 - t)
    elif name == "fout":
        f = torch.arange(size // 2, dtype=torch.float64)[:, None]
        cosine, sine = (
            math.sqrt(2.0) * torch.cos(math.pi * f * t),
            math.sqrt(2.0) * torch.sin(math.pi * f * t),
        )
        cosine[0] = 1.0
        basis = torch.stack([cosine, sine], dim=1).reshape(size, -1)
    else:
        raise ValueError(f"measure: reconstruction is known for legs, legt and fout, got {measure!r}")
    return state.double() @ basis


def measure_weight(measure: str, lags: Tensor) -> Tensor:
    """How much the memory cares for inputs `lags` ago: the density of its measure, (points,)."""
    name = _canonical(measure)
    t = lags.double()
    if name in ("legs", "legsd", "lagt", "tlagt", "glagt", "foud"):
        rate = {"foud": 0.5, "legsd": 0.5}.get(name, 1.0)
        return torch.exp(-rate * t)
    window = {"legt": 2.0, "fout": 1.0, "fourier_decay": 1.0, "fourier2": 0.5, "lmu": 1.0}[name]
    return ((t >= 0) & (t <= window)).double() / window
