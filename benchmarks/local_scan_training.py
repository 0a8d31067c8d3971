"""A scan that looks ahead within windows against a scan in both directions, trained: LBVim and Vim on crops of photographs.

python -m benchmarks.local_scan_training --out runs/local_scan_training

Backbones of one kind (patches of 4 in images of 32 pixels, so 64 tokens; positions, no class token, the mean of all tokens
is read) learn for equal steps to tell eight photographs by crops of 48 pixels (`benchmarks/_crops.py`) and are asked crops
of other pixels:

- both directions: Vim's mixer, two whole scans of every layer.
- one direction: one scan, the order of the tokens turned after every layer.
- local: the same with LBMamba's scan, which looks ahead within its window.
- local, wider: LBVim with channels for about the time of Vim, the paper's comparison.

Beside accuracy stands the processor time of a step and the images a second in evaluation, models in turns on one thread.
Means over seeds, with the deviation of a seed. The picture goes to ``docs/assets/local_scan_training.png``, figures to
``benchmarks/results/local_scan_training.json`` and ``.md``; trainings stay in ``OUT/points.jsonl``: a killed run goes on
there. ``--quick`` shows it at work. Zhang et al. 2025, "LBMamba" (arXiv 2506.15976).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import statescan
from benchmarks import _crops, _measure
from benchmarks._points import Points

ROOT = Path(__file__).parent.parent
STEPS, SEEDS, BATCH, RATE = 500, 4, 32, 2e-3
#: Of each photograph.
LEARNT, ASKED = 200, 100
_SHARED: dict[str, Any] = {"num_classes": len(_crops.PHOTOGRAPHS), "class_token": None, "pool": "mean"}
#: A model of the registry and fields that differ.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "both directions": ("vim_micro", {}),
    "one direction": ("lbvim_micro", {"window": 1}),
    "local": ("lbvim_micro", {"window": 8}),
    "local, wider": ("lbvim_micro", {"window": 8, "dim": 88}),
}


def create(name: str, *, seed: int = 0) -> Any:
    """A model of the table with fresh weights."""
    torch.manual_seed(seed)
    model, fields = MODELS[name]
    return statescan.create_model(model, **(_SHARED | fields))


def train(name: str, *, seed: int, steps: int) -> dict[str, Any]:
    """Train one model and ask it."""
    model = create(name, seed=seed)
    learnt, asked = _crops.crops(LEARNT, "train", seed), _crops.crops(ASKED, "test", 100)
    made = _crops.learn(model, *learnt, steps=steps, learning_rate=RATE, seed=seed, batch=BATCH)
    return {"seconds a step": made["seconds"] / made["steps"], "training loss": made["training_loss"]} | _crops.score(
        model, *asked
    )


def speeds(seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time of a training step and of an evaluation of a batch, in turns."""
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(len(_crops.PHOTOGRAPHS), (BATCH,))
    models = {name: create(name) for name in MODELS}

    def step(model: Any) -> None:
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad()

    @torch.inference_mode()
    def evaluate(model: Any) -> None:
        model(images)

    def timed(call: Callable[[Any], None]) -> dict[str, float]:
        calls = {name: functools.partial(call, model) for name, model in models.items()}
        return _measure.milliseconds(calls, seconds=seconds, clock=time.process_time)

    steps = timed(step)
    for model in models.values():
        model.eval()
    passes = timed(evaluate)
    return {name: {"step": steps[name], "evaluation": passes[name]} for name in MODELS}


def row(name: str, found: list[dict[str, Any]], speed: dict[str, float]) -> dict[str, Any]:
    """Means over seeds."""

    def deviation(what: str) -> float:
        values = [one[what] for one in found]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    return {
        "model": name,
        "channels": create(name).config.dim,
        "parameters": sum(p.numel() for p in create(name).parameters()),
        "ms a step": speed["step"],
        "images a second": 1e3 * BATCH / speed["evaluation"],
        "accuracy": statistics.mean(one["accuracy"] for one in found),
        "± a seed": deviation("accuracy"),
        "loss": statistics.mean(one["loss"] for one in found),
        "± loss": deviation("loss"),
        "training loss": statistics.mean(one["training loss"] for one in found),
    }


def draw(path: Path, rows: list[dict[str, Any]], seeds: int) -> None:
    """Accuracy against time: mean and standard error."""
    from matplotlib.figure import Figure

    from statescan.tasks._picture import COLOURS

    figure = Figure(figsize=(8.8, 3.7), layout="constrained")
    places = figure.subplots(1, 2, sharey=True)
    for colour, one in zip(COLOURS, rows, strict=False):
        for place, key in zip(places, ("ms a step", "images a second"), strict=True):
            error = one["± a seed"] / seeds**0.5
            place.errorbar(one[key], one["accuracy"], error, fmt="o", capsize=3, color=colour, label=one["model"])
    places[0].set_xlabel("milliseconds of a training step")
    places[1].set_xlabel("images a second")
    places[0].set_ylabel("accuracy on other pixels")
    places[0].legend(frameon=False, fontsize=8)
    for place in places:
        place.grid(alpha=0.25)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train, time, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/local_scan_training"), help="folder of what is finished")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of each model")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see it at work; nothing is written")
    options = parser.parse_args()
    steps, seeds = (4, 1) if options.quick else (options.steps, options.seeds)
    torch.set_num_threads(1)
    _measure.keep_freed_memory()
    points = Points(options.out / "points.jsonl")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in MODELS}
    for seed, name in itertools.product(range(seeds), MODELS):
        setting = {"seed": seed, "steps": steps}
        point = {"model": MODELS[name], "learnt": LEARNT, "asked": ASKED, "rate": RATE, "batch": BATCH} | setting
        found[name].append(points.get(point, functools.partial(train, name, **setting)))
        print(f"{name}, seed {seed}: {found[name][-1]}", flush=True)
    speed = speeds(0.5 if options.quick else 15.0)
    rows = [row(name, found[name], speed[name]) for name in MODELS]
    title = (
        f"{steps} steps of {BATCH} crops, seeds: {seeds}, {ASKED * len(_crops.PHOTOGRAPHS)} crops asked, chance 0.125"
    )
    _measure.show(title, rows)
    if not options.quick:
        picture = ROOT / "docs" / "assets" / "local_scan_training.png"
        draw(picture, rows, seeds)
        print(picture, _measure.save("local_scan_training", {"rows": rows, "seeds": found}, tables={title: rows}))


if __name__ == "__main__":
    main()
