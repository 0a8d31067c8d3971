"""MSVMamba: the published sizes, shorter scans, and what remains without the coarse walks."""

import pytest
import torch
from torch import nn

import statescan
from statescan.inspect import image_cost
from statescan.layers import grid
from tests.models import _images

SMALL = dict(dims=(8, 12, 16, 24), depths=(1, 1, 2, 1), num_classes=5)


@pytest.mark.parametrize(
    ("name", "parameters", "products", "scans"),
    [
        ("msvmamba_n", 6_864_136, 0.842, 0.019),
        ("msvmamba_m", 11_879_272, 1.478, 0.025),
        ("msvmamba_t", 33_046_312, 4.510, 0.048),
    ],
)
def test_the_published_sizes(name, parameters, products, scans):
    cost = image_cost(name)
    assert cost.parameters == parameters
    assert (cost.multiply_adds + cost.scan_operations * 10 / 9) / 1e9 == pytest.approx(products + scans, rel=0.02)


def test_less_than_half_of_the_scans_of_four_full_walks():
    # One full walk and three of a quarter: 1.75 against 4 times the cells, on grids of even sides.
    multi, full = (image_cost(name, size=64, dims=(8, 16), depths=(1, 1)) for name in ("msvmamba_tiny", "vmamba_tiny"))
    assert multi.scan_operations / full.scan_operations == pytest.approx(2 * 1.75 / 4)  # twice as many channels


@pytest.mark.parametrize("joined", [True, False])
def test_without_its_coarse_walks_it_is_one_walk_with_squeeze(joined):
    torch.manual_seed(0)
    layer = grid.MultiScaleSS2D(16, state_dim=2, joined=joined)
    plain = grid.SS2D(
        16,
        state_dim=2,
        route="raster",
        output_norm=nn.Sequential(nn.LayerNorm(32), grid.SqueezeExcite(32, 4, bias=False)),
    )
    with torch.no_grad():
        layer.scan.D[:32] = 0
        layer.scan.selection_weight[0, 3:] = 0  # C of the coarse walks: rank 1, then B and C of two states
        for name in ("input_projection", "convolution", "output_projection"):
            getattr(plain, name).load_state_dict(getattr(layer, name).state_dict())
        plain.output_norm[0].load_state_dict(layer.output_norm.state_dict())
        plain.output_norm[1].load_state_dict(layer.squeeze.state_dict())
        for name, parameter in plain.scan.named_parameters():
            own = getattr(layer.scan, name)
            parameter.copy_(own.unflatten(0, (2, -1))[1].view_as(parameter))
    x = torch.randn(2, 5, 6, 16)
    torch.testing.assert_close(layer(x), plain(x))


def test_joined_walks_see_each_other_and_separate_ones_do_not():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 8, 8)
    joined, apart = (grid.MultiScaleSS2D(8, joined=joined) for joined in (True, False))
    apart.load_state_dict(joined.state_dict())
    assert not torch.allclose(joined(x), apart(x), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(squeeze=False, separate_norms=True, low_route="column_reversed"),
        dict(channel_mixer="mlp", joined=False, stem="overlapping", downsample="convolution3"),
        dict(mlp_ratio=0.0),
    ],
)
def test_forms(options):
    _images.check_forward("msvmamba_tiny", **SMALL, **options)
    _images.check_names("msvmamba_tiny", dict(depths=(1, 1, 1, 1)), **SMALL, **options)


def test_odd_sizes_maps_training_and_bad_input():
    model = statescan.create_model("msvmamba_tiny", **SMALL).eval()
    assert model(_images.images(88, 72)).shape == (2, 5)
    _images.check_maps("msvmamba_tiny", **SMALL)
    _images.check_training("msvmamba_tiny", **SMALL)
    _images.check_bad_input("msvmamba_tiny", 3, **SMALL)
    for options, message in (
        (dict(low_route="diagonals"), "route: unknown 'diagonals'"),
        (dict(route="cross"), "route: a single walk of the full grid, got 'cross' of 4"),
        (dict(channel_mixer="gated"), "channel_mixer: unknown 'gated'; known: convolution, mlp"),
    ):
        with pytest.raises(ValueError, match=message):
            statescan.create_model("msvmamba_tiny", **(SMALL | options))
