"""Backbones of one resolution: what all of them keep, and each one's counts."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import statescan
from statescan.inspect import image_cost
from statescan.models import family, load_published

#: A small model of each family.
SMALL = (
    "vim_micro",
    "lbvim_micro",
    "plainmamba_tiny",
    "rsmamba_tiny",
    "adventurer_micro",
    "vit_micro",
    "shuffle_mamba_tiny",
)

#: Published parameters, and multiply-adds and scan operations in 1e9 where they are known.
PUBLISHED: list[tuple[str, dict[str, Any], int, float | None, float | None]] = [
    ("vim_tiny", {}, 7_148_008, 1.29, 0.53),
    ("vim_small", {}, 25_796_584, 4.85, 1.06),
    ("vim_base", {}, 97_598_440, 18.77, 2.12),
    ("vim_tiny_stride8", {}, 7_250_344, 4.79, 1.96),
    ("vim_small_stride8", {}, 26_001_256, 17.98, 3.93),
    ("shuffle_mamba_small", {}, 25_796_584, 4.85, 1.06),
    ("shuffle_mamba_middle", {}, 74_236_456, 14.21, 2.12),
    ("shuffle_mamba_base", {}, 97_598_440, 18.77, 2.12),
    ("shuffle_mamba_large", {}, 340_034_536, 66.0, 5.66),
    ("shuffle_mamba_large_40", {}, 283_698_152, 55.0, 4.71),
    ("shuffle_mamba_small_registers", {}, 27_801_064, 5.12, 1.12),
    ("shuffle_mamba_base_registers", {}, 99_301_096, 19.81, 2.24),
    ("shuffle_mamba_large_registers", {}, 341_222_376, 71.0, 6.09),
    ("lbvim_tiny", {}, 6_419_560, None, None),
    ("lbvim_300", {}, 14_897_200, None, None),
    ("lbvim_small", {}, 23_897_320, None, None),
    ("lbvim_528_attention", {}, 44_823_448, None, None),
    ("plainmamba_l1", {}, 7_551_656, 1.97, 1.05),
    ("plainmamba_l1", {"num_classes": 0}, 7_358_656, None, None),
    ("plainmamba_l2", {}, 26_145_832, 5.98, 2.10),
    ("plainmamba_l3", {}, 50_956_456, 10.77, 3.67),
    ("rsmamba_small", {}, 4_356_894, 9.31, 2.11),
    ("rsmamba_base", {}, 6_382_878, 13.90, 3.16),
    ("rsmamba_base", {"num_classes": 0}, 6_377_088, None, None),
    ("rsmamba_large", {}, 16_248_862, 36.40, 6.33),
    ("rsmamba_huge", {}, 33_056_030, 75.05, 10.55),
    ("adventurer_tiny", {}, 11_608_840, None, None),
    ("adventurer_small", {}, 44_491_816, None, None),
    ("adventurer_base", {}, 98_657_608, None, None),
    ("adventurer_large", {}, 346_196_200, None, None),
    ("deit_tiny", {}, 5_717_416, None, None),
    ("deit_small", {}, 22_050_664, None, None),
    ("deit_base", {}, 86_567_656, None, None),
]

#: Adventurer at one token a pixel: parameters at 64, 128 and 224 pixels.
PATCH1 = {
    "tiny": (12_411_400, 15_557_128, 24_207_880),
    "small": (46_096_936, 52_388_392, 69_689_896),
    "base": (101_065_288, 110_502_472, 136_454_728),
    "large": (349_406_440, 361_989_352, 396_592_360),
}


@cache
def small(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return statescan.create_model(name, **options).eval()


def parameters(name: str, **options: Any) -> int:
    with torch.device("meta"):
        model = statescan.create_model(name, **options)
    return sum(parameter.numel() for parameter in model.parameters())


def images(model: Any, batch: int = 1, size: tuple[int, int] | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, model.config.in_channels, *(size or model.config.image_shape), generator=generator)


@pytest.mark.parametrize(("name", "options", "count", "multiply_adds", "scans"), PUBLISHED)
def test_counts_of_published_variants(
    name: str, options: dict[str, Any], count: int, multiply_adds: float | None, scans: float | None
) -> None:
    assert parameters(name, **options) == count
    if multiply_adds is not None and scans is not None:
        cost = image_cost(name, **options)
        assert cost.multiply_adds / 1e9 == pytest.approx(multiply_adds, rel=0.02)
        assert cost.scan_operations / 1e9 == pytest.approx(scans, rel=0.02)


@pytest.mark.parametrize("width", PATCH1)
def test_counts_at_one_token_a_pixel(width: str) -> None:
    sizes = (64, 128, 224)
    assert tuple(parameters(f"adventurer_{width}_patch1", image_size=size) for size in sizes) == PATCH1[width]


@pytest.mark.parametrize("name", SMALL)
def test_scores_features_and_head_fit_together(name: str) -> None:
    model = small(name)
    x = images(model)
    with torch.no_grad():
        scores = model(x)
        features = model.forward_features(x)
        assert torch.equal(model.forward_head(features), scores)
        pooled = model.forward_head(features, pre_logits=True)
        bare = small(name, num_classes=0)
        assert bare(x).shape == pooled.shape == (1, model.config.dim)
    assert scores.shape == (1, 10)


@pytest.mark.parametrize("name", SMALL)
def test_other_sizes_rectangles_and_channels(name: str) -> None:
    model = small(name, in_channels=2)
    height, width = model.config.image_shape
    with torch.no_grad():
        for size in ((height + model.config.step * 2, width), (height // 2, width)):
            scores = model(images(model, size=size))
            assert scores.shape == (1, 10)
            assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", SMALL)
def test_feature_maps(name: str) -> None:
    model = small(name, features_only=True, depth=3, feature_layers=(0, 2), out_indices=(1, 0))
    height, width = model.config.image_shape
    x = images(model, size=(height, width * 2))
    with torch.no_grad():
        maps = model(x)
    infos = [model.feature_info[index] for index in model.out_indices]
    assert [info.module for info in infos] == [model.feature_info[1].module, model.feature_info[0].module]
    for found, info in zip(maps, infos, strict=True):
        rows, columns = (-(-side // info.reduction) for side in x.shape[2:])
        assert found.shape == (1, info.channels, rows, columns)


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    model = small(name)
    x = images(model)
    found = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    model.set_gradient_checkpointing(False)
    assert all(torch.allclose(kept, again, atol=1e-6) for kept, again in zip(*found, strict=True))
    if name != "shuffle_mamba_tiny":  # of the last way forth its class token, the first, needs no state
        assert all(gradient.abs().max() > 0 for gradient in found[0])


@pytest.mark.parametrize("name", SMALL)
def test_published_names_carry_every_value(name: str) -> None:
    model = small(name)
    found = family(model.family)
    torch.manual_seed(5)
    other = statescan.create_model(name).eval()
    load_published(other, found.to_published(dict(model.state_dict()), model.config))
    with torch.no_grad():
        assert torch.equal(other(images(model)), model(images(model)))


@pytest.mark.parametrize("name", SMALL)
def test_bad_images_are_refused(name: str) -> None:
    model = small(name)
    with pytest.raises(ValueError, match=r"images: \(batch, 3 channels, height, width\), got \(1, 4, 64, 64\)"):
        model(torch.randn(1, 4, 64, 64))
    with pytest.raises(TypeError, match="images: floating-point numbers, got torch"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    if model.least_size > 1:
        with pytest.raises(ValueError, match=f"sides of at least {model.least_size} pixels"):
            model(torch.randn(1, 3, 64, model.least_size - 1))


@pytest.mark.parametrize("name", SMALL)
def test_bad_options_are_refused(name: str) -> None:
    for options, message in (
        ({"depth": 0}, "depth: at least 1, got 0"),
        ({"feature_layers": (9,)}, "feature_layers: from 0 to 3, got 9"),
        ({"route": "spirals"}, "route: unknown 'spirals'"),
        ({"image_size": 1}, "image_size: at least patch="),
    ):
        with pytest.raises(ValueError, match=message):
            statescan.create_model(name, **options)


@pytest.mark.parametrize("name", ["vim_micro", "plainmamba_tiny", "adventurer_micro"])
def test_compiles_whole(name: str) -> None:
    model = small(name, depth=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(images(model)), model(images(model)), atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["vim_micro", "lbvim_micro", "plainmamba_tiny", "adventurer_micro", "vit_micro"])
def test_drop_path_skips_branches_in_training_alone(name: str) -> None:
    model = small(name, drop_path_rate=0.9)
    x = images(model)
    with torch.no_grad():
        quiet = model(x)
        assert torch.equal(quiet, small(name)(x))
        torch.manual_seed(0)
        assert not torch.allclose(model.train()(x), quiet)
    model.eval()


@pytest.mark.parametrize("name", SMALL)
def test_positions_are_those_of_the_cells_whatever_the_size(name: str) -> None:
    """A table that is the same everywhere stays so at another size."""
    model = statescan.create_model(name).eval()
    position = dict(model.named_parameters())["position.weight" if name.startswith("plainmamba") else "tokens.position"]
    with torch.no_grad():
        position.fill_(0.25)
        larger = tuple(side + 2 * model.config.step for side in model.config.image_shape)
        plain = model(images(model, size=larger))
        position.add_(0.0)
        again = statescan.create_model(name, image_size=larger).eval()
        tensors = dict(model.state_dict())
        for key, tensor in again.state_dict().items():
            tensor.copy_(tensors[key] if tensors[key].shape == tensor.shape else torch.full_like(tensor, 0.25))
        assert torch.allclose(again(images(model, size=larger)), plain, atol=1e-5)
