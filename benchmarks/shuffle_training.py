"""Does the stochastic layer-wise shuffle close the gap between what a model has learnt and what it is asked?

python -m benchmarks.shuffle_training [--quick]

A small Vim learns from few crops of eight photographs, often enough to know them by heart, and is tried on crops of other
pixels (`benchmarks/_crops.py`): without the shuffle, with probabilities that rise with depth to 0.5, and with 0.25 in all
blocks, which are as many shuffles. Loss and accuracy in evaluation on what was learnt and on what is asked, and the seconds
of the processor that a step took; several seeds. What was measured is kept in ``--out`` as it comes; a run that was killed
goes on there.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any, Literal

import torch

import statescan
from benchmarks import _crops, _measure
from benchmarks._points import Points
from statescan.models.shuffle_mamba import shuffle_layers

#: Names, probability and schedule.
WAYS: dict[str, tuple[float, Literal["linear", "constant"]]] = {
    "none": (0.0, "linear"),
    "rising to 0.5": (0.5, "linear"),
    "0.25 everywhere": (0.25, "constant"),
}
#: Of each photograph.
LEARNT, ASKED = 24, 100


def train(way: str, seed: int, steps: int, depth: int) -> dict[str, Any]:
    """One model."""
    torch.manual_seed(seed)
    model = statescan.create_model("vim_micro", depth=depth, num_classes=len(_crops.PHOTOGRAPHS))
    shuffle_layers(model, WAYS[way][0], schedule=WAYS[way][1])
    learnt, asked = _crops.crops(LEARNT, "train", seed), _crops.crops(ASKED, "test", 100)
    made = _crops.learn(model, *learnt, steps=steps, learning_rate=2e-3, seed=seed)
    found = {"seconds a step": made["seconds"] / made["steps"], "loss while learning": made["training_loss"]}
    for part, images in (("learnt", learnt), ("asked", asked)):
        found |= {f"{key}, {part}": value for key, value in _crops.score(model, *images).items()}
    return found


def main() -> None:
    """Run, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/shuffle_training.jsonl"), help="kept measurements")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.seeds, given.depth = 12, 1, 2
    _measure.keep_freed_memory()
    points = Points(given.out)
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for way in WAYS:
            point = {"way": way, "seed": seed, "steps": given.steps, "depth": given.depth, "learnt": LEARNT}
            found = points.get(point, lambda way=way, seed=seed: train(way, seed, given.steps, given.depth))  # type: ignore[misc]
            rows.append({"shuffle": way, "seed": seed, **found})
            print(rows[-1], flush=True)
    means = [_mean(way, [row for row in rows if row["shuffle"] == way]) for way in WAYS]
    title = f"Mean of {given.seeds} seeds, {given.steps} steps"
    _measure.show(title, means)
    if not given.quick:
        _measure.save("shuffle_training", rows, tables={title: means, "Each seed": rows})


def _mean(way: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = [key for key in rows[0] if key not in ("shuffle", "seed")]
    mean = {key: statistics.mean(row[key] for row in rows) for key in keys}
    return {"shuffle": way, **mean, "gap in accuracy": mean["accuracy, learnt"] - mean["accuracy, asked"]}


if __name__ == "__main__":
    main()
