"""The recurrence of Mamba-3: a trapezoidal rule with keys and queries that turn. Lahoti et al. 2026, arXiv 2603.15569.

For a head with step d_t, rate of decay a_t and mixing weight l_t (all from the input), inputs x_t (P) and keys k_t (N):

    h_t = e^(-a_t d_t) h_{t-1} + (1 - l_t) d_t e^(-a_t d_t) x_{t-1} k_{t-1}^T + l_t d_t x_t k_t^T,    y_t = h_t q_t

Keys and queries are turned by an angle that the input advances, which is the same as a state whose channels are complex.
With R inputs and R keys at a time ("MIMO") the products are summed over them, and every one of R queries reads h_t.

The parallel form is one call of `ops.ssd`. The state g_t = h_t + w_t x_t k_t^T, with w_t = (1 - l_{t+1}) d_{t+1}, already
has what position t gives to the next one. It follows g_t = e^(-a_t d_t) g_{t-1} + (l_t d_t + w_t) x_t k_t^T, a scan of
Mamba-2, and y_t = g_t q_t - w_t (q_t . k_t) x_t. After the last position w is zero, and g is h.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from statescan import ops
from statescan.layers._precision import widen, widened

#: The least a d: `ops.ssd` multiplies its input by it, so that it is divided by it before; e^-TINY is 1.
_TINY = 1e-15


class Segments(NamedTuple):
    """Where sequences begin and end within a batch.

    Fields:
        starts: (batch, length) bool, or None where each row is one sequence.
        first: (batch, length), the position at which the sequence of each position begins.
        carried: (batch, length) bool, whether the state before the call is still in force.
        sequence: (length,), number of the packed sequence; None without offsets.
        resets, offsets: as given.
    """

    starts: Tensor | None
    first: Tensor | None
    carried: Tensor | None
    sequence: Tensor | None
    resets: Tensor | None
    offsets: Tensor | None

    @classmethod
    def of(cls, length: int, resets: Tensor | None, offsets: Tensor | None) -> Segments:
        """From resets (batch, length) bool or offsets (sequences + 1,) int64."""
        if resets is None and offsets is None:
            return cls(None, None, None, None, None, None)
        sequence = None
        if offsets is not None:
            place = torch.arange(length, device=offsets.device)
            sequence = torch.bucketize(place, offsets[1:], right=True).clamp(max=offsets.shape[0] - 2)
            starts = (offsets[sequence] == place)[None]
            carried = None
            if resets is not None:
                raise ValueError("resets: packed sequences (offsets) come without resets")
        else:
            assert resets is not None
            place = torch.arange(length, device=resets.device)
            starts, carried = resets, resets.long().cumsum(1) == 0
        first = torch.where(starts, place, 0).cummax(1).values
        return cls(starts, first, carried, sequence, resets, offsets)

    def last(self, values: Tensor, before: Tensor) -> Tensor:
        """Of (batch, length, …), what each sequence ends with: (sequences, …); an empty one keeps what was before."""
        if self.offsets is None:
            return values[:, -1] if values.shape[1] else before
        begin, end = self.offsets[:-1], self.offsets[1:]
        empty = (begin == end).view(-1, *[1] * (values.ndim - 2))
        if not values.shape[1]:
            return before
        return torch.where(empty, before, values[0, (end - 1).clamp(min=0)])

    def beginning(self, values: Tensor) -> Tensor:
        """Of (batch, length, …), what each sequence begins with; zero where it is empty."""
        if self.offsets is None:
            return values[:, 0]
        begin, end = self.offsets[:-1], self.offsets[1:]
        filled = (begin != end).view(-1, *[1] * (values.ndim - 2))
        return values[0, begin.clamp(max=values.shape[1] - 1)] * filled

    def shifted(self, values: Tensor) -> Tensor:
        """Of (batch, length, heads), at each position what stands at the next one; zero where a sequence ends."""
        after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        if self.starts is None:
            return after
        ends = torch.cat([self.starts[:, 1:], torch.ones_like(self.starts[:, :1])], dim=1)
        return after.masked_fill(ends[..., None], 0)

    def repeated(self, times: int) -> tuple[Tensor | None, Tensor | None]:
        """Resets and offsets where every position stands for `times` neighbours."""
        if times == 1:
            return self.resets, self.offsets
        resets = self.resets
        if resets is not None:
            others = torch.zeros_like(resets)[..., None].expand(*resets.shape, times - 1)
            resets = torch.cat([resets[..., None], others], dim=-1).flatten(1)
        return resets, None if self.offsets is None else self.offsets * times


def turns(rates: Tensor, step: Tensor) -> Tensor:
    """How far each head turns at a position: pi tanh(rates) step.

    Arguments:
        rates: (…, angles) for all heads, or (…, heads, angles).
        step: (…, heads).
    """
    rates = math.pi * torch.tanh(widen(rates))
    return (rates if rates.ndim > step.ndim else rates[..., None, :]) * step[..., None]


def angles(turned: Tensor, before: Tensor | None, segments: Segments) -> Tensor:
    """Angles at all positions, modulo 2 pi, zero where a sequence begins.

    Arguments:
        turned: (batch, length, heads, angles), of `turns`.
        before: (sequences, heads, angles); None is zero.
        segments: of the call.
    """
    # A sum over a long sequence loses digits, which the remainder would leave as nothing but error.
    exact = turned.dtype if turned.device.type == "mps" else torch.float64
    total = turned.cumsum(1, dtype=exact)
    if segments.first is not None:
        earlier = total - turned
        total = total - earlier.gather(1, segments.first[..., None, None].expand(total.shape))
    if before is not None:
        if segments.sequence is not None:
            total = total + before[segments.sequence]
        elif segments.carried is not None:
            total = total + before[:, None] * segments.carried[..., None, None]
        else:
            total = total + before[:, None]
    return torch.remainder(total, 2 * math.pi).to(turned.dtype)


def turn(x: Tensor, cosine: Tensor, sine: Tensor, *, interleaved: bool) -> Tensor:
    """Turn the first pairs of channels: (2 i, 2 i + 1) if interleaved, else (i, i + N / 2).

    Arguments:
        x: (…, N).
        cosine, sine: of the angles, (…, angles), of which there are N / 2 at most.
    """
    count, width = cosine.shape[-1], x.shape[-1]
    if interleaved and not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(x[..., : 2 * count].unflatten(-1, (count, 2)).contiguous())
        turned = torch.view_as_real(pairs * torch.complex(cosine, sine)).flatten(-2)
        return turned if 2 * count == width else torch.cat([turned, x[..., 2 * count :]], dim=-1)
    if interleaved:
        first, second = x[..., : 2 * count].unflatten(-1, (count, 2)).unbind(-1)
        pair = (first * cosine - second * sine, first * sine + second * cosine)
        return torch.cat([torch.stack(pair, dim=-1).flatten(-2), x[..., 2 * count :]], dim=-1)
    half = width // 2
    first, second = x[..., :count], x[..., half : half + count]
    return torch.cat(
        [
            first * cosine - second * sine,
            x[..., count:half],
            first * sine + second * cosine,
            x[..., half + count :],
        ],
        dim=-1,
    )


def trapezoidal_scan(
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    mix: Tensor,
    keys: Tensor,
    queries: Tensor,
    D: Tensor | None = None,
    *,
    state: Tensor | None = None,
    last_x: Tensor | None = None,
    last_key: Tensor | None = None,
    segments: Segments | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The recurrence over a whole sequence, for R inputs, keys and queries at a time.

    Arguments:
        x: (batch, length, R, heads, P).
        step, rate, mix: d, a and l, (batch, length, heads), float32 or wider; a not negative, l between 0 and 1.
        keys, queries: (batch, length, R, heads, N), turned.
        D: (heads,), weight of x itself.
        state: h before the call, (sequences, heads, P, N); with it `last_x` (sequences, R, heads, P) and `last_key`
            (sequences, R, heads, N).
        segments: where sequences begin.
        chunk_size: positions times R that are taken as one quadratic form; changes speed, not results.

    Returns:
        y, shaped as x, and h after every sequence.
    """
    batch, length, ranks, heads, width = x.shape
    segments = segments or Segments.of(length, None, None)
    carry = (1 - mix) * step
    ahead = segments.shifted(carry)
    scale = mix * step + ahead
    decay = (rate * step).clamp(min=_TINY)
    if state is not None:
        assert last_x is not None and last_key is not None
        assert length, "nothing to scan"
        weighted = last_x * segments.beginning(carry)[:, None, :, None]
        state = state + torch.einsum("brhp,brhn->bhpn", weighted, last_key)
    steps, ratio = decay, scale / decay
    if ranks > 1:
        # R neighbours take the place of a position; between them nothing decays.
        rest = decay.new_full((batch, length, ranks - 1, heads), _TINY)
        steps = torch.cat([decay[:, :, None], rest], dim=2)
        ratio = scale[:, :, None] / steps
        steps, ratio = steps.flatten(1, 2), ratio.flatten(1, 2)
    narrow = x.dtype if x.dtype == torch.bfloat16 else widened(x.dtype)
    resets, offsets = segments.repeated(ranks)
    y, last = ops.ssd(
        (x.flatten(1, 2) * ratio[..., None]).to(narrow),
        steps,
        -step.new_ones(heads),
        keys.flatten(1, 2).to(narrow),
        queries.flatten(1, 2).to(narrow),
        chunk_size=chunk_size,
        initial_state=state,
        resets=resets,
        offsets=offsets,
        return_last_state=True,
    )
    if ranks == 1:
        direct = -ahead * (queries[:, :, 0] * keys[:, :, 0]).sum(-1)
        if D is not None:
            direct = direct + D
        return torch.addcmul(y[:, :, None], direct[:, :, None, :, None].to(y.dtype), x.to(y.dtype)), last
    # What the neighbours after a query's own bring to the same position is still to come; what the next one takes is not.
    weights = torch.einsum("blrhn,blshn->blhrs", queries, keys)
    later = torch.ones(ranks, ranks, dtype=torch.bool, device=x.device).triu(1)
    weights = weights * (scale[..., None, None] * later - ahead[..., None, None])
    if D is not None:
        weights = weights + D[:, None, None] * torch.eye(ranks, dtype=D.dtype, device=D.device)
    direct = torch.einsum("blhrs,blshp->blrhp", weights.to(y.dtype), x.to(y.dtype))
    return y.unflatten(1, (length, ranks)) + direct, last


def trapezoidal_step(
    state: Tensor,
    last_x: Tensor,
    last_key: Tensor,
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    mix: Tensor,
    key: Tensor,
    query: Tensor,
    D: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One position of `trapezoidal_scan`: tensors without its length axis -> y (batch, R, heads, P) and the next h."""
    decay = torch.exp(-rate * step)
    before = last_x * ((1 - mix) * step * decay)[:, None, :, None]
    inputs = torch.cat([before, x * (mix * step)[:, None, :, None]], dim=1)  # (batch, 2 R, heads, P)
    both = torch.cat([last_key, key], dim=1)
    state = decay[..., None, None] * state + inputs.permute(0, 2, 3, 1) @ both.transpose(1, 2)
    y = (state @ query.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return (y if D is None else y + D[:, None] * x), state
