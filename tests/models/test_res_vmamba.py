"""Res-VMamba: the published sizes, and what the branches add."""

import pytest
import torch

import statescan
from statescan.inspect import image_cost
from statescan.models import family, load_published
from tests.models import _images

SMALL = dict(dims=(8, 12, 16, 24), depths=(1, 1, 2, 1), num_classes=5, state_dim=2)
BRANCHES = 388_416


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("res_vmamba_t", {}, 22_309_777 + BRANCHES),
        ("res_vmamba_s", {}, 43_833_745 + BRANCHES),
        ("res_vmamba_t", dict(residual="none"), 22_309_777),
        ("res_vmamba_s", dict(residual="resampled"), 43_833_745),
        ("res_vmamba_b", dict(residual="none"), 75_476_081),
        ("res_vmamba_t", dict(residual="none", num_classes=1000), 22_893_448),
        ("res_vmamba_s", dict(residual="none", num_classes=1000), 44_417_416),
        ("res_vmamba_b", dict(residual="none", num_classes=1000), 76_254_056),
    ],
)
def test_the_published_sizes(name, options, parameters):
    with torch.device("meta"):
        model = statescan.create_model(name, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_branches_cost_one_product_each():
    with_branches, without = (image_cost("res_vmamba_tiny", residual=kind) for kind in ("learned", "none"))
    pairs = [(24, 48, 8), (48, 96, 4), (96, 192, 2)]
    assert with_branches.multiply_adds - without.multiply_adds == sum(a * b * side**2 for a, b, side in pairs)


def test_without_branches_it_is_the_first_vmamba():
    model = statescan.create_model("res_vmamba_tiny", **SMALL).eval()
    config = {
        name: getattr(model.config, name) for name in ("stem", "downsample", "expand", "conv_bias", "gate", "mlp_ratio")
    }
    plain = statescan.create_model("vmamba_tiny", **SMALL, **config).eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("branches.")})
    x = _images.images(64)
    assert not torch.allclose(model(x), plain(x), atol=1e-4)
    with torch.no_grad():
        for parameter in model.branches.parameters():
            parameter.zero_()
    assert torch.equal(model(x), plain(x))


def test_resampled_branches_are_noise_in_evaluation_too():
    x = _images.images(64)
    model = statescan.create_model("res_vmamba_tiny", residual="resampled", **SMALL).eval()
    assert not torch.allclose(model(x), model(x), atol=1e-3)
    seeded = statescan.create_model("res_vmamba_tiny", residual="resampled", residual_seed=3, **SMALL).eval()
    assert torch.equal(seeded(x), seeded(x))
    seeds = [branch.seed for branch in seeded.branches]
    assert len(set(seeds)) == 3


def test_published_checkpoints_lack_the_branches_and_that_is_said():
    model = statescan.create_model("res_vmamba_tiny", **SMALL)
    tensors = family("res_vmamba").to_published(model.state_dict(), model.config)
    published = {name: tensor for name, tensor in tensors.items() if not name.startswith("res_fuse.")}
    with pytest.raises(ValueError, match=r"missing: res_fuse\.0\.weight"):
        load_published(model, published)
    for kind in ("resampled", "none"):
        load_published(statescan.create_model("res_vmamba_tiny", residual=kind, **SMALL), published)


@pytest.mark.parametrize("options", [{}, dict(mlp_ratio=1.0, downsample="convolution2")])
def test_forms(options):
    _images.check_forward("res_vmamba_tiny", sizes=((64, 64), (32, 96)), **SMALL, **options)
    _images.check_names("res_vmamba_tiny", dict(depths=(1, 1, 1, 1)), **SMALL, **options)


def test_maps_training_and_bad_input():
    _images.check_maps("res_vmamba_tiny", **SMALL)
    _images.check_training("res_vmamba_tiny", **SMALL)
    _images.check_bad_input("res_vmamba_tiny", 3, **SMALL)
    model = statescan.create_model("res_vmamba_tiny", **SMALL)
    with pytest.raises(ValueError, match="sides that are multiples of 32 pixels, got 48 x 64"):
        model(_images.images(48, 64))
    odd = statescan.create_model("res_vmamba_tiny", **SMALL, downsample="convolution2")
    assert odd(_images.images(44, 60)).shape == (2, 5)
    for options, message in (
        (dict(residual="zero"), "residual: unknown 'zero'; known: learned, resampled, none"),
        (dict(downsample="none"), "branches around stages halve the grid"),
    ):
        with pytest.raises(ValueError, match=message):
            statescan.create_model("res_vmamba_tiny", **(SMALL | options))
