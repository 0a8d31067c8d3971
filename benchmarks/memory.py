"""Remember a signal: HiPPO-LegS initialisations beside a random diagonal one, on delaying band-limited noise.

python -m benchmarks.memory --out runs/memory

The task is the published one with a lower band: 4,000 samples of noise below 20 Hz, to be given 1,000 samples (a quarter of a
second, so ten periods at most) later. The model is linear: the signal goes into 4 systems of 64 states, their outputs are
summed. First values of A and B are S4-LegS's (with its low-rank part), S4D-LegS's or random (S4D's `diag-rand`: Re A = -1/2,
Im A = exp(normal), B = 1). They are trained, or A, B and the step sizes keep their first values and only the readout learns;
steps, batches, learning rates (the best of two) are the same for all. ``least squares`` is the best readout of the first
values, solved for instead of trained.

Errors are mean squares over the signal's variance, on fresh signals, from the first sample that has a past: 0 is perfect, 1
is as good as answering 0. Finished trainings are kept in ``OUT/points.jsonl``: a killed run goes on there. Figures go to
``benchmarks/results/memory.json`` and ``.md``. Gu et al. 2023, "How to Train Your HiPPO" (arXiv 2206.12037), section 5.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _measure
from benchmarks._points import Points
from statescan.data import batch_seed, delay
from statescan.generation import progress_bar
from statescan.layers import S4

LENGTH, LAG, CUTOFF = 4000, 1000, 20.0
SYSTEMS, STATES, BATCH, STEPS = 4, 64, 8, 1000
RATES = (3e-3, 1e-2)
SEEDS = (0, 1, 2)
#: First values, by name.
KERNELS: dict[str, dict[str, Any]] = {
    "S4-LegS": {"kernel": "dplr", "initialisation": "legs"},
    "S4D-LegS": {"kernel": "diagonal", "initialisation": "diag-legs", "discretization": "bilinear"},
    "random diagonal": {"kernel": "diagonal", "initialisation": "diag-rand", "discretization": "bilinear"},
}
#: Ranges of first step sizes: one over the delay, and the default.
STEP_SIZES = {"1/delay": (1 / LAG, 1 / LAG), "0.001 to 0.1": (1e-3, 0.1)}


class Memory(nn.Module):
    """A signal (batch, length, 1) into systems that share it; the sum of their outputs."""

    def __init__(self, kernel: dict[str, Any], dts: tuple[float, float], *, frozen: bool):
        super().__init__()
        parts = ("A", "B", "dt") if frozen else ()
        options = dict(kernel, dt_min=dts[0], dt_max=dts[1], frozen=parts)
        self.systems = S4(SYSTEMS, state_dim=STATES, activation="identity", output=None, max_length=LENGTH, **options)
        nn.init.zeros_(self.systems.D)  # the present says nothing of the past
        self.scale = nn.Parameter(torch.full((SYSTEMS,), SYSTEMS**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, 1) to the same shape."""
        y, _ = self.systems(x.expand(-1, -1, SYSTEMS), return_state=False)
        return (y * self.scale).sum(-1, keepdim=True)


def signals(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Noise and what it was."""
    return delay(count, length=LENGTH, lag=LAG, cutoff=CUTOFF, seed=seed)


def error(y: Tensor, target: Tensor) -> Tensor:
    """Mean square over the variance, where there is a past."""
    return (y - target)[:, LAG:].square().mean() / target[:, LAG:].square().mean()


def train(
    kernel: dict[str, Any], dts: tuple[float, float], *, frozen: bool, rate: float, seed: int, steps: int, show: str = ""
) -> dict[str, Any]:
    """Train one model; batch n is the same for all of a seed."""
    torch.manual_seed(seed)
    model = Memory(kernel, dts, frozen=frozen)
    began = time.process_time()
    dynamics = [p for name, p in model.named_parameters() if any(part in name for part in ("A_", ".B", ".P", "inverse_dt"))]
    readout = [p for p in model.parameters() if not any(p is other for other in dynamics)]
    groups: list[dict[str, Any]] = [{"params": readout, "rate": rate}]
    if dynamics:
        groups.append({"params": dynamics, "rate": min(rate, 1e-3)})  # as S4 is trained
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    with progress_bar(show, steps, unit="steps", shown=bool(show)) as advance:
        for step in range(steps):
            factor = min(1.0, (step + 1) / max(1, steps // 20)) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimiser.param_groups:
                group["lr"] = group["rate"] * factor
            x, target = signals(batch_seed(seed, "train", step), BATCH)
            loss = error(model(x), target)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            advance(1)
    with torch.inference_mode():
        x, target = signals(batch_seed(seed, "test", 0), 64)
        found = float(error(model(x), target))
    return {"error": found, "seconds": time.process_time() - began, "parameters": sum(p.numel() for p in model.parameters())}


if __name__ == "__main__":
    import sys
    torch.set_num_threads(1)
    for name in KERNELS:
        for frozen in (True, False):
            for rate in (1e-2,):
                print(name, frozen, rate, train(KERNELS[name], STEP_SIZES[sys.argv[1]], frozen=frozen, rate=rate, seed=0, steps=int(sys.argv[2])), flush=True)
