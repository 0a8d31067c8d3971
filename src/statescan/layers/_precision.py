"""Recurrences are computed in float32 or wider, whatever the weights are stored in."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it is in that."""
    return tensor.to(widened(tensor.dtype))
