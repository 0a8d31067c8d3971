"""Classifiers of long convolutions: published sizes and names, padding, norms, pooling, and learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import statescan
from statescan.models import family, load_published

#: Of the blocks alone, without encoder and head.
BACKBONES = {
    "long_conv_lra_listops": 4_724_736,
    "long_conv_lra_text": 14_165_504,
    "long_conv_lra_retrieval": 13_870_592,
    "long_conv_lra_image": 12_601_344,
    "long_conv_lra_pathfinder": 7_874_048,
    "long_conv_lra_pathx": 102_245_888,
}

SMALL: dict[str, dict[str, Any]] = {
    "plain": dict(),
    "batch-norm-after": dict(norm="batch", prenorm=False, channels=2),
    "batch-norm": dict(norm="batch", bidirectional=True, smoothing="mean", window=3),
    "instance-norm": dict(norm="instance", smoothing="frequency"),
    "group-norm": dict(norm="group", pooling="last", output="silu"),
    "butterfly": dict(butterfly="fixed"),
    "last": dict(pooling="last", bidirectional=True, channels=2),
}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def build(key: str, **more: Any) -> Any:
    torch.manual_seed(0)
    model = statescan.create_model(
        "long_conv_tiny", **dict(dim=6, depth=2, input_dim=2, max_length=8, threshold=0.01) | SMALL[key] | more
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.1 * torch.rand_like(buffer)
    return model.eval()


def backbone(name: str, **options: Any) -> int:
    with torch.device("meta"):
        model = statescan.create_model(name, **options)
    outside = sum(
        p.numel() for part in (model.encoder, model.comparison, model.decoder) if part for p in part.parameters()
    )
    return sum(p.numel() for p in model.parameters()) - outside


def test_parameter_counts_are_the_published_ones() -> None:
    for name, count in BACKBONES.items():
        assert backbone(name) == count, name


@pytest.mark.parametrize("key", SMALL)
def test_published_names_both_ways(key: str, tmp_path: Any) -> None:
    model, x = build(key), noise(2, 9, 2)
    published = family("long_conv").to_published(model.state_dict(), model.config)
    again = type(model)(model.config).eval()
    load_published(again, published)
    torch.testing.assert_close(again(x), model(x))
    model.save(tmp_path / "m")
    torch.testing.assert_close(statescan.load(tmp_path / "m")(x), model(x))


def test_names_are_the_published_ones() -> None:
    model = build("batch-norm")
    names = set(family("long_conv").to_published(model.state_dict(), model.config))
    layer = {"layer.D", "layer.kernel.kernel", "layer.output_linear.0.weight", "layer.output_linear.0.bias"}
    norm = {f"norm.norm.{part}" for part in ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]}
    want = {f"model.layers.{index}.{name}" for index in (0, 1) for name in layer | norm}
    outer = {
        "encoder.0.weight",
        "encoder.0.bias",
        "decoder.0.output_transform.weight",
        "decoder.0.output_transform.bias",
    }
    assert names == want | outer | {f"model.{name}" for name in norm}


@torch.no_grad()
def test_learned_transforms_keep_their_published_names() -> None:
    model, x = build("plain", butterfly="learned"), noise(2, 8, 2)
    published = family("long_conv").to_published(model.state_dict(), model.config)
    assert {"model.layers.0.layer.block_fft_u.mat_2", "model.layers.1.layer.block_fft_k.mat_16"} <= set(published)
    again = type(model)(model.config).eval()
    load_published(again, published)
    torch.testing.assert_close(again(x), model(x))
    decayed = {id(p) for p in model.parameter_groups(0.1)[0]["params"]}
    assert not any(id(p) in decayed for name, p in model.named_parameters() if "matrix_" in name)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("key", SMALL)
@torch.no_grad()
def test_padding_changes_nothing(key: str, training: bool) -> None:
    model = build(key).train(training)
    x, lengths = noise(3, 9, 2), torch.tensor([9, 4, 6])
    filled = x.clone()
    filled[1, 4:], filled[2, 6:] = 7, -3
    got = model(filled, lengths=lengths)
    torch.testing.assert_close(model(x, lengths=lengths), got)
    if not training:
        for row, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(got[row], model(x[row : row + 1, :length])[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_double_precision_and_tokens() -> None:
    model = build("plain", vocab_size=5).double()
    scores = model(torch.tensor([[0, 4, 2, 1]]))
    assert scores.dtype == torch.float64
    assert scores.shape == (1, 10)


def test_kernels_take_no_weight_decay() -> None:
    model = build("plain")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in model.parameter_groups(0.1))
    assert "blocks.0.mixer.output_projection.weight" in decayed
    assert {"blocks.1.mixer.kernel.taps", "blocks.0.mixer.D"} <= free


def test_learns_which_half_of_a_noisy_sequence_holds_a_pulse() -> None:
    torch.manual_seed(0)
    model = statescan.create_model("long_conv_tiny", dim=16, depth=2, max_length=32, classes=2, threshold=0.001)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.01), lr=0.01)
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        place = torch.randint(0, 30, (size,), generator=generator)
        x = 0.2 * torch.randn(size, 32, 1, generator=generator)
        x[torch.arange(size), place] += 2
        x[torch.arange(size), place + 1] -= 2
        return x, (place >= 15).long()

    for _ in range(150):
        x, y = batch(32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    x, y = batch(500)
    with torch.no_grad():
        assert float((model.eval()(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(pooling="max"), "pooling: unknown 'max'; known: mean, last"),
        (dict(norm="rms"), "norm: unknown 'rms'; known: layer, batch, instance, group"),
        (dict(smoothing="mean", window=4), "window: odd, got 4"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("plain", **options)


def test_one_rate_only() -> None:
    with pytest.raises(ValueError, match=r"rate: .* one rate only, got 2\.0"):
        build("plain")(noise(1, 5, 2), rate=2.0)
