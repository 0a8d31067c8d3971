"""Recall against the bytes of the state: multi-query associative recall (MQAR) as published, mixers of many sizes.

python -m benchmarks.recall --out runs/recall

trains models of 2 layers of 64 channels, without MLPs, on sequences of 32 tokens with 2, 4 and 8 keys and of 64 with 16, in
turns, and asks how many values are right. Every size of every mixer is trained with the same learning rates for the same
number of steps (fewer, if it answers everything before); the best rate counts. Attention, sliding windows and Based stand
after a gated short convolution, as published; the others are both layers.
Bytes are those of `State.nbytes` for one sequence after its last token, so attention's are those of its cache.

The picture goes to ``docs/assets/recall.png``, figures to ``benchmarks/results/recall.json`` and ``.md``. Finished trainings
are kept in ``OUT/points.jsonl``: a killed run goes on there. Several may share the folder, each with families of its own.
Arora et al. 2023 (arXiv 2312.04927) and 2024 (arXiv 2402.18668).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import statescan
from benchmarks import _measure
from benchmarks._points import Points
from statescan.data import IGNORED, batch_seed, synthetic_task
from statescan.generation import progress_bar

ROOT = Path(__file__).parent.parent
RATES = (3e-3, 1e-2, 1e-3)
STEPS, BATCH, DIM, VOCAB = 1000, 32, 64, 96
#: Length and keys of what is learnt, in turns, and asked for in the end.
TASKS = ((32, 2), (32, 4), (32, 8), (64, 16))
#: The learning rate is chosen by the accuracy on the last, and the bytes are those of its length.
HARDEST = TASKS[-1]


#: What no option changes.
SETTING = {"dim": DIM, "vocabulary": VOCAB, "batch": BATCH, "tasks": TASKS}


def _after_conv(name: str, **options: Any) -> dict[str, Any]:
    return {"layout": ("base_conv", name), "mixers": {name: options}}


def _both(name: str, **options: Any) -> dict[str, Any]:
    return {"layout": (name,), "mixers": {name: options}}


#: Fields of the free layout, by family and size.
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "attention": {
        f"head {size}": {
            "layout": ("base_conv", "attention"),
            "attention": {"heads": 1, "head_dim": size, "rotary_dim": 0},
        }
        for size in (4, 16, 64)
    },
    "sliding attention": {f"window {size}": _after_conv("sliding_attention", heads=1, window=size) for size in (4, 16)},
    "Based": {f"features {size}": _after_conv("based", heads=1, feature_dim=size) for size in (2, 4, 8, 16)},
    "Mamba": {f"N {size}": _both("mamba", state_dim=size) for size in (1, 4, 16)},
    "H3": {
        f"N {size}, head {head}": _both("h3", state_dim=size, head_dim=head)
        for size, head in ((4, 1), (16, 1), (16, 2))
    },
    "S4D": {f"N {size}": _both("s4d", state_dim=size) for size in (4, 64)},
}


def create(fields: dict[str, Any], *, seed: int = 0) -> Any:
    """The model of these fields, with fresh weights."""
    torch.manual_seed(seed)
    return statescan.create_model("hybrid_tiny", **({"dim": DIM, "depth": 2, "vocab_size": VOCAB} | fields))


def task(length: int, pairs: int) -> Any:
    """MQAR of this size."""
    return synthetic_task("mqar", {"length": length, "pairs": pairs, "vocab_size": VOCAB})


@torch.inference_mode()
def accuracy(model: Any, length: int, pairs: int, *, examples: int, stream: str) -> float:
    """Fraction of values that are right, on fresh sequences."""
    batch = task(length, pairs).batch(examples, seed=batch_seed(0, stream, pairs))
    wanted = batch.targets != IGNORED
    logits, _ = model(batch.tokens)
    return float((logits.argmax(-1) == batch.targets)[wanted].double().mean())


@torch.inference_mode()
def state_bytes(model: Any, length: int) -> int:
    """Bytes that the model remembers one sequence of this length by."""
    return model(torch.zeros(1, length, dtype=torch.int64))[1].nbytes


def train(fields: dict[str, Any], rate: float, *, steps: int, show: str = "") -> dict[str, Any]:
    """Train one model; batch n is the same for all."""
    model = create(fields)
    optimiser = torch.optim.AdamW(model.parameter_groups(0.0), lr=rate, betas=(0.9, 0.95))
    warmup = max(1, steps // 10)
    tasks = [task(*size) for size in TASKS]
    began, step, seen = time.process_time(), 0, 0.0
    with progress_bar(show, steps, unit="steps", shown=bool(show)) as advance:
        for step in range(1, steps + 1):
            factor = min(1.0, step / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            batch = tasks[step % len(tasks)].batch(BATCH, seed=batch_seed(0, "train", step))
            logits, _ = model(batch.tokens)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            advance(1)
            if step % 100 == 0:
                seen = accuracy(model, *HARDEST, examples=64, stream="validation")
                if seen > 0.999:
                    break
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": state_bytes(model, HARDEST[0]),
        "steps": step,
        "seconds": time.process_time() - began,
        "accuracy": {
            str(pairs): accuracy(model, length, pairs, examples=256, stream="test") for length, pairs in TASKS
        },
    }


def best(trainings: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """The training at the best rate, and that rate."""
    rate = max(trainings, key=lambda r: trainings[r]["accuracy"][str(HARDEST[1])])
    return {"rate": rate} | trainings[rate]


def row(family: str, size: str, found: dict[str, Any]) -> dict[str, Any]:
    """What stands in the table."""
    return {
        "family": family,
        "size": size,
        "parameters": found["parameters"],
        "state bytes": found["bytes"],
        "learning rate": f"{found['rate']:g}",
        "steps": found["steps"],
        "seconds": found["seconds"],
    } | {f"{pairs} keys": round(found["accuracy"][str(pairs)], 4) for _, pairs in TASKS}


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Accuracy against bytes, a curve a family."""
    from matplotlib.figure import Figure

    from statescan.tasks._picture import COLOURS

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    for place, (length, pairs) in zip(figure.subplots(1, 2, sharey=True), TASKS[-2:], strict=True):
        for colour, marker, family in zip(COLOURS, "osD^vP", FAMILIES, strict=True):
            points = sorted((row["state bytes"], row[f"{pairs} keys"]) for row in rows if row["family"] == family)
            if points:
                x, y = zip(*points, strict=True)
                place.plot(x, y, color=colour, marker=marker, label=family, linewidth=1.6, markersize=5)
        place.set_xscale("log", base=2)
        place.set_xlabel(f"KiB of state after {HARDEST[0]} tokens")
        place.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}")
        place.set_title(f"{pairs} keys in {length} tokens", fontsize=10)
        place.grid(alpha=0.25)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    figure.axes[0].set_ylabel("fraction of values recalled")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/recall"), help="folder of what is finished")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps at most")
    parser.add_argument("--families", choices=FAMILIES, nargs="+", default=list(FAMILIES), help="measure only these")
    parser.add_argument("--sizes", nargs="+", help="measure only these, of every family")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates")
    parser.add_argument("--no-save", action="store_true", help="leave results and picture as they are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    points = Points(options.out / "points.jsonl")
    trainings: dict[tuple[str, str], dict[float, dict[str, Any]]] = {}
    for rate, family in itertools.product(options.rates, options.families):
        for size, fields in FAMILIES[family].items():
            if options.sizes and size not in options.sizes:
                continue
            show = f"{family}, {size}, {rate:g}"
            call = functools.partial(train, fields, rate, steps=options.steps, show=show)
            found = points.get(SETTING | {"fields": fields, "rate": rate, "steps": options.steps}, call)
            trainings.setdefault((family, size), {})[rate] = found
            print(f"{show}: {found}", flush=True)
    rows = [row(*which, best(found)) for which, found in trainings.items()]
    title = f"MQAR, at most {options.steps} steps of {BATCH} sequences, best of {len(options.rates)} learning rates"
    _measure.show(title, rows)
    if not options.no_save:
        picture = ROOT / "docs" / "assets" / "recall.png"
        draw(picture, rows)
        print(picture, _measure.save("recall", rows, tables={title: rows}))


if __name__ == "__main__":
    main()
