"""One contract for every name of the registry: what a user may do with any model."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import statescan
from statescan.layers import State
from statescan.models import Model, build_model, config_dict, family
from statescan.models._language_model import LanguageModel

NAMES = statescan.list_models()
#: Above this, only what needs no memory is tried.
SMALL = 5_000_000


@cache
def on_meta(name: str) -> Any:
    """A model without memory, built once: no test changes it."""
    with torch.device("meta"):
        return statescan.create_model(name)


def language_models() -> list[str]:
    """Those that take tokens and give logits of the next."""
    return [name for name in NAMES if isinstance(on_meta(name), LanguageModel)]


def small_names() -> list[str]:
    return [name for name in language_models() if sum(p.numel() for p in on_meta(name).parameters()) < SMALL]


@pytest.mark.parametrize("name", NAMES)
def test_described_and_rebuilt_without_memory(name: str) -> None:
    model = on_meta(name)
    assert isinstance(model, Model)
    assert statescan.model_info(name).config == model.config
    with torch.device("meta"):
        again = build_model(model.family, config_dict(model))
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(inspect.getdoc(kind) for kind in (type(model), type(model.config)))


@pytest.mark.parametrize("name", NAMES)
def test_published_names_account_for_every_tensor(name: str) -> None:
    model = on_meta(name)
    found = family(model.family)
    ours = found.from_published(found.to_published(model.state_dict(), model.config), model.config)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_groups_hold_every_parameter_once(name: str) -> None:
    model = on_meta(name)
    groups = model.parameter_groups(0.1)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert all(parameter.ndim >= 2 for parameter in groups[0]["params"])


@pytest.mark.parametrize("name", language_models())
def test_initial_state_needs_no_weights(name: str) -> None:
    state = on_meta(name).initial_state(2)
    assert isinstance(state, State)
    assert all(tensor.shape[0] == 2 for _, tensor in state.tensors())


@pytest.mark.parametrize("name", small_names())
def test_runs_trains_and_steps(name: str) -> None:
    model = statescan.create_model(name)
    tokens = torch.randint(0, model.config.vocab_size, (2, 6))
    logits, state = model(tokens)
    assert logits.shape == (2, 6, model.config.padded_vocab_size)
    targets = torch.randint(0, model.config.vocab_size, (2, 6))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    # Fresh weights know nothing, and are not sure of it: about as good as guessing evenly.
    assert abs(loss.item() - math.log(model.config.padded_vocab_size)) < 1
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    stepped, after = model.step(tokens[:, 0], state.detach())
    assert stepped.shape == (2, model.config.padded_vocab_size)
    assert [n for n, _ in after.tensors()] == [n for n, _ in state.tensors()]
