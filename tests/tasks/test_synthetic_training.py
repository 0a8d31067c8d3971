"""Training on generated tasks: it learns, it stops when it has learnt, and its batches are reproducible."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import torch

import statescan
from statescan.data import SYNTHETIC_TASKS, synthetic_task
from statescan.tasks import SyntheticTraining, train_synthetic
from statescan.tasks.synthetic import SyntheticBatches, accuracy, answers_of, with_length

pytest.importorskip("pytorch_lightning")

SMALL = dict(batch_size=16, warmup=5, accelerator="cpu", progress=False, validation_examples=64, log_every=10)


def test_induction_is_learnt_and_training_stops(tmp_path):
    settings = SyntheticTraining(
        task="induction_heads",
        task_set=("length=8", "vocab_size=6"),
        set=("dim=32", "depth=1"),
        out=tmp_path,
        steps=600,
        validate_every=25,
        stop_at=0.9,
        learning_rate=1e-2,
        **SMALL,
    )
    result = train_synthetic(settings)
    assert result.validation["validation_accuracy"] >= 0.9
    assert result.steps < 600
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == result.steps
    assert train_synthetic(dataclasses.replace(settings, resume=True)).steps == result.steps
    model = statescan.load(result.model)
    task = synthetic_task("induction_heads", {"length": 8, "vocab_size": 6})
    assert accuracy(model, task) > 0.8
    assert accuracy(model, with_length(task, 12), examples=40, chunk=5) > 0.5


def test_the_time_invariant_ablation_is_an_option_of_the_model(tmp_path):
    settings = SyntheticTraining(
        task="mqar", set=("dim=16", "depth=1", "selective=False"), out=tmp_path, steps=2, **SMALL
    )
    model = statescan.load(train_synthetic(settings).model)
    assert not model.config.selective
    assert "selection_projection" not in " ".join(model.state_dict())


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_every_task_can_be_trained_on(tmp_path, name):
    settings = SyntheticTraining(
        task=name, set=("dim=8", "depth=1"), out=tmp_path, steps=1, **SMALL | {"batch_size": 2}
    )
    assert train_synthetic(settings).steps == 1


def test_batches_are_shared_and_resumed():
    task = synthetic_task("mqar")

    def batches(**changes):
        arguments = dict(batch_size=6, seed=3, stream="train", last=4)
        return list(SyntheticBatches(task, **{**arguments, **changes}))

    whole, late, other = batches(), batches(first=2), batches(stream="validation")
    shares = [batches(rank=rank, world=2) for rank in range(2)]
    for index in range(4):
        joined = torch.cat([share[index].tokens for share in shares])
        assert torch.equal(whole[index].tokens, joined)
        assert not torch.equal(whole[index].tokens, other[index].tokens)
    assert torch.equal(whole[2].tokens, late[0].tokens)


def test_lengths_vary_up_to_that_of_the_task():
    task = synthetic_task("induction_heads", {"length": 40})
    arguments = dict(batch_size=2, seed=1, stream="train", last=40)
    lengths = [batch.tokens.shape[1] for batch in SyntheticBatches(task, vary_length=True, **arguments)]
    assert all(length == 40 for length in lengths[::4])
    assert min(lengths) >= 8
    assert max(lengths) == 40
    assert len(set(lengths)) > 10
    late = SyntheticBatches(task, vary_length=True, first=7, **arguments)
    assert [batch.tokens.shape[1] for batch in late] == lengths[7:]
    fixed = SyntheticBatches(synthetic_task("mqar"), vary_length=True, **arguments)
    assert {batch.tokens.shape[1] for batch in fixed} == {64}


@pytest.mark.parametrize(
    ("name", "count"), [("selective_copying", 16), ("induction_heads", 1), ("mqar", 4), ("passkey", 5)]
)
def test_answers_a_sequence(name, count):
    assert answers_of(synthetic_task(name)) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "selective_copyin"}, "nearest: 'selective_copying'"),
        ({"task_set": ("lenght=3",)}, "unknown setting 'lenght'; nearest: 'length'"),
        ({"validation_examples": 0}, "validation_examples: expected at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SyntheticTraining(**changes)


def test_no_processor_time_is_named():
    with pytest.raises(ValueError, match="minutes: expected a positive number, got 0"):
        SyntheticTraining(minutes=0)
