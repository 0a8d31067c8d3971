"""Named experiments: what models copy, recall and work out, against length and the size of their state.

Models learn problems up to a length and are tried on shorter and longer ones. What is finished is kept: --resume goes on.

examples:
  statescan experiment copy --out runs/copy
  statescan experiment copy --models mamba_4 mamba_16 mamba_64 transformer --seeds 0 1 2 --minutes 30 --out runs/copy
  statescan experiment lis --models mamba_16 transformer --out runs/lis
  statescan experiment lis --out runs/lis --resume
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from statescan.cli import _print
from statescan.tasks import (
    ArithmeticExperiment,
    CopyExperiment,
    EditDistanceExperiment,
    LastOccurrenceExperiment,
    LISExperiment,
    LocalProgramExperiment,
    run_experiment,
)

if TYPE_CHECKING:
    from statescan.tasks.experiment import Experiment


def copy(settings: Annotated[CopyExperiment, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Say a random string again.

    Args:
        settings: of the experiment.
        json: print data instead of a table.
    """
    _run(settings, json)


def last_occurrence(
    settings: Annotated[LastOccurrenceExperiment, tyro.conf.arg(name="")], *, json: bool = False
) -> None:
    """Give the value that a key had last.

    Args:
        settings: of the experiment.
        json: print data instead of a table.
    """
    _run(settings, json)


def lis(settings: Annotated[LISExperiment, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Longest increasing subsequence: every step may need any step before it.

    Args:
        settings: of the experiment.
        json: print data instead of a table.
    """
    _run(settings, json)


def edit_distance(settings: Annotated[EditDistanceExperiment, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Levenshtein's distance, its table as chain of thought.

    Args:
        settings: of the experiment.
        json: print data instead of a table.
    """
    _run(settings, json)


def arithmetic(settings: Annotated[ArithmeticExperiment, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """Work an expression out, a bracket a line.

    Args:
        settings: of the experiment.
        json: print data instead of a table.
    """
    _run(settings, json)


def local_dp(settings: Annotated[LocalProgramExperiment, tyro.conf.arg(name="")], *, json: bool = False) -> None:
    """A recurrence whose steps need the last few tokens only.

    Args:
        settings: of the experiment.
        json: print data instead of a table.
    """
    _run(settings, json)


def _run(settings: Experiment, json: bool) -> None:
    result = run_experiment(settings)
    if json:
        _print.as_json(dataclasses.asdict(result))
        return
    lengths = [str(length) for length in settings.test_lengths]
    rows = [
        (row["model"], row["seed"], row["parameters"], row["state_bytes"], row["examples_seen"], solved or "none")
        for row, solved in zip(result.rows, result.solved, strict=True)
    ]
    columns = ("name", "seed", "parameters", "state bytes", "examples seen", "longest solved")
    _print.table("models", columns, rows)
    titles = {
        "strings": f"{settings.summary}, by length",
        "tokens": "right tokens, by length",
        "answers": "right answers after the model's own steps, by length",
    }
    for what, title in titles.items():
        rows = [
            (row["model"], row["seed"], *(f"{row['accuracy'][length][what]:.3f}" for length in lengths))
            for row in result.rows
        ]
        _print.table(title, ("name", "seed", *lengths), rows)
    print(result.results, result.picture or "", sep="\n")


COMMANDS = {
    "copy": copy,
    "last-occurrence": last_occurrence,
    "lis": lis,
    "edit-distance": edit_distance,
    "arithmetic": arithmetic,
    "local-dp": local_dp,
}
