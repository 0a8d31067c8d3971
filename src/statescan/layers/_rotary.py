"""Rotary position embedding. Su et al. 2021, arXiv 2104.09864."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(
    x: Tensor, positions: Tensor, rotary_dim: int, *, base: float = 10000.0, interleaved: bool = False
) -> Tensor:
    """Turn pairs of channels by angles that grow with position.

    Channel i of the first `rotary_dim` is paired with channel i + rotary_dim / 2 and turned by
    position x base^(-2 i / rotary_dim); channels beyond stay.

    Arguments:
        x: (batch, heads, length, channels).
        positions: (batch, length), whole numbers.
        rotary_dim: even, at most channels.
        base: of the angles.
        interleaved: pair channels 2 i and 2 i + 1 instead.

    Returns:
        shaped and typed as x; angles are taken in float32.
    """
    exponent = torch.arange(0, rotary_dim, 2, device=x.device, dtype=torch.float32) / rotary_dim
    angle = positions[:, None, :, None].float() * base**-exponent  # (batch, 1, length, rotary_dim / 2)
    cosine, sine = angle.cos(), angle.sin()
    wide = x[..., :rotary_dim].to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else wide.chunk(2, dim=-1)
    pair = (first * cosine - second * sine, second * cosine + first * sine)
    turned = (torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)).to(x.dtype)
    return torch.cat([turned, x[..., rotary_dim:]], dim=-1) if rotary_dim < x.shape[-1] else turned
