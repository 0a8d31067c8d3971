"""Normalisations: RMSNorm, and the gated RMSNorm that ends a Mamba-2 mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statescan import ops


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, statistics in float32. Zhang and Sennrich 2019, arXiv 1910.07467.

    Arguments:
        dim: channels.
        eps: added to the mean square.
        weighted: whether there is a learned weight (FalconMamba's inner norms have none).
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, weighted: bool = True):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape and dtype."""
        return ops.gated_rms_norm(x, self.weight, eps=self.eps)


class GatedRMSNorm(nn.Module):
    """RMSNorm with a gate z: norm(x silu(z)) weight, or norm(x) weight silu(z). Dao and Gu 2024, section 7.

    Arguments:
        dim: channels.
        eps: added to the mean square.
        groups: statistics are taken over dim / groups channels each.
        norm_before_gate: the second form.
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, groups: int = 1, norm_before_gate: bool = False):
        super().__init__()
        if dim % groups:
            raise ValueError(f"groups: {groups} does not divide {dim} channels")
        self.eps, self.group_size, self.norm_before_gate = eps, dim // groups, norm_before_gate
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """(..., dim), (..., dim) to (..., dim)."""
        return ops.gated_rms_norm(
            x,
            self.weight,
            gate,
            eps=self.eps,
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
        )


def build_norm(kind: str, dim: int, eps: float = 1e-5) -> nn.Module:
    """``rms`` or ``layer``."""
    if kind == "rms":
        return RMSNorm(dim, eps)
    if kind == "layer":
        return nn.LayerNorm(dim, eps=eps)
    raise ValueError(f"norm: unknown {kind!r}; known: rms, layer")
