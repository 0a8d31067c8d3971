"""Selective copying and induction heads: a Mamba beside the same layers made time-invariant, and beside S4D.

python -m benchmarks.synthetics --out runs/synthetics

trains six models of 2 layers of 64 channels, one after the other, draws their learning curves into
``docs/assets/synthetics.png`` and writes the figures to ``benchmarks/results/synthetics.json``. A seventh, which does not
stop when it has learnt induction heads, is tried at lengths far beyond those it was trained on. A run that was
interrupted goes on where it stood; runs that are finished are only read.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import statescan
from statescan.data import synthetic_task
from statescan.tasks import SyntheticTraining, train_synthetic
from statescan.tasks._picture import draw_curves
from statescan.tasks.synthetic import accuracy, with_length

ROOT = Path(__file__).parent.parent
TASKS = {"selective_copying": "selective copying", "induction_heads": "induction heads"}
#: What differs from the recipe of the task: the layers as they are, with constant step sizes, B and C, and another mixer.
MODELS: dict[str, dict[str, Any]] = {
    "Mamba": {},
    "time-invariant": {"set": ("selective=False",)},
    "S4D": {"mixer": "s4d"},
}
#: Lengths at which what was learnt at 256 is tried.
LENGTHS = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)


def run(task: str, name: str, out: Path, *, steps: int | None) -> dict[str, Any]:
    """Train one model, or read what a finished run left."""
    settings = SyntheticTraining(task=task, out=out, resume=True)
    changes = MODELS[name]
    settings = dataclasses.replace(settings, **(changes | {"set": settings.set + changes.get("set", ())}))
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps)
    result = train_synthetic(settings)
    with (out / "speed.csv").open() as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    model = statescan.load(out)
    return {
        "task": task,
        "model": name,
        "parameters": result.parameters,
        "steps": result.steps,
        "minutes": seconds / 60,
        # Fresh examples, unlike those of training and validation.
        "accuracy": accuracy(model, synthetic_task(task), examples=2048),
        "curve": curve(out),
    }


def curve(out: Path) -> tuple[list[int], list[float]]:
    """Validation accuracy by step."""
    with (out / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["validation_accuracy"]]
    return [int(row["step"]) for row in rows], [float(row["validation_accuracy"]) for row in rows]


def extrapolation(out: Path, *, steps: int) -> dict[int, float]:
    """Accuracy on induction heads at lengths that were never trained on."""
    never = 2.0
    train_synthetic(SyntheticTraining(task="induction_heads", out=out, steps=steps, stop_at=never, resume=True))
    model, task = statescan.load(out), synthetic_task("induction_heads")
    found = {}
    for length in LENGTHS:
        examples = max(8, min(512, (1 << 21) // length))
        found[length] = accuracy(model, with_length(task, length), examples=examples, batch_size=min(32, examples))
        print(f"length {length:>9,}: {found[length]:.3f} of {examples}", flush=True)
    return found


def main() -> None:
    """Train, measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/synthetics"), help="folder of the runs")
    parser.add_argument("--steps", type=int, help="optimiser steps at most, for a trial")
    options = parser.parse_args()
    rows = []
    for task in TASKS:
        for name in MODELS:
            rows.append(run(task, name, options.out / f"{task}-{name.lower()}", steps=options.steps))
            print(json.dumps({name: value for name, value in rows[-1].items() if name != "curve"}), flush=True)
    panels = {
        f"accuracy, {words}": {row["model"]: row["curve"] for row in rows if row["task"] == task}
        for task, words in TASKS.items()
    }
    picture = ROOT / "docs" / "assets" / "synthetics.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_curves(picture, panels)
    results = {
        "command": "python -m benchmarks.synthetics",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "runs": [{name: value for name, value in row.items() if name != "curve"} for row in rows],
        "induction_heads_by_length": extrapolation(options.out / "induction_heads-long", steps=options.steps or 4000),
    }
    target = ROOT / "benchmarks" / "results" / "synthetics.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n")
    print(f"picture: {picture}\nfigures: {target}")


if __name__ == "__main__":
    main()
