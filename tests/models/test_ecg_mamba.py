"""ECG Mamba: shapes, its blocks against Vim's, both directions, and records read in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statescan
from statescan.models import create_model
from statescan.models.ecg_mamba import EcgMamba, RecordStream

SMALL: dict[str, Any] = dict(leads=3, num_classes=4, dim=12, depth=2, state_dim=3, length=400)


def build(**changes: Any) -> Any:
    torch.manual_seed(0)
    model = create_model("ecg_mamba_tiny", **(SMALL | changes)).eval()
    for block in model.stem:  # norms as after some training
        torch.nn.init.normal_(block.norm.running_mean, 0, 0.2)
        torch.nn.init.uniform_(block.norm.running_var, 0.5, 1.5)
        torch.nn.init.normal_(block.norm.bias, 0, 0.2)
    return model


def records(length: int, batch: int = 2, leads: int = 3) -> torch.Tensor:
    return torch.randn(batch, length, leads, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [5000, 7500])
def test_the_published_sizes_answer_and_learn(length: int) -> None:
    model = create_model("ecg_mamba", length=length, depth=2)
    scores = model(torch.randn(1, length, 12))
    assert scores.shape == (1, 26)
    assert model.tokens(torch.zeros(1, length, 12)).shape[1] == model.config.tokens(length) + 1 == length // 20 + 1
    scores.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("length", [1, 19, 20, 21, 399, 401])
def test_tokens_are_as_many_as_the_strides_say(length: int) -> None:
    model = build(class_token=True, position=True)
    assert model.forward_features(records(length)).shape == (2, model.config.tokens(length) + 1, 12)


@torch.no_grad()
def test_its_blocks_are_vims() -> None:
    """Vim's outputs are held to published ones; the same weights on the same tokens give the same features here."""
    torch.manual_seed(0)
    vim = create_model("vim_micro", dim=12, depth=2, image_size=16, num_classes=4, state_dim=3).eval()
    ours = build()
    ours.blocks.load_state_dict(vim.blocks.state_dict())
    ours.norm.load_state_dict(vim.norm.state_dict())
    images = torch.randn(2, 3, 16, 16)
    tokens, *_ = vim.tokens(images.permute(0, 2, 3, 1))
    assert torch.equal(ours.encode(tokens), vim.forward_features(images))


@torch.no_grad()
def test_the_class_token_stands_in_the_middle_and_is_read() -> None:
    model = build(class_token=True, depth=0)
    features = model.forward_features(records(400))
    assert torch.allclose(features[:, 10], model.norm(model.class_token)[:, 0].expand(2, -1))
    assert torch.allclose(model(records(400)), model.head(features[:, 10]))


@torch.no_grad()
def test_reversed_tokens_and_exchanged_ways_give_the_same_scores() -> None:
    model, other = build(), build()
    for block in other.blocks:
        there = {name: value.clone() for name, value in block.mixer.forwards.state_dict().items()}
        block.mixer.forwards.load_state_dict(block.mixer.backwards.state_dict())
        block.mixer.backwards.load_state_dict(there)
    tokens = torch.randn(2, 20, 12)
    again = other.forward_head(other.encode(tokens.flip(1)))
    assert torch.allclose(again, model.forward_head(model.encode(tokens)), atol=1e-6)


def test_recomputing_blocks_gives_the_same_gradients() -> None:
    grads = []
    for recomputed in (False, True):
        model = build()
        model.set_gradient_checkpointing(recomputed)
        model(records(200)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def read(model: EcgMamba, x: torch.Tensor, pieces: list[int], samples: int) -> RecordStream:
    stream = RecordStream(model, samples=samples, batch=len(x))
    for piece in x.split([*pieces, x.shape[1] - sum(pieces)], 1):
        stream.push(piece)
    stream.finish()
    return stream


@pytest.mark.parametrize("length", [1, 20, 39, 200, 413, 1000])
def test_forward_scans_read_a_record_in_parts_as_in_one(length: int) -> None:
    model, x = build(direction="forward"), records(length)
    for pieces, samples in (([], 100), ([length // 3, length // 2], 60), ([1] * min(length, 30), 400)):
        stream = read(model, x, pieces, samples)
        assert stream.tokens == model.config.tokens(length)
        assert torch.allclose(stream.scores, model(x), atol=1e-5)


@torch.no_grad()
def test_a_way_back_sees_what_follows_within_its_part() -> None:
    model, x = build(), records(400)
    assert torch.allclose(read(model, x, [150], 400).scores, model(x), atol=1e-5), "one part is one call"
    parts = read(model, x, [], 200).scores
    assert not torch.allclose(parts, model(x), atol=1e-5)
    tokens = model.stem(x)
    first, state = model.encode_chunk(tokens[:, :10])
    again, _ = model.encode_chunk(tokens[:, 10:], state)
    wanted = model.head(torch.cat([first, again], 1).mean(1))
    assert torch.allclose(parts, wanted, atol=1e-5)
    assert torch.allclose(model.encode_chunk(tokens)[0], model.encode(tokens), atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_what_is_carried_does_not_grow(direction: str) -> None:
    model = build(direction=direction)
    stream = RecordStream(model, samples=100)
    held = []
    for part in range(40):
        stream.push(records(100 + part % 3, 1))
        held.append(stream.nbytes)
    assert max(held[10:]) == max(held[20:]) == max(held[3:])


@torch.no_grad()
def test_parts_give_scores_as_they_come() -> None:
    stream = RecordStream(build(direction="forward"), samples=100)
    assert [len(stream.push(records(90, 1))) for _ in range(4)] == [0, 1, 1, 1]
    assert len(stream.finish()) == 1 and stream.finish() == []


def test_saves_and_loads(tmp_path) -> None:
    model = build(class_token=True, position=True)
    model.save(tmp_path)
    assert torch.equal(statescan.load(tmp_path).eval()(records(400)), model(records(400)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leads": 0}, "leads: a positive whole number, got 0"),
        ({"depth": -1}, "depth: at least 0, got -1"),
        ({"stem_kernels": (4, 7, 5)}, r"stem_kernels: odd numbers, got \(4, 7, 5\)"),
        ({"stem_strides": (5, 2)}, "stem_kernels, stem_strides: as many of one as of the other"),
        ({"stem_strides": (5, 2, 0)}, "stem_strides: at least 1 each"),
        ({"stem_dims": (4, 8, 16)}, "stem_dims: 3 numbers, the last being dim=12"),
        ({"direction": "backward"}, "direction: unknown 'backward'; known: both, forward"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_other_records_and_streams_are_refused() -> None:
    with pytest.raises(ValueError, match=r"records: expected \(batch, length, 3\), at least one sample long, got"):
        build()(torch.zeros(2, 3, 400))
    with pytest.raises(ValueError, match=r"model: in training its norms depend on the batch; call model.eval\(\)"):
        RecordStream(build().train())
    with pytest.raises(ValueError, match="a class token and positions belong to records of one length"):
        RecordStream(build(class_token=True))
    with pytest.raises(ValueError, match="samples: at least 1, got 0"):
        RecordStream(build(), samples=0)
    with pytest.raises(ValueError, match="scores: nothing was read yet"):
        _ = RecordStream(build()).scores
