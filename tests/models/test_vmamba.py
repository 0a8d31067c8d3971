"""VMamba: the published sizes, and what its walks promise."""

import pytest
import torch

import statescan
from statescan.inspect import image_cost
from statescan.layers import grid
from statescan.models import load_published
from statescan.models.vmamba import SpatialSoftmax, VMamba, VMambaConfig, to_published
from tests.models import _images

SMALL = dict(dims=(8, 12, 16, 24), depths=(1, 1, 2, 1), num_classes=5)

#: Name, exact parameters, 10^9 multiply-adds of convolutions and matrix products, and of scans, at 224 x 224.
PUBLISHED = [
    ("vmamba_tiny_s1l8", 30_249_064, 4.81, 0.06),
    ("vmamba_small_s1l20", 49_012_840, 8.47, 0.10),
    ("vmamba_base_s1l20", 86_614_504, 15.03, 0.13),
    ("vmamba_tiny_s2l5", 30_705_832, 4.72, 0.11),
    ("vmamba_small_s2l15", 50_147_752, 8.50, 0.17),
    ("vmamba_base_s2l15", 88_557_800, 15.07, 0.23),
    ("vanilla_vmamba_tiny", 22_893_448, 3.68, 1.92),
    ("vanilla_vmamba_small", 44_417_416, 7.69, 3.49),
    ("vanilla_vmamba_base", 76_254_056, 13.30, 4.66),
    ("vmamba_tiny_m2", 25_340_296, None, None),
    ("vmamba_small_m2", 39_079_816, None, None),
    ("vmamba_base_m2", 67_527_528, None, None),
]


@pytest.mark.parametrize(("name", "parameters", "products", "scans"), PUBLISHED)
def test_the_published_sizes(name, parameters, products, scans):
    cost = image_cost(name)
    assert cost.parameters == parameters
    if products is not None:
        states = 1 if "vanilla" not in name else 16
        # The published rule counts the direct path as well: 9 N + 1 operations where 9 N are counted here.
        scanned = cost.scan_operations * (9 * states + 1) / (9 * states)
        assert (cost.multiply_adds + scanned) / 1e9 == pytest.approx(products + scans, rel=0.02)
        assert cost.multiply_adds / 1e9 == pytest.approx(products, rel=0.02)


def test_the_cost_is_linear_in_pixels():
    small, large = (image_cost("vmamba_tiny", size=size) for size in (128, 256))
    assert large.multiply_adds / small.multiply_adds == pytest.approx(4, rel=1e-3)
    assert large.scan_operations == 4 * small.scan_operations


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(route="cross_unidirectional", gate="silu"),
        dict(scan="cascade"),
        dict(scan="ssd", state_dim=4, initialisation="v2", activation="gelu"),
        dict(stem="patches", downsample="merging", norm="batch_norm", mlp_gated=True),
        dict(downsample="convolution2", position_embedding=True, image_size=(64, 32), mlp_ratio=0.0),
    ],
    ids=["released", "raster", "cascade", "ssd", "batch-norm", "positions"],
)
def test_forms(options):
    _images.check_forward("vmamba_tiny", **SMALL, **options)
    _images.check_names("vmamba_tiny", dict(depths=(1, 1, 1, 1)), **SMALL, **options)


@pytest.mark.parametrize("norm", ["none", "depthwise", "layer_norm_depthwise", "softmax", "sigmoid"])
def test_norms_after_the_scans(norm):
    _images.check_names("vmamba_tiny", dict(dims=(8, 12, 16, 16)), **SMALL, output_norm=norm)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(SpatialSoftmax()(x).sum((1, 2)), torch.ones(2, 5))


def test_maps():
    _images.check_maps("vmamba_tiny", **SMALL)


def test_training():
    _images.check_training("vmamba_tiny", **SMALL)


def test_bad_input():
    _images.check_bad_input("vmamba_tiny", 2, **SMALL, stem="patches")
    for options, message in (
        (dict(route="spiralling"), "route: unknown 'spiralling'"),
        (dict(scan="linear"), "scan: unknown 'linear'; known: selective"),
        (dict(stem="conv"), "stem: unknown 'conv'"),
        (dict(downsample="v4"), "downsample: unknown 'v4'"),
        (dict(output_norm="rms"), "output_norm: unknown 'rms'"),
        (dict(expand=0), "expand: positive, got 0"),
        (dict(dims=(8, 8)), "one of each a stage"),
        (dict(scan="ssd"), "initialisation: unknown 'v0'"),
        (dict(scan="ssd", initialisation="v2", dt_rank=5), "heads: a divisor of the 8 inner channels, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            statescan.create_model("vmamba_tiny", **(SMALL | options))


def test_small_images_leave_every_stage_a_cell():
    assert statescan.create_model("vmamba_tiny", **SMALL, downsample="convolution2").least_size == 29
    for least, options in ((29, {}), (32, dict(stem="patches"))):
        model = statescan.create_model("vmamba_tiny", **SMALL, downsample="convolution2", **options).eval()
        assert model.least_size == least
        assert model(_images.images(least)).isfinite().all()


def test_earlier_names_are_taken():
    config = VMambaConfig(**SMALL, stem="patches", downsample="merging", gate="silu", conv_bias=True)
    model = VMamba(config)
    published = to_published(model.state_dict(), config)
    earlier = {}
    for name, tensor in published.items():
        name = name.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        name = name.replace(".op.", ".self_attention.").removeprefix("classifier.")
        if ".blocks." in name:
            name = name.replace(".norm.", ".ln_1.").replace(".self_attention.out_ln_1.", ".self_attention.out_norm.")
        convolved = name.endswith(("in_proj.weight", "fc1.weight"))
        earlier[name] = tensor[:, :, None, None] if convolved else tensor
    other = VMamba(config)
    load_published(other, earlier)
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)


def tied(channels: int) -> grid.SS2D:
    """An SS2D whose walks have the same parameters, its convolution a symmetric kernel."""
    torch.manual_seed(0)
    layer = grid.SS2D(channels, state_dim=3, gate="silu")
    with torch.no_grad():
        for parameter in layer.scan.parameters():
            parts = parameter.view(4, -1)
            parts.copy_(parts[:1].expand_as(parts).clone())
        kernel = layer.convolution.weight
        kernel.copy_((kernel + kernel.flip(2, 3)) / 2)
    return layer


def test_tied_walks_commute_with_half_a_turn():
    layer, x = tied(6), torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(layer(x.flip(1, 2)), layer(x).flip(1, 2))
    untied = grid.SS2D(6, state_dim=3)
    assert not torch.allclose(untied(x.flip(1, 2)), untied(x).flip(1, 2), atol=1e-4)


def test_transposing_the_grid_swaps_the_walks():
    torch.manual_seed(0)
    layer, x = grid.SS2D(6, state_dim=3), torch.randn(2, 4, 5, 6)
    swapped = grid.SS2D(6, state_dim=3)
    swapped.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for parameter in swapped.scan.parameters():
            parts = parameter.view(4, -1)
            parts.copy_(parts[[1, 0, 3, 2]].clone())
        swapped.convolution.weight.copy_(layer.convolution.weight.transpose(2, 3))
    torch.testing.assert_close(swapped(x.transpose(1, 2)), layer(x).transpose(1, 2))


def test_the_aligned_cascade_commutes_with_mirrors_and_the_published_one_does_not():
    x = torch.randn(2, 4, 5, 6)
    for aligned in (True, False):
        torch.manual_seed(0)
        scan = grid.CascadeScan(6, aligned=aligned, state_dim=3, dt_rank=1)
        with torch.no_grad():
            for parameter in scan.parameters():
                parts = parameter.view(4, -1)
                parts.copy_(parts[[0, 0, 2, 2]].clone())
        assert torch.allclose(scan(x.flip(2)), scan(x).flip(2), atol=1e-5) == aligned


def test_compiles_into_one_graph():
    model = statescan.create_model("vmamba_tiny", dims=(8, 12), depths=(1, 1), num_classes=5).eval()
    x = _images.images(32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
