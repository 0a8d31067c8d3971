"""What the comparison of projections by modality makes of its curves."""

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: eval)")

from benchmarks import mixture_of_mamba as comparison
from benchmarks._points import Points

CURVE = [(0, 9.0, 5.0), (10, 6.0, 4.0), (20, 3.0, 3.0), (30, 3.0, 2.0)]


def test_a_level_is_reached_between_evaluations():
    assert comparison.smooth(CURVE, 1) == [(0, 9.0), (10, 7.5), (20, 6.0), (30, 4.0)]
    assert comparison.reaching(CURVE, 1, 5.0) == 25
    assert comparison.reaching(CURVE, 1, 3.9) is None


def test_arms_that_learn_alike_need_as_many_operations(tmp_path, monkeypatch):
    def train(form, split, *, rate, seed, steps, show=""):
        return {"curve": CURVE, "flops": 100 + len(split), "parameters": 7, "seconds": 0.0}

    monkeypatch.setattr(comparison, "train", train)
    rows = comparison.measure(Points(tmp_path / "p"), steps=30, seeds=(0, 1), arms=comparison.ARMS, rates=(0.1,))
    assert len(rows) == 8
    assert rows[1]["FLOPs to the dense loss"] == "1.04, 1.04"
    assert (tmp_path / "p").read_text().count("\n") == 8
