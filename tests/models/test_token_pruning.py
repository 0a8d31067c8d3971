"""Plain backbones that drop tokens on the way."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import statescan
from statescan.inspect import ImageCost, image_cost
from statescan.models import family, load_published
from statescan.models.token_pruning import prune_tokens

#: Backbones, options, and what their states can do over gaps.
BACKBONES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("vim_micro", {}, ("hold", "decay")),
    ("vim_micro", {"mixer": "shared", "class_token": None}, ("hold", "decay")),
    ("vim_micro", {"mixer": "causal", "class_token": "double", "rotary": True}, ("hold", "decay")),
    ("shuffle_mamba_tiny_registers", {}, ("hold", "decay")),
    ("lbvim_micro", {"class_token": "middle"}, ("hold",)),
    ("lbvim_micro", {"depth": 3, "pool": "last", "window": 4}, ("hold",)),
    ("plainmamba_tiny", {}, ("hold", "decay")),
    ("plainmamba_tiny", {"reorder": "all", "convolution_layers": (0, 2)}, ("hold", "decay")),
    ("adventurer_micro", {"flip": "alternate"}, ("hold", "decay")),
    ("vit_micro", {}, ("hold",)),
]
CASES = [(name, options, alignment) for name, options, kinds in BACKBONES for alignment in kinds]


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return statescan.create_model(name, **options).eval()


@cache
def cost_of(name: str, **options: Any) -> ImageCost:
    return image_cost(name, **options)


def images(model: Any, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, model.config.in_channels, *(size or model.config.image_shape), generator=generator)


@pytest.mark.parametrize(("name", "options", "alignment"), CASES)
def test_keeping_everything_is_the_backbone_bit_for_bit(name: str, options: dict[str, Any], alignment: Any) -> None:
    model = build(name, **options)
    with torch.no_grad():
        wanted = model(images(model))
        pruned = prune_tokens(model, [1, 2], 1.0, alignment=alignment)
        assert torch.equal(pruned(images(model)), wanted)
        prune_tokens(model, [1, 2], 0.5, alignment=alignment)(images(model))
        assert torch.equal(model(images(model)), wanted)  # the backbone itself stays as it is


@pytest.mark.parametrize(("name", "options", "alignment"), CASES)
def test_sequences_get_shorter_and_gradients_reach_everything(
    name: str, options: dict[str, Any], alignment: Any
) -> None:
    model = build(name, **options)
    pruned = prune_tokens(model, [1, 2], [0.7, 0.5], alignment=alignment)
    x = images(model, size=(16, 40) if name != "plainmamba_tiny" else (32, 80))
    lengths: list[int] = []
    for block in model.blocks:
        block.norm.register_forward_hook(lambda _, args, out: lengths.append(args[0].shape[1:-1].numel()))
    extra = 0 if name.startswith("plain") else model.tokens.extra
    patches = 40
    scores = pruned(x)
    assert lengths == [count + extra for count in pruned.config.token_counts(patches, len(model.blocks))]
    assert scores.shape == (2, 10)
    F.cross_entropy(scores, torch.tensor([3, 4])).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0] == []
    positions = pruned.kept_positions(x)
    assert [places.shape[1] for places in positions] == [
        count + extra for count in pruned.config.token_counts(patches, 3)[1:]
    ]
    for places in positions:
        steps = places.diff(dim=1)
        assert bool((steps > 0).all()) or bool((steps < 0).all())
        assert not extra or all(set(model.tokens.class_indices(patches)) <= set(row) for row in places.tolist())
    assert set(positions[1][0].tolist()) < set(positions[0][0].tolist())
    assert positions[0][0].tolist() != positions[0][1].tolist()  # each image keeps its own


@pytest.mark.parametrize(("name", "options", "alignment"), CASES)
def test_an_image_does_not_depend_on_its_batch(name: str, options: dict[str, Any], alignment: Any) -> None:
    model = build(name, **options)
    pruned = prune_tokens(model, [1, 3], 0.6, alignment=alignment)
    x = images(model, batch=3)
    with torch.no_grad():
        assert torch.allclose(pruned(x)[1:2], pruned(x[1:2]), atol=1e-5)


def test_hold_is_the_backbone_on_what_is_left() -> None:
    """After the blocks that see everything, the rest of a Vim run on the gathered tokens."""
    model = build("vim_micro", class_token="head")
    pruned = prune_tokens(model, [2], 0.5, alignment="hold")
    x = images(model)
    with torch.no_grad():
        (kept,) = pruned.kept_positions(x)
        hidden, residual = model.tokens(x.permute(0, 2, 3, 1))[0], None
        for index, block in enumerate(model.blocks):
            hidden, residual = block(hidden, residual)
            if index == 1:
                chosen = kept[..., None].expand(-1, -1, hidden.shape[2])
                hidden, residual = hidden.gather(1, chosen), residual.gather(1, chosen)
        wanted = model.head(model.norm_tokens(hidden, residual)[:, 0])
        assert torch.allclose(pruned(x), wanted, atol=1e-6)
        aged = prune_tokens(model, [2], 0.5, alignment="decay")(x)
        assert not torch.allclose(aged, wanted, atol=1e-5)


def test_importance_is_what_the_scans_give_clipped() -> None:
    model = build("vim_micro")
    heard: list[Tensor] = []
    model.blocks[0].mixer.output_projection.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    x = images(model)
    with torch.no_grad():
        for rule, measure in (("clip", F.relu), ("l1", torch.abs)):
            (kept,) = prune_tokens(model, [1], 0.4, importance=rule).kept_positions(x)  # type: ignore[arg-type]
            score = measure(heard[-1]).sum(-1)
            score[:, 32] = torch.inf  # the class token in the middle of 64 patches
            assert torch.equal(kept, score.topk(kept.shape[1]).indices.sort(1).values)


def test_a_turned_row_and_its_mean_are_scored_in_their_places() -> None:
    model = build("adventurer_micro")
    heard: list[Tensor] = []
    assert model.blocks[2].mixer.flip
    model.blocks[2].mixer.mixer.norm.register_forward_pre_hook(lambda _, args: heard.append(args[0] * F.silu(args[1])))
    with torch.no_grad():
        (kept,) = prune_tokens(model, [3], 0.4).kept_positions(images(model))
    score = heard[0].relu().sum(-1)[:, 1:]
    score = torch.cat([score[:, :-1].flip(1), torch.full((2, 1), torch.inf)], 1)
    assert torch.equal(kept, score.topk(kept.shape[1]).indices.sort(1).values)


@pytest.mark.parametrize("name", ["vim_small", "plainmamba_l3"])
def test_operations_fall_as_the_shorter_sequences_say(name: str) -> None:
    whole, pruned = cost_of(name), cost_of(f"pruned_{name}")
    first, second = cost_of(name, depth=1), cost_of(name, depth=2)
    config = statescan.model_info(f"pruned_{name}").config
    counts = config.token_counts(196, statescan.model_info(name).config.depth)
    assert pruned.parameters == whole.parameters
    for kind in ("multiply_adds", "scan_operations"):
        block = getattr(second, kind) - getattr(first, kind)
        whole_grid = (
            49 * 896 * 196 if name == "plainmamba_l3" and kind == "multiply_adds" else 0
        )  # its 7 x 7 convolutions
        predicted = getattr(first, kind) + (block - whole_grid) * sum(counts[1:]) / 196 + whole_grid * len(counts[1:])
        assert getattr(pruned, kind) == pytest.approx(predicted, rel=0.02)


def test_operations_of_the_paper() -> None:
    """14.4 and 8.4 G for PlainMamba-L3, 41.6 % fewer; 5.1 and 3.6 G, 29 % fewer, for Vim-S."""
    for name, fewer in (("plainmamba_l3", 0.416), ("vim_small", 0.29)):
        whole, pruned = cost_of(name), cost_of(f"pruned_{name}")
        total = [cost.multiply_adds + cost.scan_operations for cost in (whole, pruned)]
        assert 1 - total[1] / total[0] == pytest.approx(fewer, abs=0.005)
        if name == "plainmamba_l3":
            assert [value / 1e9 for value in total] == pytest.approx([14.4, 8.4], rel=0.01)


def test_saved_loaded_and_copied(tmp_path: Path) -> None:
    model = build("plainmamba_tiny", depth=3)
    pruned = prune_tokens(model, [1, 2], 0.5)
    x = images(model)
    with torch.no_grad():
        wanted = pruned(x)
        pruned.save(tmp_path / "pruned")
        again = statescan.load(tmp_path / "pruned").eval()
        assert torch.equal(again(x), wanted)
        assert again.config == pruned.config
        twin = copy.deepcopy(pruned)
        del pruned, model
        assert torch.equal(twin(x), wanted)


def test_published_weights_of_the_backbone_load() -> None:
    model, pruned = build("vim_micro"), build("pruned_vim_micro")
    load_published(pruned, family("vim").to_published(dict(model.state_dict()), model.config))
    x = images(model)
    with torch.no_grad():
        assert torch.equal(pruned(x), prune_tokens(model, [1, 2], 0.8)(x))


def test_checkpointing_changes_no_gradient() -> None:
    for name in ("vim_micro", "plainmamba_tiny", "adventurer_micro"):
        pruned = prune_tokens(build(name), [1, 2], 0.6).train()
        x, found = images(pruned), []
        for enabled in (False, True):
            pruned.set_gradient_checkpointing(enabled)
            pruned.zero_grad()
            pruned(x).square().sum().backward()
            found.append([parameter.grad.clone() for parameter in pruned.parameters()])
        assert all(torch.allclose(kept, again, atol=1e-5) for kept, again in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["vim_micro", "plainmamba_tiny"])
def test_compiles_whole(name: str) -> None:
    model = prune_tokens(build(name, depth=2), [1], 0.6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(images(model)), model(images(model)), atol=1e-5)


def test_bad_input_is_refused() -> None:
    vim, local = build("vim_micro"), build("lbvim_micro")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (build("vssd_micro"), {}, "got VSSD: its resolution falls from stage to stage"),
        (build("rsmamba_tiny"), {}, "model: Vim, ShuffleMamba, LBVim, PlainMamba, Adventurer or ViT, got RSMamba"),
        (build("local_vim_tiny"), {}, "got LocalVim"),
        (build("vim_micro", mixer="pairs"), {}, "tokens of a Vim with mixer='pairs' cannot be dropped"),
        (build("vim_micro", features_only=True), {}, "features_only: a map needs every patch"),
        (vim, {"prune_after": [9]}, "prune_after: from 1 to the backbone's 4 blocks, got 9"),
        (vim, {"prune_after": [2, 1]}, r"prune_after: rising numbers of blocks, from 1 on, got \(2, 1\)"),
        (vim, {"prune_after": [1, 2], "keep_ratios": [0.5]}, "keep_ratios: one for each of prune_after, 2, got 1"),
        (vim, {"keep_ratios": 1.5}, r"keep_ratio: in \(0, 1\], got 1.5"),
        (vim, {"alignment": "none"}, "alignment: unknown 'none'; known: hold, decay"),
        (vim, {"importance": "max"}, "importance: unknown 'max'"),
        (vim, {"middle": True}, "middle: with alignment='hold' alone"),
        (local, {"middle": True, "alignment": "hold"}, "middle: for a backbone with class_token='middle'"),
        (local, {}, "alignment: 'hold' for LBVim: it has no plain scan"),
        (build("vit_micro"), {}, "alignment: 'hold' for ViT"),
    ]
    for model, options, message in cases:
        with pytest.raises(ValueError, match=message):
            prune_tokens(model, **options)
    with pytest.raises(ValueError, match="images: "):
        prune_tokens(vim)(torch.randn(1, 4, 32, 32))
