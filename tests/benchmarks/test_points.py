"""Finished measurements survive the process that made them."""

import pytest

from benchmarks._points import Points


def forbidden():
    raise AssertionError("measured again")


def test_a_point_is_measured_once_and_found_by_the_next_process(tmp_path):
    path = tmp_path / "runs" / "points.jsonl"
    first = Points(path)
    assert first.get({"rate": 0.1, "sizes": (1, 2)}, lambda: {"accuracy": 0.5}) == {"accuracy": 0.5}
    assert first.get({"rate": 0.1, "sizes": (1, 2)}, forbidden) == {"accuracy": 0.5}
    later = Points(path)
    assert len(later) == 1
    assert later.get({"sizes": (1, 2), "rate": 0.1}, forbidden) == {"accuracy": 0.5}
    assert later.get({"rate": 0.2, "sizes": (1, 2)}, lambda: {"accuracy": 0.7}) == {"accuracy": 0.7}


def test_a_measurement_that_fails_leaves_the_others(tmp_path):
    path = tmp_path / "points.jsonl"
    points = Points(path)
    points.get({"n": 1}, lambda: {"found": 1})
    with pytest.raises(AssertionError):
        points.get({"n": 2}, forbidden)
    assert len(Points(path)) == 1


def test_a_line_that_was_cut_short_is_measured_again_and_harms_no_other(tmp_path):
    path = tmp_path / "points.jsonl"
    points = Points(path)
    for n in range(3):
        points.get({"n": n}, lambda n=n: {"found": n})
    path.write_text(path.read_text()[:-9])
    after = Points(path)
    assert len(after) == 2
    assert after.get({"n": 2}, lambda: {"found": 2}) == {"found": 2}
    assert len(Points(path)) == 3


def test_two_processes_share_a_file(tmp_path):
    path = tmp_path / "points.jsonl"
    one, other = Points(path), Points(path)
    one.get({"n": 1}, lambda: {"found": 1})
    other.get({"n": 2}, lambda: {"found": 2})
    assert len(Points(path)) == 2
