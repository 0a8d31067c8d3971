"""Remember a signal: HiPPO-LegS initialisations beside a random diagonal one, on delaying band-limited noise.

python -m benchmarks.memory --out runs/memory

The task is the published one with a lower band: 4,000 samples of noise below 20 Hz, to be given 1,000 samples (a quarter
of a second, five periods at most) later. The model is linear: the signal goes into 4 systems of 64 states, their outputs are
summed. First values of A and B are S4-LegS's (with its low-rank part), S4D-LegS's or random (S4D's `diag-rand`: Re A = -1/2,
Im A = exp(normal), B = 1). They are trained, or A, B and the step sizes keep their first values and only the readout learns.
Steps, batches and the readout's learning rate are the same for all; that of A, B and the step sizes is the better of two.

Errors are mean squares over the signal's variance, on fresh signals, from the first sample that has a past: 0 is perfect, 1
is as good as answering 0. Finished trainings are kept in ``OUT/points.jsonl``: a killed run goes on there. Figures go to
``benchmarks/results/memory.json`` and ``.md``. Gu et al. 2023, "How to Train Your HiPPO" (arXiv 2206.12037), section 5.
"""

from __future__ import annotations

import argparse
import functools
import itertools
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
SYSTEMS, STATES, BATCH, STEPS = 4, 64, 8, 600
#: What no option changes.
TASK = {"length": LENGTH, "lag": LAG, "cutoff": CUTOFF, "systems": SYSTEMS, "states": STATES, "batch": BATCH}
#: Learning rates of A, B and the step sizes; the readout's is the greater.
RATES = (1e-3, 1e-2)
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
    kernel: dict[str, Any],
    dts: tuple[float, float],
    *,
    frozen: bool,
    rate: float,
    seed: int,
    steps: int,
    show: str = "",
) -> dict[str, Any]:
    """Train one model; batch n is the same for all of a seed."""
    torch.manual_seed(seed)
    model = Memory(kernel, dts, frozen=frozen)
    began = time.process_time()
    dynamics = [
        p for name, p in model.named_parameters() if any(part in name for part in ("A_", ".B", ".P", "inverse_dt"))
    ]
    readout = [p for p in model.parameters() if not any(p is other for other in dynamics)]
    groups: list[dict[str, Any]] = [{"params": readout, "rate": max(RATES)}]
    if dynamics:
        groups.append({"params": dynamics, "rate": rate})
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    with progress_bar(show, steps, unit="steps", shown=bool(show)) as advance:
        for step in range(steps):
            factor = min(1.0, (step + 1) / max(1, steps // 20)) * (
                0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
            )
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
    return {
        "error": found,
        "seconds": time.process_time() - began,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def measure(points: Points, *, steps: int, seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    """A row for every range of step sizes, initialisation, and whether it is trained."""
    rows = []
    for (dts_name, dts), (name, kernel), frozen in itertools.product(
        STEP_SIZES.items(), KERNELS.items(), (True, False)
    ):
        errors, seconds = [], 0.0
        for seed in seeds:
            trainings = []
            for rate in RATES[:1] if frozen else RATES:
                settings: dict[str, Any] = {"frozen": frozen, "rate": rate, "seed": seed, "steps": steps}
                show = f"{name}, {'frozen' if frozen else 'trained'}, {dts_name}, {rate:g}, seed {seed}"
                call = functools.partial(train, kernel, dts, show=show, **settings)
                trainings.append(points.get(TASK | {"kernel": kernel, "dts": dts} | settings, call))
                print(f"{show}: {trainings[-1]}", flush=True)
            errors.append(min(found["error"] for found in trainings))
            seconds += sum(found["seconds"] for found in trainings)
        rows.append(
            {
                "step sizes": dts_name,
                "first A, B": name,
                "A, B, step sizes": "frozen" if frozen else "trained",
                "median error": statistics.median(errors),
                "errors": ", ".join(f"{e:.4f}" for e in sorted(errors)),
                "parameters": trainings[0]["parameters"],
                "seconds": seconds,
            }
        )
    return rows


def main() -> None:
    """Train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/memory"), help="folder of what is finished")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of each training")
    parser.add_argument("--no-save", action="store_true", help="leave the results as they are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(Points(options.out / "points.jsonl"), steps=options.steps)
    title = f"Delay by {LAG} of {LENGTH} samples, {options.steps} steps of {BATCH} signals, {len(SEEDS)} seeds"
    _measure.show(title, rows)
    if not options.no_save:
        print(_measure.save("memory", rows, tables={title: rows}))


if __name__ == "__main__":
    main()
