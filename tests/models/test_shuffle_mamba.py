"""ShuffleMamba, its registers, and the shuffle on every plain backbone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import statescan
from statescan.models.shuffle_mamba import shuffle_layers

PLAIN = (
    "vim_micro",
    "lbvim_micro",
    "plainmamba_tiny",
    "rsmamba_tiny",
    "adventurer_micro",
    "vit_micro",
    "local_vim_tiny",
)
REGISTERS = "shuffle_mamba_tiny_registers"


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return statescan.create_model(name, **options)


def images(model: Any, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, model.config.in_channels, *(size or model.config.image_shape), generator=generator)


@pytest.mark.parametrize("name", PLAIN)
def test_any_plain_backbone_shuffles_in_training_alone(name: str) -> None:
    bare, model = build(name).eval(), build(name)
    x = images(model)
    with torch.no_grad():
        wanted = bare(x)
        shuffle = shuffle_layers(model, 1.0, schedule="constant")
        assert list(model.state_dict()) == list(bare.state_dict())
        assert torch.equal(model.eval()(x), wanted)
        torch.manual_seed(3)
        shuffled = model.train()(x)
        # Attention does not know an order, and one permutation of class tokens and patches is all the same to it.
        assert torch.allclose(shuffled, wanted, atol=1e-4) == (name == "vit_micro")
        if name != "rsmamba_tiny":  # which draws its own shuffled path in training
            with shuffle.fixed([None] * len(shuffle.rates)):
                assert torch.equal(model(x), bare.train()(x))
            shuffle.remove()
            assert torch.equal(model(x), bare(x))


@pytest.mark.parametrize("name", ["vim_micro", "plainmamba_tiny", "adventurer_micro"])
def test_gradients_reach_everything_and_checkpointing_sees_the_same_order(name: str) -> None:
    model = build(name)
    shuffle_layers(model, 1.0, schedule="constant")
    x, found = images(model), []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        torch.manual_seed(7)
        model(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(kept, again, atol=1e-5) for kept, again in zip(*found, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in found[0])


def test_probability_zero_in_training_changes_no_bit() -> None:
    model, bare = build("shuffle_mamba_tiny"), build("shuffle_mamba_tiny", shuffle_rate=0.0)
    assert bare.layer_shuffle is None
    assert model.layer_shuffle.rates == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2])
    x = images(model)
    assert torch.equal(model.eval()(x), bare.eval()(x))
    model.layer_shuffle.rates = [0.0] * 4
    assert torch.equal(model.train()(x), bare.train()(x))


def test_the_plain_form_is_a_vim_with_its_class_token_in_front() -> None:
    model = build("shuffle_mamba_tiny").eval()
    vim = build("vim_micro", class_token="head").eval()
    vim.load_state_dict(model.state_dict())
    assert torch.equal(model(images(model)), vim(images(model)))


def test_copies_and_models_shuffle_by_themselves() -> None:
    model = build("shuffle_mamba_tiny")
    average = copy.deepcopy(model)
    with model.layer_shuffle.fixed([torch.arange(65).flip(0)] * 4):
        x = images(model)
        assert not torch.allclose(model(x), model.eval()(x), atol=1e-4)
        average.layer_shuffle.rates = [0.0] * 4
        assert torch.equal(average(x), model(x))


@pytest.mark.parametrize("reduction", [1, 2])
def test_registers_stand_at_equal_distances_and_are_all_read(reduction: int) -> None:
    model = build(REGISTERS, class_reduction=reduction).eval()
    patches, count = 64, 4
    places = model.tokens.class_indices(patches)
    assert places == [12, 25, 38, 51]
    x = images(model)
    tokens, shape, indices = model.tokens(x.permute(0, 2, 3, 1))
    assert (indices, shape, tokens.shape) == (places, (8, 8), (2, patches + count, 64))
    wanted = model.tokens.class_token + model.tokens.class_position
    assert torch.equal(tokens[:, places], wanted.expand(2, -1, -1))
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, count * 64 // reduction)
    assert torch.equal(model.head(pooled), model(x))
    if reduction == 1:
        assert torch.equal(pooled, features[:, places].flatten(1))


def test_registers_take_other_sizes_give_maps_and_train() -> None:
    model = build(REGISTERS).eval()
    for size in ((40, 32), (16, 64)):
        assert model(images(model, size=size)).shape == (2, 10)
    maps = build(REGISTERS, features_only=True)(images(model, size=(32, 64)))
    assert [grid.shape for grid in maps] == [(2, 64, 8, 16)] * 4
    model.train()
    F.cross_entropy(model(images(model)), torch.tensor([1, 2])).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_the_general_initialisation_is_an_option() -> None:
    spared, general = build("shuffle_mamba_tiny"), build("shuffle_mamba_tiny", general_initialisation=True)
    for model, zero in ((spared, False), (general, True)):
        branch = model.blocks[0].mixer.forwards
        assert bool((branch.delta_bias == 0).all()) is zero
        assert bool((model.tokens.class_token == 0).all()) is zero
        step = F.softplus(branch.delta_bias)
        assert bool(((step > 9e-5) & (step < 0.11)).all()) is not zero
        assert (float(branch.delta_projection.weight.detach().std()) < 0.03) is zero


def test_compiled_it_draws_anew_and_is_whole_in_evaluation() -> None:
    model = build("vim_micro", depth=1)
    shuffle_layers(model, 1.0, schedule="constant")
    x = images(model)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            drawn.append(compiled(x))
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.allclose(drawn[0], drawn[2], atol=1e-5)
        whole = torch.compile(model.eval(), backend="eager", fullgraph=True)
        assert torch.equal(whole(x), model(x))
    torch.compiler.reset()


def test_bad_options_are_refused() -> None:
    for options, message in (
        ({"shuffle_rate": 2.0}, r"shuffle_rate: a probability in \[0, 1\], got 2.0"),
        ({"shuffle_schedule": "step"}, "shuffle_schedule: unknown 'step'"),
        ({"class_token": "middle"}, "class_token: unknown 'middle'; known: head, spread"),
        ({"class_tokens": 3}, "class_tokens: 1, or more with class_token='spread', got 3"),
        ({"class_reduction": 2}, "class_reduction: 1 unless class_token='spread', got 2"),
        ({"class_token": "spread", "class_reduction": 3}, "class_reduction: a divisor of dim=64, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            build("shuffle_mamba_tiny", **options)


def test_what_cannot_be_shuffled_is_refused() -> None:
    with pytest.raises(ValueError, match="got VSSD: its resolution falls from stage to stage"):
        shuffle_layers(build("vssd_micro"))
    with pytest.raises(ValueError, match=r"a plain image backbone.*got Linear: it reads no images"):
        shuffle_layers(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model: it shuffles its layers already"):
        shuffle_layers(build("shuffle_mamba_tiny"))
