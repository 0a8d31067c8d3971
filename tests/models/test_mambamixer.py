"""MambaMixer: averages of earlier layers, TSM2 and ViM2."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from statescan import inspect, models
from statescan.layers import DualMixer
from statescan.layers.grid import ChannelScan
from statescan.models.tsm2 import FAMILY, VariateMixer

VIM2 = dict(dims=(8, 16), channel_dims=(16, 16), depths=(1, 2), state_dim=2, num_classes=3)


def test_it_begins_as_a_plain_stack():
    token, channel = ([nn.Linear(4, 4) for _ in range(3)] for _ in range(2))
    mixer, x = DualMixer(token, channel), torch.randn(2, 5, 4)
    expected = x
    for first, second in zip(token, channel, strict=True):
        expected = second(first(expected))
    torch.testing.assert_close(mixer(x), expected)


def test_tokens_alone_are_a_stack_of_token_mixers():
    token = [nn.Linear(4, 4) for _ in range(3)]
    mixer, x = DualMixer(token, [None] * 3), torch.randn(2, 5, 4)
    with torch.no_grad():
        for average in mixer.token_averages:  # beta = 0, alpha = 1 for the latest
            average.channels.zero_()
            average.tokens.zero_()[-1] = 1.0
    torch.testing.assert_close(mixer(x), token[2](token[1](token[0](x))))


def test_averages_cost_depth_times_twice_depth_plus_three():
    for depth in (1, 2, 5):
        mixer = DualMixer([nn.Identity() for _ in range(depth)], [None] * depth)
        assert sum(parameter.numel() for parameter in mixer.parameters()) == depth * (2 * depth + 3)


@pytest.mark.parametrize(
    ("options", "parameters"), [(dict(dim=16, depth=2), 118_604), (dict(dim=128, depth=4), 2_184_714)]
)
def test_counts_of_the_replication(options, parameters):
    assert inspect.count_parameters(inspect.build_without_memory("tsm2_base", **options)) == parameters


def test_names_go_both_ways():
    model = models.create_model("tsm2_tiny")
    published = FAMILY.to_published(model.state_dict(), model.config)
    assert "channel_mixers_bwd.1.conv1d.weight" in published and "gamma.1" in published
    assert FAMILY.from_published(published, model.config).keys() == model.state_dict().keys()


def test_the_variate_mixer_with_shared_directions_is_equivariant_to_the_order_of_variates():
    config = models.model_info("tsm2_tiny").config
    mixer = VariateMixer(config).eval()
    mixer.backwards = mixer.forwards
    x = torch.randn(2, 5, 3, config.dim)
    torch.testing.assert_close(mixer(x.flip(1)), mixer(x).flip(1))


def test_the_channel_scan_with_shared_directions_is_equivariant_to_the_order_of_channels():
    scan = ChannelScan(6, 6, state_dim=2)
    scan.backwards = scan.forwards
    scan.input_projection, scan.output_projection = nn.Identity(), nn.Identity()
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(scan(x.flip(3)), scan(x).flip(3))


def test_forecasts_do_not_depend_on_level_and_scale():
    model = models.create_model("tsm2_tiny", channels=3).double().eval()
    x = torch.randn(2, 96, 3, dtype=torch.float64)
    torch.testing.assert_close(model(5 * x + 3), 5 * model(x) + 3, rtol=1e-3, atol=1e-3)
    assert model.forecast(x, 30).shape == (2, 30, 3)
    torch.testing.assert_close(model.forecast(x, 24), model(x))
    assert model(x[:, :, :2]).shape == (2, 24, 2)


@pytest.mark.parametrize("mixed", [True, False])
def test_variates_meet_only_through_the_channel_mixer(mixed):
    model = models.create_model("tsm2_tiny", channels=2, mix_channels=mixed).eval()
    x = torch.randn(1, 96, 2)
    other = x.clone()
    other[..., 1] = torch.randn(1, 96)
    assert (model(x)[..., 0] - model(other)[..., 0]).abs().max().gt(1e-6) == mixed


def test_vim2_gradients_reach_every_parameter_and_stages_halve():
    model = models.create_model("vim2_nano", **VIM2)
    model(torch.randn(2, 3, 32, 24)).square().sum().backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum()]
    assert not still
    maps = models.create_model("vim2_nano", **VIM2, features_only=True)(torch.randn(1, 3, 32, 24))
    assert [tuple(grid.shape) for grid in maps] == [(1, 8, 8, 6), (1, 16, 4, 3)]


def test_vim2_tiny_is_of_the_papers_size():
    model = inspect.build_without_memory("vim2_tiny")
    assert inspect.count_parameters(model) == pytest.approx(20e6, rel=0.15)
    assert [info.reduction for info in model.feature_info] == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create_model("tsm2_tiny")(torch.zeros(1, 95, 7)), r"\(batch, 96 points in time, channels\)"),
        (lambda: models.create_model("tsm2_tiny", patch_size=97), "at most the length of a history, 96, got 97"),
        (lambda: models.create_model("tsm2_tiny", mixing="none"), "mixing: free or softmax, got 'none'"),
        (lambda: models.create_model("tsm2_tiny").forecast(torch.zeros(1, 96, 7), 0), "horizon: expected at least 1"),
        (lambda: models.create_model("vim2_nano", channel_mixer="conv"), "channel_mixer: scan or mlp, got 'conv'"),
        (lambda: models.create_model("vim2_nano", depths=(1, 1)), "as many of each"),
        (lambda: DualMixer([nn.Identity()], []), "as many of each, got 1 and 0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "options", "shape"), [("tsm2_tiny", {"channels": 2}, (1, 96, 2)), ("vim2_nano", VIM2, (1, 3, 32, 32))]
)
def test_it_compiles_whole(name, options, shape):
    torch.compiler.reset()
    model, x = models.create_model(name, **options).eval(), torch.randn(shape)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))
