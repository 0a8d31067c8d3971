"""MobileMamba: wavelets, the split of channels, folding."""

from __future__ import annotations

import pytest
import torch

import statescan
from statescan.layers.grid import (
    MultiReceptiveMixer,
    fold_norms,
    haar_filters,
    inverse_wavelet_transform,
    wavelet_transform,
)
from statescan.models import family, load_published
from tests.models.test_light_backbones import small


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 2)])
def test_wavelets_come_back(size: tuple[int, int]) -> None:
    x, filters = torch.randn(2, *size, 3), haar_filters(3)
    bands = wavelet_transform(x, filters)
    assert bands.shape == (2, (size[0] + 1) // 2, (size[1] + 1) // 2, 12)
    torch.testing.assert_close(inverse_wavelet_transform(bands, filters, *size), x)


def test_bands_are_means_and_differences() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[None, :, :, None]
    bands = wavelet_transform(x, haar_filters(1))[0, 0, 0]
    torch.testing.assert_close(bands, torch.tensor([8.0, -4.0, -2.0, 0.0]))


@pytest.mark.parametrize(
    ("dim", "shares", "parts"),
    [
        (192, (0.8, 0.2), (160, 32, 0)),  # 153 is nearer to 160
        (48, (0.8, 0.2), (32, 9, 7)),
        (40, (0.6, 0.3), (32, 8, 0)),  # 24 lies between: up, and the second part is cut
        (40, (0.0, 0.5), (0, 20, 20)),
        (32, (1.0, 0.5), (32, 0, 0)),
    ],
)
def test_channels_are_split_in_three(dim: int, shares: tuple[float, float], parts: tuple[int, int, int]) -> None:
    mixer = MultiReceptiveMixer(dim, global_ratio=shares[0], local_ratio=shares[1], kernel=3)
    assert mixer.parts == parts
    assert mixer(torch.randn(1, 3, 5, dim)).shape == (1, 3, 5, dim)


def test_folded_norms_change_nothing_in_evaluation() -> None:
    model = small("mobile_mamba_tiny")
    images = torch.randn(2, 3, 64, 64)
    model(images)
    model.eval()
    with torch.no_grad():
        before = model(images)
        after = fold_norms(model)(images)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4 * before.abs().max().item())
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_fixed_filters_are_counted_not_trained_and_may_be_left_out_of_files() -> None:
    model = small("mobile_mamba_tiny")
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in fixed} == {"analysis", "synthesis"}
    published = family("mobile_mamba").to_published(model.state_dict(), model.config)
    without = {name: tensor for name, tensor in published.items() if not name.endswith("wt_filter")}
    assert len(published) - len(without) == len(fixed)
    other = statescan.create_model("mobile_mamba_tiny", num_classes=10)
    load_published(other, without)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_another_route() -> None:
    model = statescan.create_model("mobile_mamba_tiny", route="cross").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 48, 64)).shape == (1, 10)
