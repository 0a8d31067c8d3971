"""What every image backbone does, tried on a small one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import statescan
from statescan.models import family, load_published


def images(height: int, width: int | None = None, *, channels: int = 3, batch: int = 2) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, channels, height, width or height)


def check_forward(name: str, *, sizes: tuple[tuple[int, int], ...] = ((64, 64), (48, 80)), **options: Any) -> None:
    """Scores for squares and rectangles; pooled features without classes; other channels."""
    model = statescan.create_model(name, **options).eval()
    for size in sizes:
        scores = model(images(*size))
        assert scores.shape == (2, model.config.num_classes)
        assert scores.isfinite().all()
    grey = statescan.create_model(name, **(options | {"in_channels": 1, "num_classes": 0})).eval()
    features = grey.forward_features(images(*sizes[0], channels=1))
    pooled = grey.forward_head(features, pre_logits=True)
    assert torch.equal(grey(images(*sizes[0], channels=1)), pooled)
    assert pooled.ndim == 2


def check_maps(name: str, size: tuple[int, int] = (64, 96), **options: Any) -> None:
    """Feature maps of the promised channels and resolutions, all of them or those asked for."""
    model = statescan.create_model(name, features_only=True, **options).eval()
    maps = model(images(*size))
    assert len(maps) == len(model.feature_info) > 1
    for grid, info in zip(maps, model.feature_info, strict=True):
        assert grid.shape == (2, info.channels, size[0] // info.reduction, size[1] // info.reduction)
    last = statescan.create_model(name, features_only=True, out_indices=(len(maps) - 1,), **options)(images(*size))
    assert [grid.shape for grid in last] == [maps[-1].shape]
    with pytest.raises(ValueError, match="out_indices: from 0 to"):
        statescan.create_model(name, features_only=True, out_indices=(9,), **options)(images(*size))


def check_training(name: str, *, size: int = 32, **options: Any) -> None:
    """Gradients reach every parameter, the same with checkpointing; drop path acts in training alone."""
    model = statescan.create_model(name, **options)
    x = images(size)
    gradients = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        torch.manual_seed(1)
        model(x).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert not [n for n, g in gradients[0].items() if g is None]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)
    dropping = statescan.create_model(name, **(options | {"drop_path_rate": 0.5}))
    first = dropping(x)
    assert any(not torch.equal(dropping(x), first) for _ in range(8))
    dropping.eval()
    torch.testing.assert_close(dropping(x), dropping(x))
    harmed = dropping.parameter_groups(0.05)[0]["params"]
    rates = [p for n, p in dropping.named_parameters() if n.endswith(("A_log", "delta_bias", ".D"))]
    assert rates
    assert not {id(p) for p in harmed} & {id(p) for p in rates}


def check_names(name: str, other: dict[str, Any], **options: Any) -> None:
    """Published names and back, value for value; a checkpoint of another variant is refused."""
    model = statescan.create_model(name, **options)
    found = family(model.family)
    published = found.to_published(model.state_dict(), model.config)
    again = statescan.create_model(name, **options)
    load_published(again, published)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    with pytest.raises(ValueError, match=f"do not fit this {model.family} model"):
        load_published(statescan.create_model(name, **(options | other)), published)


def check_bad_input(name: str, too_small: int | None, **options: Any) -> None:
    """What is no batch of images for the model."""
    model = statescan.create_model(name, **options)
    with pytest.raises(ValueError, match=r"images: \(batch, 3 channels, height, width\), got \(2, 1, 64, 64\)"):
        model(images(64, channels=1))
    with pytest.raises(ValueError, match=r"height, width\), got \(3, 64, 64\)"):
        model(images(64)[0])
    with pytest.raises(TypeError, match="floating-point"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    if too_small is not None:
        with pytest.raises(ValueError, match="sides of at least"):
            model(images(too_small))
