"""EfficientVMamba: the published sizes, and a walk that comes to each cell once."""

import pytest
import torch

import statescan
from statescan import routes
from statescan.inspect import image_cost
from tests.models import _images

SMALL = dict(dims=(8, 16, 16, 24), depths=(1, 1, 2, 1), num_classes=5, state_dim=2)


@pytest.mark.parametrize(
    ("name", "parameters", "products", "scans"),
    [
        ("efficient_vmamba_t", 6_493_660, 0.657, 0.131),
        ("efficient_vmamba_s", 11_273_688, 1.143, 0.175),
        ("efficient_vmamba_b", 33_717_136, 3.689, 0.262),
    ],
)
def test_the_published_sizes(name, parameters, products, scans):
    cost = image_cost(name)
    assert cost.parameters == parameters
    assert cost.multiply_adds / 1e9 == pytest.approx(products, rel=0.02)
    assert cost.scan_operations * 145 / 144 / 1e9 == pytest.approx(scans, rel=0.02)


def test_a_quarter_of_the_scans_of_the_cross():
    atrous = image_cost("efficient_vmamba_tiny")
    cross = image_cost("efficient_vmamba_tiny", route="cross")
    assert atrous.parameters == cross.parameters
    assert cross.scan_operations == 4 * atrous.scan_operations


@pytest.mark.parametrize("height", range(1, 9))
def test_the_atrous_walks_put_every_cell_back(height):
    route = routes.get("atrous_step2")
    for width in range(1, 9):
        grid = torch.randn(1, height, width, 2)
        sequences = route.walk(grid)
        assert sequences.shape[1] == -(-height // 2) * -(-width // 2)
        assert torch.equal(route.merge(sequences, height, width), grid)


@pytest.mark.parametrize("options", [{}, dict(mlp_ratio=2.0, downsample="convolution2", route="cross")])
def test_forms(options):
    _images.check_forward("efficient_vmamba_tiny", **SMALL, **options)
    _images.check_names("efficient_vmamba_tiny", dict(depths=(1, 1, 1, 1)), **SMALL, **options)


def test_odd_sizes_maps_training_and_bad_input():
    model = statescan.create_model("efficient_vmamba_tiny", **SMALL).eval()
    assert model(_images.images(76, 92)).shape == (2, 5)
    _images.check_maps("efficient_vmamba_tiny", **SMALL)
    _images.check_training("efficient_vmamba_tiny", **SMALL)
    _images.check_bad_input("efficient_vmamba_tiny", 3, **SMALL)
    with pytest.raises(ValueError, match="route: unknown 'atrous'; nearest: 'atrous_stepN'"):
        statescan.create_model("efficient_vmamba_tiny", route="atrous")
