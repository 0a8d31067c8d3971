"""Sequence classification and regression: a whole sequence in, one answer out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan import data
from statescan.tasks._run_folder import RunFolder, replacing
from statescan.tasks._settings import TrainingSettings, build, demand

if TYPE_CHECKING:
    from statescan.layers import State
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Measure, Sums


@dataclass(frozen=True)
class SequenceTraining(TrainingSettings):
    """Train a classifier, or a regression, on labelled sequences.

    Example: statescan train sequence --data digits --model s4d_tiny --out runs/digits
    """

    #: A name (digits: real handwritten digits, pixel by pixel; listops: generated expressions), a .ts file of the UCR and
    #: UEA archives, or a .npz file with arrays inputs, targets and, if need be, lengths.
    data: str = "digits"
    #: Such a file to be tried on; else a part of the data, chosen at random.
    test_data: str | None = None
    #: That part.
    test_fraction: float = 0.2
    #: Part of what is left that validates while learning.
    validation_fraction: float = 0.1
    #: Name of a model that takes whole sequences.
    model: str = "s4d_tiny"
    #: Optimiser steps.
    steps: int = 2000
    #: Sequences of a batch, on each device.
    batch_size: int = 32
    #: Highest learning rate.
    learning_rate: float = 4e-3
    #: Weight decay of matrices.
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("test_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number between 0 and 1, got {getattr(self, name)}")


class SequenceBatches(IterableDataset):
    """The batches of one process, from batch `first` on; which examples batch n holds depends on the seed and n alone.

    Arguments:
        sequences: to draw from.
        batch_size: examples a batch, over all processes.
        seed: of the order, which is a new one in each pass.
        rank, world: which process of how many; each takes its share of every batch.
        first: batch to begin with.
        once: stop after one pass, in the given order and with a last batch that may be smaller.
    """

    def __init__(
        self,
        sequences: data.LabelledSequences,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
        once: bool = False,
    ) -> None:
        self._sequences, self._batch_size, self._seed = sequences, batch_size, seed
        self._rank, self._world, self._first, self._once = rank, world, first, once

    def __iter__(self) -> Any:
        count = len(self._sequences)
        if self._once:
            for index in torch.arange(count).split(self._batch_size):
                yield self._take(index[self._rank :: self._world])
            return
        size = min(self._batch_size, count)
        per_pass = count // size
        number = self._first
        while True:
            seed = data.batch_seed(self._seed, "order", number // per_pass)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            start = number % per_pass * size
            yield self._take(order[start : start + size][self._rank :: self._world])
            number += 1

    def _take(self, index: Tensor) -> data.SequenceBatch:
        some = self._sequences.select(index)
        inputs, lengths = some.inputs, some.lengths
        if some.paired:
            inputs, lengths = inputs.transpose(0, 1).flatten(0, 1), lengths.transpose(0, 1).flatten()
        inputs = inputs[:, : int(lengths.max()) if len(index) else 0]
        return data.SequenceBatch(inputs if inputs.is_floating_point() else inputs.long(), lengths, some.targets)


def whole_sequence(*, regression: bool) -> Measure:
    """Cross-entropy of the classes, or squared error of the standardised outputs."""

    def measure(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        targets = batch["targets"]
        answers = model(batch["inputs"], lengths=batch["lengths"]).float()
        if regression:
            error = answers - targets
            loss, right = error.square().sum(), error.abs().sum()
        else:
            loss = torch.nn.functional.cross_entropy(answers, targets, reduction="sum")
            right = (answers.argmax(-1) == targets).sum()
        count = torch.tensor(float(targets.numel()), device=loss.device)
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        return loss, torch.stack([value.detach().to(wide) for value in (loss, count, right)]), None

    return measure


def train_sequence(settings: SequenceTraining) -> TrainingResult:
    """Train on labelled sequences and try the model on others; leaves model, metrics, their picture and ``test.json``.

    The test's numbers are ``accuracy`` and ``loss``; for regression ``absolute_error`` and ``squared_error`` in the
    targets' units (with several outputs: in units of their mean deviation).

    Raises:
        ValueError: for data, a setting or a model that does not exist (the nearest name is shown), files that are not what
            they should be, or a folder that cannot be written or that holds another run.
        FileNotFoundError: where there is no such file.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    demand(settings, "classes", "classifier of sequences", "classifier_tiny --mixer mamba")
    learn, tried = data.read_sequences(
        settings.data, test=settings.test_data, test_fraction=settings.test_fraction, seed=settings.seed
    )
    learn, tried = learn.standardised(learn), tried.standardised(learn)
    regression = not learn.classes
    shift, scale = torch.zeros(1), torch.ones(1)
    if regression:
        shift, scale = learn.targets.mean(0), learn.targets.std(0).clamp(min=1e-8)
        learn, tried = (dataclasses.replace(part, targets=(part.targets - shift) / scale) for part in (learn, tried))
    outputs = learn.targets.shape[1] if regression else len(learn.classes)
    kind = {"input_dim": learn.inputs.shape[2]} if learn.vocab_size is None else {"vocab_size": learn.vocab_size}
    model = build(settings, classes=outputs, **kind)
    held_back = max(1, round(settings.validation_fraction * len(learn)))
    validating, learning = learn.split(held_back / len(learn), seed=settings.seed + 1)
    return fit_sequences(settings, folder, model, learning, validating, tried, unit=float(scale.mean()))


def fit_sequences(
    settings: TrainingSettings,
    folder: RunFolder,
    model: Any,
    learning: data.LabelledSequences,
    validating: data.LabelledSequences,
    tried: data.LabelledSequences,
    *,
    unit: float = 1.0,
) -> TrainingResult:
    """Train a model and try it: what all kinds of labelled sequences have in common.

    Arguments:
        settings: of the run, settled with its folder.
        folder: of the run.
        model: with fresh weights.
        learning, validating, tried: what each of them is done with.
        unit: of the targets of a regression, for the test's errors.
    """
    regression = not learning.classes
    outputs = learning.targets.shape[1] if regression else len(learning.classes)
    batch_size = settings.batch_size * settings.world_size

    def batches(first: int, rank: int, world: int) -> SequenceBatches:
        return SequenceBatches(learning, batch_size=batch_size, seed=settings.seed, rank=rank, world=world, first=first)

    def validation(first: int, rank: int, world: int) -> SequenceBatches:
        return SequenceBatches(validating, batch_size=batch_size, rank=rank, world=world, once=True)

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, f"validation_{names[0]}": sums.accuracy}

    from statescan.tasks._fit import Objective, fit

    names = ("absolute_error", "squared_error") if regression else ("accuracy", "loss")
    measure = whole_sequence(regression=regression)
    objective = Objective(
        batches,
        validation,
        targets=outputs if regression else 1,
        columns=("validation_loss", f"validation_{names[0]}"),
        describe=describe,
        measure=measure,
    )
    training = fit(model, settings, folder, objective)
    loss, right = _try(model, measure, SequenceBatches(tried, batch_size=settings.batch_size, once=True))
    test = {names[0]: right * unit, names[1]: loss * unit**2}
    with replacing(folder.path / "test.json") as file:
        file.write(json.dumps(test, indent=2).encode() + b"\n")
    return dataclasses.replace(training, test=test)


@torch.no_grad()
def _try(model: Any, measure: Measure, batches: SequenceBatches) -> tuple[float, float]:
    """Loss and right answers a target."""
    model.eval()
    total = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        total += measure(model, {k: v.to(model.device) for k, v in vars(batch).items()}, None)[1].cpu()
    return float(total[0] / total[1]), float(total[2] / total[1])
