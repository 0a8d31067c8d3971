"""Named experiments on what a state of constant size can do: copying, and dynamic programs with a chain of thought.

Ren, Li and Liu 2024 (arXiv 2410.03810): models of several kinds and state sizes learn one task at lengths up to one, and are
tried at shorter and longer ones. The picture has accuracy against length and against the size of the state.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from statescan import checkpoints, data
from statescan.tasks._run_folder import write_atomically
from statescan.tasks._settings import overrides
from statescan.tasks.synthetic import SyntheticTraining, train_synthetic

#: A length counts as solved where so many strings are right from the first token to the last.
SOLVED = 0.9
#: Kinds of models, of which some take a number: the width of their state.
_KINDS = ("mamba", "mamba2", "mamba3", "transformer", "hybrid")
#: The width of a state that is not given.
_STATE = 16


@dataclass(frozen=True)
class Experiment:
    """What all experiments can be told."""

    #: The generated task.
    task: ClassVar[str]
    #: What is asked of it.
    summary: ClassVar[str]

    #: Folder: a run a model, results.json and the picture.
    out: Path
    #: Kinds of models; a number is the width of the state: mamba_16, mamba2_64, mamba3_16, transformer, hybrid_16.
    models: tuple[str, ...] = ("mamba_16", "mamba_64", "transformer", "hybrid")
    #: Longest problem to learn from.
    length: int = 20
    #: Lengths to be tried on.
    test_lengths: tuple[int, ...] = (5, 10, 15, 20, 25, 30, 40)
    #: Settings of the task to change, for instance: --task-set symbols=26
    task_set: tuple[str, ...] = ()
    #: Channels of the models.
    dim: int = 64
    #: Blocks of the models.
    depth: int = 2
    #: Optimiser steps, at most.
    steps: int = 4000
    #: Processor time for each model and seed, in minutes; a part of an interrupted run counts for itself.
    minutes: float = 7.0
    #: Sequences of a batch.
    batch_size: int = 32
    #: Highest learning rate.
    learning_rate: float = 2e-3
    #: Stop once so many tokens of the validation are right.
    stop_at: float = 0.9995
    #: Runs of every model.
    seeds: tuple[int, ...] = (0,)
    #: Test problems of every length.
    examples: int = 256
    #: Kind of device to train on: auto, cpu, cuda, mps.
    accelerator: str = "cpu"
    #: Go on in the folder.
    resume: bool = False
    #: Replace what is in the folder.
    overwrite: bool = False
    #: Show a progress bar, if the error output is a terminal.
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        for name in ("length", "dim", "depth", "steps", "batch_size", "examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("models", "test_lengths", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name}: give at least one")
        if min(self.test_lengths) < 1:
            raise ValueError(f"test_lengths: expected at least 1, got {min(self.test_lengths)}")
        if not self.minutes > 0:
            raise ValueError(f"minutes: expected a positive number, got {self.minutes}")
        for name in self.models:
            model_fields(name, dim=self.dim, depth=self.depth)
        self.of_length(self.length)

    def of_length(self, length: int, *, part: str = "train") -> Any:
        """The task at a length; its problems for learning and for tests are never the same ones."""
        settings = overrides(self.task_set)
        for name in ("length", "part"):
            if name in settings:
                raise ValueError(f"task_set: the experiment sets {name} itself")
        return data.synthetic_task(self.task, settings | {"length": length, "part": part})


@dataclass(frozen=True)
class CopyExperiment(Experiment):
    """Say a random string again: the longest string grows with the state.

    Example: statescan experiment copy --out runs/copy
    """

    task: ClassVar[str] = "string_copy"
    summary: ClassVar[str] = "strings copied"


@dataclass(frozen=True)
class LastOccurrenceExperiment(Experiment):
    """Give the value that a key had last.

    Example: statescan experiment last-occurrence --out runs/last
    """

    task: ClassVar[str] = "last_occurrence"
    summary: ClassVar[str] = "values found"

    #: Longest problem to learn from.
    length: int = 16
    #: Lengths to be tried on.
    test_lengths: tuple[int, ...] = (8, 16, 24, 32, 48)


@dataclass(frozen=True)
class LISExperiment(Experiment):
    """Longest increasing subsequence, a program whose every step may need any step before it.

    Example: statescan experiment lis --out runs/lis
    """

    task: ClassVar[str] = "longest_increasing"
    summary: ClassVar[str] = "chains right"

    #: Longest problem to learn from.
    length: int = 12
    #: Lengths to be tried on.
    test_lengths: tuple[int, ...] = (6, 9, 12, 15, 18)


@dataclass(frozen=True)
class EditDistanceExperiment(Experiment):
    """Levenshtein's distance with its table as chain of thought: steps are local, inputs are not.

    Example: statescan experiment edit-distance --out runs/edit
    """

    task: ClassVar[str] = "edit_distance"
    summary: ClassVar[str] = "tables right"

    #: Longest problem to learn from.
    length: int = 5
    #: Lengths to be tried on.
    test_lengths: tuple[int, ...] = (3, 4, 5, 6, 7)


@dataclass(frozen=True)
class ArithmeticExperiment(Experiment):
    """Work an expression out, a bracket a line.

    Example: statescan experiment arithmetic --out runs/arithmetic
    """

    task: ClassVar[str] = "arithmetic"
    summary: ClassVar[str] = "expressions worked out"

    #: Longest problem to learn from.
    length: int = 4
    #: Lengths to be tried on.
    test_lengths: tuple[int, ...] = (2, 3, 4, 5, 6)


@dataclass(frozen=True)
class LocalProgramExperiment(Experiment):
    """A recurrence whose steps need the last few tokens only.

    Example: statescan experiment local-dp --out runs/local
    """

    task: ClassVar[str] = "local_program"
    summary: ClassVar[str] = "chains right"

    #: Lengths to be tried on.
    test_lengths: tuple[int, ...] = (10, 20, 30, 40, 60)


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment came to.

    Fields:
        rows: one a model and seed: its name, seed, parameters, bytes of state, steps, examples seen, processor seconds,
            and at every test length the shares of right tokens, of wholly right strings, and of right answers after the
            model's own steps.
        solved: the longest test length that each row solves.
        results: the same as a file.
        picture: None where matplotlib is missing.
    """

    rows: list[dict[str, Any]]
    solved: list[int]
    results: str
    picture: str | None


def model_fields(name: str, *, dim: int, depth: int) -> dict[str, Any]:
    """Fields of the free layout's config for a model such as ``mamba_16``.

    Mamba at N = 16 and the transformer, whose attention has an MLP, are about equally large; that of the hybrid has
    none.

    Raises:
        ValueError: for a kind that does not exist.
    """
    found = re.fullmatch(r"([a-z]+\d?)(?:_(\d+))?", name)
    kind, width = (found.group(1), int(found.group(2) or _STATE)) if found else (name, _STATE)
    if kind not in _KINDS or (kind == "transformer" and found and found.group(2)) or width < 1:
        raise ValueError(f"models: unknown {name!r}; known: mamba_N, mamba2_N, mamba3_N, transformer, hybrid_N")
    heads = max(1, dim // 16)
    fields: dict[str, Any] = {"dim": dim, "depth": depth, "mlp_multiple_of": 8, "mlp_dim": 0, "mixers": {}}
    attention = {"heads": heads, "rotary_dim": dim // heads // 2 * 2 if kind == "transformer" else 0}
    if kind == "transformer":
        return fields | {"layout": ("attention",), "attention": attention, "mlp_dim": 11 * dim // 8}
    mixer = "mamba" if kind == "hybrid" else kind
    options = {"state_dim": width} | ({} if mixer == "mamba" else {"head_dim": min(16, 2 * dim)})
    layout = (mixer, "attention") if kind == "hybrid" else (mixer,)
    return fields | {"layout": layout, "attention": attention, "mixers": {mixer: options}}


def run_experiment(settings: Experiment) -> ExperimentResult:
    """Train and try every model; what is finished is kept, and an interrupted experiment goes on with ``resume``.

    Raises:
        ValueError: for a setting that is out of range, or a folder that holds another experiment.
    """
    path = settings.out / "results.json"
    told = _told(settings)
    rows: list[dict[str, Any]] = []
    if path.is_file() and not settings.overwrite:
        before = json.loads(path.read_text())
        if not settings.resume:
            raise ValueError(
                f"out: {str(settings.out)!r} already holds an experiment; continue it with resume, replace it with "
                "overwrite, or choose another folder"
            )
        changed = [name for name, value in told.items() if before["settings"].get(name) != value]
        if changed:
            name = changed[0]
            raise ValueError(
                f"resume: the experiment in {str(settings.out)!r} has {name} {before['settings'].get(name)!r}, given "
                f"{told[name]!r}; give the same, or choose another folder"
            )
        rows = before["rows"]
    else:
        path.unlink(missing_ok=True)
    done = {(row["model"], row["seed"]) for row in rows}
    settings.out.mkdir(parents=True, exist_ok=True)
    for seed in settings.seeds:
        for name in settings.models:
            if (name, seed) in done:
                continue
            rows.append(_run(settings, name, seed))
            write_atomically(path, json.dumps({"settings": told, "rows": rows}, indent=1).encode() + b"\n")
    wanted = [row for row in rows if row["model"] in settings.models and row["seed"] in settings.seeds]
    wanted.sort(key=lambda row: (settings.models.index(row["model"]), settings.seeds.index(row["seed"])))
    return ExperimentResult(wanted, [_solved(row) for row in wanted], str(path), _draw(settings, wanted))


def _told(settings: Experiment) -> dict[str, Any]:
    """What the outcome of a model depends on."""
    free = {"out", "models", "seeds", "resume", "overwrite", "progress", "accelerator"}
    plain = {"task": settings.task} | {
        name: value for name, value in dataclasses.asdict(settings).items() if name not in free
    }
    return json.loads(json.dumps(plain))


def _run(settings: Experiment, name: str, seed: int) -> dict[str, Any]:
    """Train one model, unless it is trained, and try it."""
    longest = max(settings.length, *settings.test_lengths)
    fields = model_fields(name, dim=settings.dim, depth=settings.depth)
    fields["vocab_size"] = settings.of_length(longest).vocab_size
    began = time.process_time()
    training = train_synthetic(
        SyntheticTraining(
            out=settings.out / f"{name}-seed{seed}",
            task=settings.task,
            task_set=(*settings.task_set, f"length={settings.length}", "part=train"),
            model="hybrid_tiny",
            set=tuple(f"{field}={value!r}" for field, value in fields.items()),
            steps=settings.steps,
            minutes=settings.minutes,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup=max(1, min(200, settings.steps // 10)),
            validate_every=max(1, min(100, settings.steps // 10)),
            validation_examples=min(256, settings.examples),
            stop_at=settings.stop_at,
            seed=seed,
            resume=settings.resume,
            overwrite=settings.overwrite,
            accelerator=settings.accelerator,
            progress=settings.progress,
        )
    )
    seconds = time.process_time() - began
    model = checkpoints.load(training.model).eval()
    tried = {}
    for length in settings.test_lengths:
        tried[str(length)] = scores(model, settings.of_length(length, part="test"), examples=settings.examples)
    asked = settings.of_length(settings.length).batch(1, seed=0).tokens
    with torch.inference_mode():
        state_bytes = model(asked)[1].nbytes
    return {
        "model": name,
        "seed": seed,
        "parameters": training.parameters,
        "state_bytes": state_bytes,
        "steps": training.steps,
        "examples_seen": training.steps * settings.batch_size,
        "seconds": round(seconds, 1),
        "accuracy": tried,
    }


@torch.inference_mode()
def scores(model: Any, task: Any, *, examples: int = 256, batch_size: int = 64, seed: int = 0) -> dict[str, float]:
    """How a model does on fresh problems of a task.

    Returns:
        ``tokens``: share of right tokens, each after the right ones before it; ``strings``: share of problems where all are
        right, which is what greedy generation gets wholly right; ``answers``: share of right answers after the model's own
        steps, right or wrong.
    """
    right = asked_for = strings = answers = 0
    for index in range(-(-examples // batch_size)):
        count = min(batch_size, examples - index * batch_size)
        batch = task.batch(count, seed=data.batch_seed(seed, "test", index))
        logits, _ = model(batch.tokens)
        wanted = batch.targets != data.IGNORED
        hits = (logits.argmax(-1) == batch.targets) | ~wanted
        right += int((hits & wanted).sum())
        asked_for += int(wanted.sum())
        strings += int(hits.all(1).sum())
        answers += int((written(model, batch)[:, -2] == batch.targets[:, -2]).sum())
    return {"tokens": right / asked_for, "strings": strings / examples, "answers": answers / examples}


@torch.inference_mode()
def written(model: Any, batch: data.SyntheticBatch) -> Tensor:
    """What a model writes where it is asked, greedily and after what it wrote before: (batch, length).

    The places must be the same in all rows; elsewhere it holds `IGNORED`.
    """
    asked = (batch.targets[0] != data.IGNORED).tolist()
    first = asked.index(True)
    found = torch.full_like(batch.targets, data.IGNORED)
    logits, state = model(batch.tokens[:, : first + 1])
    guess = logits[:, -1].argmax(-1)
    found[:, first] = guess
    for place in range(first + 1, len(asked)):
        logits, state = model.step(guess if asked[place - 1] else batch.tokens[:, place], state)
        guess = logits.argmax(-1)
        if asked[place]:
            found[:, place] = guess
    return found


def _solved(row: dict[str, Any]) -> int:
    """The longest length that is solved, 0 if none."""
    return max((int(length) for length, found in row["accuracy"].items() if found["strings"] >= SOLVED), default=0)


def _draw(settings: Experiment, rows: list[dict[str, Any]]) -> str | None:
    """Accuracy against length, and at the longest length of training against the state's bytes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    from statescan.tasks._picture import COLOURS

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    places = figure.subplots(1, 2, sharey=True)
    at = min(settings.test_lengths, key=lambda length: abs(length - settings.length))
    for index, name in enumerate(settings.models):
        own = [row for row in rows if row["model"] == name]
        if not own:
            continue
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": "osD^vP"[index % 6]}
        lengths = sorted(settings.test_lengths)
        means = [sum(row["accuracy"][str(n)]["strings"] for row in own) / len(own) for n in lengths]
        places[0].plot(lengths, means, label=name.replace("_", ", N = "), linewidth=1.6, markersize=5, **look)
        heights = [row["accuracy"][str(at)]["strings"] for row in own]
        places[1].plot([row["state_bytes"] / 1024 for row in own], heights, linestyle="none", **look)
    places[0].set_xticks(sorted(settings.test_lengths))
    places[0].axvline(settings.length, color="grey", linewidth=0.8, linestyle=":")
    places[0].set_xlabel("length (dotted: longest in training)")
    places[0].set_ylabel(settings.summary)
    places[1].set_xlabel(f"KiB of state after a problem of length {settings.length}")
    places[1].set_title(f"at length {at}", fontsize=10)
    sizes = [row["state_bytes"] for row in rows]
    if sizes and max(sizes) >= 4 * min(sizes):
        places[1].set_xscale("log", base=2)
        places[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        places[1].set_xlim(0, 1.1 * max(sizes, default=1) / 1024)
    for place in places:
        place.grid(alpha=0.25)
        place.set_ylim(-0.03, 1.03)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    figure.legend(*places[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path = settings.out / "accuracy.png"
    figure.savefig(path, dpi=130)
    return str(path)
