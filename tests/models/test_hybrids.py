"""The further hybrids: published sizes, layouts that the configs spell, what is refused."""

import pytest
import torch

import statescan
from statescan.inspect import count_parameters
from statescan.layers import Attention, GatedMLP, Mamba2, MixtureOfExperts


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("jamba_v0.1", 51_570_323_328),
        ("zamba_7b", 7_232_490_496),
        ("falcon_h1_0.5b", 521_411_104),
    ],
)
def test_published_sizes(name, parameters):
    assert count_parameters(name) == parameters


@pytest.mark.parametrize(
    ("name", "billions"), [("granite_4.0_h_small", 32), ("granite_4.0_h_tiny", 7), ("nemotron_h_8b", 8)]
)
def test_sizes_are_those_of_the_names(name, billions):
    assert round(count_parameters(name) / 1e9) == billions


def test_jamba_has_attention_in_every_eighth_layer_and_experts_in_every_second():
    with torch.device("meta"):
        model = statescan.create_model("jamba_v0.1")
    kinds = [type(block.mixer) for block in model.stack.blocks]
    assert [i for i, kind in enumerate(kinds) if kind is Attention] == [4, 12, 20, 28]
    channels = [type(block.channel_mixer) for block in model.stack.blocks]
    assert channels == [GatedMLP, MixtureOfExperts] * 16
    active = count_parameters(model) - 16 * 14 * 3 * 4096 * 14336  # of sixteen experts a token passes two
    assert round(active / 1e9) == 12


def test_nemotron_has_one_mixer_a_layer():
    with torch.device("meta"):
        model = statescan.create_model("nemotron_h_8b")
    assert [model.config.layout.count(kind) for kind in ("mamba2", "attention", "mlp")] == [24, 4, 24]
    for block in model.stack.blocks:
        assert (block.mixer is None) != (block.channel_mixer is None)


def test_zamba_calls_its_block_at_the_published_layers():
    config = statescan.model_info("zamba_7b").config
    assert config.hybrid_layers == (2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73)


def test_only_attention_makes_the_state_grow():
    model = statescan.create_model("granite_hybrid_tiny")
    _, short = model(torch.zeros(1, 8, dtype=torch.int64))
    _, long = model(torch.zeros(1, 40, dtype=torch.int64))
    grown = {
        name
        for (name, one), (_, other) in zip(short.tensors(), long.tensors(), strict=True)
        if one.shape != other.shape
    }
    assert grown == {"2.keys", "2.values"}


def test_multipliers_of_falcon_h1_are_those_of_weights():
    """Every fixed factor is one that could be in a weight."""
    torch.manual_seed(0)
    factors = dict(
        embedding_multiplier=2.0,
        logit_multiplier=0.5,
        key_multiplier=0.7,
        attention_in_multiplier=1.1,
        attention_out_multiplier=0.9,
        ssm_in_multiplier=1.2,
        ssm_out_multiplier=0.8,
        ssm_multipliers=(1.1, 0.9, 0.8, 1.2, 0.7),
        mlp_multipliers=(0.9, 1.1),
    )
    sizes = dict(dim=16, depth=2, mlp_dim=24, inner_dim=24, head_dim=8, state_dim=4, tie_embeddings=False)
    attention = dict(heads=2, kv_heads=1, head_dim=8, rotary_dim=8)
    scaled = statescan.create_model("falcon_h1_tiny", **sizes, attention=attention, **factors).double()
    plain = statescan.create_model("falcon_h1_tiny", **sizes, attention=attention).double()
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        plain.embedding.weight *= 2.0
        plain.head.weight *= 0.5
        for block in plain.stack.blocks:
            mamba, attends = block.mixer.mixers["mamba"], block.mixer.mixers["attention"]
            rows = torch.tensor([1.1] * 24 + [0.9] * 24 + [0.8] * 4 + [1.2] * 4 + [0.7] * 3).double()
            mamba.input_projection.weight *= 1.2 * rows[:, None]
            mamba.output_projection.weight *= 0.8
            attends.input_projection.weight *= 1.1
            attends.input_projection.weight[16:24] *= 0.7
            attends.output_projection.weight *= 0.9
            block.channel_mixer.input_projection.weight[24:] *= 0.9
            block.channel_mixer.output_projection.weight *= 1.1
    tokens = torch.randint(0, 256, (2, 9))
    torch.testing.assert_close(scaled(tokens)[0], plain(tokens)[0])


def test_factors_of_one_leave_granite_a_plain_hybrid():
    options = dict(
        dim=32, experts=0, attention=dict(heads=4), embedding_multiplier=1, residual_multiplier=1, logits_scaling=1
    )
    model = statescan.create_model("granite_hybrid_tiny", **options, mlp_dim=48)
    bamba = statescan.create_model(
        "bamba_tiny", dim=32, mlp_dim=48, attention=dict(heads=4), attention_layers=(2,), tie_embeddings=True
    )
    bamba.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 256, (2, 9))
    torch.testing.assert_close(model(tokens)[0], bamba(tokens)[0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("jamba_tiny", dict(expert_layers=(7,)), r"expert_layers: \[7\] are not layers of a model of depth 4"),
        ("jamba_tiny", dict(inner_norm=None), "inner_norm: Jamba's are weighted, got None"),
        ("nemotron_h_tiny", dict(layout="MX"), "layout: unknown layer 'X'; known: M, "),
        ("nemotron_h_tiny", dict(depth=3), "depth: it follows from layout, which names 6 layers, got 3"),
        ("nemotron_h_tiny", dict(mlp_activation="tanh"), "mlp_activation: unknown 'tanh'; known: gelu"),
        ("falcon_h1_tiny", dict(ssm_multipliers=(1.0,)), "ssm_multipliers: 5 numbers, got 1"),
        ("falcon_h1_tiny", dict(attention_layers=(1,)), "every layer of a Falcon-H1 has attention"),
        ("zamba_tiny", dict(hybrid_layers=(4,)), r"hybrid_layers: \[4\] are not layers of a model of depth 4"),
        ("zamba_tiny", dict(shared_activation="tanh"), "shared_activation: unknown 'tanh'"),
        ("zamba_tiny", dict(mamba_heads=5), "heads: 5 does not divide the 256 inner channels"),
        ("granite_hybrid_tiny", dict(active_experts=9), "active: between 1 and the 4 experts, got 9"),
    ],
)
def test_configs_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        statescan.create_model(name, **options)


def test_multipliers_of_a_mixer_are_five():
    with pytest.raises(ValueError, match="multipliers: five, of z, x, B, C and delta, got 2"):
        Mamba2(16, head_dim=8, multipliers=(1.0, 2.0))
