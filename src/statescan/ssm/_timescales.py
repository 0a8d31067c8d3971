"""Step sizes: one over the length, in steps, that a kernel covers (How to Train Your HiPPO, section 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_uniform_timescales(
    shape: tuple[int, ...],
    minimum: float = 1e-3,
    maximum: float = 1e-1,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log dt drawn uniformly from [log `minimum`, log `maximum`]; float32, of `shape`."""
    if not 0 < minimum <= maximum:
        raise ValueError(f"minimum, maximum: need 0 < minimum <= maximum, got {minimum} and {maximum}")
    uniform = torch.rand(shape, generator=generator)
    return uniform * (math.log(maximum) - math.log(minimum)) + math.log(minimum)
