"""Published names both ways, and what a state dict that does not fit is told."""

from __future__ import annotations

import pytest
import torch

from statescan.models import family, load_published, load_tensors
from tests.models._small import MODELS, build, tokens

Tensors = dict[str, torch.Tensor]


def published(model: object) -> Tensors:
    return family(model.family).to_published(model.state_dict(), model.config)  # type: ignore[attr-defined]


def other(model: object) -> object:
    """The same architecture with other weights."""
    again = type(model)(model.config)  # type: ignore[attr-defined, call-arg]
    with torch.no_grad():
        for parameter in again.parameters():
            parameter += 1
    return again


@pytest.mark.parametrize("key", list(MODELS))
def test_round_trip_without_loss(key: str) -> None:
    model = build(key)
    ours = family(model.family).from_published(published(model), model.config)
    assert ours.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)
    again = other(model)
    load_published(again, published(model))
    torch.testing.assert_close(again(tokens(1, 5))[0], model(tokens(1, 5))[0], rtol=0, atol=0)  # type: ignore[operator]


def test_names_are_the_published_ones() -> None:
    names = set(published(build("mamba")))
    mixer = "in_proj.weight conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias A_log D out_proj.weight"
    layer = ["norm.weight", *(f"mixer.{name}" for name in mixer.split())]
    outer = {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight"}
    assert names == outer | {f"backbone.layers.{index}.{name}" for index in (0, 1) for name in layer}
    assert "backbone.layers.1.mixer.dt_bias" in published(build("mamba2"))
    assert "model.layers.1.self_attn.k_proj.weight" in published(build("bamba"))
    assert published(build("mamba"))["backbone.layers.0.mixer.conv1d.weight"].shape == (40, 1, 4)


@pytest.mark.parametrize("key", ["mamba", "falcon_mamba", "mamba2"])
def test_hugging_face_spelling_of_the_embedding(key: str) -> None:
    model = build(key)
    tensors = published(model)
    tensors["backbone.embeddings.weight"] = tensors.pop("backbone.embedding.weight")
    again = other(model)
    load_published(again, dict(reversed(tensors.items())))
    torch.testing.assert_close(again(tokens(1, 5))[0], model(tokens(1, 5))[0], rtol=0, atol=0)  # type: ignore[operator]


@pytest.mark.parametrize("key", ["mamba", "zamba2"])
def test_either_name_of_a_tied_tensor_is_enough_and_the_last_counts(key: str) -> None:
    model = build(key)
    names = [name for name in published(model) if "embed" in name or name == "lm_head.weight"]
    assert len(names) == 2
    for absent in names:
        tensors = published(model)
        del tensors[absent]
        load_published(other(model), tensors)
    tensors = published(model)
    first = tensors.pop(names[0])
    again = other(model)
    load_published(again, {names[0]: first + 1, **tensors})
    torch.testing.assert_close(again.head.weight, first)  # type: ignore[attr-defined]
    load_published(again, {**tensors, names[0]: first + 1})
    torch.testing.assert_close(again.embedding.weight, first + 1)  # type: ignore[attr-defined]


def test_a_shared_block_counts_by_its_last_name() -> None:
    model = build("zamba2")
    tensors = published(model)
    norms = [name for name in tensors if name.endswith("shared_transformer.pre_ff_layernorm.weight")]
    assert [name.split(".")[2] for name in norms] == ["1", "2", "4"]
    tensors[norms[0]] = tensors[norms[0]] + 5  # blocks are called in turn: layers 1 and 4 share one
    again = other(model)
    load_published(again, tensors)
    torch.testing.assert_close(again.stack.shared[0].channel_norm.weight, tensors[norms[2]])  # type: ignore[attr-defined]


def test_fixed_tensors_are_accepted() -> None:
    model = build("bamba")
    tensors = published(model) | {"model.rotary_emb.inv_freq": torch.ones(2), "model.position_table": torch.ones(3)}
    with pytest.raises(ValueError, match=r"unexpected: model\.position_table$"):
        load_published(model, tensors)
    load_published(model, tensors, constants=["model.position_table"])


@pytest.mark.parametrize(
    ("key", "lacks", "short"),
    [
        ("mamba", ["backbone.layers.1.mixer.x_proj.weight"], "backbone.layers.0.mixer.conv1d.weight"),
        ("mamba2", ["backbone.norm_f.weight"], "backbone.layers.1.mixer.A_log"),
        ("bamba", ["model.layers.1.self_attn.k_proj.weight"], "model.layers.2.feed_forward.gate_proj.weight"),
        ("zamba2", ["model.layers.4.linear.weight"], "model.layers.1.mamba_decoder.mamba.in_proj.weight"),
    ],
)
def test_every_tensor_that_does_not_fit_is_named(key: str, lacks: list[str], short: str) -> None:
    model = build(key)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = published(model)
    rows = tensors[short].shape
    tensors[short] = tensors[short][1:]
    for name in lacks:
        del tensors[name]
    if model.config.tie_embeddings:
        tied = [name for name in tensors if "embed" in name or name == "lm_head.weight"]
        for name in tied:
            del tensors[name]
        lacks = [*lacks, " or ".join(tied)]
    tensors["mystery.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="do not fit this") as raised:
        load_published(model, tensors)
    message = str(raised.value)
    assert f"checkpoint: {len(lacks) + 2} tensors do not fit this {model.family} model" in message
    assert "unexpected: mystery.weight" in message
    assert f"shape of {short}: {(rows[0] - 1, *rows[1:])}, this model has {tuple(rows)}" in message
    for name in lacks:
        assert f"missing: {name}" in message
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_nan_is_refused() -> None:
    model = build("mamba")
    tensors = published(model)
    tensors["backbone.norm_f.weight"] = tensors["backbone.norm_f.weight"] * float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity in backbone\.norm_f\.weight"):
        load_published(model, tensors)


def test_our_own_names_are_strict_too() -> None:
    model = build("mamba")
    tensors = dict(model.state_dict())
    del tensors["norm.weight"], tensors["head.weight"]
    with pytest.raises(ValueError, match=r"1 tensor does not fit this mamba model: missing: norm\.weight"):
        load_tensors(model, tensors)
    tensors["norm.weight"] = torch.ones(20)
    load_tensors(model, tensors)
    assert model.norm.weight.eq(1).all()
