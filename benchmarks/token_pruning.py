"""What a plain backbone loses, and gains in speed, when it drops tokens.

python -m benchmarks.token_pruning [accuracy | speed] [--quick]

``accuracy``: a small Vim and a small PlainMamba learn to tell eight photographs by their crops (`benchmarks/_crops.py`;
learnt and asked of separate pixels), which fill two fifths of the image amid faint noise (``--inside``). Then tokens are
dropped after three of six blocks, so many that 41.6 % of the operations are gone (multiply-adds, and nine for each state of
a scan), with states held or aging over the gaps: accuracy at once, and after fine-tuning. Beside them the backbone
fine-tuned as long, and tokens dropped at random. ``speed``: images a second of backbones and of their pruned forms at 1,024
tokens and more, taking turns, forward alone and with the backward pass. All times are of the processor, which are those of
the clock on a quiet machine with one thread. What was measured is kept in ``--out`` as it comes; a run that was killed goes
on there.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import statescan
from benchmarks import _crops, _measure
from benchmarks._points import Points
from statescan import inspect
from statescan.models.token_pruning import TokenPruning, prune_tokens

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vim": ("vim_micro", dict(depth=6)),
    "plainmamba": ("plainmamba_tiny", dict(depth=6, image_size=32, patch=4, conv_kernel=3)),
}
PLACES = (2, 3, 4)
#: Fewer operations than the backbone, as in the paper for PlainMamba-L3.
FEWER = 0.416
#: Models, and after which blocks their tokens are dropped.
SPEED = {"vim_tiny": (3, 9, 15), "plainmamba_l1": (3, 9, 15)}
WAYS = ("whole", "held", "aging", "aging, at random")


class RandomPruning(TokenPruning):
    """Drops any tokens, whatever they are worth."""

    def scores(self, block: int) -> Tensor:
        """Random numbers of the importance's shape."""
        return torch.rand_like(super().scores(block))


def prune(model: Any, places: tuple[int, ...], ratio: float, way: str) -> Any:
    """One of `WAYS`, of a copy of the model."""
    model = copy.deepcopy(model)
    if way == "whole":
        return model
    pruned = prune_tokens(model, places, ratio, alignment="hold" if way == "held" else "decay")
    return RandomPruning(pruned.config, model) if way.endswith("random") else pruned


def operations(model: nn.Module, size: int | None = None) -> int:
    """Of one image: multiply-adds, and those of scans."""
    cost = inspect.image_cost(copy.deepcopy(model).to("meta"), size=size)
    return cost.multiply_adds + cost.scan_operations


def ratio_for(model: Any, places: tuple[int, ...], size: int | None = None) -> float:
    """The part of the patches to be kept at each place so that the part `FEWER` of the operations is gone."""
    meta = copy.deepcopy(model).to("meta")
    wanted, low, high = (1 - FEWER) * operations(meta, size), 0.1, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        enough = operations(prune(meta, places, middle, "held"), size) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return round(high, 4)


def accuracy(kind: str, seed: int, steps: int, tuning: int, inside: int, points: Points) -> list[dict[str, Any]]:
    """A row for each way to prune a model that has learnt."""
    name, options = MODELS[kind]
    torch.manual_seed(seed)
    model = statescan.create_model(name, num_classes=len(_crops.PHOTOGRAPHS), **options)
    ratio = ratio_for(model, PLACES)
    setting = dict(kind=kind, seed=seed, steps=steps, tuning=tuning, ratio=ratio, inside=inside)
    kept = points.path.with_name(f"{points.path.stem}_{kind}_{seed}_{steps}_{inside}.pt")
    images, labels = _crops.crops(200, "train", seed, inside=inside)
    asked = _crops.crops(60, "test", 100, inside=inside)
    if not kept.exists():
        _crops.learn(model, images, labels, steps=steps, learning_rate=2e-3, seed=seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), kept)
    model.load_state_dict(torch.load(kept, weights_only=True))
    rows = []
    for way in WAYS:

        def measure(way: str = way) -> dict[str, Any]:
            other = prune(model, PLACES, ratio, way)
            torch.manual_seed(0)
            before = _crops.score(other, *asked)["accuracy"]
            _crops.learn(other, images, labels, steps=tuning, learning_rate=3e-4, seed=seed)
            torch.manual_seed(0)
            after = _crops.score(other, *asked)["accuracy"]
            fewer = 1 - operations(other) / operations(model)
            return {"fewer operations": fewer, "at once": before, "fine-tuned": after}

        found = points.get({**setting, "way": way}, measure)
        rows.append({"model": kind, "seed": seed, "kept at each place": ratio, "tokens": way, **found})
        print(rows[-1], flush=True)
    return rows


def speed(name: str, size: int, seconds: float, points: Points) -> dict[str, Any]:
    """Images a second of a backbone and of what is left of it."""
    torch.manual_seed(0)
    model = statescan.create_model(name, image_size=size).eval()
    ratio = ratio_for(model, SPEED[name], size)

    def measure() -> dict[str, Any]:
        ways = {way: prune(model, SPEED[name], ratio, way).eval() for way in ("whole", "held", "aging")}
        images = torch.randn(1, 3, size, size)

        def trained(one: Any) -> None:
            one.zero_grad()
            one(images).square().sum().backward()

        found: dict[str, Any] = {}
        with torch.no_grad():
            taken = _measure.milliseconds(
                {way: lambda one=one: one(images) for way, one in ways.items()},  # type: ignore[misc]
                seconds=seconds,
                least=3,
                clock=time.process_time,
            )
        found |= {f"{way}, images a second": 1e3 / value for way, value in taken.items()}
        both = _measure.milliseconds(
            {way: lambda one=one: trained(one) for way, one in ways.items()},  # type: ignore[misc]
            seconds=seconds,
            least=2,
            clock=time.process_time,
        )
        for way in ("held", "aging"):
            found[f"{way}, times as fast"] = taken["whole"] / taken[way]
        for way in ("held", "aging"):
            found[f"{way}, training"] = both["whole"] / both[way]
        found["fewer operations"] = 1 - operations(ways["held"], size) / operations(model, size)
        return found

    tokens = (size // model.config.patch) ** 2
    found = points.get({"speed": name, "size": size, "seconds": seconds, "threads": torch.get_num_threads()}, measure)
    return {"model": name, "pixels": size, "tokens": tokens, "kept at each place": ratio, **found}


def main() -> None:
    """Run what is asked for and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("accuracy", "speed"), help="one part alone")
    parser.add_argument(
        "--kinds", nargs="+", choices=list(MODELS), default=list(MODELS), help="backbones, for accuracy"
    )
    parser.add_argument("--steps", type=int, default=1000, help="to train a backbone")
    parser.add_argument("--tuning", type=int, default=250, help="steps to fine-tune each pruned form")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--inside", type=int, default=20, help="pixels a side of a crop, in images of 32")
    parser.add_argument("--models", nargs="+", choices=list(SPEED), default=list(SPEED), help="backbones, for speed")
    parser.add_argument("--seconds", type=float, default=20, help="of the processor, for each comparison of speed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 768], help="pixels a side, for speed")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/token_pruning/points.jsonl"), help="kept measurements")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.tuning, given.seeds, given.sizes, given.seconds = 12, 4, 1, [256], 1.0
    _measure.keep_freed_memory()
    points = Points(given.out)
    tables: dict[str, list[dict[str, Any]]] = {}
    if given.what in (None, "speed"):
        title = "Images a second on the processor, one at a time"
        tables[title] = [speed(name, size, given.seconds, points) for name in given.models for size in given.sizes]
        _measure.show(title, tables[title])
    if given.what in (None, "accuracy"):
        title = "Accuracy on other pixels of the photographs"
        tables[title] = []
        for kind in given.kinds:
            for seed in range(given.seeds):
                tables[title] += accuracy(kind, seed, given.steps, given.tuning, given.inside, points)
        _measure.show(title, tables[title])
    if not given.quick:
        name = "token_pruning" + (f"_{given.what}" if given.what else "")
        _measure.save(name, [row for table in tables.values() for row in table], tables=tables)


if __name__ == "__main__":
    main()
