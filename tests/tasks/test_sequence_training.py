"""Training on labelled sequences."""

import json

import numpy as np
import pytest
import torch

import statescan
from statescan import tasks
from statescan.cli import main
from statescan.data import LabelledSequences
from statescan.tasks.sequence import SequenceBatches


@pytest.fixture
def waves(tmp_path):
    """Slow and fast waves of unequal lengths, and their frequencies."""
    generator = np.random.default_rng(0)
    speed = generator.uniform(0.05, 0.6, 160)
    time = np.arange(40)
    inputs = np.sin(time * speed[:, None] + generator.uniform(0, 6, (160, 1)))
    lengths = generator.integers(25, 41, 160)
    np.savez(tmp_path / "classes.npz", inputs=inputs, targets=(speed > 0.3).astype(int), lengths=lengths)
    np.savez(tmp_path / "numbers.npz", inputs=inputs, targets=100 * speed, lengths=lengths)
    return tmp_path


def settings(folder, name="classes", **changes):
    base = dict(
        data=str(folder / f"{name}.npz"),
        out=folder / "run",
        model="s4d_tiny",
        set=("dim=8", "depth=1"),
        steps=60,
        warmup=5,
        learning_rate=2e-2,
        progress=False,
    )
    return tasks.SequenceTraining(**(base | changes))


def test_classes_are_learnt(waves):
    result = tasks.train_sequence(settings(waves))
    assert result.test["accuracy"] > 0.85
    assert json.loads((waves / "run" / "test.json").read_text()) == result.test
    model = statescan.load(waves / "run")
    assert model.config.classes == 2 and model.config.input_dim == 1


def test_numbers_are_learnt_in_their_own_units(waves):
    result = tasks.train_sequence(settings(waves, "numbers", model="classifier_tiny", mixer="s5", steps=120))
    assert result.test["absolute_error"] < 8, "100 x 0.05 to 100 x 0.6 lie 14 from their mean on average"


def test_parts_have_learning_rates_of_their_own(waves):
    tasks.train_sequence(settings(waves, steps=4, learning_rates=("encoder=1e-12", ".C=0.1")))
    torch.manual_seed(0)
    fresh = statescan.create_model("s4d_tiny", dim=8, depth=1, input_dim=1, classes=2).state_dict()
    moved = {
        name: float((v - fresh[name]).abs().max()) for name, v in statescan.load(waves / "run").state_dict().items()
    }
    assert moved["encoder.weight"] < 1e-6 < moved["decoder.weight"]
    (C,) = [value for name, value in moved.items() if name.endswith(".C")]
    assert 2 * moved["decoder.weight"] < C


def test_a_killed_run_goes_on_as_if_nothing_had_been(waves):
    whole = tasks.train_sequence(settings(waves, out=waves / "whole", steps=20, checkpoint_every=10))
    tasks.train_sequence(settings(waves, steps=20, checkpoint_every=10))
    for name in ("metrics.csv", "test.json"):
        assert (waves / "run" / name).read_text() == (waves / "whole" / name).read_text()
    again = tasks.train_sequence(settings(waves, steps=20, checkpoint_every=10, resume=True))
    assert again.test == whole.test


def test_batches_are_a_function_of_seed_and_number():
    data = LabelledSequences(torch.arange(10.0)[:, None, None], torch.ones(10, dtype=torch.int64), torch.arange(10))

    def targets(count, **options):
        batches = iter(SequenceBatches(data, batch_size=4, **options))
        return [next(batches).targets.tolist() for _ in range(count)]

    assert targets(5)[2:] == targets(3, first=2)
    assert targets(2) != targets(2, seed=1)
    first, second = targets(2)
    assert not set(first) & set(second), "a pass takes each example once"
    shares = [targets(2, rank=rank, world=2) for rank in range(2)]
    assert sorted(shares[0][0] + shares[1][0]) == sorted(first)
    once = [batch.targets.tolist() for batch in SequenceBatches(data, batch_size=4, once=True)]
    assert once == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_from_the_command_line(waves, capsys):
    command = f"train sequence --data {waves}/classes.npz --model s5_tiny --set dim=8 depth=1 state_dim=4 --steps 3"
    assert main([*command.split(), "--out", str(waves / "cli"), "--json"]) == 0
    assert "accuracy" in json.loads(capsys.readouterr().out)["test"]
    assert main(["train", "sequence", "--data", "digts"]) == 2
    assert "nearest: 'digits'" in capsys.readouterr().err


def test_mistakes_are_named(waves):
    with pytest.raises(ValueError, match="test_fraction: expected a number between 0 and 1"):
        settings(waves, test_fraction=1.0)
    with pytest.raises(ValueError, match="mixer: unknown 's4e'; nearest: 's4'"):
        settings(waves, mixer="s4e")
    with pytest.raises(
        ValueError, match="model: 'mamba_tiny' is no classifier of sequences; try --model classifier_tiny"
    ):
        tasks.train_sequence(settings(waves, model="mamba_tiny"))
    with pytest.raises(ValueError, match="model: 's4_tiny' is no language model; try --model mamba_tiny"):
        tasks.train_synthetic(tasks.SyntheticTraining(model="s4_tiny", out=waves / "other"))
