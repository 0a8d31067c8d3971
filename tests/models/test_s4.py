"""Classifiers of S4, S4D and S4ND: published sizes and names, padding, resolution, and learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import statescan
from statescan.models import family, load_published

#: Backbones, without encoder and head, as the published configurations build them.
BACKBONES = {
    "s4_lra_text": 808_520,
    "s4_lra_retrieval": 808_520,
    "s4_lra_pathfinder": 1_287_680,
    "s4_lra_pathx": 1_287_680,
    "s4d_lra_text": 808_496,
    "s4d_lra_retrieval": 808_496,
    "s4d_lra_pathfinder": 1_189_376,
    "s4d_lra_pathx": 1_189_376,
}
#: Configurations without a norm before the mixers have none after the last block either: 2 x dim less.
POSTNORM = {
    "s4_lra_listops": 808_520,
    "s4_lra_image": 3_559_552,
    "s4d_lra_image": 3_559_168,
    "s4d_lra_listops": 808_496,
}

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "s4": ("s4_tiny", dict(dim=6, depth=2, state_dim=4, input_dim=2, bidirectional=True)),
    "s4-batch-norm-after": ("s4_tiny", dict(dim=6, depth=2, state_dim=4, input_dim=2, norm="batch", prenorm=False)),
    "s4-batch-norm": ("s4_tiny", dict(dim=6, depth=2, state_dim=4, input_dim=2, norm="batch", copies=1)),
    "s4-example": ("s4_tiny", dict(dim=6, depth=2, state_dim=4, input_dim=2, layout="example", rank=2)),
    "s4d": ("s4d_tiny", dict(dim=6, depth=2, state_dim=4, input_dim=2, channels=2)),
    "s4d-example": ("s4d_example", dict(dim=6, depth=2, state_dim=4, input_dim=2)),
    "s4nd": ("s4nd_tiny", dict(dim=6, depth=2, state_dim=4, input_dim=2)),
    "s4nd-video": ("s4nd_tiny", dict(dim=6, depth=1, state_dim=4, input_dim=2, axes=3, norm="batch", bandlimit=0.5)),
}


def build(key: str, **more: Any) -> Any:
    torch.manual_seed(0)
    name, options = SMALL[key]
    model = statescan.create_model(name, **options | more)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.1 * torch.rand_like(buffer)
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(model: Any, batch: int = 2) -> Tensor:
    return noise(batch, *[9, 5, 4][: getattr(model.config, "axes", 1)], 2)


def count(name: str, **options: Any) -> tuple[int, int]:
    with torch.device("meta"):
        model = statescan.create_model(name, **options)
    everything = sum(p.numel() for p in model.parameters())
    outside = sum(
        p.numel() for part in (model.encoder, model.comparison, model.decoder) if part for p in part.parameters()
    )
    return everything, everything - outside


def test_parameter_counts_are_the_published_ones() -> None:
    assert count("s4d_example")[0] == 201_482
    for name, backbone in BACKBONES.items():
        assert count(name)[1] == backbone, name
    for name, backbone in POSTNORM.items():
        assert count(name, prenorm=True)[1] == backbone, name
        dim = statescan.model_info(name).config.dim
        assert count(name)[1] == backbone - 2 * dim, name
    assert round(count("s4_speech")[0], -3) == 307_000


@pytest.mark.parametrize("key", SMALL)
def test_published_names_both_ways(key: str, tmp_path: Any) -> None:
    model = build(key)
    x = inputs(model)
    want = model(x)  # a low-rank kernel now holds its length
    found = family(model.family)
    published = found.to_published(model.state_dict(), model.config)
    again = type(model)(model.config).eval()
    load_published(again, published)
    torch.testing.assert_close(again(x), want)
    model.save(tmp_path / "m")
    torch.testing.assert_close(statescan.load(tmp_path / "m")(x), want)


def test_the_head_that_compares_has_published_names_both_ways() -> None:
    model = build("s4", retrieval=True)
    found = family("s4")
    published = found.to_published(model.state_dict(), model.config)
    assert {"decoder.0.retrieval.classifier.0.weight", "decoder.0.retrieval.classifier.2.bias"} <= published.keys()
    again = build("s4", retrieval=True)
    load_published(again, published)
    x = inputs(model)
    torch.testing.assert_close(again(x), model(x))


def test_names_are_the_published_ones() -> None:
    def names(key: str) -> set[str]:
        model = build(key)
        return set(family(model.family).to_published(model.state_dict(), model.config))

    assert {"model.layers.1.layer.layer.kernel.inv_dt", "model.layers.0.layer.output_linear.0.weight"} <= names("s4")
    assert {"encoder.0.weight", "decoder.0.output_transform.bias", "model.norm.norm.bias"} <= names("s4")
    assert {"s4_layers.1.layer.kernel.l_kernel", "norms.0.weight", "decoder.weight"} <= names("s4-example")
    assert {"s4_layers.1.kernel.log_A_real", "s4_layers.0.D", "s4_layers.0.output_linear.0.bias"} <= names(
        "s4d-example"
    )
    assert {"model.layers.1.layer.kernel.1.A_imag", "model.layers.0.norm.norm.weight"} <= names("s4nd")


def test_a_file_that_does_not_fit_is_refused() -> None:
    model = build("s4d-example")
    tensors = family("s4d").to_published(model.state_dict(), model.config)
    tensors["s4_layers.0.kernel.B"] = tensors.pop("s4_layers.1.kernel.log_dt")
    with pytest.raises(ValueError, match=r"unexpected: s4_layers.0.kernel.B.*missing: s4_layers.1.kernel.log_dt"):
        load_published(model, tensors)


@pytest.mark.parametrize("key", [key for key in SMALL if "s4nd" not in key])
@torch.no_grad()
def test_padding_does_not_matter(key: str) -> None:
    model, x = build(key), noise(3, 9, 2)
    lengths = torch.tensor([9, 4, 1])
    got = model(torch.where(torch.arange(9)[:, None] < lengths[:, None, None], x, 100.0), lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(got[row : row + 1], model(x[row : row + 1, :length]), atol=1e-5, rtol=1e-4)


def test_batch_norm_leaves_padding_out() -> None:
    model, x = build("s4-batch-norm", depth=1).train(), noise(2, 9, 2)
    lengths = torch.tensor([9, 4])
    first = model(x, lengths=lengths)
    second = model(torch.where(torch.arange(9)[:, None] < lengths[:, None, None], x, 100.0), lengths=lengths)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_token_ids() -> None:
    model = statescan.create_model("s4_tiny", dim=8, depth=1, vocab_size=11, classes=3).eval()
    tokens = torch.randint(0, 11, (2, 7))
    assert model(tokens).shape == (2, 3)
    with pytest.raises(ValueError, match="x: token ids"):
        model(tokens.float())


@pytest.mark.parametrize("key", SMALL)
def test_double_precision_trains(key: str) -> None:
    model = build(key).double().train()
    x = inputs(model).double()
    scores = model(x)
    assert scores.dtype == torch.float64
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_only_matrices_that_mix_decay() -> None:
    model = build("s4")
    held = {id(p) for p in model.parameter_groups(0.1)[0]["params"]}
    names = {
        name.split(".")[-2:][0] + "." + name.split(".")[-1] for name, p in model.named_parameters() if id(p) in held
    }
    assert names == {"encoder.weight", "kernel.C", "output_projection.weight", "decoder.weight"}


@torch.no_grad()
def test_another_resolution() -> None:
    model = build("s4nd", bandlimit=0.5)
    assert model(noise(1, 8, 8, 2), rate=0.5).shape == model(noise(1, 4, 4, 2)).shape


@pytest.mark.parametrize("name", ["s4_tiny", "s4d_tiny"])
def test_learns_to_tell_frequencies(name: str) -> None:
    """Which of two frequencies a noisy sinusoid of random phase has: no position alone tells."""
    torch.manual_seed(0)
    model = statescan.create_model(name, dim=16, depth=1, state_dim=16, classes=2)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.01), lr=0.01)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        targets = torch.randint(0, 2, (size,))
        angle = torch.arange(256) * (0.2 + 0.05 * targets[:, None]) + 6.3 * torch.rand(size, 1)
        return (torch.sin(angle) + 0.3 * torch.randn(size, 256))[..., None], targets

    for _ in range(60):
        x, targets = batch(32)
        loss = nn.functional.cross_entropy(model(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, targets = batch(200)
    with torch.no_grad():
        assert float((model.eval()(x).argmax(-1) == targets).float().mean()) > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("s4")(noise(2, 9, 3)), r"x: \(batch, length, 2\), got \(2, 9, 3\)"),
        (lambda: build("s4")(noise(2, 9, 2), lengths=torch.tensor([9])), "lengths: one for each of 2 sequences"),
        (lambda: build("s4")(noise(2, 9, 2), lengths=torch.tensor([0, 9])), "lengths: between 1 and 9, got 0 to 9"),
        (lambda: build("s4nd")(noise(2, 9, 2)), r"x: \(batch, 2 axes, 2\), got \(2, 9, 2\)"),
        (lambda: build("s4nd")(noise(2, 4, 4, 2), lengths=torch.tensor([4, 4])), "lengths: only sequences are padded"),
        (lambda: statescan.create_model("s4nd_tiny", vocab_size=3), "vocab_size: images have channels"),
        (lambda: statescan.create_model("s4_tiny", norm="rms"), "norm: unknown 'rms'; known: layer, batch"),
        (lambda: statescan.create_model("s4_tiny", layout="lightning"), "layout: unknown 'lightning'"),
        (lambda: statescan.create_model("s4_tiny", depth=0), "depth: a positive whole number, got 0"),
        (lambda: statescan.create_model("s4d_tiny", initialisation="lin"), "initialisation: unknown 'lin'"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
