"""The SeqBoat classifier: counts, names, lengths, learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import statescan
from statescan.models import build_model, family, load_published
from statescan.models.seqboat import SeqBoatClassifier

SMALL = dict(input_dim=2, num_classes=3, dim=12, depth=2, qk_dim=4, ema_dim=2, window=3, max_length=20)
KINDS: dict[str, dict[str, Any]] = {
    "batch norm": dict(),
    "layer norm, post": dict(norm="layer", prenorm=False, attention="softmax"),
    "rotary, causal": dict(norm="layer", position="rotary", bidirectional=False),
    "local": dict(position="local", truncation=5),
    "tokens": dict(vocab_size=9, norm="layer"),
}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def build(kind: str) -> SeqBoatClassifier:
    torch.manual_seed(1)
    model = build_model("seqboat", SMALL | KINDS[kind])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "projection" in name or "query_key" in name or "encoder" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model.eval()


def inputs(kind: str, batch: int = 3, length: int = 15) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "tokens":
        return torch.randint(0, 9, (batch, length), generator=generator)
    return torch.randn(batch, length, 2, generator=generator)


@pytest.mark.parametrize(("name", "count"), [("seqboat_cifar", 11_755_350)])
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = statescan.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


@kinds
@torch.no_grad()
def test_what_stands_behind_the_length_does_not_matter(kind: str) -> None:
    model, x = build(kind), inputs(kind)
    lengths = torch.tensor([15, 4, 9])
    got = model(x, lengths=lengths)
    assert got.shape == (3, 3)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(got[row], model(x[row : row + 1, :length])[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(x, lengths=torch.full((3,), 15)), model(x))


@kinds
@torch.no_grad()
def test_published_names_both_ways(kind: str) -> None:
    model = build(kind)
    published = family("seqboat").to_published(model.state_dict(), model.config)
    assert {
        "encoder.weight",
        "decoder.bias",
        "seq_layers.1.ssm.omega",
        "seq_layers.0.q_router.temp",
    } <= published.keys()
    assert published["seq_layers.0.ssm.delta"].ndim == 3
    again = build_model("seqboat", model.config).eval()
    load_published(again, published)
    torch.testing.assert_close(again(inputs(kind)), model(inputs(kind)), rtol=0, atol=0)


@kinds
def test_learns_a_batch_and_every_weight_has_a_gradient(kind: str) -> None:
    model, x = build(kind).train(), inputs(kind, 6)
    targets = torch.arange(6) % 3
    optimizer = torch.optim.AdamW(model.parameter_groups(0.01), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(model(x), targets)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_rates_and_scales_do_not_decay() -> None:
    model = build("batch norm")
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, _ = model.parameter_groups(0.1)
    kept = {names[id(p)].rsplit(".", 2)[-2] for p in decayed["params"]}
    assert kept == {"encoder", "decoder", "attention_projection", "input_projection", "output_projection"}


@torch.no_grad()
def test_float64_stays_float64() -> None:
    model = build("batch norm").double()
    y = model(inputs("batch norm").double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), build("batch norm")(inputs("batch norm")), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("batch norm", dict(x=torch.zeros(2, 5, 3)), r"x: expected \(batch, length, 2\), got \(2, 5, 3\)"),
        ("batch norm", dict(x=torch.zeros(2, 0, 2)), "x: a sequence to classify has at least one position"),
        ("tokens", dict(x=torch.zeros(2, 5)), r"x: token ids \(batch, length\), got torch.float32 of shape \(2, 5\)"),
        ("batch norm", dict(lengths=torch.tensor([1, 2])), r"lengths: expected whole numbers \(3,\), got \(2,\)"),
        ("batch norm", dict(lengths=torch.tensor([1, 2, 16])), "lengths: from 1 to 15, got 1 to 16"),
        ("batch norm", dict(lengths=torch.tensor([0, 2, 3])), "lengths: from 1 to 15, got 0 to 3"),
    ],
)
def test_wrong_inputs_are_named(kind: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind)(**({"x": inputs(kind)} | given))


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="depth: a positive whole number, got 0"):
        build_model("seqboat", dict(depth=0))
