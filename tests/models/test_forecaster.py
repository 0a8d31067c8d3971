"""The forecaster: shapes, its window's own units, and following a series step by step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import statescan

SMALL = {"mamba2": {"state_dim": 4, "head_dim": 8}, "mamba3": {"state_dim": 4, "head_dim": 8}}


def build(**fields: Any) -> Any:
    torch.manual_seed(0)
    options = SMALL.get(fields.get("mixer", ""), {})
    given = {"channels": 3, "horizon": 5, "dim": 16, "options": options, **fields}
    return statescan.create_model("forecaster_tiny", **given).eval()


@pytest.mark.parametrize("mixer", ["mamba", "mamba2", "mamba3", "s4d", "s5", "h3"])
def test_shapes_and_gradients(mixer: str) -> None:
    model = build(mixer=mixer, mlp_dim=8)
    x = torch.randn(2, 30, 3)
    forecast, state = model(x)
    assert forecast.shape == (2, 5, 3) and state.batch_size == 2
    assert torch.equal(model.forecast(x), forecast)
    forecast.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_longer_horizons_go_on_from_the_forecast() -> None:
    model, x = build(), torch.randn(2, 30, 3)
    far = model.forecast(x, 12)
    assert far.shape == (2, 12, 3)
    torch.testing.assert_close(far[:, :5], model.forecast(x))
    torch.testing.assert_close(far[:, 5:10], model.forecast(torch.cat([x, far[:, :5]], 1)[:, -30:]))


def test_level_and_scale_of_a_window_pass_through() -> None:
    model, x = build().double(), torch.randn(2, 30, 3, dtype=torch.float64)
    scale, level = torch.tensor([2.0, 50.0, 0.5]), torch.tensor([-100.0, 0.0, 7.0])
    torch.testing.assert_close(
        model.forecast(x * scale + level), model.forecast(x) * scale + level, rtol=1e-3, atol=1e-3
    )
    still = torch.full((1, 30, 3), 4.0, dtype=torch.float64)
    assert torch.isfinite(model.forecast(still)).all()


@pytest.mark.parametrize("mixer", ["mamba", "mamba2", "mamba3", "s4d", "s5", "h3"])
@pytest.mark.parametrize(("dtype", "length", "tolerance"), [(torch.float32, 512, 1e-4), (torch.float64, 64, 1e-9)])
def test_whole_chunks_and_steps_agree(mixer: str, dtype: torch.dtype, length: int, tolerance: float) -> None:
    model = build(mixer=mixer, window_norm=False).to(dtype)
    x = torch.randn(2, length, 3, dtype=dtype)
    with torch.inference_mode():
        whole, _ = model(x)
        _, state = model(x[:, : length // 3])
        chunked, _ = model(x[:, length // 3 :], state)
        _, state = model(x[:, : length - 8])
        for position in range(length - 8, length):
            stepped, state = model.step(x[:, position], state)
    torch.testing.assert_close(chunked, whole, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(stepped, whole, rtol=tolerance, atol=tolerance)


def test_saved_and_loaded(tmp_path: Any) -> None:
    model, x = build(), torch.randn(1, 20, 3)
    model.save(tmp_path / "m")
    assert torch.equal(statescan.load(tmp_path / "m").forecast(x), model.forecast(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(mixer="lsmt"), "mixer: unknown 'lsmt'; nearest: 'lstm'"),
        (lambda: build(horizon=0), "horizon: a positive whole number, got 0"),
        (lambda: build(dropout=1.0), "dropout: expected a fraction from 0 to below 1, got 1.0"),
        (lambda: build()(torch.zeros(2, 8, 4)), "x: expected (batch, length, channels) of 3 channels and at least one"),
        (lambda: build()(torch.zeros(2, 0, 3)), "got shape (2, 0, 3)"),
        (lambda: build().forecast(torch.zeros(2, 8, 3), 0), "horizon: expected at least 1, got 0"),
        (
            lambda: build().step(torch.zeros(2, 3), build().initial_state(2)),
            "state: window_norm needs the whole window",
        ),
        (lambda: build()(torch.zeros(2, 8, 3), build().initial_state(2)), "or build with window_norm=False"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
