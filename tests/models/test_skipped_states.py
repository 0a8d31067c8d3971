"""Training asks for no last state: layers to which it is extra work leave it out, and outputs stay what they are."""

import pytest
import torch

from statescan import create_model
from statescan.layers import H3, S4, LongConv, ResidualBlock
from statescan.layers._h3 import ShiftKernel
from statescan.layers._ssm_kernels import DiagonalKernel, DPLRKernel
from statescan.models.hybrid import HybridConfig, HybridLanguageModel
from statescan.tasks._module import next_token

MIXERS = ("h3", "long_conv", "s4", "s4d", "mamba", "attention")


def build(mixer):
    torch.manual_seed(0)
    options = {"attention": {"heads": 2}} if mixer == "attention" else {"mixers": {}}
    return HybridLanguageModel(HybridConfig(dim=8, depth=2, vocab_size=16, layout=(mixer,), **options))


@pytest.fixture
def no_states(monkeypatch):
    """Computing a last state fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("a last state was computed")

    for kernel in (DiagonalKernel, DPLRKernel, ShiftKernel):
        monkeypatch.setattr(kernel, "advance", refuse)


def cases():
    tokens = torch.arange(24).reshape(2, 12) % 16
    marks = torch.zeros(2, 12, dtype=torch.bool)
    yield "whole", tokens, {}
    yield "no resets", tokens, {"resets": marks}
    yield "packed", tokens[:1], {"offsets": torch.tensor([0, 5, 5, 12])}


@pytest.mark.parametrize("mixer", MIXERS)
def test_outputs_are_those_with_a_state(mixer, no_states, monkeypatch):
    model = build(mixer)
    without = {name: model(tokens, return_state=False, **given)[0] for name, tokens, given in cases()}
    monkeypatch.undo()
    for name, tokens, given in cases():
        torch.testing.assert_close(without[name], model(tokens, **given)[0], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("mixer", ["h3", "s4", "s4d"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_computes_none(mixer, checkpointing, no_states):
    model = build(mixer)
    model.set_gradient_checkpointing(checkpointing)
    tokens = torch.randint(16, (2, 12))
    batch = {"tokens": tokens, "targets": tokens, "resets": torch.zeros(2, 12, dtype=torch.bool)}
    loss, *_ = next_token(count_correct=False)(model, batch, None)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("mixer", ["h3", "s4", "s4d"])
def test_training_that_carries_states_computes_them(mixer):
    model = build(mixer)
    tokens = torch.randint(16, (2, 12))
    batch = {"tokens": tokens, "targets": tokens, "resets": torch.zeros(2, 12, dtype=torch.bool)}
    _, _, state = next_token(count_correct=False, carry_state=True)(model, batch, None)
    whole = model(tokens)[1]
    torch.testing.assert_close(state["0"]["ssm"], whole["0"]["ssm"])


@pytest.mark.parametrize("mixer", ["h3", "s4d"])
def test_resets_between_sequences_need_only_the_states_between(mixer, monkeypatch):
    model, tokens = build(mixer), torch.randint(16, (2, 12))
    resets = torch.zeros(2, 12, dtype=torch.bool)
    resets[0, 4] = resets[1, 9] = True
    calls = []
    advance = DiagonalKernel.advance
    monkeypatch.setattr(DiagonalKernel, "advance", lambda *a, **k: calls.append(1) or advance(*a, **k))
    with_state = model(tokens, resets=resets)[0]
    counted = len(calls)
    without = model(tokens, resets=resets, return_state=False)[0]
    assert (counted, len(calls) - counted) == (2 * 3, 2 * 2)  # blocks times stretches
    torch.testing.assert_close(without, with_state)


@pytest.mark.parametrize("mixer", ["h3", "s4", "s4d"])
def test_classifiers_compute_none(mixer, no_states):
    model = create_model("classifier_tiny", dim=8, depth=1, mixer=mixer, input_dim=1, classes=2)
    assert model(torch.randn(2, 9, 1)).shape == (2, 2)


@pytest.mark.parametrize("layer", [H3, S4, LongConv, ResidualBlock])
def test_what_declares_that_it_can_skip_takes_the_keyword(layer):
    assert layer.skips_state
    assert "return_state" in layer.forward.__annotations__
