"""Classifiers of equal size, trained for equally long, on whole sequences.

python -m benchmarks.classification digits    # real handwritten digits, read pixel by pixel; 2 minutes a model
python -m benchmarks.classification listops   # expressions of 50 to 256 tokens; 15 minutes a model

Each model's width is chosen so that it has as many parameters as the first, and its steps so that they fill the time, which
is processor time, so that other work on the machine favours none: a few steps are timed first. The learning rate is the best
of three, and of one beyond where that is the smallest or the largest, each tried for a thirtieth of the time. What is done
stays in the ``--out`` folder, and a command given again goes on from there; ``--only`` does some of the models. Curves go to
``docs/assets/classification_TASK.png``, figures to ``benchmarks/results/classification_TASK.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
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
                model="classifier_tiny",
                mixer="attention",
                options={"heads": 4, "causal": False},
                depth=4,
                mlp="2",
                **_DEEP,
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


def train(
    task: Task, name: str, dim: int, out: Path, *, steps: int, rate: float, validations: int = 1, resume: bool = True
) -> dict[str, Any]:
    """One run, or what it came to if it was done before; one that was cut short goes on, or begins anew."""
    done = out / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    model, fields = config_of(task.models[name], dim)
    resumed = resume and (out / "checkpoint.ckpt").is_file()
    began = time.process_time()
    result = train_sequence(
        SequenceTraining(
            data=task.data,
            out=out,
            model=model,
            set=tuple(f"{key}={value!r}" for key, value in fields.items()),
            steps=steps,
            warmup=max(1, steps // 10),
            learning_rate=rate,
            validate_every=max(1, steps // validations),
            checkpoint_every=max(1, steps // 20),
            resume=resume,
            overwrite=not resume,
        )
    )
    seconds = None if resumed else time.process_time() - began  # all of it: data, training, validation, test
    found = {"parameters": result.parameters, "cpu seconds": seconds, **result.test}
    done.write_text(json.dumps(found))
    return found


def steps_a_second(task: Task, name: str, dim: int, out: Path) -> float:
    """Optimiser steps in a second of processor time: what a long run takes beyond a short one."""
    few, many = 10, 110
    short, long = (
        train(task, name, dim, out / str(steps), steps=steps, rate=RATES[0], resume=False)["cpu seconds"]
        for steps in (few, many)
    )
    return (many - few) / (long - short)


def best_rate(task: Task, name: str, dim: int, out: Path, *, steps: int) -> float:
    """The learning rate with the best accuracy; at an end of `RATES`, one beyond is tried."""

    def accuracy(rate: float) -> float:
        return train(task, name, dim, out / f"rate-{rate:g}", steps=steps, rate=rate)["accuracy"]

    scores = {rate: accuracy(rate) for rate in RATES}
    best = max(scores, key=lambda rate: scores[rate])
    beyond = {RATES[0]: RATES[0] / 3, RATES[-1]: RATES[-1] * 3}.get(best)
    if beyond is not None:
        scores[beyond] = accuracy(beyond)
    print(name, {f"{rate:.1g}": score for rate, score in scores.items()}, flush=True)
    return max(scores, key=lambda rate: scores[rate])


def curve(out: Path) -> tuple[list[int], list[float]]:
    with (out / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["validation_accuracy"]]
    return [int(row["step"]) for row in rows], [float(row["validation_accuracy"]) for row in rows]


def run(task: Task, name: str, dim: int, place: Path, seconds: float) -> dict[str, Any]:
    """One model from timing to test."""
    speed = steps_a_second(task, name, dim, place / "timing")
    rate = best_rate(task, name, dim, place, steps=max(20, int(speed * seconds / 30)))
    steps = max(20, int(speed * seconds))
    found = train(task, name, dim, place / "run", steps=steps, rate=rate, validations=10)
    return {"model": name, "dim": dim, "learning rate": f"{rate:.2g}", "steps": steps} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--minutes", type=float, help="training of each model (default: 2 for digits, 15 for listops)")
    parser.add_argument("--out", type=Path, default=Path("runs/classification"))
    parser.add_argument("--only", nargs="+", help="train only these models, and write no table")
    options = parser.parse_args()
    task = TASKS[options.task]
    unknown = sorted(set(options.only or ()) - set(task.models))
    if unknown:
        parser.error(f"--only: unknown {', '.join(unknown)}; known: {', '.join(task.models)}")
    seconds = 60 * (options.minutes or task.minutes)
    rows, curves = [], {}
    for name, dim in widths(task).items():
        if options.only and name not in options.only:
            continue
        place = options.out / f"{options.task}-{seconds / 60:g}" / name.lower().replace(",", "").replace(" ", "-")
        rows.append(run(task, name, dim, place, seconds))
        curves[name] = curve(place / "run")
        print(rows[-1], flush=True)
    if options.only:
        return
    title = f"{options.task}: {seconds / 60:g} minutes of processor time a model, accuracy on held-out sequences"
    _measure.show(title, rows)
    picture = ROOT / "docs" / "assets" / f"classification_{options.task}.png"
    draw_curves(picture, {f"validation accuracy, {options.task}": curves})
    print(picture, _measure.save(f"classification_{options.task}", rows, tables={title: rows}))


if __name__ == "__main__":
    main()
