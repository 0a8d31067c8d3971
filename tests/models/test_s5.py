"""S5 classifiers: published sizes and names, padding, tokens, pairs, batch statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statescan
from statescan.layers import S5Block, SequenceBatchNorm
from statescan.models import family, load_published
from statescan.models.s5 import S5Classifier, S5Config

#: From the published classes and training scripts (lindermanlab/S5 3c18fdb); vocabularies of 20, 135 and 98.
PUBLISHED_COUNTS = {
    "s5_lra_listops": 188_490,
    "s5_lra_text": 1_321_154,
    "s5_lra_retrieval": 772_098,
    "s5_lra_image": 5_133_706,
    "s5_lra_pathfinder": 1_113_602,
    "s5_lra_pathx": 694_018,
    "s5_speech": 283_523,
}
SMALL: dict[str, Any] = dict(input_dim=3, classes=4, dim=6, depth=2, state_dim=8, blocks=2)


def build(**options: Any) -> S5Classifier:
    torch.manual_seed(1)
    model = S5Classifier(S5Config(**(SMALL | options)))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(torch.rand_like(buffer) + ("var" in name))
    return model.eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = statescan.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED_COUNTS[name]


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(norm="layer", bidirectional=False, activation="full_glu", prenorm=False),
        dict(output_init="complex_normal", activation="gelu"),
        dict(retrieval=True, activation="half_glu2"),
        dict(conjugate_symmetry=False),
    ],
)
def test_published_names_both_ways(options: dict[str, Any]) -> None:
    model, again = build(**options), S5Classifier(S5Config(**(SMALL | options)))
    published = family("s5").to_published(model.state_dict(), model.config)
    assert {"encoder.encoder.kernel", "encoder.layers_1.seq.Lambda_re", "encoder.layers_0.norm.scale"} <= set(published)
    split = model.config.bidirectional and model.config.output_init != "complex_normal"
    assert ("encoder.layers_0.seq.C1" in published) == split
    load_published(again, published)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    missing = "encoder.layers_0.seq.C2" if split else "encoder.layers_0.seq.C"
    del published[missing]
    with pytest.raises(ValueError, match=rf"missing: .*{missing[:-1]}"):
        load_published(again, published)


@torch.no_grad()
def test_pooling_of_padded_sequences() -> None:
    x, lengths = noise(3, 9, 3), torch.tensor([9, 4, 1])
    for pool in ("mean", "last"):
        causal = build(bidirectional=False, pool=pool)
        alone = [causal(x[row : row + 1, :length]) for row, length in enumerate(lengths.tolist())]
        torch.testing.assert_close(causal(x, lengths=lengths), torch.cat(alone), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(causal(x), causal(x, lengths=torch.tensor([9, 9, 9])), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_of_a_bidirectional_model_is_seen_unless_it_is_separate() -> None:
    x, lengths = noise(3, 9, 3), torch.tensor([9, 4, 1])
    other = torch.where((torch.arange(9) < lengths[:, None])[..., None], x, 7.0)
    published, separate = build(), build(separate_padding=True)
    assert (published(x, lengths=lengths) - published(other, lengths=lengths)).abs().max() > 0.01
    got = separate(other, lengths=lengths)
    torch.testing.assert_close(got, separate(x, lengths=lengths), atol=1e-5, rtol=1e-4)
    alone = [separate(x[row : row + 1, :length]) for row, length in enumerate(lengths.tolist())]
    torch.testing.assert_close(got, torch.cat(alone), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_tokens_are_one_hot_vectors() -> None:
    model, numbers = build(vocab_size=5), build(input_dim=5)
    numbers.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 5, (2, 7))
    torch.testing.assert_close(model(tokens), numbers(torch.nn.functional.one_hot(tokens, 5).float()))


@torch.no_grad()
def test_retrieval_compares_halves() -> None:
    model, x = build(retrieval=True), noise(6, 5, 3)
    logits = model(x)
    assert logits.shape == (3, 4)
    pair = model(x[[1, 4]])
    torch.testing.assert_close(pair, logits[1:2], atol=1e-5, rtol=1e-4)
    assert (model(x[[4, 1]]) - pair).abs().max() > 1e-3


@torch.no_grad()
def test_batch_norm_over_batch_and_time() -> None:
    norm, x = SequenceBatchNorm(3, momentum=0.9).train(), 2 + 3 * noise(4, 50, 3)
    y = norm(x)
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var((0, 1), unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 1)), atol=1e-5, rtol=1e-4)
    norm.eval()(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean((0, 1)), atol=1e-5, rtol=1e-4)


def test_trains_in_float64_and_on_irregular_times() -> None:
    model = build(bidirectional=False, dropout=0.1).double().train()
    x = noise(4, 6, 3).double()
    loss = torch.nn.functional.cross_entropy(model(x, intervals=torch.rand(4, 6).double()), torch.arange(4))
    loss.backward()
    assert loss.dtype == torch.float64
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mixed_precision() -> None:
    model, x = build(), noise(2, 12, 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    half.float().square().sum().backward()
    torch.testing.assert_close(half.float(), model(x), atol=0.1, rtol=0.05)


def test_what_does_not_decay() -> None:
    model = build()
    decayed, others = model.parameter_groups(0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(parameter)] for parameter in others["params"]}
    assert {f"layers.0.mixer.{name}" for name in ("Lambda_re", "Lambda_im", "log_step", "B", "D")} <= kept
    assert {names[id(p)] for p in decayed["params"]} >= {"layers.0.mixer.C", "layers.0.gate_projection.weight"}


@torch.no_grad()
def test_rescaled_steps() -> None:
    model, rescaled = build(), build(step_rescale=3.0)
    x = noise(2, 8, 3)
    assert (model(x) - rescaled(x)).abs().max() > 1e-3
    model.rescale_steps(3.0)
    torch.testing.assert_close(model(x), rescaled(x))
    assert all(isinstance(layer, S5Block) for layer in model.layers)


def test_learns_what_needs_the_whole_sequence() -> None:
    """Which of two values came first, 20 positions before the end: a mean of the input cannot tell."""
    torch.manual_seed(0)
    model = S5Classifier(S5Config(input_dim=2, classes=2, dim=16, depth=1, state_dim=16, bidirectional=False))
    optimiser = torch.optim.AdamW(model.parameter_groups(0.01), lr=1e-2)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(0, 2, (count,))
        x = 0.1 * torch.randn(count, 24, 2)
        rows = torch.arange(count)
        x[rows, 1, labels] += 1
        x[rows, 3, 1 - labels] += 1
        return x, labels

    for _ in range(150):
        x, labels = batch(32)
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, labels = batch(256)
    with torch.no_grad():
        assert (model.eval()(x).argmax(-1) == labels).float().mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(depth=0), "depth: a positive whole number, got 0"),
        (lambda: build(pool="max"), "pool: unknown 'max'; known: mean, last"),
        (lambda: build()(noise(2, 5, 4)), r"x: expected \(batch, length, 3\), got \(2, 5, 4\)"),
        (lambda: build(vocab_size=5)(noise(2, 5)), "x: expected token ids"),
        (lambda: build()(noise(2, 5, 3), lengths=torch.tensor([5, 6])), "lengths: between 1 and 5, got 5 to 6"),
        (lambda: build()(noise(2, 5, 3), lengths=torch.tensor([5])), "lengths: expected 2 whole numbers"),
        (lambda: build(retrieval=True)(noise(3, 5, 3)), "compares halves of the batch, got an odd batch of 3"),
        (lambda: build().rescale_steps(0), "factor: above 0, got 0"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
