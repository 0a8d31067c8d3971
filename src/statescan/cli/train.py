"""Train models: on text (`language`), on text and images (`multimodal`), to classify sequences (`sequence`), images
(`classification`), hyperspectral cubes (`hyperspectral`) or electrocardiograms (`records`), on the Long Range Arena
(`lra`), on generated tasks (`synthetic`), to forecast series (`forecast`), to act with memory (`reinforcement`), image
classifiers of several sizes from one teacher (`distillation`), encoders for dense search (`retrieval`), language models on a
mixture of objectives (`objectives`), early exits of a language model (`exits`).

examples:
  statescan train language --data book.txt --model mamba_tiny --steps 1000 --out runs/book
  statescan train language --data src --pattern "**/*.py" --set dim=256 depth=6 --length 512 --out runs/code
  statescan train language --out runs/book --resume
  statescan train multimodal --text book.txt --images digits --model mixture_of_mamba_tiny --out runs/both
  statescan train sequence --data digits --model s4d_tiny --out runs/digits
  statescan train sequence --data words_TRAIN.ts --test-data words_TEST.ts --model s5_tiny --out runs/words
  statescan train classification --data photos --model vim_tiny --epochs 30 --recipe vim --out runs/photos
  statescan train hyperspectral --data PaviaU.mat --labels PaviaU_gt.mat --split blocks --out runs/pavia
  statescan train records --data training --weights weights.csv --model ecg_mamba --out runs/ecg
  statescan train lra --task listops --model s4d --length 128 --width 64 --examples 5000 --steps 2000 --out runs/listops
  statescan train synthetic --task induction_heads --out runs/induction
  statescan train forecast --data weather.csv --history 96 --horizon 24 --season 24 --out runs/weather
  statescan train reinforcement --environment repeat_previous --core s5 --out runs/repeat
  statescan train retrieval --data scifact --model mamba_tiny --test-split test --out runs/scifact
  statescan train distillation --data strokes --model vim_tiny --set dim=64 depth=4 patch=4 --out runs/chain
  statescan train objectives --data book.txt --model mamba_tiny --length 512 --out runs/mixture
  statescan train exits --init-from runs/book --data book.txt --steps 500 --out runs/exits
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from statescan import tasks
from statescan.cli import _print

if TYPE_CHECKING:
    from statescan.tasks import DistillationResult, ForecastResult
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks.reinforcement import ReinforcementResult


def _report(result: TrainingResult | ForecastResult | ReinforcementResult, json: bool) -> None:
    if not tasks.first_process():
        return
    plain = dataclasses.asdict(result)
    if json:
        _print.as_json(plain)
        return
    scores = plain.pop("scores", {})
    numbers = plain.pop("validation") | {f"test_{name}": value for name, value in plain.pop("test", {}).items()}
    rows = [(name.replace("_", " "), f"{value:.4f}") for name, value in numbers.items()]
    rows += [(name, f"{value:,.0f}" if isinstance(value, float) else str(value)) for name, value in plain.items()]
    _print.table("training", ("what", "result"), rows)
    if scores:
        measures = ("mse", "mae", "mase")
        methods = [(name, *(f"{score[measure]:.4f}" for measure in measures)) for name, score in scores.items()]
        _print.table("test part", ("method", *(measure.upper() for measure in measures)), methods)


def _report_chain(result: DistillationResult, json: bool) -> None:
    if json:
        _print.as_json(dataclasses.asdict(result))
        return
    rows = [("teacher", "", f"{1:.1%}", "", f"{result.teacher_accuracy:.2%}", "", "")]
    rows += [
        (
            *(f"student {number}", ", ".join(f"{name} {value}" for name, value in link.fields.items())),
            *(f"{link.fraction:.1%}", f"{link.weight:.3f}", f"{link.accuracy:.2%}"),
            *(f"{link.chain_fraction:.1%}", f"{link.chain_accuracy:.2%}"),
        )
        for number, link in enumerate(result.links, 1)
    ]
    columns = ("model", "shape", "cost", "weight", "accuracy", "cost so far", "of the sum")
    _print.table(f"{result.images[2]:,} test images; cost 100 % is {result.teacher_flops:,} operations", columns, rows)
    print(f"model: {result.model}" + (f", picture: {result.picture}" if result.picture else ""))


def _command(
    settings: type, train: Callable[[Any], Any], what: str, report: Callable[[Any, bool], None] = _report
) -> Callable[..., None]:
    """A subcommand: its flags are the fields of `settings`, its help is `what`."""

    def command(settings: Any, *, json: bool = False) -> None:
        report(train(settings), json)

    command.__annotations__["settings"] = Annotated[settings, tyro.conf.arg(name="")]  # type: ignore[valid-type]
    command.__annotations__["json"] = bool
    command.__doc__ = f"""{what}

    Args:
        settings: of the run.
        json: print data instead of a table.
    """
    return command


COMMANDS = {
    "language": _command(tasks.LanguageTraining, tasks.train_language, "Train a language model on text."),
    "multimodal": _command(
        tasks.MultimodalTraining, tasks.train_multimodal, "Train a model on interleaved text and images."
    ),
    "sequence": _command(
        tasks.SequenceTraining, tasks.train_sequence, "Train a classifier, or a regression, on labelled sequences."
    ),
    "classification": _command(
        tasks.ClassificationTraining,
        tasks.train_classification,
        "Train an image model to tell classes, on images of your own.",
    ),
    "hyperspectral": _command(
        tasks.CubeTraining,
        tasks.train_hyperspectral,
        "Train a classifier of the pixels of a hyperspectral cube, and draw its map.",
    ),
    "records": _command(
        tasks.RecordTraining,
        tasks.train_records,
        "Train a classifier of electrocardiograms, several diagnoses at once.",
    ),
    "lra": _command(
        tasks.LRATraining, tasks.train_lra, "Train on a task of the Long Range Arena by a published recipe."
    ),
    "synthetic": _command(tasks.SyntheticTraining, tasks.train_synthetic, "Train a small model on a synthetic task."),
    "forecast": _command(
        tasks.ForecastTraining,
        tasks.train_forecast,
        "Train a model to forecast the columns of a table, and compare it with simple baselines.",
    ),
    "reinforcement": _command(
        tasks.ReinforcementTraining, tasks.train_reinforcement, "Train an agent on an environment that needs memory."
    ),
    "distillation": _command(
        tasks.DistillationTraining,
        tasks.train_distillation,
        "Train a teacher and a chain of smaller students, joined to one model that can be stopped after any of them.",
        _report_chain,
    ),
    "retrieval": _command(
        tasks.RetrievalTraining, tasks.train_retrieval, "Train an encoder of queries and passages for dense search."
    ),
    "objectives": _command(
        tasks.ObjectiveTraining,
        tasks.train_objectives,
        "Train a language model on a mixture of objectives that a reward model chooses.",
    ),
    "exits": _command(
        tasks.ExitTraining,
        tasks.train_exits,
        "Train exits at intermediate layers of a finished language model, and choose their thresholds.",
    ),
}
