"""Reinforcement learning: rollouts replayed in one pass, advantages by definition, runs that repeat, and learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from statescan import checkpoints, cli
from statescan.data import memory_environment
from statescan.models import create_model
from statescan.tasks import ReinforcementTraining, train_reinforcement
from statescan.tasks.reinforcement import Player, Rollout, advantages, learn

CORES = ("s5", "gru", "lstm", "none")
AGENT = ("dim=16", "depth=1", "state_dim=8", "encoder_dim=16", "head_dim=16")
QUICK: dict[str, Any] = dict(
    set=AGENT, environment_set=("delay=1", "cards=8"), copies=4, length=20, minibatches=2, updates=3, log_every=1
)


def player_and_agent(core: str, copies: int = 4, environment: str = "repeat_previous") -> tuple[Player, Any]:
    torch.manual_seed(0)
    options = {"repeat_previous": dict(cards=8, delay=2), "meta_cart_pole": dict(trials=2, steps=4)}.get(
        environment, dict(steps=9)
    )
    player = Player(memory_environment(environment, copies, **options), previous_action=True, seed=1)
    agent = create_model(
        "s5_rl_tiny",
        core=core,
        dim=12,
        state_dim=8,
        observation_dim=player.seen_dim,
        action_dim=player.environment.action_count,
    )
    return player, agent


@pytest.mark.parametrize("environment", ["repeat_previous", "stateless_cart_pole", "meta_cart_pole"])
@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_one_pass_over_time_and_batch_is_what_was_played_step_by_step(core: str, environment: str) -> None:
    player, agent = player_and_agent(core, environment=environment)
    for _ in range(3):  # states are carried from rollout to rollout
        rollout = player.play(agent, 21)
        policy, values, state = agent(rollout.seen, rollout.before, resets=rollout.starts)
        chosen = agent.distribution(policy).log_prob(rollout.actions)
        torch.testing.assert_close(chosen, rollout.log_probabilities, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values, rollout.values, atol=1e-5, rtol=1e-4)
        _, last, _ = agent.step(player._seen(), state, starts=player._starts)
        torch.testing.assert_close(last, rollout.last_value, atol=1e-5, rtol=1e-4)
        assert rollout.starts.any()


@torch.no_grad()
def test_rollouts_join() -> None:
    player, agent = player_and_agent("s5")
    first, second = player.play(agent, 5), player.play(agent, 6)
    again, agent = player_and_agent("s5")
    whole = again.play(agent, 11)
    for name in ("seen", "starts", "actions", "rewards", "ends"):
        torch.testing.assert_close(torch.cat([getattr(first, name), getattr(second, name)], 1), getattr(whole, name))
    assert torch.equal(whole.starts[:, 1:], whole.ends[:, :-1])
    assert whole.starts[:, 0].all()
    # What is seen: the suit, the action before (none at a start), and the start.
    assert torch.equal(whole.seen[..., -1].bool(), whole.starts)
    action = whole.seen[:, 1:, 4:8]
    assert torch.equal(action.sum(-1), 1 - whole.starts[:, 1:].float())
    assert torch.equal(action.argmax(-1)[~whole.starts[:, 1:]], whole.actions[:, :-1][~whole.starts[:, 1:]])


def test_episodes_are_counted() -> None:
    player, agent = player_and_agent("none")
    rollout = player.play(agent, 16)
    assert [length for _, length in player.episodes] == [8] * 8
    total = sum(value for value, _ in player.episodes)
    assert total == pytest.approx(float(rollout.rewards.sum()), abs=1e-5)


def test_advantages_by_definition() -> None:
    torch.manual_seed(0)
    length, discount, lookahead = 9, 0.9, 0.7
    ends = torch.zeros(2, length, dtype=torch.bool)
    ends[0, 3] = ends[1, 8] = True
    values, last = torch.randn(2, length), torch.randn(2)
    rewards = torch.randn(2, length)
    nothing: Any = None
    rollout = Rollout(nothing, nothing, nothing, nothing, values, rewards, ends, nothing, last)
    got = advantages(rollout, discount=discount, lookahead=lookahead)
    for row in range(2):
        for t in range(length):
            want, weight = 0.0, 1.0
            for k in range(t, length):
                after = 0.0 if ends[row, k] else float(values[row, k + 1] if k + 1 < length else last[row])
                want += weight * (float(rewards[row, k]) + discount * after - float(values[row, k]))
                weight *= discount * lookahead
                if ends[row, k]:
                    break
            assert float(got[row, t]) == pytest.approx(want, abs=1e-5)


def test_the_first_gradient_is_that_of_the_policy_gradient() -> None:
    """Before anything is learned ratios are 1: the clipped objective has the gradient of advantage times log policy."""
    player, agent = player_and_agent("s5")
    rollout = player.play(agent, 16)
    settings = ReinforcementTraining(copies=4, minibatches=1, epochs=1, gradient_clip=1e9, learning_rate=1e-30)
    settings = settings.__class__(**(vars(settings) | {"value_weight": 0.0, "entropy_weight": 0.0}))
    gains = advantages(rollout, discount=settings.discount, lookahead=settings.lookahead)
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    policy, _, _ = agent(rollout.seen, rollout.before, resets=rollout.starts)
    loss = -(gains * agent.distribution(policy).log_prob(rollout.actions)).mean()
    names, parameters = zip(*agent.named_parameters(), strict=True)
    want = torch.autograd.grad(loss, parameters, allow_unused=True)
    learn(agent, torch.optim.SGD(agent.parameters(), lr=1e-30), rollout, settings, torch.Generator().manual_seed(0))
    for name, parameter, gradient in zip(names, parameters, want, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("core", CORES)
def test_runs_repeat_and_leave_a_model(core: Any, tmp_path: Path) -> None:
    one, two = (
        train_reinforcement(ReinforcementTraining(out=tmp_path / name, core=core, **QUICK)) for name in ("one", "two")
    )
    assert (tmp_path / "one" / "metrics.csv").read_text() == (tmp_path / "two" / "metrics.csv").read_text()
    assert one.validation == two.validation
    assert (one.updates, one.frames) == (3, 240)
    first, second = (checkpoints.load(tmp_path / name) for name in ("one", "two"))
    assert first.config.core == core
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    other = train_reinforcement(ReinforcementTraining(out=tmp_path / "other", core=core, **(QUICK | {"seed": 1})))
    assert (tmp_path / "one" / "metrics.csv").read_text() != (tmp_path / "other" / "metrics.csv").read_text()
    assert other.parameters == one.parameters


def test_memory_is_what_it_takes(tmp_path: Path) -> None:
    """The suit of one card before: S5 learns it in seconds, an agent without memory stays at chance, -0.5.

    Neither is given its last action: by that an agent without memory could leave itself notes.
    """
    small = ("dim=32", "depth=1", "state_dim=16", "encoder_dim=32", "head_dim=32", "dt_min=0.1", "dt_max=1.0")
    changed = dict(copies=16, length=32, updates=40, learning_rate=3e-3, previous_action=False, set=small)
    recipe: dict[str, Any] = QUICK | changed
    returns = {}
    for core in ("s5", "none"):
        result = train_reinforcement(ReinforcementTraining(out=tmp_path / core, core=core, **recipe))  # type: ignore[arg-type]
        returns[core] = result.validation["mean_return"]
    assert returns["s5"] > 0.9
    assert returns["none"] < -0.2


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    flags = ["--out", out, "--environment", "stateless_cart_pole", "--core", "gru", "--updates", "2", "--copies", "4"]
    flags += ["--length", "30", "--set", "dim=8", "depth=1", "encoder_dim=8", "head_dim=8"]
    assert cli.main(["train", "reinforcement", *flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["frames"] == 240
    assert printed["validation"]["mean_length"] > 5
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["environment"] == "stateless_cart_pole"
    assert cli.main(["train", "reinforcement", *flags]) == 2
    assert "already holds a run; replace it with overwrite" in capsys.readouterr().err
    assert cli.main(["train", "reinforcement", *flags, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(environment="stateless_cartpole"), "unknown 'stateless_cartpole'; nearest: 'stateless_cart_pole'"),
        (dict(environment_set=("delays=2",)), "repeat_previous: .*delays"),
        (dict(set=("width=2",)), "unknown option 'width'"),
        (dict(updates=0), "updates: expected at least 1, got 0"),
        (dict(copies=6), "minibatches: 4 does not divide 6 copies"),
        (dict(learning_rate=0.0), "learning_rate: expected a positive number, got 0"),
        (dict(discount=1.5), "discount: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_reinforcement(ReinforcementTraining(out=tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()
