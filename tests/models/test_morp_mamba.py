"""MorpMamba: as published, and as described."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statescan
from statescan.models import create_model

SMALL: dict[str, Any] = dict(bands=5, window=5, num_classes=4, dim=12, hidden=10, heads=3)


def windows(bands: int = 5, side: int = 5, count: int = 3) -> torch.Tensor:
    return torch.randn(count, side, side, bands, generator=torch.Generator().manual_seed(1))


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    return create_model("morp_mamba_tiny", **(SMALL | changes)).eval()


def test_the_published_model_has_its_printed_number_of_parameters() -> None:
    assert sum(p.numel() for p in create_model("morp_mamba_published").parameters()) == 67_013


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spectral": False},
        {"window": 4},
        {"mixer": "linear"},
        {"morphology": "conv"},
        {"morphology": "conv", "mixer": "linear"},
        {"mixer": "linear", "dim": 13},
    ],
)
def test_all_forms_answer_and_learn(changes: dict[str, Any]) -> None:
    model = build(**changes)
    x = windows(side=model.config.window).requires_grad_()
    scores = model(x)
    assert scores.shape == (3, 4)
    scores.square().sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())
    assert all(p.grad is not None for p in model.parameters())


def test_recomputing_blocks_gives_the_same_gradients() -> None:
    grads = []
    for recomputed in (False, True):
        model = build(depth=2)
        model.set_gradient_checkpointing(recomputed)
        model(windows()).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_published_gates_come_from_the_centre_row_by_broadcasting() -> None:
    model = build(morphology="conv", mixer="linear")
    spatial, spectral = model.tokens(windows())
    asking, asked = model.enhance(spatial, spectral)
    centre = spatial[:, 2]
    # The gate of column j multiplies row j of the spatial tokens.
    assert torch.allclose(asking[:, 3, 1], spatial[:, 3, 1] * model.spatial_gate(centre)[:, 3].sigmoid())
    assert torch.allclose(asked[:, 3, 1], spectral[:, 3, 1] * model.spectral_gate(centre)[:, 3].sigmoid())


def test_the_recurrence_is_the_published_one() -> None:
    reader = build(mixer="linear").reader
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(2))
    state = torch.zeros(2, 8)
    for t in range(3):
        state = reader.transition(state) + reader.update(x[:, t])
    assert torch.allclose(reader.recur(x), state, atol=1e-6)


def test_tokens_of_a_flat_window_are_alike_and_the_centre_counts() -> None:
    model = build(spectral=False)
    spatial, none = model.tokens(torch.ones(1, 5, 5, 5))
    assert none is None and torch.allclose(spatial, spatial[:, :1, :1].expand_as(spatial))
    turned = model(windows().flip(1)) - model(windows())
    assert bool((turned.abs() > 1e-4).any()), "places in the window are told apart"


def test_saves_and_loads(tmp_path) -> None:
    model = build()
    model.save(tmp_path)
    assert torch.equal(statescan.load(tmp_path)(windows()), model(windows()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"morphology": "opening"}, "morphology: unknown 'opening'; known: max, conv"),
        ({"mixer": "s4"}, "mixer: unknown 's4'; known: mamba, linear"),
        ({"size": 4}, "size: an odd number of at least 1, got 4"),
        ({"bands": 0}, "bands: a positive whole number, got 0"),
        ({"heads": 13, "mixer": "linear"}, "heads: at most dim=12, got 13"),
        ({"spectral": False, "mixer": "linear"}, "spectral: mixer='linear' has the spatial tokens attend"),
        ({"dropout": 1.0}, "dropout: expected a fraction from 0 to below 1, got 1.0"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize("shape", [(3, 5, 4, 5), (3, 5, 5, 6), (5, 5, 5)])
def test_other_windows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"windows: expected \(batch, 5, 5, 5\), got"):
        build()(torch.zeros(shape))
