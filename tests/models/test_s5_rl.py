"""The S5 actor-critic: any way of walking episodes gives the same, with every core."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statescan
from statescan.layers import State
from statescan.models import family, load_published
from statescan.models.s5_rl import S5ActorCritic, S5ActorCriticConfig

SMALL: dict[str, Any] = dict(observation_dim=3, action_dim=4, dim=10, encoder_dim=6, head_dim=5, depth=2, state_dim=8)
CORES: dict[str, dict[str, Any]] = {
    "s5": dict(),
    "s5-norms": dict(norm=True, prenorm=True, inner_norm=True, activation="half_glu2"),
    "s5-post-norm": dict(norm=True, activation="half_glu1"),
    "gru": dict(core="gru"),
    "lstm": dict(core="lstm"),
    "none": dict(core="none"),
}
cores = pytest.mark.parametrize("core", CORES)
CLOSE = dict(atol=2e-5, rtol=1e-4)


def build(core: str, **options: Any) -> S5ActorCritic:
    torch.manual_seed(2)
    return S5ActorCritic(S5ActorCriticConfig(**(SMALL | CORES[core] | options))).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@cores
@pytest.mark.parametrize("warm", [False, True])
@torch.no_grad()
def test_steps_are_the_sequence(core: str, warm: bool) -> None:
    model, x = build(core), noise(2, 9, 3)
    resets = torch.tensor([[0, 0, 0, 1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    state = model(noise(2, 4, 3))[2] if warm else model.initial_state(2)
    policy, values, last = model(x, state, resets=resets)
    assert policy.shape == (2, 9, 4)
    assert values.shape == (2, 9)
    for t in range(9):
        one, value, state = model.step(x[:, t], state, starts=resets[:, t])
        torch.testing.assert_close(one, policy[:, t], **CLOSE)
        torch.testing.assert_close(value, values[:, t], **CLOSE)
    for (name, got), (_, want) in zip(state.tensors(), last.tensors(), strict=True):
        torch.testing.assert_close(got, want, msg=name, **CLOSE)


@cores
@torch.no_grad()
def test_episodes_are_strangers(core: str) -> None:
    """Cut at an episode's end, the halves by themselves give what the whole gives."""
    model, x = build(core), noise(1, 11, 3)
    resets = torch.zeros(1, 11, dtype=torch.bool)
    resets[0, 6] = True
    policy, values, last = model(x, resets=resets)
    first, second = model(x[:, :6]), model(x[:, 6:])
    torch.testing.assert_close(policy, torch.cat([first[0], second[0]], 1), **CLOSE)
    torch.testing.assert_close(values, torch.cat([first[1], second[1]], 1), **CLOSE)
    for (_, got), (_, want) in zip(last.tensors(), second[2].tensors(), strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


@torch.no_grad()
def test_ignored_resets_carry_states_over() -> None:
    model, x = build("s5", ignore_resets=True), noise(1, 5, 3)
    torch.testing.assert_close(model(x, resets=torch.ones(1, 5, dtype=torch.bool))[0], model(x)[0])


def test_the_operator_under_the_scan_is_associative() -> None:
    """Elements (decay, input, flag): a flagged one forgets what was before it, wherever it stands."""

    def combine(one: tuple[torch.Tensor, ...], two: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (a, b, flag), (a2, b2, flag2) = one, two
        return torch.where(flag2, a2, a2 * a), torch.where(flag2, b2, a2 * b + b2), flag | flag2

    def draw() -> tuple[torch.Tensor, ...]:
        return torch.randn(50, dtype=torch.complex128), torch.randn(50, dtype=torch.complex128), torch.rand(50) < 0.5

    x, y, z = draw(), draw(), draw()
    for left, right in zip(combine(combine(x, y), z), combine(x, combine(y, z)), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize(("observation_dim", "action_dim"), [(4, 2), (7, 3)])
def test_published_size(observation_dim: int, action_dim: int) -> None:
    """The published runs: 256 channels, 256 states, 4 layers, no norms."""
    with torch.device("meta"):
        model = statescan.create_model("s5_rl_popgym", observation_dim=observation_dim, action_dim=action_dim)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 1_185_281 + 128 * observation_dim + 129 * action_dim


@cores
def test_published_names_both_ways(core: str) -> None:
    model = build(core, continuous=True)
    again = S5ActorCritic(model.config)
    published = family("s5_rl").to_published(model.state_dict(), model.config)
    assert {"encoder_1.kernel", "action_decoder.bias", "value_body_0.kernel", "log_std"} <= set(published)
    if core == "s5-norms":
        assert "s5.layers_1.norm.scale" in published
        assert published["s5.layers_0.seq.log_step"].shape == (4, 1)
    load_published(again, published)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_distributions() -> None:
    logits = noise(2, 5, 4)
    chosen = build("s5").distribution(logits)
    torch.testing.assert_close(chosen.log_prob(torch.ones(2, 5)), logits.log_softmax(-1)[..., 1])
    moved = build("s5", continuous=True).distribution(logits)
    want = torch.distributions.Normal(logits, 1.0).log_prob(torch.zeros(2, 5, 4)).sum(-1)
    torch.testing.assert_close(moved.log_prob(torch.zeros(2, 5, 4)), want)
    assert moved.entropy().shape == (2, 5)


def test_gradients_reach_every_parameter() -> None:
    model = build("s5-norms", continuous=True)
    policy, values, state = model(noise(2, 6, 3), resets=torch.zeros(2, 6, dtype=torch.bool))
    (model.distribution(policy).log_prob(torch.zeros(2, 6, 4)).sum() + values.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert isinstance(state, State)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: S5ActorCriticConfig(core="rnn"), "core: unknown 'rnn'; known: s5, gru, lstm, none"),
        (lambda: build("s5", action_dim=0), "action_dim: a positive whole number, got 0"),
        (lambda: build("s5")(noise(2, 3)), r"observations: expected \(batch, length, 3\), got \(2, 3\)"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
