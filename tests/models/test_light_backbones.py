"""What MambaOut, VSSD, EfficientViM, MobileMamba and Spatial-Mamba have in common, on all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import statescan
from statescan.inspect import image_cost
from statescan.layers.grid import DropPath
from statescan.models import family, load_published

#: Named model -> exact parameters, and multiply-adds in millions of the counting rule named beside each.
PUBLISHED = {
    # the paper's table
    "mambaout_femto": (7_304_536, 1_148),
    "mambaout_kobe": (9_141_208, 1_506),
    "mambaout_tiny": (26_545_096, 4_470),
    "mambaout_small": (48_488_072, 8_936),
    "mambaout_base": (84_813_092, 15_794),
    # timm's forms: parameters of its release 1.0.31
    "mambaout_small_rw": (48_495_560, None),
    "mambaout_base_short_rw": (88_827_688, None),
    "mambaout_base_tall_rw": (86_481_448, None),
    "mambaout_base_wide_rw": (94_448_104, None),
    "mambaout_base_plus_rw": (101_656_552, None),
    # convolutions and matrix products, 3 to 4 % above the paper's counter
    "vssd_micro": (13_512_964, 2_390),
    "vssd_tiny": (24_270_724, 4_660),
    "vssd_small": (40_075_650, 7_710),
    "vssd_base": (88_823_151, 16_650),
    # the paper's table
    "efficient_vim_m1": (6_679_458, 239),
    "efficient_vim_m2": (13_903_842, 355),
    "efficient_vim_m3": (16_604_174, 656),
    "efficient_vim_m4": (19_606_505, 1_111),
    # the paper's table; parameters include the fixed wavelet filters
    "mobile_mamba_t2": (8_836_890, 255),
    "mobile_mamba_t4": (14_176_090, 413),
    "mobile_mamba_s6": (15_036_632, 652),
    "mobile_mamba_b1": (17_122_849, 1_080),
    "mobile_mamba_b2": (17_122_849, 2_427),
    "mobile_mamba_b4": (17_122_849, 4_313),
    # the paper's table, counted on the form of training: three dilated kernels
    "spatial_mamba_tiny": (26_748_862, 4_500),
    "spatial_mamba_small": (43_074_280, 7_100),
    "spatial_mamba_base": (95_745_592, 15_800),
}
#: The small variant of each family, and changes that make its blocks leave zero where they start there.
SMALL = ("mambaout_test", "vssd_test", "efficient_vim_tiny", "mobile_mamba_tiny", "spatial_mamba_test")
STRIDES = {"efficient_vim_tiny": (16, 32, 64), "mobile_mamba_tiny": (16, 32, 64)}


def small(name: str, **overrides: Any) -> Any:
    """A small model whose every parameter is random, so that no branch is silent."""
    torch.manual_seed(0)
    model = statescan.create_model(name, **{"num_classes": 10, **overrides})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    parameters, multiply_adds = PUBLISHED[name]
    cost = image_cost(name, **({"merged": False} if name.startswith("spatial") else {}))
    assert cost.parameters == parameters
    if multiply_adds is not None:
        # scans take seven to nine operations a state, all of which the papers count
        assert abs(cost.multiply_adds + cost.scan_operations - multiply_adds * 1e6) < 0.02 * multiply_adds * 1e6


@pytest.mark.parametrize("name", SMALL)
def test_published_tensors_go_back_and_forth(name: str) -> None:
    model, other = small(name), small(name)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    found = family(model.family)
    load_published(other, found.to_published(model.state_dict(), model.config))
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key


@pytest.mark.parametrize("name", SMALL)
def test_checkpoint_of_another_variant_is_refused(name: str) -> None:
    model, other = small(name), small(name, num_classes=7)
    published = family(name.rsplit("_", 1)[0]).to_published(other.state_dict(), other.config)
    with pytest.raises(ValueError, match=r"tensors? do(es)? not fit"):
        load_published(model, published)


@pytest.mark.parametrize("name", SMALL)
def test_feature_maps(name: str) -> None:
    model = small(name, features_only=True).eval()
    strides = STRIDES.get(name, (4, 8, 16, 32))
    assert tuple(info.reduction for info in model.feature_info) == strides
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 128))
    for given, info in zip(maps, model.feature_info, strict=True):
        assert given.shape == (1, info.channels, 64 // info.reduction, 128 // info.reduction)
    chosen = small(name, features_only=True, out_indices=(2,)).eval()
    with torch.no_grad():
        (last,) = chosen(torch.randn(1, 3, 64, 64))
    assert last.shape[1] == model.feature_info[2].channels


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(37, 50), (64, 33), (32, 97)])
def test_any_size_and_each_image_by_itself(name: str, size: tuple[int, int]) -> None:
    model = small(name).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        together = model(images)
        apart = torch.cat([model(image[None]) for image in images])
    assert together.shape == (2, 10)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4 * together.abs().max().item())


@pytest.mark.parametrize("name", SMALL)
def test_channels_classes_and_drop_path(name: str) -> None:
    model = small(name, in_channels=5, num_classes=0, drop_path_rate=0.6).eval()
    images = torch.randn(8, 5, 64, 64)
    width = model.feature_info[-1].channels
    with torch.no_grad():
        assert model(images).shape == (8, width)
        features = small(name).eval()
        head = features.forward_head(features.forward_features(images[:, :3]))
        torch.testing.assert_close(head, features(images[:, :3]))
    rates = [part.rate for part in model.modules() if isinstance(part, DropPath)]
    assert rates == sorted(rates)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.6)
    model.train()
    torch.manual_seed(1)
    assert not torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    model = small(name)
    images = torch.randn(2, 3, 64, 64)
    found = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        model(images).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for plain, again in zip(*found, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-5 * (1 + plain.abs().max().item()))


@pytest.mark.parametrize("name", SMALL)
def test_compiles_as_one_graph(name: str) -> None:
    model = small(name).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_wrong_images_are_refused(name: str) -> None:
    model = small(name)
    with pytest.raises(ValueError, match=r"3 channels.*in_channels=3"):
        model(torch.randn(1, 4, 64, 64))
    with pytest.raises(ValueError, match="batch, 3 channels, height, width"):
        model(torch.randn(3, 64, 64))
    with pytest.raises(TypeError, match="floating-point"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("name", SMALL)
def test_first_weights_give_finite_scores_near_chance(name: str) -> None:
    torch.manual_seed(0)
    model = statescan.create_model(name, num_classes=10)
    loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8))
    assert abs(loss.item() - torch.tensor(10.0).log().item()) < 1


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("mambaout_test", dict(depths=(1, 1)), "depths, widths: one of each a stage"),
        ("mambaout_test", dict(conv_ratio=4.0), "conv_ratio: at least one channel and at most"),
        ("mambaout_test", dict(conv_kernel=4), "kernel: odd, got 4"),
        ("vssd_test", dict(heads=(3, 4, 8, 16)), "heads: a divisor of the 32 inner channels, got 3"),
        ("vssd_test", dict(groups=4), "groups: a divisor of the 2 heads, got 4"),
        ("vssd_test", dict(mixers=("scan",) * 4), "mixers: unknown 'scan'; known: non_causal"),
        ("vssd_test", dict(mixers=("bidirectional",) * 4), "groups: an even number for both directions"),
        ("vssd_test", dict(depths=(1, 2)), "depths, heads, mixers: one of each a stage"),
        ("efficient_vim_tiny", dict(state_dims=(4,)), "widths, depths, state_dims: one of each a stage"),
        ("efficient_vim_tiny", dict(widths=(4, 8, 16)), "dim: at least 8 for this stem, got 4"),
        ("mobile_mamba_tiny", dict(kernels=(7, 5)), "kernels: one of each a stage"),
        ("mobile_mamba_tiny", dict(kernels=(7, 4, 3)), "kernel: odd, got 4"),
        ("mobile_mamba_tiny", dict(global_ratios=(1.4, 0.7, 0.6)), "global_ratio: at most all 48 channels"),
        ("mobile_mamba_tiny", dict(route="spiral_of_doom"), "route: unknown 'spiral_of_doom'"),
        ("spatial_mamba_test", dict(route="cross"), "route: one walk for one scan, 'cross' has 4"),
        ("spatial_mamba_test", dict(route="nowhere"), "route: unknown 'nowhere'"),
        ("spatial_mamba_test", dict(eval_padding="mirror"), "padding: replicate or zeros, got 'mirror'"),
    ],
)
def test_wrong_options_are_refused(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statescan.create_model(name, **overrides)
