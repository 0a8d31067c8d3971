"""The benchmark of state tracking: what it trains and counts, at sizes that take seconds."""

import pytest

from benchmarks import state_tracking


@pytest.mark.parametrize("name", state_tracking.MODELS)
def test_every_model_learns_a_step(name):
    model = state_tracking.create(name, 2, 1, seed=0)
    found = state_tracking.train(model, "parity", 1e-2, steps=2, minutes=1, seed=0)
    assert found["steps"] == 2
    assert set(found["accuracy"]) == {"32", "64", "128"}
    assert all(0 <= part <= 1 for both in found["accuracy"].values() for part in both)


def test_states_are_of_one_size():
    sizes = {}
    for name in state_tracking.MODELS:
        model = state_tracking.create(name, 2, 1, seed=0)
        sizes[name] = sum(t.numel() for key, t in model.initial_state(1).tensors() if key.endswith("ssm"))
    assert len(set(sizes.values())) == 1


def test_the_best_rate_makes_the_row():
    def found(right):
        scores = {str(length): (right, right / 2) for length in state_tracking.LENGTHS}
        return {"parameters": 5, "steps": 7, "seconds": 1.0, "accuracy": scores}

    row = state_tracking.row("parity", "Mamba-2", {0.1: found(0.5), 0.2: found(0.75), 0.3: found(0.25)})
    assert (row["rate"], row["all at 32"], row["last at 128"]) == (0.2, 0.75, 0.375)
