"""The challenge's score and its matrix; areas under curves and thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from statescan.data import best_thresholds, challenge_score, label_accuracy, read_challenge_weights

CLASSES = ("1", "426783006", "3")
MATRIX = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 1.0]])


def test_the_score_is_its_definition_by_hand() -> None:
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=bool)
    answers = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)
    # Records add 1/2, 1 and 1/2 to each pair of a true and an answered class.
    observed = (1.0 + 0.5) / 2 + 1.0 + (0.2 + 1.0) / 2
    correct = 1.0 + 1.0 + (1.0 + 0.2 + 0.2 + 1.0) / 2
    inactive = 0.5 / 2 + 1.0 + (0.5 + 0.1) / 3
    wanted = (observed - inactive) / (correct - inactive)
    assert challenge_score(targets, answers, MATRIX, CLASSES) == pytest.approx(wanted, abs=1e-9)


def test_perfect_is_one_and_always_normal_is_zero() -> None:
    generator = np.random.default_rng(0)
    targets = generator.random((50, 3)) < 0.4
    normal = np.zeros_like(targets)
    normal[:, 1] = True
    assert challenge_score(targets, targets, MATRIX, CLASSES) == pytest.approx(1)
    assert challenge_score(targets, normal, MATRIX, CLASSES) == pytest.approx(0)
    assert challenge_score(targets, ~targets, MATRIX, CLASSES) < 0.5
    assert challenge_score(normal, normal, np.eye(3), CLASSES) == 0, "nothing to gain"


def test_the_score_needs_sinus_rhythm_and_equal_shapes() -> None:
    with pytest.raises(ValueError, match="needs the class of sinus rhythm, 426783006; got 1, 2, 3"):
        challenge_score(np.ones((2, 3)), np.ones((2, 3)), MATRIX, ("1", "2", "3"))
    with pytest.raises(
        ValueError, match=r"targets, answers, matrix: \(records, 3\) twice and .* got \(2, 3\), \(2, 2\)"
    ):
        challenge_score(np.ones((2, 3)), np.ones((2, 2)), MATRIX, CLASSES)


def test_the_published_forms_of_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.csv"
    path.write_text(",1,733534002|164909002,426783006\n1,1,.5,0\n733534002|164909002,.5,1,0\n426783006,0,0,1\n")
    found = read_challenge_weights(path)
    assert found.classes == ("1", "733534002|164909002", "426783006")
    assert found.matrix.tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]
    path.write_text(",713427006,1,59118001\n713427006,1,.3,1\n1,.3,1,.3\n59118001,1,.3,1\n")
    found = read_challenge_weights(path)
    assert found.classes == ("713427006|59118001", "1") and found.matrix.tolist() == [[1, 0.3], [0.3, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",1,2\n1,1,0\n3,0,1\n", "is no square table with the same codes"),
        ("", "is no square table"),
        (",1,2\n1,1\n2,0,1\n", "is no square table"),
        (",1,2\n1,1,x\n2,0,1\n", "could not convert string to float: 'x'"),
        (",1,2\n1,1,nan\n2,0,1\n", "cells without a number"),
        (",713427006,59118001\n713427006,1,.5\n59118001,.5,1\n", "codes of one meaning, .* have different weights"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "weights.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_challenge_weights(tmp_path / "weights.csv")
    with pytest.raises(FileNotFoundError, match="weights: no file"):
        read_challenge_weights(tmp_path / "absent.csv")


def test_areas_are_scikit_learns_with_equal_scores_too() -> None:
    generator = np.random.default_rng(1)
    targets = generator.random((80, 3)) < (0.3, 0.5, 0.1)
    scores = np.round(0.3 * targets + generator.random((80, 3)), 1)
    found = label_accuracy(targets, scores, np.array([0.5, 0.6, 0.7]))
    assert found.auroc == pytest.approx(roc_auc_score(targets, scores, average=None))
    assert found.auprc == pytest.approx(average_precision_score(targets, scores, average=None))
    assert found.f1 == pytest.approx(f1_score(targets, scores > (0.5, 0.6, 0.7), average=None))
    means = found.means()
    assert means["macro_auroc"] == pytest.approx(np.mean(found.auroc))


def test_classes_that_no_record_has_are_left_out_of_the_means() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]], dtype=bool)
    found = label_accuracy(targets, np.array([[0.9, 0.1], [0.2, 0.2], [0.8, 0.3]]))
    assert found.auroc[0] == 1 and np.isnan(found.auroc[1]) and found.means()["macro_auroc"] == 1
    with pytest.raises(ValueError, match="scores: NaN or infinity"):
        label_accuracy(targets, np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match=r"targets, scores: \(records, classes\) both"):
        label_accuracy(targets, np.ones((3, 3)))


def test_thresholds_give_the_greatest_f1() -> None:
    generator = np.random.default_rng(2)
    targets = np.column_stack([generator.random(60) < 0.4, np.zeros(60, dtype=bool)])
    scores = np.round(0.4 * targets + generator.random((60, 2)), 1)
    found = best_thresholds(targets, scores)
    assert found[1] == 0.5
    best = max(f1_score(targets[:, 0], scores[:, 0] > t) for t in np.linspace(-0.05, 1.5, 400))
    assert f1_score(targets[:, 0], scores[:, 0] > found[0]) == pytest.approx(best)
