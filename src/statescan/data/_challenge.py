"""How well several diagnoses at once are told: the score of the PhysioNet/CinC challenges, areas under curves, F1."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statescan.data._records import EQUIVALENT_DIAGNOSES

#: Sinus rhythm, what the challenge's inactive classifier always says.
SINUS_RHYTHM = "426783006"


@dataclass(frozen=True)
class ChallengeWeights:
    """What an answer is worth, by the truth.

    Fields:
        classes: codes; several of one meaning joined by ``|``.
        matrix: (classes of the truth, classes of the answer).
    """

    classes: tuple[str, ...]
    matrix: np.ndarray


def read_challenge_weights(path: str | os.PathLike[str]) -> ChallengeWeights:
    """The challenge's matrix of weights from its published ``weights.csv``.

    Codes head the rows and columns. Those of one meaning may share a row, joined by ``|`` (2021), or have equal rows
    (2020), which become one.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a table that is not square, has other codes in its rows, no number in a cell, or unequal weights of
            codes of one meaning.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"weights: no file {str(place)!r}")
    rows = [row for row in csv.reader(place.read_text(encoding="utf-8-sig").splitlines()) if any(row)]
    heads = [cell.strip() for cell in rows[0][1:]] if rows else []
    names = [row[0].strip() for row in rows[1:]]
    if not heads or names != heads or any(len(row) != len(heads) + 1 for row in rows):
        raise ValueError(f"weights: {str(place)!r} is no square table with the same codes before its rows and columns")
    try:
        matrix = np.array([[float(cell) for cell in row[1:]] for row in rows[1:]])
    except ValueError as error:
        raise ValueError(f"weights: {str(place)!r}: {error}") from None
    if not np.isfinite(matrix).all():
        raise ValueError(f"weights: {str(place)!r} has cells without a number")
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        codes = set(name.split("|"))
        same = next((group for group in EQUIVALENT_DIAGNOSES if codes & set(group)), None)
        groups.setdefault("|".join(same) if same and not codes - set(same) else name, []).append(index)
    for name, places in groups.items():
        for other in places[1:]:
            if not np.allclose(matrix[places[0]], matrix[other]) or not np.allclose(
                matrix[:, places[0]], matrix[:, other]
            ):
                raise ValueError(f"weights: {str(place)!r}: codes of one meaning, {name}, have different weights")
    first = [places[0] for places in groups.values()]
    return ChallengeWeights(tuple(groups), matrix[np.ix_(first, first)])


def challenge_score(
    targets: np.ndarray, answers: np.ndarray, matrix: np.ndarray, classes: Sequence[str], *, normal: str = SINUS_RHYTHM
) -> float:
    """The challenge's score: 1 for answers without a mistake, 0 for always answering sinus rhythm.

    A record adds 1 / (number of classes in its truth or its answer) to the count of every pair of a true and an answered
    class; the counts are weighted and summed, and the sum is scaled (Perez Alday et al. 2020).

    Arguments:
        targets: (records, classes), bool.
        answers: (records, classes), bool.
        matrix: (classes, classes), what an answer is worth by the truth.
        classes: codes, one of which is `normal`.

    Raises:
        ValueError: for shapes that do not fit, or where `normal` is no class.
    """
    targets, answers = np.asarray(targets, dtype=bool), np.asarray(answers, dtype=bool)
    count = len(classes)
    if targets.shape != answers.shape or targets.shape[1:] != (count,) or matrix.shape != (count, count):
        raise ValueError(
            f"targets, answers, matrix: (records, {count}) twice and ({count}, {count}), got {targets.shape}, "
            f"{answers.shape} and {matrix.shape}"
        )
    places = [index for index, name in enumerate(classes) if normal in name.split("|")]
    if not places:
        raise ValueError(f"classes: the score needs the class of sinus rhythm, {normal}; got {', '.join(classes)}")
    inactive = np.zeros_like(answers)
    inactive[:, places[0]] = True

    def weighted(given: np.ndarray) -> float:
        either = np.maximum(1, (targets | given).sum(1, keepdims=True))
        return float(((targets / either).T @ given.astype(np.float64) * matrix).sum())

    low, high = weighted(inactive), weighted(targets)
    return (weighted(answers) - low) / (high - low) if high != low else 0.0


@dataclass(frozen=True)
class LabelAccuracy:
    """How well each of several classes is told; NaN for a class that all records have, or none.

    Fields:
        auroc: area under the receiver's curve, by class.
        auprc: area under precision and recall (average precision), by class.
        f1: of the answers, by class.
    """

    auroc: tuple[float, ...]
    auprc: tuple[float, ...]
    f1: tuple[float, ...]

    def means(self) -> dict[str, float]:
        """The mean of each over the classes that have a value."""
        parts = {"macro_auroc": self.auroc, "macro_auprc": self.auprc, "macro_f1": self.f1}
        return {name: _mean(values) for name, values in parts.items()}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def label_accuracy(targets: np.ndarray, scores: np.ndarray, thresholds: np.ndarray | float = 0.5) -> LabelAccuracy:
    """Accuracy of scores (records, classes) for targets of that shape; a class is answered where it passes its threshold.

    Raises:
        ValueError: for shapes that differ, or scores that are not finite.
    """
    targets, scores = np.asarray(targets, dtype=bool), np.asarray(scores, dtype=np.float64)
    if targets.ndim != 2 or targets.shape != scores.shape or not len(targets):
        raise ValueError(f"targets, scores: (records, classes) both, got {targets.shape} and {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores: NaN or infinity among them")
    answers = scores > np.broadcast_to(thresholds, scores.shape[1:])
    columns = [_curves(target, score) for target, score in zip(targets.T, scores.T, strict=True)]
    f1 = []
    for target, answer in zip(targets.T, answers.T, strict=True):
        counted = target.sum() + answer.sum()
        f1.append(2 * float((target & answer).sum()) / float(counted) if target.any() else float("nan"))
    return LabelAccuracy(tuple(roc for roc, _ in columns), tuple(pr for _, pr in columns), tuple(f1))


def _curves(target: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Areas under both curves; equal scores are passed at once."""
    positives, count = int(target.sum()), len(target)
    if not 0 < positives < count:
        return float("nan"), float("nan")
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    hits = np.cumsum(target[order])[ends]
    passed = ends + 1
    misses = passed - hits
    rate, false = np.append(0, hits / positives), np.append(0, misses / (count - positives))
    roc = float(((rate[1:] + rate[:-1]) / 2 * np.diff(false)).sum())
    return roc, float((np.diff(rate) * hits / passed).sum())


def best_thresholds(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each class, the threshold with the greatest F1; 0.5 for a class that no record has.

    Arguments:
        targets, scores: (records, classes), of records that are not those of the test.
    """
    found = np.full(scores.shape[1], 0.5)
    for index, (target, score) in enumerate(zip(targets.T, scores.T, strict=True)):
        if not target.any():
            continue
        order = np.argsort(-score, kind="stable")
        sorted_scores = score[order]
        hits = np.cumsum(target[order])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + target.sum())
        f1[:-1][np.diff(sorted_scores) == 0] = -1  # equal scores are passed at once
        best = int(np.argmax(f1))
        below = sorted_scores[best + 1] if best + 1 < len(hits) else sorted_scores[best] - 1e-6
        found[index] = (sorted_scores[best] + below) / 2
    return found
