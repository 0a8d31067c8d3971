"""What a part of a sequence leaves to the parts behind it, as messages that combine associatively.

Of a scan: (total step, decayed, state), with (s2, h2) after (s1, h1) = (s1 + s2, h2 + decay(s2) h1): Blelloch 1990, section
1.4, over ranks instead of positions. Of a convolution: the last inputs, fewer of a part that is shorter than the taps
reach. `open` is 0 where a sequence begins within a part: then nothing from before it passes through.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from statescan.parallel._exchange import Ranks


def passes(resets: Tensor | None, like: Tensor) -> Tensor:
    """(batch, 1): 1 where no sequence begins within this part, else 0."""
    if resets is None:
        return like.new_ones(like.shape[0], 1)
    return (~resets.any(1, keepdim=True)).to(like.dtype)


def incoming_state(
    ranks: Ranks,
    total: Tensor,
    state: Tensor,
    decay: Callable[[Tensor], Tensor],
    *,
    initial: Tensor | None,
    resets: Tensor | None,
) -> Callable[[], Tensor]:
    """Start to tell the state that this part leaves; calling what is returned gives the state before this part.

    Arguments:
        total: (batch, steps), sum of what decays the state over this part.
        state: (batch, …), what this part leaves when it begins with nothing.
        decay: gives the factor of a state for such sums (…, batch, steps).
        initial: the state before the whole sequence; the first rank's counts.
        resets: (batch, length) bool, of this part.
    """
    batch, steps = total.shape
    shape = state.shape[1:]
    initial = initial if ranks.rank == 0 else None
    is_open = passes(resets, state)
    if initial is not None:
        initial = initial.to(state.dtype)
        through = is_open.view(batch, *[1] * len(shape))
        state = state + torch.where(through > 0, decay(total), 0.0) * initial

    def combine(messages: Tensor) -> Tensor:
        sums, opens = messages[..., :steps], messages[..., steps : steps + 1]
        states = messages[..., steps + 1 :].unflatten(-1, shape)
        behind, through = _after(sums, opens)
        factor = decay(behind) * through.view(*through.shape[:2], *[1] * len(shape))
        joined = (factor * states).sum(0)
        return torch.cat([sums.sum(0), opens.prod(0), joined.flatten(1)], dim=1)

    message = torch.cat([total.to(state.dtype), is_open, state.flatten(1)], dim=1)
    arriving = ranks.earlier(message, combine)

    def wait() -> Tensor:
        found = arriving()[:, steps + 1 :].unflatten(1, shape)
        return found if initial is None else found + initial

    return wait


def incoming_inputs(
    ranks: Ranks, last: Tensor, width: int, *, initial: Tensor | None, resets: Tensor | None
) -> Callable[[], Tensor]:
    """Start to tell the last inputs of this part; calling what is returned gives the `width` inputs before it.

    Arguments:
        last: (batch, min(length, width), channels).
        initial: (batch, width, channels) before the whole sequence; the first rank's counts.
        resets: (batch, length) bool, of this part.
    """
    batch, known, channels = last.shape
    if not width:
        return lambda: last[:, :0]
    first = ranks.rank == 0
    kept = last if resets is None else last * _since_reset(resets, known)[..., None]
    if first:
        before = last.new_zeros(batch, width, channels) if initial is None else initial[:, -width:].to(last.dtype)
        left = before[:, known:]
        if resets is not None and known < width:  # the part is known whole, and so is whether anything passes through
            left = left * passes(resets, last)[..., None]
    else:
        before, left = None, last.new_zeros(batch, width - known, channels)
    count = last.new_full((batch, 1), width if first else known)
    wide = torch.promote_types(last.dtype, torch.float32)
    message = torch.cat([count, passes(resets, last), left.flatten(1), kept.flatten(1)], dim=1).to(wide)
    slots = torch.arange(width, device=last.device)

    def combine(messages: Tensor) -> Tensor:
        counts, opens, inputs = messages[..., :1], messages[..., 1:2], messages[..., 2:]
        behind, through = _after(counts, opens)
        # Entry j of a part lies so far before the end of all; it goes to the slot as far before the end, if there is one.
        distance = behind + (width - slots)
        valid = (slots >= width - counts) & (through > 0)
        target = (distance[..., None, :] == (width - slots)[:, None]) & valid[..., None, :]
        joined = (target[..., None] * inputs.unflatten(-1, (1, width, channels))).sum((0, 3))
        return torch.cat([counts.sum(0).clamp(max=width), opens.prod(0), joined.flatten(1)], dim=1)

    arriving = ranks.earlier(message, combine)

    def wait() -> Tensor:
        found = arriving()[:, 2:].unflatten(1, (width, channels)).to(last.dtype)
        return found if before is None else found + before

    return wait


def _after(sums: Tensor, opens: Tensor) -> tuple[Tensor, Tensor]:
    """For each message, the sum and the passage of all behind it: (messages, batch, …)."""
    behind = torch.cat([sums[1:], torch.zeros_like(sums[:1])]).flip(0).cumsum(0).flip(0)
    through = torch.cat([opens[1:], torch.ones_like(opens[:1])]).flip(0).cumprod(0).flip(0)
    return behind, through


def _since_reset(resets: Tensor, known: int) -> Tensor:
    """(batch, known): True for those of the last positions that the last sequence of this part reaches."""
    later = resets.long().flip(1).cumsum(1).flip(1) - resets.long()  # resets behind a position
    return later[:, resets.shape[1] - known :] == 0
