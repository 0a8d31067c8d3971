"""The benchmark of long texts, at sizes that take seconds."""

import sys

import pytest
import torch

from benchmarks import _measure, long_context
from statescan.generation import LongContext


@pytest.mark.parametrize("task", long_context.TASKS)
@pytest.mark.parametrize("model", long_context.MODELS)
def test_losses_and_measures_of_both_models(task, model, tmp_path):
    torch.manual_seed(0)
    made = long_context.create(long_context.MODELS[model])
    loss, measure, _ = long_context.TASKS[task]
    assert float(loss(made, 0).detach()) > 0
    table = long_context.calibrate(made, tmp_path, long_context.calibration_text(task, 1))
    context = LongContext(table, decay_threshold=0.0)
    plain = measure(made, 1024, examples=1, seed=0, context=None)
    assert plain >= 0
    assert measure(made, 512, examples=1, seed=0, context=context) == measure(
        made, 512, examples=1, seed=0, context=None
    )
    if task == "text":
        assert measure(made, 1024, examples=1, seed=0, context=context) != plain


def test_the_whole_of_it_goes_on_where_it_stood(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(long_context, "THRESHOLDS", (0.05, 0.0))
    monkeypatch.setattr(long_context, "CHOSEN_AT", 2)
    arguments = [
        "--out",
        str(tmp_path),
        "--minutes",
        "0.01",
        "--examples",
        "1",
        "--lengths",
        "768",
        "--tasks",
        "passkey",
    ]
    monkeypatch.setattr(sys, "argv", ["long_context", *arguments])
    threads = torch.get_num_threads()
    try:
        long_context.main()
        points = (tmp_path / "points.jsonl").read_text()
        long_context.main()
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "points.jsonl").read_text() == points
    assert (tmp_path / "results" / "long_context.md").is_file()
    assert "fraction of digits right" in capsys.readouterr().out


def test_marked_digits_stand_where_they_are_said_to():
    tokens, digits = long_context.marked_digits(50, 32, seed=0)
    for row, wanted in zip(tokens.tolist(), digits.tolist(), strict=True):
        mark = row.index(long_context.MARK)
        assert row[mark + 1 : mark + 4] == wanted
        assert row[-3:] == [long_context.ASK, *wanted[:2]]
