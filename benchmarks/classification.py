"""Classifiers of equal size, trained for equally long, on whole sequences.

python -m benchmarks.classification digits    # real handwritten digits, read pixel by pixel; 2 minutes a model
python -m benchmarks.classification listops   # expressions of 50 to 256 tokens; 15 minutes a model

Each model's width is chosen so that it has as many parameters as the first, and its steps so that they fill the time: a few
are timed first. The learning rate is the best of three after a tenth of the time. Curves go to
``docs/assets/classification_TASK.png``, figures to ``benchmarks/results/classification_TASK.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import statescan
from benchmarks import _measure
from statescan import inspect
from statescan.tasks import SequenceTraining, train_sequence
from statescan.tasks._picture import draw_curves

ROOT = Path(__file__).parent.parent
RATES = (1e-3, 3e-3, 1e-2)


@dataclasses.dataclass(frozen=True)
class Task:
    """What to learn from, how long, and the models: a name and the fields that make it, all but the width."""

    data: str
    minutes: float
    models: dict[str, dict[str, Any]]
    fields: dict[str, Any]
    dim: int


_DEEP = dict(norm="layer", prenorm=True)
TASKS = {
    "digits": Task(
        "digits",
        2,
        {
            "S4": dict(model="s4_tiny", depth=2, bidirectional=False, **_DEEP),
            "S4D": dict(model="s4d_tiny", depth=2, bidirectional=False, **_DEEP),
            "LSTM": dict(model="classifier_tiny", mixer="lstm", depth=2, **_DEEP),
        },
        dict(classes=10, input_dim=1),
        64,
    ),
    "listops": Task(
        "listops",
        15,
        {
            "S4D": dict(model="s4d_tiny", depth=4, bidirectional=True, state_dim=64, **_DEEP),
            "LSTM": dict(model="classifier_tiny", mixer="lstm", depth=4, **_DEEP),
            "Transformer": dict(
                model="classifier_tiny", mixer="attention", options={"heads": 4}, depth=4, mlp="2", **_DEEP
            ),
        },
        dict(classes=10, vocab_size=18),
        64,
    ),
}


def config_of(model: dict[str, Any], dim: int) -> tuple[str, dict[str, Any]]:
    """The named model and its fields at a width."""
    fields = dict(model, dim=dim)
    if "mlp" in fields:
        fields["mlp_dim"] = int(fields.pop("mlp")) * dim
    return fields.pop("model"), fields


def parameters(model: dict[str, Any], dim: int, others: dict[str, Any]) -> int:
    name, fields = config_of(model, dim)
    return inspect.count_parameters(statescan.create_model(name, **fields, **others))


def widths(task: Task) -> dict[str, int]:
    """The width at which each model has about as many parameters as the first."""
    names = list(task.models)
    wanted = parameters(task.models[names[0]], task.dim, task.fields)
    found = {}
    for name in names:
        sizes = {dim: parameters(task.models[name], dim, task.fields) for dim in range(16, 193, 8)}
        found[name] = min(sizes, key=lambda dim: abs(sizes[dim] - wanted))
    return found


def train(task: Task, name: str, dim: int, out: Path, *, steps: int, rate: float) -> dict[str, Any]:
    model, fields = config_of(task.models[name], dim)
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    result = train_sequence(
        SequenceTraining(
            data=task.data,
            out=out,
            model=model,
            set=tuple(f"{key}={value!r}" for key, value in fields.items()),
            steps=steps,
            warmup=max(1, steps // 10),
            learning_rate=rate,
            validate_every=max(1, steps // 20),
            checkpoint_every=steps,
        )
    )
    return {"parameters": result.parameters, "seconds": time.perf_counter() - began, **result.test}


def curve(out: Path) -> tuple[list[int], list[float]]:
    with (out / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["validation_accuracy"]]
    return [int(row["step"]) for row in rows], [float(row["validation_accuracy"]) for row in rows]


def speed(out: Path) -> float:
    """Optimiser steps a second: the median over ten of them."""
    with (out / "speed.csv").open() as file:
        rows = [(float(row["step"]), float(row["seconds"])) for row in csv.DictReader(file)]
    steps = [now[0] - before[0] for before, now in itertools.pairwise(rows)]
    return statistics.median(count / row[1] for count, row in zip(steps, rows[1:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--minutes", type=float, help="training of each model (default: 2 for digits, 15 for listops)")
    parser.add_argument("--out", type=Path, default=Path("runs/classification"))
    options = parser.parse_args()
    task = TASKS[options.task]
    seconds = 60 * (options.minutes or task.minutes)
    rows, curves = [], {}
    for name, dim in widths(task).items():
        place = options.out / f"{options.task}-{name.lower()}"
        train(task, name, dim, place / "timing", steps=200, rate=RATES[0])
        steps_a_second = speed(place / "timing")
        trial = max(20, int(steps_a_second * seconds / 10 / len(RATES)))
        scores = {
            rate: train(task, name, dim, place / f"rate-{rate}", steps=trial, rate=rate)["accuracy"] for rate in RATES
        }
        rate = max(scores, key=lambda r: scores[r])
        steps = max(20, int(steps_a_second * seconds))
        found = train(task, name, dim, place / "run", steps=steps, rate=rate)
        rows.append({"model": name, "dim": dim, "learning rate": f"{rate:g}", "steps": steps} | found)
        curves[name] = curve(place / "run")
        print(rows[-1], flush=True)
    title = f"{options.task}: {seconds / 60:g} minutes a model, accuracy on held-out sequences"
    _measure.show(title, rows)
    picture = ROOT / "docs" / "assets" / f"classification_{options.task}.png"
    draw_curves(picture, {f"validation accuracy, {options.task}": curves})
    print(picture, _measure.save(f"classification_{options.task}", rows, tables={title: rows}))


if __name__ == "__main__":
    main()
