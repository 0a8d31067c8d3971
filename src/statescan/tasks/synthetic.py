"""Training on the synthetic tasks: what can a model copy, recall, select?

Examples are drawn afresh for every batch. The defaults are a recipe found on two CPU cores, for a Mamba of 2 layers of 64
channels: it learns selective copying and induction heads at length 256 in minutes; the same layers with constant step
sizes, B and C (``--set selective=False``) do not (see docs/synthetics.md).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from statescan import data
from statescan.tasks._run_folder import RunFolder
from statescan.tasks._settings import TrainingSettings, build, demand, overrides

if TYPE_CHECKING:
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Sums


@dataclass(frozen=True)
class SyntheticTraining(TrainingSettings):
    """Train a small model on a synthetic task.

    Example: statescan train synthetic --task selective_copying --task-set length=256 memorize=16 --out runs/copying
    """

    #: selective_copying, induction_heads, induction_head, associative_recall, mqar, passkey, phone_book, copying, parity,
    #: modular_sum, string_copy, last_occurrence, prefix_lookup, longest_increasing, edit_distance, arithmetic or
    #: local_program.
    task: str = "selective_copying"
    #: Settings of the task to change, for instance: --task-set length=256
    task_set: tuple[str, ...] = ()
    #: Fields of the model's config to change. The smallest model that the published experiments use.
    set: tuple[str, ...] = ("dim=64", "depth=2")
    #: Learn from random lengths up to the task's, where the task can be had shorter; validation is at its length.
    vary_length: bool = True
    #: Optimiser steps, at most.
    steps: int = 10_000
    #: Sequences of a batch, on each device.
    batch_size: int = 16
    #: Highest learning rate.
    learning_rate: float = 3e-3
    #: Learning rate at the end, as a fraction of the highest.
    final_learning_rate: float = 0.02
    #: Steps of linear warm-up; a cosine follows.
    warmup: int = 300
    #: Weight decay of matrices.
    weight_decay: float = 0.0
    #: Steps between lines of metrics.
    log_every: int = 50
    #: Steps between validations.
    validate_every: int | None = 250
    #: Examples of a validation; the same ones every time.
    validation_examples: int = 512
    #: Stop once the validation accuracy is this high.
    stop_at: float = 0.995
    #: Stop at the first validation after so many minutes of processor time; a resumed part counts for itself.
    minutes: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_examples < 1:
            raise ValueError(f"validation_examples: expected at least 1, got {self.validation_examples}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes: expected a positive number, got {self.minutes}")
        data.synthetic_task(self.task, overrides(self.task_set))


class SyntheticBatches(IterableDataset):
    """The batches of one process, from batch `first` on; batch n is a pure function of the seed and n.

    Arguments:
        task: draws examples.
        batch_size: examples a batch, over all processes.
        seed, stream: of which random sequence; streams of one seed differ (``"train"``, ``"validation"``).
        rank, world: which process of how many; each takes its share of every batch.
        first, last: batches to give; last None is without end.
    """

    def __init__(
        self,
        task: data.SyntheticTask,
        *,
        batch_size: int,
        seed: int,
        stream: str,
        vary_length: bool = False,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        self._task, self._batch_size, self._seed, self._stream = task, batch_size, seed, stream
        self._vary = vary_length and hasattr(task, "shortest")
        share = batch_size // world
        self._rows = slice(rank * share, (rank + 1) * share)
        self._first, self._last = first, last

    def __iter__(self) -> Any:
        index = self._first
        while self._last is None or index < self._last:
            seed = data.batch_seed(self._seed, self._stream, index)
            batch = self._task_of(index, seed).batch(self._batch_size, seed=seed)
            yield data.SyntheticBatch(batch.tokens[self._rows], batch.targets[self._rows])
            index += 1

    def _task_of(self, index: int, seed: int) -> Any:
        task: Any = self._task
        if not self._vary or index % 4 == 0 or task.length <= task.shortest:
            return task
        return with_length(task, int(np.random.default_rng(seed).integers(task.shortest, task.length + 1)))


def train_synthetic(settings: SyntheticTraining) -> TrainingResult:
    """Train a model on a synthetic task until it answers nearly everything; leaves model, metrics and their picture.

    Raises:
        ValueError: for a task, a setting or a model that does not exist (the nearest name is shown), or a folder that
            cannot be written or that holds another run.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    demand(settings, "padded_vocab_size", "language model", "mamba_tiny")
    task = data.synthetic_task(settings.task, overrides(settings.task_set))
    model = build(settings, vocab_size=task.vocab_size)
    batch_size = settings.batch_size * settings.world_size
    common: dict[str, Any] = {"batch_size": batch_size, "seed": settings.seed}

    def batches(first: int, rank: int, world: int) -> SyntheticBatches:
        return SyntheticBatches(
            task, stream="train", vary_length=settings.vary_length, first=first, rank=rank, world=world, **common
        )

    def validation(first: int, rank: int, world: int) -> SyntheticBatches:
        last = -(-settings.validation_examples // batch_size)
        return SyntheticBatches(task, stream="validation", rank=rank, world=world, last=last, **common)

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, "validation_accuracy": sums.accuracy}

    began = time.process_time()

    def enough(numbers: dict[str, float]) -> bool:
        late = settings.minutes is not None and time.process_time() - began >= 60 * settings.minutes
        return late or numbers["validation_accuracy"] >= settings.stop_at

    from statescan.tasks._fit import Objective, fit
    from statescan.tasks._module import next_token

    objective = Objective(
        batches,
        validation,
        targets=answers_of(task),
        columns=("validation_loss", "validation_accuracy"),
        describe=describe,
        measure=next_token(count_correct=True),
        enough=enough,
    )
    return fit(model, settings, folder, objective)


def answers_of(task: data.SyntheticTask) -> int:
    """Answers a sequence."""
    return int((task.batch(1, seed=0).targets != data.IGNORED).sum())


@torch.inference_mode()
def accuracy(
    model: Any,
    task: data.SyntheticTask,
    *,
    examples: int = 256,
    batch_size: int = 32,
    chunk: int = 1 << 14,
    seed: int = 1,
) -> float:
    """Fraction of right answers; also on sequences far longer than those a model was trained on.

    Arguments:
        task: draws the examples; `with_length` gives another length of the same task.
        chunk: tokens of a sequence read at a time, the state carried on; bounds the memory.
    """
    right = asked = 0
    for index in range(-(-examples // batch_size)):
        batch = task.batch(min(batch_size, examples - index * batch_size), seed=data.batch_seed(seed, "test", index))
        state = None
        for tokens, targets in zip(batch.tokens.split(chunk, 1), batch.targets.split(chunk, 1), strict=True):
            logits, state = model(tokens, state)
            wanted = targets != data.IGNORED
            right += int((logits.argmax(-1) == targets)[wanted].sum())
            asked += int(wanted.sum())
    return right / asked


def with_length(task: Any, length: int) -> Any:
    """The same task at another length."""
    return dataclasses.replace(task, length=length)
