"""Early exits on a CPU: how many blocks they save at which agreement with the whole model, by kind of exit and backbone.

python -m benchmarks.early_exit --out runs/early_exit

A language model of 12 blocks learns generated text in which easy stretches (counting on from a number) and hard ones
(looking a number up in a table of pairs) follow each other, `--seconds` of processor time a backbone. Then exits of every
kind are taught by it, `--exit-seconds` each, thresholds are measured on one set of sequences, and the one that saves most at
an agreement of `--quality` is tried on another. All steps are decoded with the states that exits leave behind.

One thread, processor time. Models and finished figures are kept in OUT: a killed run goes on there; OUT/exits.png shows the
curves. Nogales, Gambella and Roveri 2025, "DYNAMAX", arXiv 2504.20922. --quick shows in some minutes that it works.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import statescan
from benchmarks import _bible, _measure
from benchmarks._points import Points
from statescan.generation import EarlyExit, ExitConfig, ExitPoint, calibrate_exits, measure_exits
from statescan.generation._exit_heads import KINDS
from statescan.tasks import distil_exits, draw_exits

NUMBERS, KEYS = 32, 8
COUNT_MARK, LOOK_UP_MARK = NUMBERS, NUMBERS + 1
VOCABULARY = NUMBERS + 2
BACKBONES: dict[str, dict[str, Any]] = {
    "Mamba": dict(name="mamba_tiny", state_dim=8),
    "attention": dict(name="transformer_tiny", mlp_dim=128, attention=dict(heads=4, rotary_dim=16)),
}


def mixture(count: int, length: int, *, seed: int, hard: float = 0.3) -> Tensor:
    """Sequences (count, length): of stretches, this share looks a number up, the others count."""
    table = torch.randint(NUMBERS, (KEYS, KEYS), generator=torch.Generator().manual_seed(0))
    source = torch.Generator().manual_seed(seed + 1)
    rows = []
    for _ in range(count):
        row: list[int] = []
        while len(row) < length:
            if float(torch.rand((), generator=source)) < hard:
                first, second = torch.randint(KEYS, (2,), generator=source).tolist()
                row += [LOOK_UP_MARK, first, second, int(table[first, second])]
            else:
                start = int(torch.randint(NUMBERS, (), generator=source))
                row += [COUNT_MARK, *((start + step) % NUMBERS for step in range(7))]
        rows.append(row[:length])
    return torch.tensor(rows)


def next_loss(model: Any, step: int, *, batch: int, length: int) -> Tensor:
    """Mean negative log-likelihood of a token."""
    rows = mixture(batch, length + 1, seed=step)
    logits, _ = model(rows[:, :-1], return_state=False)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def exit_loss(model: EarlyExit, step: int, *, batch: int, length: int) -> Tensor:
    """Mean loss of the exits against the whole model."""
    rows = mixture(batch, length, seed=step)
    loss, _, _ = distil_exits(3)(model, {"tokens": rows, "targets": rows, "resets": None}, None)
    return loss / rows.numel()


def create(fields: dict[str, Any], *, dim: int, depth: int) -> Any:
    """A model with fresh weights."""
    fields = dict(fields)
    return statescan.create_model(fields.pop("name"), **fields, dim=dim, depth=depth, vocab_size=VOCABULARY)


def curve(
    model: Any,
    kind: Any,
    *,
    layers: tuple[int, ...],
    skipped_states: Any,
    seconds: float,
    quality: float,
    sequences: int,
    length: int,
) -> dict[str, Any]:
    """Train exits of a kind; the points of the trade, and what the chosen threshold gives on other sequences."""
    torch.manual_seed(0)
    made = EarlyExit(model.requires_grad_(False), ExitConfig(layers=layers, kind=kind, skipped_states=skipped_states))
    loss = functools.partial(exit_loss, batch=8, length=length)
    found = _bible.train(made, loss, seconds=seconds, rate=2e-3, show=kind)
    parameters = sum(parameter.numel() for parameter in made.heads.parameters())
    chosen, test = mixture(sequences, length, seed=-2), mixture(sequences, length, seed=-3)
    best, points = calibrate_exits(made, list(chosen), quality=quality, prompt=8)
    tried = measure_exits(made, list(test), prompt=8)
    return {
        "points": [dataclasses.asdict(point) for point in points],
        "threshold": best.thresholds[0],
        "test": dataclasses.asdict(tried),
        "parameters": parameters,
        "steps": found["steps"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/early_exit"), help="folder of what is finished")
    parser.add_argument("--seconds", type=float, default=900, help="processor time of a backbone's training")
    parser.add_argument("--exit-seconds", type=float, default=120, help="processor time of the training of exits")
    parser.add_argument("--quality", type=float, default=0.98, help="agreement with the whole model that is wanted")
    parser.add_argument("--sequences", type=int, default=64, help="to choose thresholds with, and as many to test")
    parser.add_argument("--length", type=int, default=96, help="tokens of a sequence")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="seconds of everything, results not saved")
    options = parser.parse_args()
    if options.quick:
        options.out = options.out / "quick"
        options.seconds, options.exit_seconds = min(options.seconds, 5), min(options.exit_seconds, 2)
        options.sequences, options.length, options.depth = 4, 32, 4
    torch.set_num_threads(1)
    depth = options.depth
    layers = tuple(sorted({depth // 3, depth // 2, 2 * depth // 3, 5 * depth // 6}))
    points = Points(options.out / "points.jsonl")
    rows, curves = [], {}
    for name, fields in BACKBONES.items():
        shape = dict(dim=options.dim, depth=depth)
        folder = options.out / f"{name.lower()}_{options.dim}_{depth}_{options.seconds:g}"
        loss = functools.partial(next_loss, batch=8, length=options.length)
        model = _bible.trained(folder, functools.partial(create, fields, **shape), loss, seconds=options.seconds)
        for skipped_states in ("propagate", "skip"):
            for kind in KINDS:
                settings: dict[str, Any] = dict(
                    layers=layers,
                    skipped_states=skipped_states,
                    seconds=options.exit_seconds,
                    quality=options.quality,
                    sequences=options.sequences,
                    length=options.length,
                )
                point = {"backbone": name, "fields": fields, "trained": options.seconds, "kind": kind} | shape
                found = points.get(point | settings, functools.partial(curve, model, kind, **settings))
                if skipped_states == "propagate":
                    curves[f"{name}, {kind}"] = [ExitPoint(**entry) for entry in found["points"]]
                rows.append(
                    {
                        "backbone": name,
                        "states": skipped_states,
                        "exits": kind,
                        "parameters": found["parameters"],
                        "threshold": found["threshold"],
                        "agreement": f"{found['test']['agreement']:.2%}",
                        "blocks saved": f"{found['test']['saved']:.1%}",
                        "tokens": found["test"]["tokens"],
                    }
                )
    places = ", ".join(map(str, layers))
    title = f"{depth} blocks, exits after {places}; thresholds for {options.quality:.0%}, other sequences"
    _measure.show(title, rows)
    print(draw_exits(options.out / "exits.png", curves, quality=options.quality))
    if not options.quick:
        print(_measure.save("early_exit", rows, tables={title: rows}))


if __name__ == "__main__":
    main()
