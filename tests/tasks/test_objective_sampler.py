"""Rewards of objectives, exploring, and the sampler on made-up losses."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from statescan.tasks import ExplorationSchedule, ObjectiveSampler, RewardModel, normalise_actions, objective_reward

KINDS = ["copy", "infill", "infill", "next", "prefix"]
TINY: dict[str, Any] = {"width": 16, "depth": 1, "candidates": 128, "iterations": 25, "learning_rate": 5e-3}


def test_reward_follows_its_formula() -> None:
    old, new = torch.tensor([3.0, 2.0, 4.0, 2.0]), torch.tensor([2.9, 2.0, 4.1, 1.0])
    got = objective_reward(old, new)
    for index, (a, b) in enumerate(zip(old.tolist(), new.tolist(), strict=True)):
        n = math.sqrt(a * b) * ((b - a) / (a + 1e-8)) ** 3 * math.e
        assert got[index].item() == pytest.approx(max(-1, min(1, -100 * math.e * math.tanh(n))), rel=1e-3)
    assert got[0] > 0 and got[1] == 0 and got[2] < 0 and got[3] == 1
    assert objective_reward(torch.tensor([-1.0, math.nan]), torch.tensor([1.0, 1.0])).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match=re.escape("new: expected the shape of old (2,), got (3,)")):
        objective_reward(torch.ones(2), torch.ones(3))


def test_actions_become_probabilities() -> None:
    torch.testing.assert_close(normalise_actions(torch.tensor([1.0, 3.0])), torch.tensor([0.25, 0.75]))
    shifted = normalise_actions(torch.tensor([[1.0, 2.0, 4.0], [-1.0, 0.0, 1.0]]))
    torch.testing.assert_close(shifted, torch.tensor([[0.0, 0.25, 0.75], [0.0, 1 / 3, 2 / 3]]))


def test_exploration_falls_along_a_cosine() -> None:
    schedule = ExplorationSchedule(101, warmup_steps=10, forced_steps=5)
    assert [schedule(step) for step in (0, 4, 5, 10)] == [1, 1, 0.5, 0.5]
    assert schedule(55) == pytest.approx(0.35)
    assert [schedule(step) for step in (100, 1000)] == [0.2, 0.2]
    assert ExplorationSchedule(10, forced_steps=5, highest=0)(0) == 0
    with pytest.raises(ValueError, match="warmup_steps: expected 0 to decay_steps - 2 = 8, got 9"):
        ExplorationSchedule(10, warmup_steps=9)
    with pytest.raises(ValueError, match=re.escape("lowest: expected at most highest = 0.5, got 0.6")):
        ExplorationSchedule(10, lowest=0.6)


@pytest.mark.parametrize("helpful", [0, 3])
def test_what_helps_is_chosen(helpful: int) -> None:
    names = ["a", "b", "c", "d", "e"]
    schedule = ExplorationSchedule(20, forced_steps=12, lowest=0.0, highest=0.1)
    sampler = ObjectiveSampler(names, steps=30, schedule=schedule, **TINY)
    losses, chosen = torch.full((5,), 4.0), []
    for step in range(30):
        probabilities = sampler.update(losses, step=step)
        chosen.append(float(probabilities[helpful]))
        losses = losses * (1 - 0.3 * probabilities[helpful])
    assert sampler.rewards.shape == (29, 5)
    # Uniform is a fifth; after the reward model has learnt, more than twice that.
    assert sum(chosen[20:]) / 10 > 0.4


@pytest.mark.parametrize("exploring", ["direct", "candidates"])
def test_probabilities_and_draws(exploring: str) -> None:
    sampler = ObjectiveSampler(KINDS, steps=20, exploring=exploring, **TINY)  # type: ignore[arg-type]
    assert sampler.probabilities.tolist() == [pytest.approx(0.2)] * 5
    for step in range(4):
        probabilities = sampler.update([3.0, 2.0, 1.0, 4.0, 2.0], step=5 * step)
        assert (probabilities >= 0).all() and float(probabilities.sum()) == pytest.approx(1)
    drawn = sampler.choose(4000, seed=1)
    assert drawn == sampler.choose(4000, seed=1) != sampler.choose(4000, seed=2)
    shares = torch.bincount(torch.tensor(drawn), minlength=5) / 4000
    torch.testing.assert_close(shares, sampler.probabilities, atol=0.03, rtol=0)


def test_exploring_favours_one_or_two_kinds() -> None:
    schedule = ExplorationSchedule(20, forced_steps=20)
    sampler = ObjectiveSampler(KINDS, steps=20, schedule=schedule, **TINY | {"iterations": 1})
    for step in range(8):
        probabilities = sampler.update([3.0] * 5, step=step)
        of_kinds = [probabilities[0], probabilities[1] + probabilities[2], probabilities[3], probabilities[4]]
        assert 1 <= sum(float(share) > 0.4 for share in of_kinds) <= 2
        assert float(probabilities.min()) > 0


def test_interrupted_sampling_goes_on_as_it_would_have() -> None:
    whole, first = (ObjectiveSampler(KINDS, steps=40, **TINY) for _ in range(2))
    rounds = [[3.0 - 0.1 * step * number for number in range(5)] for step in range(5)]
    for step, losses in enumerate(rounds):
        want = whole.update(losses, step=10 * step)
        if step < 3:
            first.update(losses, step=10 * step)
    second = ObjectiveSampler(KINDS, steps=40, seed=7, **TINY)
    second.load_state_dict(first.state_dict())
    for step, losses in enumerate(rounds[3:], 3):
        got = second.update(losses, step=10 * step)
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match="state: of the objectives copy, infill, infill, next, prefix, not copy"):
        ObjectiveSampler(["copy"], steps=40, **TINY).load_state_dict(first.state_dict())


def test_reward_model_is_causal_and_bounded() -> None:
    torch.manual_seed(0)
    model, pairs = RewardModel(3, width=16, depth=2), torch.randn(2, 5, 6)
    rewards, _ = model(pairs)
    assert rewards.shape == (2, 5, 3) and float(rewards.detach().abs().max()) <= 1
    first, state = model(pairs[:, :4])
    last, _ = model(pairs[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, last], dim=1), rewards, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": []}, "kinds: expected at least one objective"),
        ({"steps": 5}, "steps: expected at least 20, got 5; or give a schedule"),
        ({"best": 0}, "best: expected at least 1, got 0"),
        ({"exploring": "never"}, "exploring: unknown 'never'; known: direct, candidates"),
        ({"width": 12}, "width: expected a multiple of 8, got 12"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveSampler(**{"kinds": KINDS, "steps": 100, **TINY, **changes})


def test_bad_losses() -> None:
    sampler = ObjectiveSampler(KINDS, steps=20, **TINY)
    with pytest.raises(ValueError, match="losses: expected 5, one an objective, got 2"):
        sampler.update([1.0, 2.0], step=0)
    with pytest.raises(ValueError, match="losses: expected finite numbers, got"):
        sampler.update([1.0, 2.0, 3.0, math.nan, 1.0], step=0)
