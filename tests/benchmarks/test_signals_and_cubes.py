"""The benchmark of cubes and records: its weights, its simplest baseline, and records read in parts."""

from pathlib import Path

import numpy as np

from benchmarks import signals_and_cubes
from benchmarks._points import Points
from statescan.data import MADE_DIAGNOSES, read_challenge_weights


def test_the_matrix_is_ones_for_the_right_answer(tmp_path: Path) -> None:
    folder, weights = signals_and_cubes._made(tmp_path, 2, 0)
    found = read_challenge_weights(weights)
    assert len(found.classes) == len(MADE_DIAGNOSES) and np.array_equal(found.matrix, np.eye(6))
    assert len(list(folder.glob("*.hea"))) == 2


def test_parts_give_the_scores_of_one_call(tmp_path: Path) -> None:
    points = Points(tmp_path / "points.jsonl")
    rows = signals_and_cubes.lengths(points, seconds=(10, 30))
    assert all(row["greatest difference of scores"] < 1e-5 for row in rows)
    assert len(points) == 2 and signals_and_cubes.lengths(points, seconds=(10, 30)) == rows


def test_rows_are_means_over_seeds() -> None:
    found = [
        {"overall_accuracy": 0.5, "average_accuracy": 0.5, "kappa": 0.2, "seconds": 1.0},
        {"overall_accuracy": 0.7, "average_accuracy": 0.6, "kappa": 0.4, "seconds": 3.0},
    ]
    row = signals_and_cubes._cube_row("blocks", "some", found)
    assert (row["OA"], row["OA of the seeds"], row["kappa"], row["seconds"]) == ("0.600", "0.500, 0.700", "0.300", 2.0)
