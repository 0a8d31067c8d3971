"""Causal linear attention with the second-order Taylor series of the exponential. Arora et al. 2024, arXiv 2402.18668.

softmax attention weighs by exp(s), s = q.k / sqrt(d); this one by 1 + s + s^2 / 2, which is a scalar product of features:
so all earlier keys and values fit into one matrix a head.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import _checks as checks
from statescan.ops._ssd import ssd

_NAME = "taylor_linear_attention"


def taylor_feature_count(dim: int, *, reduced: bool = True) -> int:
    """Length of `taylor_features` of `dim` channels: 1 + d + d (d + 1) / 2, or 1 + d + d^2 if not reduced."""
    return 1 + dim + (dim * (dim + 1) // 2 if reduced else dim * dim)


def taylor_features(x: Tensor, *, reduced: bool = True) -> Tensor:
    """Features whose scalar product is ``1 + s + s^2 / 2`` with ``s = q.k / sqrt(d)``.

    Arguments:
        x: (..., d).
        reduced: keep every product x_i x_j once (times sqrt 2 off the diagonal) instead of both x_i x_j and x_j x_i, as
            published code does. Scalar products are the same.

    Returns:
        (..., features): one, then x / d^(1/4), then the products over sqrt(2 d), row by row.
    """
    dim = x.shape[-1]
    one = torch.ones_like(x[..., :1])
    if reduced:
        first, second = torch.triu_indices(dim, dim, device=x.device)
        scale = torch.where(first == second, x.new_tensor(1 / math.sqrt(2 * dim)), x.new_tensor(1 / math.sqrt(dim)))
        products = x[..., first] * x[..., second] * scale
    else:
        products = (x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2 * dim)
    return torch.cat([one, x / dim**0.25, products], dim=-1)


def taylor_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    eps: float = 1e-12,
    form: Literal["chunked", "parallel"] = "chunked",
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Weigh earlier values by ``w_ij = 1 + s + s^2 / 2``: ``y_i = sum_{j <= i} w_ij v_j / (sum_{j <= i} w_ij + eps)``.

    s is ``q_i . k_j / sqrt(feature_dim)``; a weight is never below 1/2, so the sum under the bar cannot vanish.

    Arguments:
        q, k: (batch, length, heads, feature_dim); float32, bfloat16, float16 or float64.
        v: (batch, length, heads, head_dim).
        eps: see above.
        form: ``chunked`` takes time linear in the length: sums over whole chunks go on as a state, a quadratic form within
            a chunk. ``parallel`` is one quadratic form. Results are the same.
        chunk_size: positions of a chunk.
        initial_state: (batch, heads, head_dim + 1, features) with the features of `taylor_features`; the last row is the
            sum of the keys' features, the others that of value times features. With offsets, (sequences, ...).
        resets: (batch, length) bool; where True, a new sequence begins.
        offsets: (sequences + 1,) int64, cumulative lengths of sequences packed into a batch of 1.
        return_last_state: return the state after the last position of each sequence as well.

    Returns:
        y (batch, length, heads, head_dim), typed as v; with `return_last_state` the pair (y, last state), the state in
        float32 (float64 for float64). Differentiable in q, k, v and initial_state.

    Raises:
        TypeError, ValueError: an argument that does not fit is named, with what was given and what is accepted.
    """
    _check(q, k, v, initial_state, resets, offsets)
    if form not in ("chunked", "parallel"):
        raise ValueError(f"{_NAME}: form must be 'chunked' or 'parallel', not {form!r}")
    if chunk_size < 1:
        raise ValueError(f"{_NAME}: chunk_size must be at least 1, not {chunk_size}")
    wide = _wide(v)
    q, k = q.to(wide), k.to(wide)
    values = F.pad(v.to(wide), (0, 1), value=1.0)  # the last channel sums the weights themselves
    if form == "chunked":
        sums, last = _chunked(q, k, values, chunk_size, initial_state, resets, offsets)
    elif offsets is None:
        sums, last = _parallel(q, k, values, initial_state, resets)
    else:
        parts = [
            _parallel(q[:, a:b], k[:, a:b], values[:, a:b], None if initial_state is None else initial_state[i : i + 1])
            for i, (a, b) in enumerate(itertools.pairwise(offsets.tolist()))
        ]
        sums, last = torch.cat([y for y, _ in parts], dim=1), torch.cat([s for _, s in parts])
    y = (sums[..., :-1] / (sums[..., -1:] + eps)).to(v.dtype)
    return (y, last) if return_last_state else y


def taylor_linear_attention_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, *, eps: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """One position of `taylor_linear_attention`.

    Arguments:
        state: (batch, heads, head_dim + 1, features).
        q, k: (batch, heads, feature_dim).
        v: (batch, heads, head_dim).
        eps: added to the sum of weights.

    Returns:
        y (batch, heads, head_dim), typed as v, and the next state.
    """
    wide = _wide(v)
    values = F.pad(v.to(wide), (0, 1), value=1.0)
    state = state.to(wide) + values[..., None] * taylor_features(k.to(wide))[..., None, :]
    sums = (state @ taylor_features(q.to(wide))[..., None])[..., 0]
    return (sums[..., :-1] / (sums[..., -1:] + eps)).to(v.dtype), state


def taylor_linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    eps: float = 1e-12,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`taylor_linear_attention` as its recurrence, a position at a time in float64."""
    _check(q, k, v, initial_state, resets, offsets)
    bounds = [0, q.shape[1]] if offsets is None else offsets.tolist()
    count = q.shape[0] if offsets is None else len(bounds) - 1
    state = initial_state
    if state is None:
        state = q.new_zeros(count, q.shape[2], v.shape[3] + 1, taylor_feature_count(q.shape[3]))
    outputs, last = [], []
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        S = (state if offsets is None else state[number : number + 1]).double()
        for t in range(start, end):
            if resets is not None:
                S = torch.where(resets[:, t, None, None, None], torch.zeros_like(S), S)
            y, S = taylor_linear_attention_step(S, *(x[:, t].double() for x in (q, k, v)), eps=eps)
            outputs.append(y)
        last.append(S)
    y = torch.stack(outputs, dim=1).to(v.dtype) if outputs else torch.zeros_like(v)
    return (y, torch.cat(last).to(_wide(v))) if return_last_state else y


def _wide(tensor: Tensor) -> torch.dtype:
    # Sums over a whole sequence overflow float16 and stall in bfloat16.
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunked(
    q: Tensor,
    k: Tensor,
    values: Tensor,
    chunk_size: int,
    state: Tensor | None,
    resets: Tensor | None,
    offsets: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """State space duality without decay: S_t = S_{t-1} + v_t phi(k_t)^T, y_t = S_t phi(q_t)."""
    batch, length, heads, _ = q.shape
    step = q.new_ones(()).expand(batch, length, heads)
    return ssd(  # type: ignore[return-value]
        values,
        step,
        q.new_zeros(heads),
        taylor_features(k),
        taylor_features(q),
        chunk_size=chunk_size,
        initial_state=state,
        resets=resets,
        offsets=offsets,
        return_last_state=True,
    )


def _parallel(
    q: Tensor, k: Tensor, values: Tensor, state: Tensor | None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    batch, length, heads, dim = q.shape
    place = torch.arange(length, device=q.device)
    seen = (place <= place[:, None]).expand(batch, length, length)
    index = torch.zeros(batch, length, dtype=torch.int64, device=q.device)
    if resets is not None:
        index = resets.long().cumsum(dim=1)  # 0: the sequence that the state belongs to
        seen = seen & (index[:, :, None] == index[:, None, :])
    s = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(dim)
    weights = (1 + s + 0.5 * s * s).masked_fill(~seen[:, None], 0.0)
    sums = torch.einsum("bhij,bjhe->bihe", weights, values)
    final = index[:, -1:] if length else index.new_zeros(batch, 1)
    own = (index == final).to(values.dtype)[..., None, None]
    last = torch.einsum("bjhe,bjhf->bhef", values * own, taylor_features(k))
    if state is not None:
        first = (index == 0).to(values.dtype)[..., None, None]
        sums = sums + first * torch.einsum("bhef,bihf->bihe", state.to(values.dtype), taylor_features(q))
        last = last + state.to(values.dtype) * (final == 0).to(values.dtype)[..., None, None]
    return sums, last


def _check(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, resets: Tensor | None, offsets: Tensor | None
) -> None:
    checks.floating(_NAME, "q", q, ndim=4)
    batch, length, heads, dim = q.shape
    checks.floating(_NAME, "k", k, shape=q.shape)
    checks.floating(_NAME, "v", v, ndim=4)
    checks.fits(_NAME, "v", v, (batch, length, heads, None))
    if dim == 0:
        raise ValueError(f"{_NAME}: q has no channels; expected at least 1")
    sequences = checks.boundaries(_NAME, resets, offsets, batch, length)
    shape = (sequences, heads, v.shape[3] + 1, taylor_feature_count(dim))
    checks.floating(_NAME, "initial_state", state, shape=shape)
    checks.same_device(_NAME, q=q, k=k, v=v, initial_state=state, resets=resets, offsets=offsets)
