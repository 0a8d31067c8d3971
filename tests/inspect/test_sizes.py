"""Costs that `inspect` counts, held to counts of another kind."""

import pytest
import torch

from statescan import inspect, models


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mamba_130m", 129_135_360),
        ("mamba_370m", 371_516_416),
        ("mamba_790m", 793_204_224),
        ("mamba_1.4b", 1_372_178_432),
        ("mamba_2.8b", 2_768_345_600),
        ("mamba2_130m", 128_989_632),
        ("mamba2_370m", 368_346_624),
        ("mamba2_780m", 780_161_280),
        ("mamba2_1.3b", 1_343_757_312),
        ("mamba2_2.7b", 2_702_599_680),
        ("mamba2attn_2.7b", 2_697_590_880),
    ],
)
def test_published_parameter_counts(name, parameters):
    assert inspect.count_parameters(name) == parameters


@pytest.mark.parametrize("name", ["mamba_tiny", "mamba2_tiny", "transformer_tiny", "hybrid_tiny"])
def test_state_bytes_are_those_of_a_real_state(name):
    cost = inspect.measure_cost(name, length=50, batch=2)
    with torch.no_grad():
        _, state = models.create_model(name)(torch.zeros(2, 50, dtype=torch.int64))
    assert cost.state_bytes == state.nbytes
    assert (cost.state_bytes == cost.state_bytes_start) == (name in ("mamba_tiny", "mamba2_tiny"))


def test_flops_grow_with_the_length_and_hold_the_matrix_products():
    one, two = (inspect.measure_cost("mamba_tiny", length=length) for length in (100, 200))
    assert two.flops_forward == 2 * one.flops_forward
    config = models.model_info("mamba_tiny").config
    inner = 2 * config.dim
    products = 2 * inner * config.dim + inner * (8 + 32) + 8 * inner + inner * config.dim
    lower = 2 * (config.depth * products + config.dim * 256)
    assert lower < one.flops_per_token < 1.6 * lower


def test_activations_are_about_what_training_keeps():
    short, long = (inspect.measure_cost("mamba_tiny", length=length).activation_bytes for length in (512, 1024))
    assert 1.9 < long / short < 2.1


def test_speed_is_measured():
    speed = inspect.measure_speed("mamba_tiny", length=16, repeats=1, dim=16, depth=1)
    assert min(speed.prefill_tokens_per_second, speed.training_tokens_per_second) > 0
    assert speed.generation_tokens_per_second > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inspect.measure_cost("mamba_tiny", length=0), "length, batch: at least 1, got 0 and 1"),
        (lambda: inspect.measure_cost("mamba_tinny"), "nearest: 'mamba_tiny'"),
        (lambda: inspect.measure_speed("mamba_tiny", length=1), "at least 2, 1 and 1, got 1"),
        (lambda: inspect.measure_cost("s4_tiny"), "'s4_tiny' is no language model: .* it has 26,250 parameters"),
        (lambda: inspect.measure_speed("s4nd_tiny"), "'s4nd_tiny' is no language model"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
