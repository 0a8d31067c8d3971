"""Shuffling and pruning as ways to train an image classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import statescan
from statescan.models.token_pruning import TokenPruning
from statescan.tasks._plain_methods import Prune, Shuffle


def test_shuffling_is_on_while_training_and_gone_after_it() -> None:
    model = statescan.create_model("vim_micro")
    images = torch.randn(2, 3, 32, 32)
    wanted = model(images)
    method = Shuffle("1,constant")
    assert method.wrap(model) is model
    assert model.layer_shuffle.rates == [1.0] * 4
    assert not torch.allclose(model(images), wanted, atol=1e-5)
    assert method.unwrap(model) is model
    assert torch.equal(model(images), wanted)
    assert method.wrap(model).layer_shuffle is not None  # and on again


def test_a_model_that_shuffles_takes_what_is_asked_for() -> None:
    model = Shuffle("0.2").wrap(statescan.create_model("shuffle_mamba_tiny"))
    assert model.layer_shuffle.rates[-1] == pytest.approx(0.2)


def test_fine_tuning_changes_the_backbone_and_saves_it_pruned(tmp_path) -> None:
    model = statescan.create_model("plainmamba_tiny", num_classes=3)
    method = Prune("0.6@1,3:hold")
    pruned = method.wrap(model)
    assert isinstance(pruned, TokenPruning)
    assert (pruned.config.prune_after, pruned.config.keep_ratios) == ((1, 3), (0.6, 0.6))
    assert pruned.config.alignment == "hold"
    before = model.head.weight.clone()
    optimiser = torch.optim.AdamW(pruned.parameter_groups(0.1), lr=1e-2)
    images, labels = torch.randn(6, 3, 64, 64), torch.arange(6) % 3
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        loss = F.cross_entropy(pruned(images), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not torch.equal(model.head.weight, before)
    saved = method.unwrap(pruned)
    saved.save(tmp_path / "pruned")
    again = statescan.load(tmp_path / "pruned").eval()
    with torch.no_grad():
        assert torch.allclose(again(images), pruned.eval()(images), atol=1e-6)


def test_values_are_checked() -> None:
    assert Prune().places is None
    for make, value, message in (
        (Shuffle, "often", "methods: shuffle=often: expected 0.5 or 0.5,constant, got 'often'"),
        (Prune, "0.7@a", "methods: prune=0.7@a: expected 0.8, 0.7@3,9,15 or 0.8:hold, got 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(value)
    model = statescan.create_model("vim_micro")
    with pytest.raises(ValueError, match="shuffle_schedule: unknown 'steep'"):
        Shuffle("0.5,steep").wrap(model)
    with pytest.raises(ValueError, match="alignment: unknown 'keep'"):
        Prune("0.5:keep").wrap(model)
