"""Stems and downsamplings: sizes, folding, rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from statescan.layers.grid import (
    ConvolutionStem,
    GridAttention,
    InvertedDownsample,
    NormLinear,
    ResidualStem,
    SqueezeDownsample,
    fold_norms,
    nearest_multiple,
)

PARTS = {
    "stride 16": (lambda: ConvolutionStem(3, 16), (3, 16, 16)),
    "stride 4": (lambda: ResidualStem(3, 8), (3, 8, 4)),
    "inverted": (lambda: InvertedDownsample(6, 10), (6, 10, 2)),
    "squeezed": (lambda: SqueezeDownsample(6, 10, 24), (6, 10, 2)),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("size", [(32, 48), (33, 17), (1, 5)])
def test_sides_are_divided_and_rounded_up(name: str, size: tuple[int, int]) -> None:
    build, (before, after, stride) = PARTS[name]
    out = build().eval()(torch.randn(2, *size, before))
    assert out.shape == (2, -(-size[0] // stride), -(-size[1] // stride), after)


@pytest.mark.parametrize("name", PARTS)
def test_folded_norms_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    build, (before, _, _) = PARTS[name]
    whole = nn.Sequential(build())
    x = torch.randn(2, 32, 32, before)
    whole(x)  # statistics that are not those of the start
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0)
            nn.init.normal_(module.bias)
    whole.eval()
    expected = whole(x)
    torch.testing.assert_close(fold_norms(whole)(x), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in whole.modules())


def test_folded_classifier() -> None:
    head = NormLinear(5, 3)
    head(torch.randn(8, 5) * 3 + 1)
    head.eval()
    x = torch.randn(4, 5)
    torch.testing.assert_close(head.folded()(x), head(x))


def test_rounding() -> None:
    assert [nearest_multiple(value, 8) for value in (1, 11.9, 12, 20, 24)] == [8, 8, 16, 24, 24]


def test_attention_among_cells() -> None:
    torch.manual_seed(0)
    attention = GridAttention(6, 2)
    x = torch.randn(1, 2, 3, 6)
    queries, keys, values = attention.qkv(x).view(6, 3, 2, 3).unbind(1)
    weights = torch.einsum("ihd,jhd->hij", queries, keys).div(3**0.5).softmax(-1)
    mixed = torch.einsum("hij,jhd->ihd", weights, values).reshape(1, 2, 3, 6)
    torch.testing.assert_close(attention(x), attention.output(mixed))
    with pytest.raises(ValueError, match="heads: a divisor of the 6 channels, got 4"):
        GridAttention(6, 4)
