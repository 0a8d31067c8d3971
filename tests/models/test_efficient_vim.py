"""EfficientViM: the dead parameter, the heads, rectangles."""

from __future__ import annotations

import torch

import statescan
from statescan.layers.grid import HiddenStateMixer
from tests.models.test_light_backbones import small


def test_a_changes_nothing() -> None:
    mixer = HiddenStateMixer(8, state_dim=5)
    x = torch.randn(2, 4, 6, 8)
    before = mixer(x)
    with torch.no_grad():
        mixer.A += torch.randn(5)
    for old, new in zip(before, mixer(x), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-6)


def test_permuting_cells_permutes_the_output_and_not_the_states() -> None:
    mixer = HiddenStateMixer(8, state_dim=5, expand=2.0)
    mixer.convolution = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.randn(2, 3, 5, 8)
    order = torch.randperm(15)
    y, states = mixer(x)
    moved, same = mixer(x.flatten(1, 2)[:, order].view_as(x))
    torch.testing.assert_close(moved.flatten(1, 2), y.flatten(1, 2)[:, order])
    torch.testing.assert_close(states, same)


def test_rectangles_are_their_transposes_transposed() -> None:
    model = small("efficient_vim_tiny").eval()
    images = torch.randn(1, 3, 160, 224)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.transpose(2, 3)) / 2)
        torch.testing.assert_close(model(images), model(images.transpose(2, 3)), rtol=1e-4, atol=1e-4)


def test_distillation_gives_both_scores_in_training_and_their_mean_else() -> None:
    for name in ("efficient_vim_tiny", "mobile_mamba_tiny"):
        model = small(name, distillation=True)
        images = torch.randn(2, 3, 64, 64)
        first, second = model(images)
        assert not torch.equal(first, second)
        model.eval()
        with torch.no_grad():
            features = model.forward_features(images)
            mean = model(images)
            model.training = True  # the heads alone: norms stay as they are
            torch.testing.assert_close(mean, sum(model.forward_head(features)) / 2)


def test_all_stages_feed_the_head() -> None:
    model = statescan.create_model("efficient_vim_tiny").eval()
    features = model.forward_features(torch.randn(1, 3, 64, 64))
    assert [tuple(part.shape[1:]) for part in features] == [(16, 16), (9, 32), (4, 48), (1, 1, 48)]
    assert model.forward_head(features, pre_logits=True).shape == (1, 16 + 32 + 48 + 48)
    scores = model.forward_head(features)
    for index in range(4):
        changed = [part + 1 if index == place else part for place, part in enumerate(features)]
        assert not torch.equal(model.forward_head(changed), scores)
