"""Models are found by name, built with overrides, and described; mistakes are named with what is near."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

import statescan
from statescan.models import build_model, config_dict, family
from statescan.models._manifest import MANIFEST

#: From the published classes (state-spaces/mamba e9594ce1); Zamba2's from the header of its published file.
PUBLISHED_COUNTS = {
    "mamba_130m": 129_135_360,
    "mamba_370m": 371_516_416,
    "mamba_790m": 793_204_224,
    "mamba_1.4b": 1_372_178_432,
    "mamba_2.8b": 2_768_345_600,
    "mamba2_130m": 128_989_632,
    "mamba2_370m": 368_346_624,
    "mamba2_780m": 780_161_280,
    "mamba2_1.3b": 1_343_757_312,
    "mamba2_2.7b": 2_702_599_680,
    "mamba2attn_2.7b": 2_697_590_880,
    "zamba2_1.2b": 1_215_064_704,
}


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = statescan.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_COUNTS[name]


def test_the_manifest_is_what_modules_define() -> None:
    for slug, entry in MANIFEST.items():
        found = importlib.import_module(entry.module).FAMILY
        assert found.slug == slug
        assert found.model.family == slug
        assert tuple(found.variants) == entry.variants


def test_list_models() -> None:
    names = statescan.list_models()
    assert names == sorted(names)
    assert statescan.list_models("mamba2_*b") == ["mamba2_1.3b", "mamba2_2.7b"]
    assert statescan.list_models("nothing*") == []


def test_model_info_builds_nothing() -> None:
    info = statescan.model_info("mamba2attn_2.7b")
    assert (info.name, info.family, info.config.depth) == ("mamba2attn_2.7b", "mamba2", 64)
    assert info.config.attention_layers == (9, 18, 27, 36, 45, 56)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statescan.create_model("mamba_tinny"), "unknown model 'mamba_tinny'; nearest: 'mamba_tiny'"),
        (lambda: statescan.create_model("mamba"), "it is a family; its models are mamba_tiny"),
        (lambda: statescan.model_info("zamba2_tinny"), "nearest: 'zamba2_tiny'"),
        (lambda: family("mamba9"), "unknown family 'mamba9'; nearest: 'mamba"),
        (lambda: statescan.create_model("mamba_tiny", d_state=8), "unknown option 'd_state'; nearest: '.*state"),
        (lambda: statescan.create_model("mamba_tiny", dim="wide"), "dim: a positive whole number, got 'wide'"),
        (
            lambda: statescan.create_model("mamba_tiny", depth=2, attention_layers=[2]),
            r"attention_layers: \[2\] are not",
        ),
        (
            lambda: statescan.create_model("bamba_tiny", attention=dict(head=3)),
            "unknown option 'head'; nearest: 'heads'",
        ),
        (
            lambda: statescan.create_model("transformer_tiny", attention="{heads: 2}"),
            "attention is '{heads: 2}'; expected a dictionary of options",
        ),
        (
            lambda: statescan.create_model("hybrid_tiny", layout=["mamba", "mamb"]),
            "unknown layer 'mamb'; nearest: 'mamba'",
        ),
        (
            lambda: statescan.create_model("hybrid_tiny", mixers=dict(mamba=dict(state_dims=3))),
            "mamba: unknown option 'state_dims'; nearest: 'state_dim'",
        ),
        (lambda: statescan.create_model("zamba2_tiny", hybrid_layers=(9,)), r"hybrid_layers: \[9\] are not layers"),
        (lambda: statescan.create_model("mamba_tiny", norm="batch"), "norm: unknown 'batch'; known: rms, layer"),
    ],
)
def test_mistakes_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_configs_are_frozen_and_survive_plain_data() -> None:
    model = statescan.create_model("hybrid_tiny", dim=16, mixers=dict(mamba2=dict(head_dim=8)), attention=dict(heads=2))
    with pytest.raises(AttributeError):
        model.config.dim = 3
    again = build_model(model.family, config_dict(model))
    assert again.config == model.config
    assert [tuple(p.shape) for p in again.parameters()] == [tuple(p.shape) for p in model.parameters()]


def test_systems_name_what_exists() -> None:
    systems = {system.slug: system for system in statescan.systems()}
    assert {"mamba", "mamba2", "s4", "s5"} <= set(systems)
    for system in systems.values():
        assert system.paper
        assert system.verified
        assert set(system.families) <= set(MANIFEST)


def test_import_loads_no_model_and_nothing_heavy() -> None:
    heavy = ["torch", "lightning", "pytorch_lightning", "transformers", "datasets", "triton", "matplotlib"]
    program = (
        "import sys, statescan; names = set(sys.modules)\n"
        f"assert not names & set({heavy}), names & set({heavy})\n"
        "statescan.list_models(); names = set(sys.modules)\n"
        f"assert not names & set({heavy[1:]}), names & set({heavy[1:]})\n"
        "assert not [n for n in names if n.startswith('statescan.models.') and not n.split('.')[-1].startswith('_')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
