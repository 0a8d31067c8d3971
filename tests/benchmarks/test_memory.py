"""The memory benchmark's machinery: its task, its model, what is frozen, and that it learns."""

import pytest
import torch

from benchmarks import memory
from benchmarks._points import Points

KERNELS = list(memory.KERNELS)


def test_errors_are_zero_for_the_past_itself_and_one_for_silence():
    x, target = memory.signals(0, 2)
    assert torch.equal(target[:, memory.LAG :], x[:, : -memory.LAG])
    assert memory.error(target, target) == 0
    assert memory.error(torch.zeros_like(target), target) == pytest.approx(1.0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_model_is_linear_and_sees_no_future(kernel):
    model = memory.Memory(memory.KERNELS[kernel], (1e-2, 1e-2), frozen=False)
    x = torch.randn(1, 64, 1)
    y = model(x)
    assert y.shape == x.shape
    torch.testing.assert_close(model(2 * x), 2 * y, rtol=1e-4, atol=1e-4)
    changed = x.clone()
    changed[:, 40:] += 1
    torch.testing.assert_close(model(changed)[:, :40], y[:, :40], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_frozen_systems_have_only_a_readout_to_learn(kernel):
    names = {}
    for frozen in (True, False):
        model = memory.Memory(memory.KERNELS[kernel], (1e-3, 0.1), frozen=frozen)
        names[frozen] = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    low_rank = {"P"} if memory.KERNELS[kernel]["kernel"] == "dplr" else set()
    assert names[False] - names[True] == {"A_real", "A_imag", "B", "inverse_dt"} | low_rank


def test_the_legs_memory_learns_a_delay_that_the_random_one_does_not(monkeypatch):
    for name, value in (("LENGTH", 200), ("LAG", 50), ("CUTOFF", 200.0)):
        monkeypatch.setattr(memory, name, value)
    dts = (2e-2, 2e-2)
    errors = {
        name: memory.train(memory.KERNELS[name], dts, frozen=True, rate=1e-2, seed=0, steps=120)["error"]
        for name in ("S4D-LegS", "random diagonal")
    }
    assert errors["S4D-LegS"] < 0.3 < errors["random diagonal"]


def test_rows_take_the_better_rate_and_the_median_seed(tmp_path, monkeypatch):
    def train(kernel, dts, *, frozen, rate, seed, steps, show):
        return {"error": (0.1 if frozen else rate) + seed, "seconds": 1.0, "parameters": 7}

    monkeypatch.setattr(memory, "train", train)
    rows = memory.measure(Points(tmp_path / "points.jsonl"), steps=1, seeds=(0, 1, 5))
    assert len(rows) == len(memory.STEP_SIZES) * len(memory.KERNELS) * 2
    frozen, trained = rows[:2]
    assert frozen["median error"] == pytest.approx(1.1) and trained["median error"] == pytest.approx(1.001)
    assert frozen["errors"] == "0.1000, 1.1000, 5.1000"

    def forbidden(*args, **settings):
        raise AssertionError("trained again")

    monkeypatch.setattr(memory, "train", forbidden)
    assert memory.measure(Points(tmp_path / "points.jsonl"), steps=1, seeds=(0, 1, 5)) == rows
