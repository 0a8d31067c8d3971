"""A picture of what a HiPPO memory remembers: the signal, the signal read back from the state, and the measure."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from statescan import ssm

#: How long the signal is, in the memory's own time; the window of a sliding measure fits into it.
_HISTORY = {"legs": 4.0, "legt": 3.0, "fout": 1.5, "fourier": 1.5}


@dataclass(frozen=True)
class Recollection:
    """A signal and what a memory made of it, all (length,) over `time`, whose end is now.

    Arguments:
        time: in the memory's own units, from -history to 0.
        signal: what went in.
        rebuilt: what the last state says it was.
        weight: density of the memory's measure at that time.
        error: root of the mean square of rebuilt - signal under the measure, over that of the signal.
    """

    time: Tensor
    signal: Tensor
    rebuilt: Tensor
    weight: Tensor
    error: float


def recollect(measure: str, *, state_dim: int = 64, length: int = 2000, seed: int = 0) -> Recollection:
    """Let a time-invariant HiPPO memory see a band-limited signal step by step, and read the signal back.

    Arguments:
        measure: ``legs``, ``legt`` or ``fout`` (also ``fourier``).
        state_dim: coefficients kept.
        length: samples of the signal.
        seed: of the signal's phases.

    Raises:
        ValueError: a measure whose memory cannot be read back, or a size below 2.
    """
    if measure not in _HISTORY:
        raise ValueError(f"measure: reading back is known for {', '.join(_HISTORY)}, got {measure!r}")
    for name, value in (("state_dim", state_dim), ("length", length)):
        if value < 2:
            raise ValueError(f"{name}: at least 2, got {value}")
    history = _HISTORY[measure]
    dt = history / length
    time = dt * torch.arange(length, dtype=torch.float64) - dt * (length - 1)
    frequency = torch.arange(1, 9, dtype=torch.float64) / history
    phase = 2 * math.pi * torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    signal = torch.sin(2 * math.pi * frequency[:, None] * time + phase[:, None]).sum(0) / 2
    A, B = ssm.transition(measure, state_dim)
    dA, dB = ssm.discretize(A, B, dt, "bilinear")
    state = torch.zeros(state_dim, dtype=torch.float64)
    for value in signal:
        state = dA @ state + dB * value
    rebuilt = ssm.reconstruct(measure, state, -time)
    weight = ssm.measure_weight(measure, -time)
    remembered = weight > 0
    # Outside a sliding window the basis says nothing.
    rebuilt = torch.where(remembered, rebuilt, math.nan)
    missed = (weight * (rebuilt - signal) ** 2)[remembered].sum()
    return Recollection(time, signal, rebuilt, weight, float((missed / (weight * signal**2)[remembered].sum()).sqrt()))


def draw_memory(
    path: str | os.PathLike[str], measure: str, *, state_dim: int = 64, length: int = 2000, seed: int = 0
) -> Recollection:
    """Draw `recollect`: the signal with what is read back above, the measure below; the format is the path's suffix.

    Raises:
        ModuleNotFoundError: without matplotlib.
        ValueError: as `recollect`, or a format that matplotlib does not know.
    """
    from matplotlib.figure import Figure

    found = recollect(measure, state_dim=state_dim, length=length, seed=seed)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    time = found.time.numpy()
    above.plot(time, found.signal.numpy(), color="#888888", linewidth=2.6, label="signal")
    above.plot(time, found.rebuilt.numpy(), color="#0072B2", linewidth=1.3, label=f"from {state_dim} coefficients")
    # Where a memory hardly looks, what is read back may be anything.
    reach = 1.6 * float(found.signal.abs().max())
    above.set_ylim(-reach, reach)
    above.legend(frameon=False, loc="upper left", ncols=2)
    below.fill_between(time, found.weight.numpy(), color="#D55E00", alpha=0.35, linewidth=0)
    below.set_ylabel("measure")
    below.set_ylim(bottom=0)
    below.set_xlabel("time before now, in the memory's units")
    for place in (above, below):
        place.margins(x=0)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    figure.suptitle(f"{measure}: relative error under the measure {found.error:.1%}")
    figure.savefig(path, dpi=130)
    return found
