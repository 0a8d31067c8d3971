"""Based beyond what all language models promise: counts, layout, names, first weights."""

from __future__ import annotations

import pytest
import torch

import statescan
from statescan.models import build_model, family, load_published

SMALL = dict(dim=16, depth=3, heads=2, feature_dim=3, window=4, mlp_dim=16, mlp_multiple_of=8, vocab_size=21)


@pytest.mark.parametrize(("name", "count"), [("based_360m", 362_620_928), ("based_1b", 1_349_453_056)])
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = statescan.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.config.padded_vocab_size == 50264


def test_the_layout_is_repeated_to_the_depth() -> None:
    model = build_model("based", SMALL | dict(depth=5, layout=("conv", "window")))
    kinds = [type(block.mixer).__name__ for block in model.stack.blocks]
    assert kinds == ["BaseConv", "SlidingAttention", "BaseConv", "SlidingAttention", "BaseConv"]
    full = statescan.model_info("based_360m").config.layout
    assert [i for i, name in enumerate(full) if name == "linear"] == [1, 6, 11, 16, 21]
    assert [i for i, name in enumerate(full) if name == "window"] == [2, 7, 12, 17, 22]


@torch.no_grad()
def test_names_are_the_published_ones() -> None:
    model = build_model("based", SMALL | dict(depth=4, layout=("conv", "linear", "window", "attention"))).eval()
    published = family("based").to_published(model.state_dict(), model.config)
    layer = "transformer.layers."
    assert published[layer + "0.mixer.conv.conv.weight"].shape == (32, 1, 3)
    mixers = "0.mixer.in_proj.bias 1.mixer.proj_q.weight 2.mixer.Wqkv.weight 3.mixer.Wqkv.weight"
    assert {layer + name for name in (*mixers.split(), "1.mlp.fc2.weight", "2.norm2.weight")} <= published.keys()
    again = build_model("based", model.config).eval()
    # Some published files hold the decays of an option that no mixer reads.
    load_published(again, {**published, "transformer.decay.decay": torch.zeros(2)})
    tokens = torch.randint(0, 21, (2, 9))
    torch.testing.assert_close(again(tokens)[0], model(tokens)[0], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"unexpected: transformer.layers.0.mixer.Wqkv.weight"):
        load_published(again, {**published, layer + "0.mixer.Wqkv.weight": torch.zeros(48, 16)})


def test_first_weights_are_those_of_gpt2() -> None:
    torch.manual_seed(0)
    model = build_model("based", dict(dim=128, depth=8, heads=4, mlp_dim=256, vocab_size=100))
    for name, parameter in model.stack.named_parameters():
        if "projection.weight" in name:
            want = 0.02 / 4 if "output" in name else 0.02
            assert abs(parameter.std().item() / want - 1) < 0.05, name


@torch.no_grad()
def test_both_forms_of_linear_attention_are_one_model() -> None:
    chunked = build_model("based", SMALL | dict(layout=("linear",))).eval()
    parallel = build_model("based", SMALL | dict(layout=("linear",), linear_form="parallel")).eval()
    parallel.load_state_dict(chunked.state_dict())
    tokens = torch.randint(0, 21, (1, 150))
    torch.testing.assert_close(parallel(tokens)[0], chunked(tokens)[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_state_does_not_grow() -> None:
    model = build_model("based", SMALL).eval()
    _, state = model(torch.randint(0, 21, (1, 200)))
    assert state.nbytes == model.initial_state(1).nbytes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(layout=("convolution",)), "layout: unknown mixer 'convolution'; known: conv, linear, window, attention"),
        (dict(layout=("windows",)), "layout: unknown mixer 'windows'; nearest: 'window'"),
        (dict(layout=()), "layout: name at least one mixer"),
        (dict(attention_layers=(1,)), "attention_layers: Based names its mixers in layout; write 'attention' there"),
    ],
)
def test_wrong_options_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model("based", SMALL | given)
