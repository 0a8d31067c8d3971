"""Electrocardiograms: several diagnoses of a record at once, and records of any length in constant memory."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan import data
from statescan.data import LEADS
from statescan.tasks._run_folder import RunFolder, replacing
from statescan.tasks._settings import TrainingSettings, build, demand

if TYPE_CHECKING:
    from statescan.layers import State
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Measure, Sums


@dataclass(frozen=True)
class RecordTraining(TrainingSettings):
    """Train a classifier of electrocardiograms, several diagnoses at once.

    Example: statescan train records --data training/ --weights weights.csv --out runs/ecg
    """

    #: A folder of WFDB records with diagnoses in their headers; or the word made: records generated for the purpose.
    data: str = "made"
    #: Such a folder to be tried on; else a part of the records, chosen at random.
    test_data: str | None = None
    #: That part.
    test_fraction: float = 0.2
    #: Part of what is left that validates while learning, and by which thresholds are chosen.
    validation_fraction: float = 0.15
    #: Records, where they are made.
    records: int = 600
    #: Codes of the diagnoses to tell, several of one meaning joined by |; all that are frequent enough unless given.
    classes: tuple[str, ...] = ()
    #: Records that a diagnosis must have to be told.
    least: int = 10
    #: The challenge's weights.csv, for its score; its codes are the classes unless others are given.
    weights: str | None = None
    #: Samples a second that records are brought to.
    rate: float = 500.0
    #: Leads to read; those of the twelve unless given.
    leads: tuple[str, ...] = LEADS
    #: What is done about leads or values that are missing.
    missing: Literal["error", "zeros"] = "error"
    #: Seconds of a record that are seen at a time.
    seconds: float = 10.0
    #: How much more rare diagnoses count: 0 not at all, 1 so that there and not there count alike (20 times at most).
    balance: float = 0.5
    #: Name of a model of records.
    model: str = "ecg_mamba_tiny"
    #: Optimiser steps.
    steps: int = 1000
    #: Records of a batch, on each device.
    batch_size: int = 16
    #: Highest learning rate.
    learning_rate: float = 2e-3
    #: Weight decay of matrices.
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixer is not None:
            raise ValueError(f"mixer: this training has no use for {self.mixer!r}; its models' own are set by --set")
        for name in ("test_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number between 0 and 1, got {getattr(self, name)}")
        for name in ("rate", "seconds", "records", "least"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance: expected a number from 0 to 1, got {self.balance}")

    @property
    def length(self) -> int:
        """Samples that are seen at a time."""
        return max(1, round(self.seconds * self.rate))


@dataclass(frozen=True)
class RecordBatch:
    """Signals (batch, length, leads) in millivolts and what they show (batch, classes), 0 or 1."""

    inputs: Tensor
    targets: Tensor


class RecordBatches(IterableDataset):
    """The batches of one process, from batch `first` on; what batch n holds depends on the seed and n alone.

    Arguments:
        records: to draw from; of a longer one a part is taken, a shorter one is followed by zeros.
        length: samples of each.
        batch_size: records a batch, over all processes.
        seed: of the order, which is a new one in each pass, and of the parts.
        rank, world: which process of how many; each takes its share of every batch.
        first: batch to begin with.
        once: stop after one pass, in the given order, with the records' beginnings and a last batch that may be smaller.
    """

    def __init__(
        self,
        records: data.RecordSet,
        *,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
        once: bool = False,
    ) -> None:
        self._records, self._length, self._batch_size, self._seed = records, length, batch_size, seed
        self._rank, self._world, self._first, self._once = rank, world, first, once

    def __iter__(self) -> Any:
        count = len(self._records)
        if self._once:
            for start in range(0, count, self._batch_size):
                yield self._take(np.arange(start, min(count, start + self._batch_size)), None)
            return
        size = min(self._batch_size, count)
        per_pass, number = count // size, self._first
        while True:
            order = np.random.default_rng(data.batch_seed(self._seed, "order", number // per_pass)).permutation(count)
            start = number % per_pass * size
            generator = np.random.default_rng(data.batch_seed(self._seed, "parts", number))
            yield self._take(order[start : start + size], generator)
            number += 1

    def _take(self, index: np.ndarray, generator: np.random.Generator | None) -> RecordBatch:
        chances = np.zeros(len(index)) if generator is None else generator.random(len(index))
        mine, chances = index[self._rank :: self._world], chances[self._rank :: self._world]
        inputs = np.zeros((len(mine), self._length, len(self._records.leads)), dtype=np.float32)
        for row, (record, chance) in enumerate(zip(mine, chances, strict=True)):
            signals = self._records.signals(int(record))
            start = int(chance * (max(0, len(signals) - self._length) + 1))
            some = signals[start : start + self._length]
            inputs[row, : len(some)] = some
        targets = torch.from_numpy(self._records.targets[mine].astype(np.float32))
        return RecordBatch(torch.from_numpy(inputs), targets)


def several_labels(weights: Tensor) -> Measure:
    """Cross-entropy of each class by itself; `weights` (classes,) multiply that of what is there."""

    def measure(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        targets = batch["targets"]
        scores = model(batch["inputs"]).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            scores, targets, pos_weight=weights.to(scores.device), reduction="sum"
        )
        right = ((scores > 0) == (targets > 0)).sum()
        count = torch.tensor(float(targets.numel()), device=loss.device)
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        return loss, torch.stack([value.detach().to(wide) for value in (loss, count, right)]), None

    return measure


def train_records(settings: RecordTraining) -> TrainingResult:
    """Train on records with diagnoses and try the model on others.

    Beside the model and its metrics this leaves ``records.json`` (classes, thresholds, rate, leads) and ``test.json``. The
    test's numbers are the means over the classes ``macro_auroc``, ``macro_auprc`` and ``macro_f1``, with `weights`
    ``challenge_score``, and ``auroc of …`` each class. Thresholds are those of the greatest F1 on the validation's records.

    Raises:
        ValueError: for data, a setting or a model that does not fit, or a folder that cannot be written.
        FileNotFoundError: where there is no such file.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    demand(settings, "leads", "classifier of records", "ecg_mamba_tiny")
    matrix = data.read_challenge_weights(settings.weights) if settings.weights else None
    learn, tried = _records(settings, matrix)
    absent = [learn.classes[column] for column in np.flatnonzero(~learn.targets.any(0))]
    if absent and matrix is None:
        raise ValueError(f"classes: no record to learn from shows {', '.join(absent)}; leave it out (classes)")
    model = build(settings, leads=len(settings.leads), num_classes=len(learn.classes), length=settings.length)
    validating, learning = learn.split(settings.validation_fraction, seed=settings.seed + 1)
    batch_size = settings.batch_size * settings.world_size

    def batches(first: int, rank: int, world: int) -> RecordBatches:
        shared: dict[str, Any] = dict(seed=settings.seed, rank=rank, world=world, first=first)
        return RecordBatches(learning, length=settings.length, batch_size=batch_size, **shared)

    def validation(first: int, rank: int, world: int) -> RecordBatches:
        shared: dict[str, Any] = dict(rank=rank, world=world, once=True)
        return RecordBatches(validating, length=settings.length, batch_size=batch_size, **shared)

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, "validation_accuracy": sums.accuracy}

    from statescan.tasks._fit import Objective, fit

    there = learning.targets.mean(0).clip(1e-6, 1)
    weights = torch.from_numpy((((1 - there) / there).clip(0.05, 20) ** settings.balance).astype(np.float32))
    objective = Objective(
        batches,
        validation,
        targets=len(learn.classes),
        columns=("validation_loss", "validation_accuracy"),
        describe=describe,
        measure=several_labels(weights),
    )
    training = fit(model, settings, folder, objective)
    options: dict[str, Any] = dict(length=settings.length, batch_size=settings.batch_size)
    thresholds = data.best_thresholds(validating.targets, record_scores(model, validating, **options))
    test = judge_records(tried, record_scores(model, tried, **options), thresholds, matrix)
    about = {
        "classes": list(learn.classes),
        "thresholds": thresholds.tolist(),
        "rate": settings.rate,
        "leads": list(settings.leads),
        "missing": settings.missing,
        "length": settings.length,
        "records": {"training": len(learning), "validation": len(validating), "test": len(tried)},
    }
    for name, content in (("records.json", about), ("test.json", test)):
        with replacing(folder.path / name) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")
    return dataclasses.replace(training, test=test)


def _records(settings: RecordTraining, matrix: data.ChallengeWeights | None) -> tuple[data.RecordSet, data.RecordSet]:
    """Records to learn from, and others to be tried on."""
    place = Path(settings.data)
    if settings.data == "made" and not place.is_dir():
        place = settings.out / f"made_{settings.seed}_{settings.rate:g}_{settings.seconds:g}"
        if len(list(place.glob("*.hea"))) != settings.records:
            data.make_records(place, settings.records, seconds=settings.seconds, rate=settings.rate, seed=settings.seed)
    classes = settings.classes or (matrix.classes if matrix is not None else ())
    options: dict[str, Any] = dict(rate=settings.rate, leads=settings.leads, missing=settings.missing)
    learn = data.read_records(place, classes=classes, least=settings.least, **options)
    if settings.test_data is not None:
        return learn, data.read_records(settings.test_data, classes=learn.classes, **options)
    tried, learn = learn.split(settings.test_fraction, seed=settings.seed)
    return learn, tried


@torch.no_grad()
def record_scores(model: Any, records: data.RecordSet, *, length: int, batch_size: int = 16) -> np.ndarray:
    """Probabilities (records, classes): the means over parts of `length` samples, side by side, the last one from the end.

    Arguments:
        model: its mode is kept.
        records: of any lengths; one shorter than a part is followed by zeros.
        length: of a part.
        batch_size: parts that are read at a time.
    """
    training = model.training
    model.eval()
    found = np.zeros((len(records), len(records.classes)))
    waiting: list[tuple[int, np.ndarray, float]] = []

    def read() -> None:
        if waiting:
            inputs = torch.from_numpy(np.stack([part for _, part, _ in waiting])).to(model.device)
            scores = torch.sigmoid(model(inputs).float()).cpu().numpy()
            for (record, _, share), score in zip(waiting, scores, strict=True):
                found[record] += share * score
            waiting.clear()

    for record in range(len(records)):
        parts = list(_parts(records.signals(record), length))
        for part in parts:
            waiting.append((record, part, 1 / len(parts)))
            if len(waiting) == batch_size:
                read()
    read()
    model.train(training)
    return found


def _parts(signals: np.ndarray, length: int) -> Iterator[np.ndarray]:
    if len(signals) <= length:
        yield np.pad(signals, ((0, length - len(signals)), (0, 0)))
        return
    starts = list(range(0, len(signals) - length + 1, length))
    if starts[-1] + length < len(signals):
        starts.append(len(signals) - length)
    for start in starts:
        yield signals[start : start + length]


def judge_records(
    records: data.RecordSet,
    scores: np.ndarray,
    thresholds: np.ndarray,
    weights: data.ChallengeWeights | None = None,
) -> dict[str, float]:
    """Numbers of a test: means over the classes, the challenge's score where there are weights, and each class's area."""
    accuracy = data.label_accuracy(records.targets, scores, thresholds)
    test = accuracy.means()
    if weights is not None:
        unknown = [name for name in weights.classes if name not in records.classes]
        if unknown:
            raise ValueError(f"weights: class {unknown[0]} is none of the model's: {', '.join(records.classes)}")
        order = [records.classes.index(name) for name in weights.classes]
        answers = scores > thresholds
        test["challenge_score"] = data.challenge_score(
            records.targets[:, order], answers[:, order], weights.matrix, weights.classes
        )
    return test | {f"auroc of {name}": area for name, area in zip(records.classes, accuracy.auroc, strict=True)}


@dataclass(frozen=True)
class RecordAnswer:
    """What a model makes of a record.

    Fields:
        classes: codes.
        probabilities: of each, over the whole record.
        thresholds: of the answers.
        times: seconds at which the parts begin.
        parts: (parts, classes), probabilities of each part.
        held_bytes: the most that was carried from one part to the next.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    thresholds: tuple[float, ...]
    times: tuple[float, ...]
    parts: np.ndarray
    held_bytes: int

    @property
    def answers(self) -> tuple[str, ...]:
        """Classes whose probability passes their threshold."""
        rows = zip(self.classes, self.probabilities, self.thresholds, strict=True)
        return tuple(name for name, probability, threshold in rows if probability > threshold)


@torch.no_grad()
def classify_record(run: str | os.PathLike[str], path: str | os.PathLike[str]) -> RecordAnswer:
    """Read one record of any length, part by part in constant memory, by the model of a run.

    A model without class token and positions reads on with `models.ecg_mamba.RecordStream`, whose forward scans carry
    their state; another reads each part by itself, and its probabilities are their means.

    Arguments:
        run: folder that `train_records` left.
        path: of the record's files.

    Raises:
        FileNotFoundError: where there is no such record.
        ValueError: for another folder, or a record without the leads that were learnt from.
    """
    from statescan.checkpoints import load
    from statescan.models.ecg_mamba import RecordStream

    place = Path(run) / "records.json"
    if not place.is_file():
        raise ValueError(f"run: {str(run)!r} has no records.json; expected a folder that `train records` left")
    about = json.loads(place.read_text())
    model, length, rate = load(run).eval(), about["length"], about["rate"]
    streamed = not (model.config.class_token or model.config.position)
    stream = RecordStream(model, samples=length) if streamed else None
    found: list[np.ndarray] = []
    left = np.zeros((0, len(about["leads"])), dtype=np.float32)
    held = 0
    for part in data.record_parts(
        path, seconds=length / rate, rate=rate, leads=about["leads"], missing=about["missing"]
    ):
        if stream is not None:
            found += [_probabilities(scores) for scores in stream.push(torch.from_numpy(part)[None])]
            held = max(held, stream.nbytes)
            continue
        left = np.concatenate([left, part])
        while len(left) >= length:
            found.append(_probabilities(model(torch.from_numpy(left[None, :length]))))
            left = left[length:]
        held = max(held, left.nbytes)
    if stream is not None:
        found += [_probabilities(scores) for scores in stream.finish()]
        whole = _probabilities(stream.scores)
        spacing = stream.samples / rate
    else:
        if not found or len(left) > length // 2:
            padded = np.pad(left, ((0, length - len(left)), (0, 0)))
            found.append(_probabilities(model(torch.from_numpy(padded[None]))))
        whole, spacing = np.mean(found, 0), length / rate
    times = tuple(index * spacing for index in range(len(found)))
    return RecordAnswer(
        tuple(about["classes"]), tuple(map(float, whole)), tuple(about["thresholds"]), times, np.stack(found), held
    )


def _probabilities(scores: Tensor) -> np.ndarray:
    return torch.sigmoid(scores.float())[0].cpu().numpy()
