"""SpaceTime forecasts: published sizes and names, the loop, and an autoregression learned."""

import numpy as np
import pytest
import torch

import statescan
from statescan import checkpoints
from statescan.models import build_model, config_dict
from statescan.models._published import load_published
from statescan.models.spacetime import SpaceTimeConfig, from_published, to_published


def _tiny(**options):
    torch.manual_seed(0)
    return statescan.create_model("spacetime_tiny", **options).eval()


def _noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("name", "parameters"), [("spacetime_1_block", 52_737), ("spacetime_2_blocks", 93_953)])
def test_published_parameter_counts(name, parameters):
    assert sum(p.numel() for p in statescan.create_model(name).parameters()) == parameters


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(depth=2, kernels=(4, 8)),
        dict(depth=2, shift=True, decoder_shift=True),
        dict(input_dim=2, output_dim=2, filters=4, filter_head_dim=2),
        dict(input_dim=3, output_dim=1, centred=False, embedding="linear", filters=0, skip=False, mlp_skip=False),
    ],
)
@torch.no_grad()
def test_forecasts_do_not_depend_on_the_horizon_nor_on_the_future(options):
    model = _tiny(**options).double()
    x = _noise(2, 40, model.config.input_dim, dtype=torch.float64)
    found = model(x, 7)
    assert found.forecast.shape == (2, 7, model.config.output_dim)
    assert found.one_step.shape == (2, 40, model.config.output_dim)
    assert found.next_inputs.shape == found.inputs.shape == (2, 40, 16)
    torch.testing.assert_close(model.forecast(x, 19)[:, :7], found.forecast, rtol=1e-9, atol=1e-9)
    if not model.config.centred:
        shorter = model(x[:, :30], 1)
        torch.testing.assert_close(shorter.one_step, found.one_step[:, :30], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_shifted_series_is_forecast_shifted():
    model, x = _tiny(), _noise(2, 40, 1)
    torch.testing.assert_close(model.forecast(x + 3, 5), model.forecast(x, 5) + 3, rtol=1e-4, atol=1e-4)
    uncentred = _tiny(centred=False)
    assert not torch.allclose(uncentred.forecast(x + 3, 5), uncentred.forecast(x, 5) + 3, atol=1e-2)


def test_published_names_go_both_ways():
    model = _tiny(depth=2, embedding="linear")
    published = to_published(model.state_dict(), model.config)
    wanted = (
        "encoder.blocks.0.pre.ma_r_kernel",
        "encoder.blocks.1.ssm.skip",
        "decoder.blocks.ssm.k",
        "encoder.blocks.0.mlp.layers.2.weight",
        "embedding.layers.weight",
        "output.layers.2.bias",
    )
    assert set(wanted) <= set(published)
    assert set(from_published(published, model.config)) == set(model.state_dict())
    other = _tiny(depth=2, embedding="linear", window_seed=5)
    load_published(other, published)
    x = _noise(1, 30, 1)
    torch.testing.assert_close(other.forecast(x, 4), model.forecast(x, 4))
    del published["decoder.blocks.ssm.k"]
    with pytest.raises(ValueError, match=r"missing: decoder\.blocks\.ssm\.k"):
        load_published(other, published)


def test_saved_and_rebuilt(tmp_path):
    model = _tiny(window_seed=3)
    model.save(tmp_path / "model")
    again = checkpoints.load(tmp_path / "model").eval()
    x = _noise(1, 30, 1)
    torch.testing.assert_close(again.forecast(x, 4), model.forecast(x, 4))
    assert build_model("spacetime", config_dict(model)).config == model.config


def test_every_used_parameter_learns_and_systems_do_not_decay():
    model = _tiny(depth=2).train()
    model.loss(_noise(2, 30, 1), _noise(2, 6, 1)).backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {"decoder.D"}  # published, and never read
    decayed, others = model.parameter_groups(0.1)
    free = {id(p) for p in others["params"]}
    for name, parameter in model.named_parameters():
        if name.endswith((".a", ".D", "bias")):
            assert id(parameter) in free, name
    assert decayed["params"]


def _autoregression(coefficients, count, length, seed):
    stream = np.random.RandomState(seed)
    y, noise = np.zeros((count, length + 200)), 0.1 * stream.randn(count, length + 200)
    for t in range(4, length + 200):
        y[:, t] = sum(coefficients[i] * y[:, t - 1 - i] for i in range(4)) + noise[:, t]
    return torch.tensor(y[:, 200:, None]).float()


def test_an_autoregression_is_learned():
    coefficients = -np.poly([0.97 * np.exp(0.4j), 0.97 * np.exp(-0.4j), 0.9 * np.exp(1.3j), 0.9 * np.exp(-1.3j)]).real[
        1:
    ]
    lag, horizon, steps = 48, 20, 220
    train, test = (_autoregression(coefficients, 256, lag + horizon, seed) for seed in (1, 2))
    known, true = test[:, :lag], test[:, lag:]
    oracle = known
    for _ in range(horizon):
        following = sum(coefficients[i] * oracle[:, -1 - i, None] for i in range(4))
        oracle = torch.cat([oracle, following], 1)
    best = float((oracle[:, lag:] - true).square().mean())
    last_value = float((known[:, -1:] - true).square().mean())
    torch.manual_seed(0)
    model = statescan.create_model("spacetime_tiny", dim=32, state_dim=12, centred=False)
    optimiser = torch.optim.AdamW(model.parameter_groups(1e-4), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(0, 256, (32,))
        loss = model.loss(train[rows, :lag], train[rows, lag:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found = float((model.eval().forecast(known, horizon) - true).square().mean())
    assert found < 1.2 * best
    assert last_value > 1.5 * found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpaceTimeConfig(dim=0), "dim: a positive whole number, got 0"),
        (lambda: SpaceTimeConfig(depth=2, kernels=(4,)), "kernels: one number for each of 2 blocks"),
        (lambda: SpaceTimeConfig(embedding="patch"), "embedding: unknown 'patch'; known: repeat, linear"),
        (lambda: SpaceTimeConfig(input_dim=3), "input_dim: 3 does not divide 128 channels"),
        (lambda: SpaceTimeConfig(output_dim=2), "centred: forecasts of 2 series cannot have the means of 1"),
        (lambda: _tiny()(torch.zeros(1, 5, 2)), r"x: expected floats \(batch, length >= 1, 1\), got .* \(1, 5, 2\)"),
        (lambda: _tiny()(torch.zeros(1, 5).long()), r"x: expected floats .*, got torch\.int64 \(1, 5\)"),
        (lambda: _tiny().forecast(torch.zeros(1, 0, 1), 2), r"got torch\.float32 \(1, 0, 1\)"),
        (lambda: _tiny().forecast(torch.zeros(1, 5, 1), 0), "horizon: at least 1, got 0"),
        (lambda: _tiny().loss(torch.zeros(1, 8, 1), torch.zeros(1, 2, 1)), "a past longer than state_dim = 8 steps"),
        (lambda: _tiny().loss(torch.zeros(1, 9, 1), torch.zeros(1, 2, 3)), r"future: expected \(batch, horizon, 1\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
