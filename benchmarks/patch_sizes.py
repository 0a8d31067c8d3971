"""Does the error fall with every halving of the patch, down to a pixel? Adventurer and ViT on crops of photographs.

python -m benchmarks.patch_sizes --out runs/patch_sizes

Images of 32 pixels are cut into patches of 16, 8, 4, 2 and 1 pixel, 4 to 1,024 tokens. Models of one width and depth learn
for equal steps, with the same batches and learning rate, to tell eight photographs by crops of 48 pixels
(`benchmarks/_crops.py`), and are asked crops of other pixels. ViT stops at patches of 2, unless ``--pixels`` has it go on:
attention to 1,024 tokens would be most of the time of the whole command.

The slope of log loss against log tokens, and how much of the loss it explains (R²), stand below the table. The picture goes
to ``docs/assets/patch_sizes.png``, figures to ``benchmarks/results/patch_sizes.json`` and ``.md``; trainings stay in
``OUT/points.jsonl``: a killed run goes on there. ``--quick`` shows it at work. Wang et al. 2025, "Scaling Laws in
Patchification" (arXiv 2502.03738).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import statescan
from benchmarks import _crops, _measure
from benchmarks._points import Points

ROOT = Path(__file__).parent.parent
STEPS, SEEDS, BATCH, RATE = 600, 3, 16, 2e-3
PATCHES = (16, 8, 4, 2, 1)
#: Of each photograph.
LEARNT, ASKED = 200, 60
_SHARED: dict[str, Any] = {"dim": 32, "depth": 4, "image_size": 32, "num_classes": len(_crops.PHOTOGRAPHS)}
#: A model of the registry, fields that differ, and its patches.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "Adventurer": ("adventurer_micro", {"flip": "alternate"}, PATCHES),
    "ViT": ("vit_micro", {}, PATCHES[:-1]),
}


def create(name: str, patch: int, *, seed: int = 0) -> Any:
    """A model with fresh weights."""
    torch.manual_seed(seed)
    model, fields, _ = MODELS[name]
    return statescan.create_model(model, patch=patch, **(_SHARED | fields))


def train(name: str, patch: int, *, seed: int, steps: int) -> dict[str, Any]:
    """Train one model and ask it."""
    model = create(name, patch, seed=seed)
    learnt, asked = _crops.crops(LEARNT, "train", seed), _crops.crops(ASKED, "test", 100)
    made = _crops.learn(model, *learnt, steps=steps, learning_rate=RATE, seed=seed, batch=BATCH)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "ms a step": 1e3 * made["seconds"] / made["steps"],
        "training loss": made["training_loss"],
    } | _crops.score(model, *asked)


def row(name: str, patch: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds."""
    mean = {key: statistics.mean(one[key] for one in found) for key in found[0]}
    tokens = (_SHARED["image_size"] // patch) ** 2
    spread = max(one["accuracy"] for one in found) - min(one["accuracy"] for one in found)
    return {
        "model": name,
        "patch": patch,
        "tokens": tokens,
        "parameters": int(mean["parameters"]),
        "ms a step": mean["ms a step"],
        "microseconds a token": 1e3 * mean["ms a step"] / (tokens * BATCH),
        "training loss": mean["training loss"],
        "loss": mean["loss"],
        "accuracy": mean["accuracy"],
        "between seeds": spread,
    }


def law(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Slope of log loss against log tokens, and R²."""
    x, y = (np.log([one[key] for one in rows]) for key in ("tokens", "loss"))
    slope, start = np.polyfit(x, y, 1)
    left = float(((y - slope * x - start) ** 2).sum())
    return float(slope), 1 - left / max(float(((y - y.mean()) ** 2).sum()), 1e-12)


def laws(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a model: the law, and whether the loss falls at every halving."""
    found = []
    for name in MODELS:
        own = sorted((one for one in rows if one["model"] == name), key=lambda one: one["tokens"])
        slope, explained = law(own)
        falls = [b["loss"] < a["loss"] for a, b in itertools.pairwise(own)]
        found.append(
            {
                "model": name,
                "slope": slope,
                "R²": explained,
                "halvings that lower the loss": f"{sum(falls)} of {len(falls)}",
            }
        )
    return found


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Loss, accuracy and time against the patch, small patches to the right."""
    from matplotlib.figure import Figure

    from statescan.tasks._picture import COLOURS

    figure = Figure(figsize=(11.5, 3.6), layout="constrained")
    places = figure.subplots(1, 3)
    for place, key in zip(places, ("loss", "accuracy", "microseconds a token"), strict=True):
        for colour, marker, name in zip(COLOURS, "os", MODELS, strict=False):
            own = [one for one in rows if one["model"] == name]
            place.plot(
                [one["patch"] for one in own],
                [one[key] for one in own],
                marker,
                linestyle="-",
                color=colour,
                label=name,
            )
        place.set_xscale("log", base=2)
        place.set_xticks(PATCHES, [f"{patch}" for patch in PATCHES])
        place.invert_xaxis()
        place.set_xlabel("side of a patch, pixels")
        place.set_ylabel(f"{key} on other pixels" if key != "microseconds a token" else f"{key} of a training step")
        place.grid(alpha=0.25)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    for place in (places[0], places[2]):
        place.set_yscale("log")
        place.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        place.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    places[1].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/patch_sizes"), help="folder of what is finished")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of each model")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--pixels", action="store_true", help="ViT with patches of one pixel too")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see it at work; nothing is written")
    options = parser.parse_args()
    steps, seeds = (2, 1) if options.quick else (options.steps, options.seeds)
    torch.set_num_threads(1)
    _measure.keep_freed_memory()
    points = Points(options.out / "points.jsonl")
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed, name in itertools.product(range(seeds), MODELS):
        model, fields, patches = MODELS[name]
        for patch in PATCHES if options.pixels else patches:
            setting = {"seed": seed, "steps": steps}
            point = _SHARED | {"model": model, "fields": fields, "patch": patch, "rate": RATE, "batch": BATCH} | setting
            made = points.get(point, functools.partial(train, name, patch, **setting))
            found.setdefault((name, patch), []).append(made)
            print(f"{name}, patch {patch}, seed {seed}: {made}", flush=True)
    rows = [row(*which, made) for which, made in sorted(found.items(), key=lambda entry: (entry[0][0], -entry[0][1]))]
    title = f"{steps} steps of {BATCH} crops of 32 pixels, seeds: {seeds}, chance 0.125"
    both = {title: rows, "Loss ~ tokens ^ slope": laws(rows)}
    for name, table in both.items():
        _measure.show(name, table)
    if not options.quick:
        picture = ROOT / "docs" / "assets" / "patch_sizes.png"
        draw(picture, rows)
        print(picture, _measure.save("patch_sizes", rows, tables=both))


if __name__ == "__main__":
    main()
