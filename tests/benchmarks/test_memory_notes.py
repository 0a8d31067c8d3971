"""The benchmark of notes, at sizes that take seconds."""

import sys

import pytest
import torch

from benchmarks import _measure, memory_notes
from statescan.data import IGNORED
from statescan.inspect import count_parameters


@pytest.mark.parametrize("task", memory_notes.TASKS)
def test_models_are_of_one_size_and_learn(task):
    sizes = []
    for kind in memory_notes.MODELS:
        model = memory_notes.create(kind, task, seed=0)
        sizes.append(count_parameters(model))
        assert float(memory_notes.TASKS[task][1](model, 0, tokens_a_step=600).detach()) > 0
        scores = memory_notes.found_digits(model, task, 512, examples=1, seed=0)
        assert 0 <= scores["answers"] <= scores["digits"] <= 1
        share = memory_notes.noted(model, task, 512, examples=1, seed=0)
        assert (share is None) == (kind == "mamba")
    assert 1 <= sizes[0] / sizes[1] < 1.06


def test_what_is_asked_for_is_marked():
    tokens, targets = memory_notes.digits_batch(3, 64, seed=0)
    assert ((targets != IGNORED).sum(1) == 3).all()
    assert torch.equal(targets[:, -3:-1], tokens[:, -2:])
    tokens, targets = memory_notes.passkey_batch(2, 400, seed=0)
    assert ((targets != IGNORED).sum(1) == 5).all()


def test_the_whole_of_it_goes_on_where_it_stood(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(memory_notes, "ROOT", tmp_path)
    (tmp_path / "docs" / "assets").mkdir(parents=True)
    monkeypatch.setattr(memory_notes, "LENGTHS", (512, 1024))
    arguments = ["--out", str(tmp_path / "out"), "--task", "digits", "--minutes", "0.005", "--examples", "1"]
    monkeypatch.setattr(sys, "argv", ["memory_notes", *arguments])
    threads = torch.get_num_threads()
    try:
        memory_notes.main()
        points = (tmp_path / "out" / "points.jsonl").read_text()
        memory_notes.main()
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "out" / "points.jsonl").read_text() == points
    assert (tmp_path / "results" / "memory_notes.md").is_file()
    assert (tmp_path / "docs" / "assets" / "memory_notes.png").is_file()
    assert "memory fidelity" in capsys.readouterr().out
