"""H3's language models: published sizes, names of both releases, chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statescan
from statescan.models import family, load_published
from statescan.models.h3 import upgrade

COUNTS = {
    "h3_125m": 126_387_456,
    "h3_355m": 361_058_304,
    "h3_1.3b": 1_326_096_384,
    "h3_2.7b": 2_670_307_840,
    "h3_2.7b_rotary": 2_671_134_720,
}
SMALL: dict[str, Any] = dict(dim=12, depth=3, state_dim=4, mlp_dim=16, attention_layers=(1,), vocab_size=30)
SMALL["attention"] = dict(heads=2, qkv_bias=True, output_bias=True)


def build(seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    model = statescan.create_model("h3_tiny", **SMALL | more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 30, shape, generator=torch.Generator().manual_seed(sum(shape)))


def published(model: Any) -> dict[str, torch.Tensor]:
    return family("h3").to_published(model.state_dict(), model.config)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = statescan.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]
    if name == "h3_125m":
        assert sum(p.numel() for p in model.stack.blocks[0].mixer.parameters()) == 2_610_432
    assert model.config.padded_vocab_size == 50264


def test_names_are_the_published_ones() -> None:
    names = set(published(build()))
    mixer = (
        "ssm_k_D D q_proj.weight q_proj.bias k_proj.weight k_proj.bias v_proj.weight v_proj.bias output_linear.weight "
    )
    mixer += "output_linear.bias ssm_k_kernel.kernel.B ssm_k_kernel.kernel.C kernel.kernel.B kernel.kernel.C "
    mixer += "kernel.kernel.log_dt kernel.kernel.inv_A_real kernel.kernel.A_imag"
    attention = "Wqkv.weight Wqkv.bias out_proj.weight out_proj.bias"
    rest = [f"{part}.{kind}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]
    want = {
        "backbone.embeddings.word_embeddings.weight",
        "lm_head.weight",
        "backbone.ln_f.weight",
        "backbone.ln_f.bias",
    }
    for index in range(3):
        inner = attention if index == 1 else mixer
        want |= {f"backbone.layers.{index}.{name}" for name in [*rest, *(f"mixer.{part}" for part in inner.split())]}
    assert names == want


def first_release(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A later file under the names, and with the norms' places, of the first ones (depth 3)."""
    norms = ["backbone.norm"]
    norms += [f"backbone.layers.{index}.{norm}" for index in range(3) for norm in ("norm1", "norm2")]
    places = [f"backbone.layers.{index}.{norm}" for index in range(3) for norm in ("norm1", "norm2")] + [
        "backbone.ln_f"
    ]
    moved = dict(zip(places, norms, strict=True))
    old = {}
    for name, tensor in tensors.items():
        place, _, part = name.rpartition(".")
        name = f"{moved.get(place, place)}.{part}"
        name = name.replace("backbone.embeddings.word_embeddings.", "embedding.").replace("backbone.", "s4seq.encoder.")
        old[f"model.{name}"] = tensor
    return old


def test_files_of_both_releases_load() -> None:
    model, x = build(), tokens(2, 7)
    want = model(x)[0]
    old = first_release(published(model))
    assert {"model.s4seq.encoder.norm.weight", "model.embedding.weight"} <= set(old)
    assert {name: tensor.shape for name, tensor in upgrade(old).items()} == {
        name: tensor.shape for name, tensor in published(model).items()
    }
    for tensors in (published(model), old):
        again = build(seed=1)
        load_published(again, tensors)
        torch.testing.assert_close(again(x)[0], want, rtol=0, atol=0)
    old.pop("model.s4seq.encoder.layers.2.norm2.bias")
    with pytest.raises(ValueError, match=r"missing: backbone\.ln_f\.bias"):
        load_published(build(), old)


def test_saved_and_read_again(tmp_path: Any) -> None:
    model, x = build(head_dim=3, chunk_length=3), tokens(2, 7)
    model.save(tmp_path / "m")
    torch.testing.assert_close(statescan.load(tmp_path / "m")(x)[0], model(x)[0])


@torch.no_grad()
def test_state_passing_is_one_long_convolution() -> None:
    x = tokens(1, 50)
    whole, chunked = build(attention_layers=()), build(attention_layers=(), chunk_length=8)
    want, state = whole(x)
    got, passed = chunked(x)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    for (name, tensor), (_, other) in zip(state.tensors(), passed.tensors(), strict=True):
        torch.testing.assert_close(other, tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_no_layer_beyond_the_depth() -> None:
    with pytest.raises(ValueError, match=r"attention_layers: \[9\] are not blocks of a model of depth 3"):
        build(attention_layers=(9,))
