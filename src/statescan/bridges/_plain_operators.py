"""The library's operators in terms of torch's own, for programs that must run without the library.

The recurrence h_t = a_t h_{t-1} + b_t of length L is unrolled by doubling (Hillis and Steele 1986): after k of log2 L
rounds, each position has seen the 2^k positions up to it. So the graph has a few nodes a round, not a few a position; the
work is L log L, and products of decays never leave [0, 1], so nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def doubling_scan(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along axis 1, h before the first position zero.

    Arguments:
        a, b: (batch, length, …), shapes that broadcast beyond the length.
    """
    length, reach = b.shape[1], 1
    while reach < length:
        before = torch.cat([torch.zeros_like(b[:, :reach]), b[:, :-reach]], 1)
        b = a * before + b
        if 2 * reach < length:  # what the last round would make is not asked for
            a = a * torch.cat([torch.ones_like(a[:, :reach]), a[:, :-reach]], 1)
        reach *= 2
    return b


def _refuse(**given: Any) -> None:
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise NotImplementedError(f"export: an operator with {wrong[0]} has no plain form; image models use none")


def _reset(decay: Tensor, resets: Tensor | None) -> Tensor:
    """Decays (batch, length, …) that are zero where (batch, length) says that a sequence begins."""
    if resets is None:
        return decay
    marks = resets.reshape(*resets.shape, *[1] * (decay.ndim - 2))
    return torch.where(marks, torch.zeros_like(decay), decay)


def _selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _refuse(initial_state=initial_state, offsets=offsets)
    if A.is_complex():
        raise NotImplementedError("export: a scan with complex A has no plain form")
    u, step = x.float(), delta.float()
    if delta_bias is not None:
        step = step + delta_bias
    if delta_softplus:
        step = F.softplus(step)
    drive = (step * u)[..., None] * _rows(B, x.shape[2])
    h = doubling_scan(_reset(torch.exp(step[..., None] * A), resets), drive)
    y = (h * _rows(C, x.shape[2])).sum(-1)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z.float())
    return y.to(x.dtype), h[:, -1], A.new_empty(0)


def _rows(weights: Tensor, channels: int) -> Tensor:
    """B or C for every channel: (batch, length, channels or 1, states)."""
    if weights.ndim == 2:
        return weights[None, None]
    groups = weights.shape[2]
    if groups == 1:
        return weights.float()
    return weights.float()[:, :, :, None].expand(-1, -1, -1, channels // groups, -1).flatten(2, 3)


def _route_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    _, cells, width = x.shape
    walks, length = order.shape
    numbers = torch.arange(walks, device=x.device)
    # Cell `cells` is a row of zeros: padding reads it. All walks are taken at once, as rows of cell times walk.
    taken = (torch.where(order >= 0, order, torch.full_like(order, cells)) * walks + numbers[:, None]).transpose(0, 1)

    def walk(rows: Tensor) -> Tensor:
        padded = torch.cat([rows, torch.zeros_like(rows[:, :1])], 1)
        return padded.flatten(1, 2).index_select(1, taken.flatten()).unflatten(1, (length, walks))

    out = _selective_scan(
        walk(x[:, :, None].expand(-1, -1, walks, -1)).flatten(2),
        walk(delta).flatten(2),
        A,
        walk(B),
        walk(C),
        D,
        None,
        delta_bias,
        None,
        None,
        None,
        delta_softplus,
        False,
    )[0]
    # Where in its walk each cell comes; `length`, a row of zeros, for a cell that a walk never comes to.
    nowhere = (torch.full_like(taken[:1], length) * walks + numbers).expand(cells + 1, -1).flatten()
    steps = torch.arange(length * walks, device=x.device)
    place = nowhere.scatter(0, taken.flatten(), steps)[: cells * walks]
    rows = torch.cat([out.unflatten(2, (walks, width)).flatten(1, 2), out.new_zeros(out.shape[0], walks, width)], 1)
    return rows.index_select(1, place).unflatten(1, (cells, walks)).to(x.dtype), A.new_empty(0)


def _ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    _refuse(initial_state=initial_state, offsets=offsets)
    u, heads = x.float(), x.shape[2]
    b, c = (w.float()[:, :, :, None].expand(-1, -1, -1, heads // w.shape[2], -1).flatten(2, 3) for w in (B, C))
    decay = _reset(torch.exp(delta * A)[..., None, None], resets)
    states = doubling_scan(decay, (delta[..., None] * u)[..., None] * b[:, :, :, None])
    y = (states * c[:, :, :, None]).sum(-1)
    if D is not None:
        y = y + (D[:, None] if D.ndim == 1 else D) * u
    return y.to(x.dtype), states[:, -1]


def _causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    silu: bool,
) -> Tensor:
    _refuse(initial_state=initial_state, resets=resets, offsets=offsets)
    width = weight.shape[1]
    padded = F.pad(x.float().transpose(1, 2), (width - 1, 0))
    y = F.conv1d(padded, weight.float()[:, None], bias, groups=weight.shape[0]).transpose(1, 2)
    return (F.silu(y) if silu else y).to(x.dtype)


def _gated_rms_norm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, group_size: int, norm_before_gate: bool
) -> Tensor:
    h = x.float()
    if gate is not None and not norm_before_gate:
        h = h * F.silu(gate.float())
    grouped = h.unflatten(-1, (x.shape[-1] // group_size, group_size))
    h = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    if weight is not None:
        h = h * weight.float()
    if gate is not None and norm_before_gate:
        h = h * F.silu(gate.float())
    return h.to(x.dtype)


def _linear_scan(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    _refuse(initial_state=initial_state, offsets=offsets)
    if a.is_complex() or b.is_complex():
        raise NotImplementedError("export: a complex linear scan has no plain form")
    whole = _reset(a.float().expand_as(b) if a.ndim == 1 else a.float(), resets)
    if reverse:
        h = doubling_scan(whole.flip(1), b.float().flip(1))
        return h.flip(1), h[:, -1]
    h = doubling_scan(whole, b.float())
    return h, h[:, -1]


def plain_operators() -> dict[Any, Callable[..., Any]]:
    """What `ExportedProgram.run_decompositions` takes: each operator of image models and its plain form."""
    known = torch.ops.statescan
    return {
        known.selective_scan.default: _selective_scan,
        known.route_scan.default: _route_scan,
        known.ssd.default: _ssd,
        known.causal_conv1d.default: _causal_conv1d,
        known.gated_rms_norm.default: _gated_rms_norm,
        known.linear_scan.default: _linear_scan,
    }
