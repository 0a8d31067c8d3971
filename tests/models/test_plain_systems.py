"""What is peculiar to Vim, LBVim, RSMamba and Adventurer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import statescan
from statescan.models import family, load_published


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return statescan.create_model(name, **(dict(dim=16, depth=2) | options)).eval()


def images(size: tuple[int, int] = (32, 32), batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("place", ["middle", "head", "tail", "double", "random", None])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_vim_class_tokens_and_pools(place: str | None, pool: str) -> None:
    model = build("vim_micro", class_token=place, pool=pool)
    features = model.forward_features(images())
    extra = {None: 0, "double": 2}.get(place, 1)
    assert features.shape == (1, 64 + extra, 16)
    assert model.forward_head(features).shape == (1, 10)
    pooled = model.forward_head(features, pre_logits=True)
    if place is None:
        wanted = features.mean(1) if pool == "mean" else features
    else:
        at = {"middle": [32], "tail": [64], "double": [0, 65]}.get(place, [0])
        wanted = features[:, at].mean(1)
    assert torch.equal(pooled, wanted)


@torch.no_grad()
def test_vim_all_tokens_get_scores() -> None:
    assert build("vim_micro", class_token=None, pool="all")(images()).shape == (1, 64, 10)


@torch.no_grad()
def test_vim_a_shuffled_or_flipped_sequence_comes_back_in_order() -> None:
    """Without blocks that mix, order is all that could change."""
    plain = build("vim_micro", class_token="head")
    for block in plain.blocks:
        block.mixer.output_projection.weight.zero_()
    for options in ({"shuffle": True}, {"flip_probability": 1.0}):
        model = build("vim_micro", class_token="head", **options)
        model.load_state_dict(plain.state_dict())
        assert torch.equal(model(images()), plain(images()))


@torch.no_grad()
def test_vim_rotary_turns_by_row_and_column() -> None:
    model = build("vim_micro", rotary=True, class_token=None)
    turned = model.turn(torch.ones(1, 64, 16), (8, 8), [])[0].view(8, 8, 16)
    assert torch.allclose(turned[0, 0], torch.ones(16))
    assert torch.allclose(turned[3, :, :8], turned[3, :1, :8].expand(8, 8))  # the row alone
    assert torch.allclose(turned[:, 3, 8:], turned[:1, 3, 8:].expand(8, 8))  # the column alone
    angle = torch.tensor(3 * 14 / 8)
    assert torch.allclose(turned[3, 0, :2], torch.stack([angle.cos() - angle.sin(), angle.sin() + angle.cos()]))
    for spares, index in (("first", 0), ("class", 32)):
        exact = build("vim_micro", rotary=True, rotary_spares=spares)
        whole = exact.turn(torch.ones(1, 65, 16), (8, 8), [32])[0]
        assert torch.equal(whole[index], torch.ones(16))
        assert torch.allclose(torch.cat([whole[:index], whole[index + 1 :]]).view(8, 8, 16), turned)


@torch.no_grad()
@pytest.mark.parametrize("patch", [8, 16])
def test_vim_pyramid_has_strides_4_to_32(patch: int) -> None:
    model = build("vim_micro", depth=4, patch=patch, image_size=64, features_only=True, pyramid=True)
    assert [tuple(found.shape[2:]) for found in model(images((64, 96)))] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [info.reduction for info in model.feature_info] == [4, 8, 16, 32]


@torch.no_grad()
def test_vim_streams_and_mixer_outputs_add_up() -> None:
    """The stream after a block is the one before it and the mixer's output."""
    options = dict(depth=3, features_only=True, feature_layers=(0, 1, 2))
    mixed, stream = build("vim_micro", **options), build("vim_micro", **options, feature_source="stream")
    full = build("vim_micro", **options, feature_source="stream", last_feature="stream")
    outputs, streams, wholes = mixed(images()), stream(images()), full(images())
    assert torch.allclose(streams[0] + outputs[1], streams[1], atol=1e-6)
    assert torch.equal(streams[2], outputs[2])
    assert torch.allclose(wholes[2], streams[1] + outputs[2], atol=1e-6)


def test_vim_refuses_what_cannot_be() -> None:
    for options, message in (
        ({"mixer": "both"}, "mixer: unknown 'both'; known: separate, shared, causal, pairs"),
        ({"mixer": "pairs", "depth": 3}, "depth: even with mixer='pairs', got 3"),
        ({"mixer": "pairs", "features_only": True}, "mixer: 'pairs' gives no feature maps"),
        ({"rotary": True, "dim": 6}, "dim: a multiple of 4 with rotary, got 6"),
        ({"stride": 9}, "stride: from 1 to patch=4, got 9"),
        ({"features_only": True, "pyramid": True}, "patch: 8 or 16 for a pyramid"),
        ({"class_token": "front"}, "class_token: unknown 'front'"),
        ({"route": "cross"}, "route: one walk over the grid, but 'cross' has 4"),
    ):
        with pytest.raises(ValueError, match=message):
            build("vim_micro", **options)
    other = build("vim_micro", dim=32)
    tensors = family("vim").to_published(dict(other.state_dict()), other.config)
    with pytest.raises(ValueError, match=r"shape of cls_token: \(1, 1, 32\), this model has \(1, 1, 16\)"):
        load_published(build("vim_micro"), tensors)


@torch.no_grad()
def test_lbvim_reads_both_directions_in_two_blocks() -> None:
    for depth, last_sees_first in ((1, True), (2, True)):
        model = build("lbvim_micro", depth=depth, window=4)
        x = images()
        plain = model.forward_features(x)
        moved = x.clone()
        moved[..., :4, :4] += 1  # the first patch
        reach = (model.forward_features(moved) - plain).abs().amax((0, 2)) > 0
        assert bool(reach[-1]) == last_sees_first
        moved = x.clone()
        moved[..., -4:, -4:] += 1  # the last patch, which one causal block shows to its window alone
        reach = (model.forward_features(moved) - plain).abs().amax((0, 2)) > 0
        assert bool(reach[0]) == (depth == 2)
        assert reach[-4:].all()


@torch.no_grad()
def test_lbvim_attention_pool_and_odd_depths() -> None:
    pooled = build("lbvim_micro", attention_heads=2, attention_query=True, attention_head_norm=True)
    assert pooled(images()).shape == (1, 10)
    last = build("lbvim_micro", depth=3, pool="last")
    features = last.forward_features(images())
    assert torch.equal(last.forward_head(features, pre_logits=True), features[:, 0])
    for options, message in (
        ({"window": 0}, "window: a positive whole number or 'auto', got 0"),
        ({"mixer": "shared"}, "mixer: 'causal' or 'separate' with a local scan, got 'shared'"),
        ({"attention_heads": 3}, "attention_heads: a divisor of dim=16, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            build("lbvim_micro", **options)


@torch.no_grad()
def test_rsmamba_says_the_same_twice_and_follows_its_seed() -> None:
    model = build("rsmamba_tiny")
    x = images((64, 64))
    first = model(x)
    assert torch.equal(model(x), first)
    assert torch.equal(model(x, seed=0), first)
    other = model(x, seed=1)
    assert not torch.equal(other, first)
    orders = torch.stack([torch.arange(256).flip(0)] * 2)
    assert not torch.equal(model(x, permutations=orders), first)
    model.train()
    assert not torch.equal(model(x), model(x))


@torch.no_grad()
def test_rsmamba_with_no_shuffle_and_equal_gates_is_a_mean_of_paths() -> None:
    model = build("rsmamba_tiny", depth=1).double()
    layer = model.layers[0]
    layer.gate.weight.zero_()
    x = torch.randn(2, 256, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normed = model.layer_norm(x)
    forth, back = layer.mixer(normed)[0], layer.mixer(normed.flip(1))[0].flip(1)
    assert torch.allclose(layer(x, model.layer_norm, torch.arange(256)), x + (2 * forth + back) / 3, atol=1e-12)


@torch.no_grad()
def test_rsmamba_class_token_in_an_odd_number_of_patches() -> None:
    """The published code reads the token behind it."""
    options = dict(image_size=24, patch=8, stride=8, class_token="middle", pool="class")
    published, exact = build("rsmamba_tiny", **options), build("rsmamba_tiny", **options, exact_middle=True)
    features = published.forward_features(images((24, 24)))
    assert torch.equal(published.forward_head(features, pre_logits=True), features[:, 5])
    assert torch.equal(exact.forward_head(features, pre_logits=True), features[:, 4])


def test_rsmamba_refuses_what_cannot_be() -> None:
    for options, message in (
        ({"path": "sideways"}, "path: unknown 'sideways'; known: forward, "),
        ({"pool": "class"}, "pool: 'class' needs a class_token"),
        ({"drop_path_rate": 0.1}, "drop_path_rate: RSMamba has none, got 0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            build("rsmamba_tiny", **options)
    model, x = build("rsmamba_tiny"), images((64, 64))
    with pytest.raises(ValueError, match=r"permutations: 2 of 256 positions each, got 1 of \[256\]"):
        model(x, permutations=[torch.arange(256)])
    with pytest.raises(ValueError, match="permutations: each must hold 0 to 255 once"):
        model(x, permutations=torch.zeros(2, 256, dtype=torch.int64))


@torch.no_grad()
@pytest.mark.parametrize("flip", ["published", "alternate", "never"])
def test_adventurer_class_token_knows_every_patch(flip: str) -> None:
    model = build("adventurer_micro", depth=2, head_dim=16, flip=flip)
    x = images()
    plain = model(x)
    for row in range(0, 32, 8):
        moved = x.clone()
        moved[..., row : row + 4, row : row + 4] += 1
        assert not torch.equal(model(moved), plain)


def test_adventurer_blocks_that_turn() -> None:
    for flip, blocks in (("published", [2, 3]), ("alternate", [2, 3, 6, 7, 10, 11]), ("never", [])):
        model = build("adventurer_micro", depth=12, head_dim=16, flip=flip)
        assert [index for index, block in enumerate(model.blocks) if block.mixer.flip] == blocks
    x = torch.randn(1, 5, 16)
    turned = model.blocks[0].mixer
    turned.flip = True
    assert torch.equal(turned.turned(turned.turned(x)), x)
    assert torch.equal(turned.turned(x)[:, -1], x[:, -1])
    with pytest.raises(ValueError, match="flip: unknown 'odd'; known: published, alternate, never"):
        build("adventurer_micro", flip="odd")


def test_adventurer_trains_at_one_token_a_pixel() -> None:
    model = build("adventurer_micro", patch=1, image_size=8, head_dim=16).train()
    x, labels = images((8, 8), batch=8), torch.arange(8)
    optimiser = torch.optim.AdamW(model.parameter_groups(0.05), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
