"""State tracking: parity and sums modulo p, learnt at lengths up to 32, tried at 64: Mamba-3 against Mamba-2 and Mamba.

python -m benchmarks.state_tracking --out runs/state_tracking

Models of 1 layer (more with --depth) of 32 channels without MLPs learn to say the state after every token; batches have one
random length each. All see the same batches, at several learning rates; the best one at length 32 counts. Accuracies are
over all tokens, and over the last token of each sequence, the hardest. Training stops at a budget of processor time.

Figures go to ``benchmarks/results/state_tracking.json`` and ``.md``. Finished trainings are kept in ``OUT/points.jsonl``: a
killed run goes on there. ``--quick`` shows within a minute that it works. Lahoti et al. 2026 (arXiv 2603.15569), section on
state tracking.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import statescan
from benchmarks import _measure
from benchmarks._points import Points
from statescan.data import batch_seed, synthetic_task
from statescan.generation import progress_bar

DIM, BATCH, LONGEST = 32, 64, 32
LENGTHS = (32, 64, 128)
TASKS: dict[str, tuple[str, dict[str, int]]] = {
    "parity": ("parity", {}),
    "sum mod 3": ("modular_sum", {"modulus": 3}),
    "sum mod 5": ("modular_sum", {"modulus": 5}),
}
#: Mixers and their options; states have the same size.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mamba": ("mamba", {"state_dim": 16}),
    "Mamba-2": ("mamba2", {"state_dim": 16, "head_dim": 16}),
    "Mamba-3, half turns": ("mamba3", {"state_dim": 16, "head_dim": 16, "rope_fraction": 0.5}),
    "Mamba-3, all turns": ("mamba3", {"state_dim": 16, "head_dim": 16, "rope_fraction": 1.0}),
    "Mamba-3, rank 2": ("mamba3", {"state_dim": 16, "head_dim": 16, "rope_fraction": 1.0, "mimo_rank": 2}),
}


def create(name: str, vocabulary: int, depth: int, seed: int) -> Any:
    """A model with fresh weights."""
    mixer, options = MODELS[name]
    torch.manual_seed(seed)
    return statescan.create_model(
        "hybrid_tiny", dim=DIM, depth=depth, vocab_size=vocabulary, layout=(mixer,), mixers={mixer: options}
    )


def task_of(name: str, length: int) -> Any:
    """The task at a length."""
    kind, options = TASKS[name]
    return synthetic_task(kind, options | {"length": length})


@torch.inference_mode()
def accuracies(model: Any, task: str, length: int, *, examples: int, stream: str) -> tuple[float, float]:
    """Of all tokens, and of the last of each sequence."""
    batch = task_of(task, length).batch(examples, seed=batch_seed(0, stream, length))
    right = (model(batch.tokens)[0].argmax(-1) == batch.targets).double()
    return float(right.mean()), float(right[:, -1].mean())


def train(
    model: Any, task: str, rate: float, *, steps: int, minutes: float, checks: int = 4, seed: int, show: str = ""
) -> dict[str, Any]:
    """Train one model until so many checks in a row are right; batch n of a seed is the same for all."""
    optimiser = torch.optim.AdamW(model.parameter_groups(0.0), lr=rate, betas=(0.9, 0.95))
    warmup = max(1, steps // 20)
    began, step, solved = time.process_time(), 0, 0
    with progress_bar(show, steps, unit="steps", shown=bool(show)) as advance:
        for step in range(1, steps + 1):
            factor = min(1.0, step / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            number = batch_seed(seed, "train", step)
            length = int(np.random.default_rng(number).integers(2, LONGEST + 1)) if step % 4 else LONGEST
            batch = task_of(task, length).batch(BATCH, seed=number)
            loss = F.cross_entropy(model(batch.tokens)[0].flatten(0, 1), batch.targets.flatten())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            advance(1)
            if step % 50 == 0:
                right = accuracies(model, task, LONGEST, examples=64, stream="validation")[0] == 1.0
                solved = solved + 1 if right else 0
                if solved == checks or time.process_time() - began > 60 * minutes:
                    break
    found = {
        str(length): accuracies(model, task, length, examples=512, stream="test") for length in (LONGEST, *LENGTHS[1:])
    }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "seconds": round(time.process_time() - began, 1),
        "accuracy": found,
    }


def row(task: str, model: str, found: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """The best learning rate's figures."""
    rate = max(found, key=lambda r: found[r]["accuracy"][str(LONGEST)][0])
    best = found[rate]
    cells = {
        f"{'last' if part else 'all'} at {length}": round(best["accuracy"][str(length)][part], 3)
        for length in LENGTHS
        for part in (0, 1)
    }
    kept = {"parameters": best["parameters"], "rate": rate, "steps": best["steps"], "seconds": best["seconds"]}
    return {"task": task, "model": model} | kept | cells


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/state_tracking"), help="folder of what is finished")
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=list(TASKS), help="only these")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS), help="only these")
    parser.add_argument("--rates", type=float, nargs="+", default=(3e-3, 1e-2), help="learning rates")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps at most")
    parser.add_argument("--minutes", type=float, default=3.0, help="processor time of a training at most")
    parser.add_argument("--checks", type=int, default=4, help="stop when so many checks in a row are right")
    parser.add_argument("--depth", type=int, default=1, help="layers")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--quick", action="store_true", help="a few steps of two models on parity, nothing saved")
    parser.add_argument("--no-save", action="store_true", help="leave the results as they are")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.models, options.steps = ["parity"], ["Mamba-2", "Mamba-3, all turns"], 60
        options.rates, options.no_save = (1e-2,), True
    torch.set_num_threads(1)
    points = Points(options.out / "points.jsonl")
    trainings: dict[tuple[str, str], dict[float, dict[str, Any]]] = {}
    for task, name, rate in itertools.product(options.tasks, options.models, options.rates):
        show = f"{task}, {name}, {rate:g}"
        vocabulary = task_of(task, LONGEST).vocab_size

        def measure(task: str = task, name: str = name, rate: float = rate, v: int = vocabulary) -> dict[str, Any]:
            model = create(name, v, options.depth, options.seed)
            limits = {
                "steps": options.steps,
                "minutes": options.minutes,
                "checks": options.checks,
                "seed": options.seed,
            }
            return train(model, task, rate, **limits, show=f"{task}, {name}, {rate:g}")

        point = {"task": task, "model": MODELS[name], "rate": rate, "depth": options.depth, "seed": options.seed}
        found = points.get(
            point | {"steps": options.steps, "minutes": options.minutes, "checks": options.checks}, measure
        )
        trainings.setdefault((task, name), {})[rate] = found
        print(f"{show}: {found}", flush=True)
    rows = [row(*which, found) for which, found in trainings.items()]
    title = f"State after every token, learnt up to length {LONGEST}, {options.depth} layer(s) of {DIM} channels"
    _measure.show(title, rows)
    if not options.no_save:
        print(_measure.save("state_tracking", rows, tables={title: rows}))


if __name__ == "__main__":
    main()
