"""The mixers' passes over one rank's part of a sequence: computed from zero, then corrected by what arrives.

Scans are linear in the state: scan(x, h) = scan(x, 0) + scan(0, h). While the state travels, the first of these is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan import ops
from statescan.layers import Mamba, Mamba2, State
from statescan.layers._precision import widen
from statescan.parallel._exchange import Ranks
from statescan.parallel._messages import incoming_inputs, incoming_state


def _convolved(
    mixer: Any,
    ranks: Ranks,
    project: Callable[[Tensor], tuple[Tensor, ...]],
    which: int,
    x: Tensor,
    state: State | None,
    resets: Tensor | None,
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """All projections of x; the convolution of the one numbered `which`; the convolution's state.

    What the next rank's taps reach is projected first and by itself, to be on its way during the projection of the whole.
    """
    width = mixer.convolution.width - 1
    last = project(x[:, x.shape[1] - min(width, x.shape[1]) :])[which]
    arriving = incoming_inputs(ranks, last, width, initial=state["conv"] if state else None, resets=resets)
    projected = project(x)
    hidden, conv = mixer.convolution(projected[which], arriving(), resets=resets)
    return projected, hidden, conv


def mamba_part(
    mixer: Mamba, ranks: Ranks, x: Tensor, state: State | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """`Mamba.forward` on this rank's part.

    Channels do not see each other within the scan, so it is done in two halves: the state of one travels during the scan of
    the other.
    """

    def project(x: Tensor) -> tuple[Tensor, ...]:
        return mixer.input_projection(x).chunk(2, dim=-1)

    projected, hidden, conv = _convolved(mixer, ranks, project, 0, x, state, resets)
    delta, B, C = mixer._select(hidden)
    steps, A, D = mixer.step_sizes(delta), mixer._A(), widen(mixer.D)
    initial = state["ssm"] if state else None
    middle = mixer.inner_dim // 2
    scan: Any = ops.selective_scan
    halves: list[tuple[Any, ...]] = []
    for half in (slice(0, middle), slice(middle, mixer.inner_dim)):
        of_half: tuple[Any, ...] = (hidden[..., half], steps[..., half], A[half], _of(B, half), _of(C, half))
        gate = projected[1][..., half]
        y, last = scan(*of_half, D[half], gate, resets=resets, return_last_state=True)
        arriving = incoming_state(
            ranks,
            steps[..., half].sum(1),
            last,
            lambda total, rate=A[half]: torch.exp(total[..., None] * rate),  # type: ignore[misc]
            initial=None if initial is None else initial[:, half],
            resets=resets,
        )
        halves.append((of_half, gate, y, last, arriving))
    outputs, states = [], []
    for (x_half, *others), gate, y, last, arriving in halves:
        correction, passed = scan(
            torch.zeros_like(x_half),
            *others,
            None,
            gate,
            initial_state=arriving(),
            resets=resets,
            return_last_state=True,
        )
        outputs.append(y + correction)
        states.append(last + passed)
    y = mixer.output_projection(torch.cat(outputs, dim=-1))
    return y, State({"conv": conv, "ssm": torch.cat(states, dim=1)})


def _of(weights: Tensor, half: slice) -> Tensor:
    """B or C of some channels: constants have a row a channel, the others are shared."""
    return weights[half] if weights.ndim == 2 else weights


def mamba2_part(
    mixer: Mamba2, ranks: Ranks, x: Tensor, state: State | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """`Mamba2.forward` on this rank's part.

    With one decay a head, the state that a part leaves and what an arriving one adds are a matrix product each: the scan
    itself is done between the two.
    """
    if state is None and mixer.learned_state is not None:
        state = mixer.initial_state(x.shape[0], dtype=x.dtype, device=x.device)
    if mixer.learned_state is not None and resets is not None:
        raise ValueError("resets: a learned initial state cannot be reset to within a sequence")
    projected, scanned, conv = _convolved(mixer, ranks, mixer._project, 3, x, state, resets)
    mlp_gate, mlp, gate, _, delta = projected
    hidden, B, C = mixer._split(scanned)
    steps, A = mixer.step_sizes(delta), -torch.exp(widen(mixer.A_log))
    rates = steps * A
    total = rates.sum(1)
    grouped = (mixer.groups, mixer.heads // mixer.groups)
    # Sums from either end, not their differences: those would lose in float32 what lies near.
    until_end = rates.flip(1).cumsum(1).flip(1) - rates
    since_start = rates.cumsum(1)
    weights = torch.exp(until_end) * steps
    reached = torch.exp(since_start)
    if resets is not None:
        marks = resets.long()
        weights = weights * (marks.flip(1).cumsum(1).flip(1) == marks)[..., None]
        reached = reached * (marks.cumsum(1) == 0)[..., None]
    weighed = (weights[..., None] * widen(hidden)).unflatten(2, grouped)
    full_precision = torch.autocast(x.device.type, enabled=False)
    with full_precision:
        last = torch.einsum("blgkp,blgn->bgkpn", weighed, widen(B)).flatten(1, 2)
    initial = state["ssm"] if state else None
    arriving = incoming_state(
        ranks, total, last, lambda sums: torch.exp(sums)[..., None, None], initial=initial, resets=resets
    )
    z = mixer._heads(gate) if mixer.norm is None else None
    y: Any = ops.ssd(hidden, steps, A, B, C, mixer._D(), z, chunk_size=mixer.chunk_size, resets=resets)
    before = arriving()
    with full_precision:
        correction = torch.einsum("blgn,bgkpn->blgkp", widen(C), before.unflatten(1, grouped)).flatten(2, 3)
    correction = correction * reached[..., None]
    if z is not None:
        correction = correction * F.silu(widen(z))
    ssm = last + reached[:, -1, :, None, None] * before
    y = mixer._finish(y + correction.to(y.dtype), gate, mlp_gate, mlp)
    return y, State({"conv": conv, "ssm": ssm})


def whole(
    mixer: Callable[..., Any], ranks: Ranks, x: Tensor, lengths: list[int], resets: Tensor | None
) -> tuple[Tensor, State]:
    """Any mixer: every rank reads all parts, and keeps of the output what is its own. Nothing is saved by it."""
    parts = join(ranks, x, lengths)
    marks = None if resets is None else join(ranks, resets.to(x.dtype), lengths).detach() > 0.5
    y, _ = mixer(parts, None, resets=marks)
    start = sum(lengths[: ranks.rank])
    return y[:, start : start + x.shape[1]], State()


def join(ranks: Ranks, x: Tensor, lengths: list[int]) -> Tensor:
    """Parts (batch, length of this rank, …) as one sequence on every rank; differentiable."""
    padding = x.new_zeros(x.shape[0], max(lengths) - x.shape[1], *x.shape[2:])
    parts = ranks.everyone(torch.cat([x, padding], dim=1))
    return torch.cat([part[:, :length] for part, length in zip(parts, lengths, strict=True)], dim=1)
