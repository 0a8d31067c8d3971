"""Scans of sequences out of which tokens were taken, whose states age over the gaps.

Zhan et al., "Exploring Token Pruning in Vision State Space Models" (2024, arXiv 2409.18962), section 3.3: the hidden state
of a kept token also stands for the pruned ones behind it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import _checks as checks
from statescan.ops._selective_scan import selective_scan
from statescan.ops._ssd import ssd


def aligned_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """`selective_scan` of the tokens that are left of a longer sequence.

    Between kept tokens t - 1 and t with g_t pruned ones in between, of step sizes d::

        h_t = exp(d_t A) exp(g_t d_{t-1} A) h_{t-1} + d_t B_t x_t
        y_t = (sum_n C_t[n] h_t[n] + D x_t) silu(z_t)

    Without positions the state is held over the gaps, which is the plain scan of what is left. It is computed by that
    scan, with steps d_t + g_t d_{t-1} and inputs scaled by d_t over them, so that every backend has it.

    Arguments:
        x, delta, A, B, C, D, z, delta_bias, delta_softplus: as in `selective_scan`; B and C of every position.
        positions: (batch, length), where the tokens stood: rising along the sequence, or falling where it is read
            backwards. None: the state is held.

    Returns:
        y, shaped and typed as x.

    Raises:
        ValueError: positions of another shape, or what `selective_scan` refuses.
    """
    if positions is None:
        y = selective_scan(x, delta, A, B, C, D, z, delta_bias=delta_bias, delta_softplus=delta_softplus)
        assert isinstance(y, Tensor)
        return y
    checks.floating("aligned_scan", "x", x, ndim=3)
    scaled, steps = _aged(x, delta, positions, delta_bias, delta_softplus)
    y = selective_scan(scaled, steps, A, B, C)
    assert isinstance(y, Tensor)
    return _finished(y, x, D, z)


def aligned_ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    delta_limit: tuple[float, float] = (0.0, float("inf")),
    chunk_size: int = 64,
) -> Tensor:
    """`ssd` of the tokens that are left of a longer sequence: `aligned_scan` with one decay a head.

    Arguments:
        x, delta, A, B, C, D, z, delta_bias, delta_softplus, delta_limit, chunk_size: as in `ssd`.
        positions: (batch, length), as in `aligned_scan`.
    """
    if positions is None:
        y = ssd(
            x,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            delta_limit=delta_limit,
            chunk_size=chunk_size,
        )
        assert isinstance(y, Tensor)
        return y
    scaled, steps = _aged(x, delta, positions, delta_bias, delta_softplus, delta_limit)
    y = ssd(scaled, steps, A, B, C, chunk_size=chunk_size)
    assert isinstance(y, Tensor)
    return _finished(y, x, D[:, None] if D is not None and D.ndim == 1 else D, z)


def token_gaps(positions: Tensor) -> Tensor:
    """How many tokens are missing before each of those left, (batch, length); 0 before the first.

    positions (batch, length) rise or fall along a row.
    """
    return F.pad(positions.diff(dim=1).abs() - 1, (1, 0)).clamp(min=0)


def _aged(
    x: Tensor,
    delta: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    softplus: bool,
    limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:
    """Inputs and steps of a plain scan whose steps take in the gap before each token, its input scaled by its own part."""
    if positions.shape != x.shape[:2]:
        raise ValueError(f"positions: (batch, length) = {tuple(x.shape[:2])}, got {tuple(positions.shape)}")
    own = delta.to(torch.promote_types(delta.dtype, torch.float32))
    own = own if bias is None else own + bias
    own = F.softplus(own) if softplus else own
    own = own if limit == (0.0, float("inf")) else own.clamp(*limit)
    gaps = token_gaps(positions).to(own.dtype)[:, 1:, None]
    steps = torch.cat([own[:, :1], torch.addcmul(own[:, 1:], gaps, own[:, :-1])], 1)
    share = own / steps.clamp(
        min=torch.finfo(own.dtype).tiny
    )  # a step of zero has no input, whatever its part is called
    return (x * (share if x.ndim == 3 else share[..., None])).to(x.dtype), steps


def _finished(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    out = y if D is None else torch.addcmul(y, x, D.to(y.dtype))
    out = out if z is None else out * F.silu(z)
    return out.to(x.dtype)
