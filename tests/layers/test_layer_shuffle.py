"""Layers that see their tokens in random order, and what comes back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from statescan.layers import LayerShuffle, shuffle_rates


class Sums(nn.Module):
    """A causal mixer: running sums; with `pairs` it hands on tokens and a residual."""

    def __init__(self, pairs: bool = False):
        super().__init__()
        self.pairs = pairs
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, residual: Tensor | None = None):
        self.seen.append(x)
        tokens = x.flatten(1, -2).cumsum(1).view(x.shape)
        if not self.pairs:
            return tokens
        return tokens, x if residual is None else residual + x


def test_rates_grow_with_depth_or_stay() -> None:
    assert shuffle_rates(0.6, 4) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert shuffle_rates(0.6, 3, "constant") == [0.6] * 3
    assert shuffle_rates(0.6, 1) == [0.0]


def test_a_layer_sees_the_order_and_both_results_are_put_back() -> None:
    x, residual, order = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.randperm(5)
    layer = Sums(pairs=True)
    shuffle = LayerShuffle([1.0]).attach([layer])
    with shuffle.fixed([order]):
        tokens, stream = layer(x, residual)
    assert torch.equal(layer.seen[0], x[:, order])
    assert torch.equal(tokens[:, order], x[:, order].cumsum(1))
    assert torch.equal(stream, residual + x)


def test_grids_are_shuffled_cell_by_cell() -> None:
    x, order = torch.randn(2, 2, 3, 4), torch.randperm(6)
    layer = Sums()
    with LayerShuffle([1.0]).attach([layer]).fixed([order]):
        y = layer(x)
    assert y.shape == x.shape
    assert torch.equal(y.flatten(1, 2)[:, order], x.flatten(1, 2)[:, order].cumsum(1))


def test_a_layer_that_mixes_nothing_does_not_notice() -> None:
    layer = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    LayerShuffle([1.0]).attach([layer])
    x = torch.randn(2, 7, 3)
    assert torch.equal(layer.train()(x), layer.eval()(x))


def test_evaluation_and_rate_zero_change_no_bit() -> None:
    x = torch.randn(2, 9, 3)
    for rate, training in ((1.0, False), (0.0, True)):
        layer = Sums()
        LayerShuffle([rate]).attach([layer])
        assert torch.equal(layer.train(training)(x), x.cumsum(1))


def test_removed_it_is_gone() -> None:
    layer = Sums()
    shuffle = LayerShuffle([1.0]).attach([layer])
    shuffle.remove()
    x = torch.randn(2, 9, 3)
    assert torch.equal(layer(x), x.cumsum(1))
    assert not layer.state_dict()


def test_shuffles_come_as_often_as_the_rates_say() -> None:
    rates = shuffle_rates(0.5, 4)
    shuffle = LayerShuffle(rates, generator=torch.Generator().manual_seed(0))
    draws = 10_000
    for index, rate in enumerate(rates):
        count = sum(shuffle.draw(index, 6) is not None for _ in range(draws))
        assert abs(count - draws * rate) <= 3 * math.sqrt(draws * rate * (1 - rate))


def test_a_permutation_is_drawn_for_the_whole_batch_and_anew_each_time() -> None:
    shuffle = LayerShuffle([1.0], generator=torch.Generator().manual_seed(0))
    first, second = shuffle.draw(0, 50), shuffle.draw(0, 50)
    assert first is not None
    assert second is not None
    assert torch.equal(first.sort().values, torch.arange(50))
    assert not torch.equal(first, second)


def test_a_copy_shuffles_by_itself() -> None:
    model = nn.Sequential(Sums(), Sums())
    model.shuffle = LayerShuffle([1.0, 1.0]).attach(model)
    other = copy.deepcopy(model)
    model.shuffle.remove()
    x = torch.randn(1, 30, 2)
    assert torch.equal(model(x), x.cumsum(1).cumsum(1))
    assert not torch.allclose(other(x), model(x))
    other.shuffle.remove()
    assert torch.equal(other(x), model(x))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shuffle_rate: a probability in \[0, 1\], got 1.5"):
        shuffle_rates(1.5, 3)
    with pytest.raises(ValueError, match="shuffle_schedule: unknown 'cosine'; known: linear, constant"):
        shuffle_rates(0.5, 3, "cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rates: probabilities in \[0, 1\], got -1"):
        LayerShuffle([-1.0])
    with pytest.raises(ValueError, match="layers: one a rate, 2, got 1"):
        LayerShuffle([0.1, 0.2]).attach([Sums()])
    with pytest.raises(ValueError, match="orders: one a layer, 1, got 2"), LayerShuffle([0.1]).fixed([None, None]):
        pass
