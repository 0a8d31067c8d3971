"""The benchmark of training steps: equal sizes, lengths that fit, rows with targets; and the list of `make bench`."""

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import training_step
from benchmarks._points import Points

TINY = dict(dim=64, depth=2, vocabulary=256, states=16)


def test_models_are_about_equally_large_and_give_logits():
    tokens = torch.randint(1, 256, (1, 9))
    sizes = {}
    for name in (*training_step.OURS, "transformer"):
        model, logits = training_step.build(name, **TINY)
        assert logits(tokens).shape == (1, 9, 256)
        sizes[name] = training_step.parameters(model)
    assert sizes["transformer"] == pytest.approx(sizes["mamba"], rel=0.03)
    with torch.device("meta"):
        for name in training_step.OURS:
            model = training_step.build(name, **training_step.SIZES)[0]
            assert training_step.parameters(model) == pytest.approx(3e7, rel=0.05)


class Peer:
    """Needs so many bytes and seconds a token."""

    def __init__(self, name, threads, sizes, *, keep=True):
        self.name, self.parameters, self.lengths = name, 10, []

    def step(self, length):
        self.lengths.append(length)
        factor = 1 if self.name in training_step.OURS else 3
        seconds = factor * length / 1e3
        return {"added": 1e3 * length, "wall": seconds, "process": seconds, "all": factor * length}

    def close(self):
        self.lengths.append("closed")


def options(**changes):
    values = dict(memory=0.5, patience=100.0, quick=False, clock="wall", rounds=2, threads=[1], peers=["mambapy"])
    return argparse.Namespace(**(values | changes))


@pytest.mark.parametrize(
    ("free", "patience", "length", "why"),
    [
        (1e9, 100.0, 2048, ""),
        (3e6, 100.0, 1024, "GB at 2048"),
        (1e9, 4.0, 1024, "s a step at"),
        (1.0, 1.0, 256, "GB at"),
    ],
)
def test_a_peer_gets_the_longest_sequence_that_fits(monkeypatch, free, patience, length, why):
    monkeypatch.setattr(training_step, "free_memory", lambda: free)
    found, reason = training_step.length_for(Peer("mambapy", 1, {}), 2048, options(patience=patience))
    assert found == length and why in reason


def test_rows_hold_ratios_of_turns_and_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(training_step, "Worker", Peer)
    monkeypatch.setattr(training_step, "free_memory", lambda: 1e9)
    rows = training_step.speed_rows(Points(tmp_path / "points.jsonl"), options())
    assert [(row["ours"], row["ratio"], row["held"]) for row in rows] == [
        ("mamba", pytest.approx(3.0), "yes"),
        ("mamba2", pytest.approx(3.0), "yes"),
    ]
    assert rows[0]["ours, tokens a second"] == pytest.approx(1000)
    memory = training_step.memory_rows(Points(tmp_path / "points.jsonl"), False)
    assert [row["held"] for row in memory] == ["yes", "yes", ""]
    training_step.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    monkeypatch.setattr(training_step, "Worker", None)  # nothing is measured again
    assert training_step.speed_rows(Points(tmp_path / "points.jsonl"), options()) == rows


def test_make_bench_lists_what_is_there(monkeypatch, capsys):
    for name in bench.BENCHMARKS:
        assert importlib.util.find_spec(f"benchmarks.{name}"), name
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert all(f"`{name}`" in page for name in bench.BENCHMARKS)
    called = []
    monkeypatch.setattr(
        bench.subprocess, "run", lambda words, check: called.append(words) or argparse.Namespace(returncode=0)
    )
    monkeypatch.setattr("sys.argv", ["benchmarks", "images", "operators"])
    assert bench.main() == 0
    assert [words[2:] for words in called] == [["benchmarks.images", "--quick"], ["benchmarks.operators"]]
    monkeypatch.setattr("sys.argv", ["benchmarks", "nothing"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "no benchmark 'nothing' here" in capsys.readouterr().err
