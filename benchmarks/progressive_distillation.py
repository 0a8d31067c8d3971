"""A chain of seven students beside their teacher: accuracy against operations.

python -m benchmarks.progressive_distillation             # generated digits, strokes of 28 x 28 pixels
python -m benchmarks.progressive_distillation digits      # 1,797 real handwritten digits, enlarged
python -m benchmarks.progressive_distillation --steps 500 # shorter: so many steps of the teacher and of every student
python -m benchmarks.progressive_distillation --quick     # to see it work: a few steps, nothing is kept

The students may cost 1, 3, 5, 8, 11, 15 and 20 % of the teacher, 63 % together, as in the abstract of arXiv 2503.01727,
whose figures (MNIST and CIFAR-10) are printed beside. Then the weakest student three times from other weights, with the
teacher and with the labels alone. Each part stays in the ``--out`` folder, and a command given again goes on from there.
Figures go to ``benchmarks/results/progressive_distillation_DATA.json`` and ``.md``, the curve to
``docs/assets/progressive_distillation_DATA.png``.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _measure
from statescan.tasks import DistillationTraining, train_distillation

ROOT = Path(__file__).parent.parent
TEACHER = ("dim=96", "depth=4", "patch=4", "state_dim=8")
#: Images, steps of the teacher, of a student.
SIZES = {"strokes": (12_000, 3_000, 3_000), "digits": (1_797, 2_000, 2_000)}
#: Of the abstract.
PUBLISHED = {
    "MNIST": "teacher 98 %; seven students together 98 % at 63 % of its operations; the weakest 72 % at 1 %",
    "CIFAR-10": "the students together within 1 point of the teacher; the weakest 50 % at 5 %",
}


def settings(data: str, out: Path, quick: bool, steps: int | None, **changes: Any) -> DistillationTraining:
    """Of one run, which goes on where it stopped."""
    examples, teacher_steps, student_steps = (200, 3, 3) if quick else SIZES[data]
    teacher_steps, student_steps = steps or teacher_steps, steps or student_steps
    fields: dict[str, Any] = dict(
        data=data,
        out=out,
        examples=examples,
        model="vim_tiny",
        set=("dim=48", "depth=2", "patch=7", "state_dim=4") if quick else TEACHER,
        fractions=(0.1, 0.3) if quick else (0.01, 0.03, 0.05, 0.08, 0.11, 0.15, 0.20),
        steps=teacher_steps,
        student_steps=student_steps,
        warmup=max(1, teacher_steps // 20),
        learning_rate=3e-3,
        resume=True,
    )
    return DistillationTraining(**(fields | changes))


def weakest(data: str, out: Path, quick: bool, seeds: int, steps: int | None) -> dict[str, list[float]]:
    """Test accuracies of the first student with the teacher and without, by other first weights."""
    found: dict[str, list[float]] = {}
    for name, alpha in (("distilled", 0.5), ("labels only", 1.0)):
        for seed in range(1, seeds + 1):
            run = settings(data, out / f"{name.replace(' ', '_')}_{seed}", quick, steps)
            run = dataclasses.replace(
                run, teacher=out / "chain" / "teacher", fractions=run.fractions[:1], alpha=alpha, eta=0.0, seed=seed
            )
            found.setdefault(name, []).append(train_distillation(run).links[0].accuracy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=list(SIZES), default="strokes")
    parser.add_argument("--out", type=Path, default=None, help="folder of the runs; runs/progressive_distillation_DATA")
    parser.add_argument("--seeds", type=int, default=3, help="of the weakest student")
    parser.add_argument("--steps", type=int, default=None, help="of the teacher and of each student")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    out = given.out or ROOT / "runs" / f"progressive_distillation_{given.data}"
    if given.quick:
        out = Path(tempfile.mkdtemp())
    began = time.process_time()
    chain = train_distillation(settings(given.data, out / "chain", given.quick, given.steps))
    seeds = weakest(given.data, out, given.quick, 1 if given.quick else given.seeds, given.steps)
    minutes = (time.process_time() - began) / 60
    columns = ("model", "shape", "cost, %", "weight", "accuracy, %", "cost so far, %", "accuracy of the sum, %")
    chains = [
        dict(zip(columns, ("teacher", "", 100.0, None, percent(chain.teacher_accuracy), None, None), strict=True))
    ]
    for number, link in enumerate(chain.links, 1):
        shape = ", ".join(f"{name} {value}" for name, value in link.fields.items())
        row = (f"student {number}", shape, 100 * link.fraction, link.weight, percent(link.accuracy))
        sums = (100 * link.chain_fraction, percent(link.chain_accuracy))
        chains.append(dict(zip(columns, (*row, *sums), strict=True)))
    alone = [
        {
            "weakest student": name,
            "mean accuracy, %": percent(sum(values) / len(values)),
            "of each seed": ", ".join(percent(value) for value in values),
        }
        for name, values in seeds.items()
    ]
    steps = (3, 3) if given.quick else (given.steps,) * 2 if given.steps else SIZES[given.data][1:]
    counts = " + ".join(f"{count:,}" for count in chain.images)
    tables: dict[str, list[dict[str, Any]]] = {
        f"{given.data}, {counts} images, {steps[0]:,} steps of the teacher, {steps[1]:,} of each student; "
        f"100 % is {chain.teacher_flops:,} operations an image": chains,
        "the student of 1 %, with the teacher and without": alone,
        "published": [{"data": data, "figures": figures} for data, figures in PUBLISHED.items()],
    }
    for title, table in tables.items():
        _measure.show(title, table)
    print(f"processor time of this part of the run: {minutes:.1f} minutes")
    if given.quick:
        shutil.rmtree(out)
        return
    _measure.save(f"progressive_distillation_{given.data}", tables, tables=tables)
    if chain.picture:
        shutil.copyfile(chain.picture, ROOT / "docs" / "assets" / f"progressive_distillation_{given.data}.png")


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


if __name__ == "__main__":
    main()
