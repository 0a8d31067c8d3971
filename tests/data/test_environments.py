"""The environments: what is shown and rewarded, when episodes end, and that a seed decides everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from statescan.data import (
    ENVIRONMENTS,
    MetaCartPole,
    RepeatPrevious,
    StatelessCartPole,
    as_gymnasium,
    memory_environment,
)


def play(environment: Any, seed: int, steps: int) -> list[Any]:
    actions = np.random.default_rng(1)
    observation, _ = environment.reset(seed=seed)
    seen: list[Any] = [observation]
    for _ in range(steps):
        given = actions.integers(environment.action_count, size=environment.count)
        seen.extend(environment.step(given)[:4])
    return seen


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_seed_decides_everything(name: str) -> None:
    one, two, other = (play(memory_environment(name, 3), seed, 120) for seed in (5, 5, 6))
    for mine, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert any(not np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_who_remembers_is_always_right(delay: int) -> None:
    environment = RepeatPrevious(5, delay=delay, cards=12)
    observation, _ = environment.reset(seed=0)
    shown, total = [observation.argmax(1)], np.zeros(5)
    for t in range(12):
        answer = shown[t - delay] if t >= delay else np.zeros(5, dtype=np.int64)
        observation, reward, terminated, truncated, information = environment.step(answer)
        shown.append(observation.argmax(1))
        total += reward
        assert terminated.all() == (t == 11)
        assert not truncated.any()
    np.testing.assert_allclose(total, 1)
    # Every suit is equally often in the deck, and the new episode has begun.
    assert all(np.bincount(column, minlength=4).tolist() == [3] * 4 for column in np.stack(shown[:12]).T)
    assert information["_final_obs"].all()
    assert environment.step(shown[-1] if delay == 0 else np.zeros(5, dtype=np.int64))[2].sum() == 0


def test_guessing_loses_half() -> None:
    environment = RepeatPrevious(200)
    environment.reset(seed=0)
    generator, total = np.random.default_rng(0), np.zeros(200)
    for _ in range(52):
        total += environment.step(generator.integers(4, size=200))[1]
    assert total.mean() == pytest.approx(-0.5, abs=0.03)


def test_cart_pole_obeys_the_equations() -> None:
    environment = StatelessCartPole(1)
    environment.reset(seed=0)
    environment._state[:] = 0
    environment.step(np.array([1]))
    # Pushed to the right from rest: equations 1 and 2 of Barto et al. by hand.
    push, swing = 10 / 1.1, -(10 / 1.1) / (0.5 * (4 / 3 - 0.1 / 1.1))
    np.testing.assert_allclose(environment._state[0], [0, 0.02 * (push - 0.05 * swing / 1.1), 0, 0.02 * swing])
    observation = environment.step(np.array([1]))[0]
    assert observation.shape == (1, 2)
    assert observation[0, 0] == pytest.approx(environment._state[0, 0] / 2.4)
    assert observation[0, 1] == pytest.approx(np.degrees(environment._state[0, 2]) / 12)


def test_cart_pole_ends_when_it_falls_or_is_cut() -> None:
    environment = StatelessCartPole(2, steps=15)
    environment.reset(seed=0)
    environment._state[0] = 0
    environment._state[1] = 0
    # One cart is pushed to one side until its pole falls, the other is pushed to and fro.
    ends = {0: 0, 1: 0}
    for t in range(1, 16):
        *_, terminated, truncated, information = environment.step(np.array([1, t % 2]))
        for row in range(2):
            if (terminated | truncated)[row] and not ends[row]:
                ends[row] = t
                assert bool(truncated[row]) == (row == 1)
                assert np.abs(information["final_obs"][row]).max() > (1 if row == 0 else 0)
    assert ends[0] < 12
    assert ends[1] == 15


def test_meta_cart_pole_is_connected_anew_in_every_episode() -> None:
    environment = MetaCartPole(64, trials=2, steps=3, sensors=5)
    observation, _ = environment.reset(seed=0)
    assert observation.shape == (64, 6) and environment.observation_dim == 6
    projection, sign, first = environment._projection.copy(), environment._sign.copy(), environment._state.copy()
    # Columns of length sqrt 2 at right angles; both signs of the motor; what is seen is the projection.
    np.testing.assert_allclose(
        projection.transpose(0, 2, 1) @ projection, 2 * np.tile(np.eye(2), (64, 1, 1)), atol=1e-9
    )
    assert set(sign) == {-1.0, 1.0}
    seen = first[:, [0, 2]] / (2.4, np.radians(12))
    np.testing.assert_allclose(observation[:, :5], (projection @ seen[..., None])[..., 0], atol=1e-6)
    plain = StatelessCartPole(64, steps=3)
    plain.reset(seed=0)
    plain._state[:] = first
    total = np.zeros(64)
    for t in range(1, 7):
        observation, reward, terminated, truncated, information = environment.step(np.ones(64, dtype=np.int64))
        total += reward
        if t < 3:
            plain.step((sign > 0).astype(np.int64))
            np.testing.assert_allclose(environment._state, plain._state)
        # The second trial begins where the first began, and says so; the projection is the same until the last has ended.
        assert (observation[:, 5] == float(t % 3 == 0)).all()
        assert terminated.all() == (t == 6) and not truncated.any()
        if t == 3:
            np.testing.assert_array_equal(environment._state, first)
        assert np.array_equal(environment._projection, projection) == (t < 6)
    np.testing.assert_allclose(total, 1)
    assert information["_final_obs"].all()
    assert (information["final_obs"][:, 5] == 0).all()


def test_meta_cart_pole_as_published_leaves_the_motor() -> None:
    environment = MetaCartPole(64, turned=False)
    environment.reset(seed=0)
    assert (environment._sign == 1).all()


def test_who_knows_the_connections_can_balance() -> None:
    environment = MetaCartPole(16, trials=2, steps=50)
    environment.reset(seed=0)
    total = np.zeros(16)
    for _ in range(100):
        _, speed, angle, turning = environment._state.T
        push = angle + 0.5 * turning > 0
        total += environment.step(np.where(environment._sign > 0, push, ~push).astype(np.int64))[1]
    np.testing.assert_allclose(total, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: memory_environment("repeat_previos", 2), "unknown 'repeat_previos'; nearest: 'repeat_previous'"),
        (lambda: memory_environment("repeat_previous", 2, depth=3), "repeat_previous: .*depth"),
        (lambda: RepeatPrevious(0), "count: at least 1 environment, got 0"),
        (lambda: RepeatPrevious(1, cards=6), "cards: a multiple of 4, got 6"),
        (lambda: RepeatPrevious(1, delay=52), "delay: from 0 to below the 52 cards, got 52"),
        (lambda: StatelessCartPole(1, steps=0), "steps: at least 1, got 0"),
        (lambda: StatelessCartPole(1, noise=-1), "noise: 0 or more, got -1"),
        (lambda: MetaCartPole(1, trials=0), "trials: at least 1, got 0"),
        (lambda: MetaCartPole(1, sensors=1), "sensors: at least 2, for position and angle, got 1"),
        (lambda: MetaCartPole(1, steps=0), "steps: at least 1, got 0"),
        (lambda: RepeatPrevious(1).step(np.array([0])), "step: call reset first"),
        (lambda: play(RepeatPrevious(2), 0, 0) and reset_and_step([0]), "actions: expected 2 whole numbers"),
        (lambda: reset_and_step([0, 4]), "actions: below 4, got 0 to 4"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def reset_and_step(actions: list[int]) -> Any:
    environment = RepeatPrevious(2)
    environment.reset(seed=0)
    return environment.step(np.array(actions))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_gymnasium_takes_them(name: str) -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="the interface was NOT checked: gymnasium is not installed")
    vector = as_gymnasium(memory_environment(name, 3))
    assert isinstance(vector, gymnasium.vector.VectorEnv)
    counted = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
    observation, _ = counted.reset(seed=3)
    assert vector.observation_space.contains(observation)
    episodes = 0
    for _ in range(220 if name != "meta_cart_pole" else 600):  # 16 trials of some 20 steps
        observation, *_, information = counted.step(vector.action_space.sample())
        assert vector.observation_space.contains(observation)
        episodes += int(information.get("_episode", np.zeros(3)).sum())
    assert episodes >= 3


def test_cart_pole_is_gymnasiums() -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="the dynamics were NOT compared: gymnasium is not installed")
    theirs, ours = gymnasium.make("CartPole-v1").unwrapped, StatelessCartPole(1)
    theirs.reset(seed=0)
    ours.reset(seed=0)
    ours._state[0] = theirs.state
    for t in range(30):
        action = int(t % 3 == 0)
        ended = theirs.step(action)[2]
        ours_ended = ours.step(np.array([action]))[2][0]
        assert ended == ours_ended
        if ended:
            break
        np.testing.assert_allclose(ours._state[0], theirs.state, atol=1e-9)
