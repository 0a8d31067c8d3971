"""Train models: on text (`language`), to classify sequences (`sequence`) or images (`classification`), on the Long Range
Arena (`lra`), on generated tasks (`synthetic`), to forecast series (`forecast`), to act with memory (`reinforcement`).

examples:
  statescan train language --data book.txt --model mamba_tiny --steps 1000 --out runs/book
  statescan train language --data src --pattern "**/*.py" --set dim=256 depth=6 --length 512 --out runs/code
  statescan train language --out runs/book --resume
  statescan train sequence --data digits --model s4d_tiny --out runs/digits
  statescan train sequence --data words_TRAIN.ts --test-data words_TEST.ts --model s5_tiny --out runs/words
  statescan train classification --data photos --model vim_tiny --epochs 30 --recipe vim --out runs/photos
  statescan train lra --task listops --model s4d --length 128 --width 64 --examples 5000 --steps 2000 --out runs/listops
  statescan train synthetic --task induction_heads --out runs/induction
  statescan train forecast --data weather.csv --history 96 --horizon 24 --season 24 --out runs/weather
  statescan train reinforcement --environment repeat_previous --core s5 --out runs/repeat
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from statescan.cli import _print
from statescan.tasks import (
    ClassificationTraining,
    ForecastTraining,
    LanguageTraining,
    LRATraining,
    ReinforcementTraining,
    SequenceTraining,
    SyntheticTraining,
    first_process,
    train_classification,
    train_forecast,
    train_language,
    train_lra,
    train_reinforcement,
    train_sequence,
    train_synthetic,
)

if TYPE_CHECKING:
    from statescan.tasks import ForecastResult
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks.reinforcement import ReinforcementResult


def language(settings: Annotated[LanguageTraining, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Train a language model on text.

    Args:
        settings: of the run.
        json: print data instead of a table.
    """
    _report(train_language(settings), json)


def sequence(settings: Annotated[SequenceTraining, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Train a classifier, or a regression, on labelled sequences.

    Args:
        settings: of the run.
        json: print data instead of a table.
    """
    _report(train_sequence(settings), json)


def classification(settings: Annotated[ClassificationTraining, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Train an image model to tell classes, on images of your own.

    Args:
        settings: of the run.
        json: print data instead of a table.
    """
    _report(train_classification(settings), json)


def lra(settings: Annotated[LRATraining, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Train on a task of the Long Range Arena by a published recipe.

    Args:
        settings: of the run.
        json: print data instead of a table.
    """
    _report(train_lra(settings), json)


def synthetic(settings: Annotated[SyntheticTraining, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Train a small model on a synthetic task.

    Args:
        settings: of the run.
        json: print data instead of a table.
    """
    _report(train_synthetic(settings), json)


def forecast(settings: Annotated[ForecastTraining, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Train a model to forecast the columns of a table, and compare it with simple baselines.

    Args:
        settings: of the run.
        json: print data instead of a table.
    """
    _report(train_forecast(settings), json)


def reinforcement(settings: Annotated[ReinforcementTraining, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Train an agent on an environment that needs memory.

    Args:
        settings: of the run.
        json: print data instead of a table.
    """
    _report(train_reinforcement(settings), json)


def _report(result: TrainingResult | ForecastResult | ReinforcementResult, json: bool) -> None:
    if not first_process():
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


COMMANDS = {
    "language": language,
    "sequence": sequence,
    "classification": classification,
    "lra": lra,
    "synthetic": synthetic,
    "forecast": forecast,
    "reinforcement": reinforcement,
}
