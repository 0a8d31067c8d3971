"""MemMamba beyond what all language models promise: Mamba without notes, notes across layers, bounded memory, sizes."""

from __future__ import annotations

import math

import pytest
import torch

import statescan
from statescan import inspect
from statescan.checkpoints import ByteTokenizer
from statescan.generation import generate
from statescan.inspect import count_parameters
from statescan.layers import _memory_notes
from statescan.models import build_model
from statescan.models.memmamba import MemMambaLanguageModel

SMALL = dict(dim=16, depth=5, state_dim=4, vocab_size=40, cross_layer_every=2, pool_size=4)
OPTIONS = {
    "plain": {},
    "chunks": dict(chunk=3),
    "oldest, mean": dict(overflow="oldest", aggregation="mean"),
    "mlp": dict(mlp_dim=8, mlp_multiple_of=4),
}
CLOSE = dict(atol=1e-4, rtol=1e-4)


def build(**options):
    torch.manual_seed(0)
    model = statescan.create_model("memmamba_tiny", **{**SMALL, **options}).eval()
    with torch.no_grad():  # opinions, so that what is recalled matters
        torch.nn.init.normal_(model.embedding.weight)
    return model


def tokens(*shape):
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
def test_without_notes_it_is_mamba():
    fields = dict(dim=16, depth=5, state_dim=4, vocab_size=40)
    torch.manual_seed(0)
    mamba = statescan.create_model("mamba_tiny", **fields).eval()
    x = tokens(2, 90)
    want, state = mamba(x)
    silent = MemMambaLanguageModel.of(mamba, note_threshold=math.inf, cross_layer_every=2).eval()
    got, after = silent(x)
    assert torch.equal(got, want)
    step, wanted = silent.step(x[:, 0], after), mamba.step(x[:, 0], state)
    assert torch.equal(step[0], wanted[0])
    assert torch.equal(after["3"]["mixer"]["ssm"], state["3"]["ssm"])
    speaking = MemMambaLanguageModel.of(mamba, cross_layer_every=2).eval()
    assert not torch.allclose(speaking(x)[0], want)
    assert torch.equal(speaking.embedding.weight, mamba.embedding.weight)
    with pytest.raises(TypeError, match="model: a Mamba language model, got HybridLanguageModel"):
        MemMambaLanguageModel.of(statescan.create_model("hybrid_tiny", dim=16, depth=1, attention={"heads": 2}))


@pytest.mark.parametrize("kind", OPTIONS)
@torch.no_grad()
def test_steps_and_pieces_equal_one_call(kind):
    model, x = build(**OPTIONS[kind]), tokens(2, 150)
    want, final = model(x)
    parts, state = [], model.initial_state(2)
    for t in range(0, 150):
        logits, state = model.step(x[:, t], state)
        parts.append(logits)
    torch.testing.assert_close(torch.stack(parts, 1), want, **CLOSE)
    for (name, a), (_, b) in zip(state.tensors(), final.tensors(), strict=True):
        torch.testing.assert_close(a, b, **CLOSE, msg=name)
    first, state = model(x[:, :71])
    second, _ = model(x[:, 71:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), want, **CLOSE)


@pytest.mark.parametrize("kind", OPTIONS)
@torch.no_grad()
def test_causal_and_bounded(kind):
    model, x = build(**OPTIONS[kind]), tokens(1, 200)
    want, _ = model(x)
    changed = x.clone()
    changed[0, 120] = (x[0, 120] + 1) % 40
    got, state = model(changed)
    torch.testing.assert_close(got[:, :120], want[:, :120], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got[:, 120:], want[:, 120:])
    assert state.nbytes == model.initial_state(1).nbytes == model(x[:, :3])[1].nbytes


@torch.no_grad()
def test_layers_read_the_notes_of_those_before_them():
    model, x = build(), tokens(1, 60)
    assert [block.notes.layer_query is not None for block in model.stack.blocks] == [False, False, True, False, True]
    want, _ = model(x)
    # What block 0 notes changes block 2 also where block 0 itself reads nothing.
    for block in model.stack.blocks[:2]:
        torch.nn.init.zeros_(block.notes.output_projection.weight)
    before, _ = model(x)
    model.stack.blocks[0].notes.summary.weight.mul_(-1.0)
    after, _ = model(x)
    assert not torch.allclose(before, want)
    assert not torch.allclose(before, after)
    none = build(cross_layer_every=0)
    assert all(block.notes.layer_query is None for block in none.stack.blocks)


@pytest.mark.parametrize("block", [16, 512])
def test_importance_learns_from_far_positions(block, monkeypatch):
    """Also where the question stands blocks later: as long as the note is kept."""
    monkeypatch.setattr(_memory_notes, "_TRAINED_BLOCK", block)
    model, x = build(depth=1, pool_size=3).train(), tokens(4, 40)
    logits, _ = model(x, last=1)
    torch.nn.functional.cross_entropy(logits[:, 0], x[:, 0]).backward()
    gate = model.stack.blocks[0].notes.importance.weight.grad
    assert gate is not None and torch.isfinite(gate).all() and gate.abs().any()


def test_the_notes_cost_few_parameters():
    for name in ("tiny", "small", "130m", "370m", "790m", "1.4b", "2.8b"):
        sizes = [count_parameters(f"{family}_{name}") for family in ("mamba", "memmamba")]
        assert 1.03 < sizes[1] / sizes[0] < 1.15, name


def test_saved_loaded_and_generated(tmp_path):
    model = build(vocab_size=256, note_threshold=0.4, recall_threshold=math.inf)
    model.save(tmp_path / "model")
    again = statescan.load(tmp_path / "model").eval()
    assert again.config == model.config
    x = tokens(1, 20)
    with torch.no_grad():
        assert torch.equal(again(x)[0], model(x)[0])
    (result,) = generate(again, "abc", tokenizer=ByteTokenizer(), max_new_tokens=5, temperature=0.0)
    assert len(result.tokens) == 5
    assert inspect.reads_tokens(again)


@torch.no_grad()
def test_a_tree_of_tokens_is_read_node_by_node():
    model, x = build(), tokens(1, 9)
    _, state = model(x)
    parents, nodes = torch.tensor([-1, 0, 0, 2]), tokens(1, 4)
    logits, trace = model.forward_tree(nodes, parents, state)
    path = [0, 2, 3]
    want, after = model(torch.cat([x, nodes[:, path]], 1))
    torch.testing.assert_close(logits[:, path], want[:, -3:], **CLOSE)
    replayed = model.replay(trace, torch.tensor([path]), state)
    for (name, a), (_, b) in zip(replayed.tensors(), after.tensors(), strict=True):
        torch.testing.assert_close(a, b, **CLOSE, msg=name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(cross_layer_every=-1), "cross_layer_every: blocks, or 0 for none, got -1"),
        (dict(pool_size=0), "pool_size: at least 1, got 0"),
        (dict(overflow="first"), "overflow: unknown 'first'; known: least_important, oldest"),
        (dict(note_threshold=-1), r"note_threshold: from 0 to infinity \(never\), got -1.0"),
        (dict(pools=3), "unknown option 'pools'; nearest: 'pool_size'"),
    ],
)
def test_wrong_options_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        statescan.create_model("memmamba_tiny", **given)


def test_of_the_same_config_by_slug():
    assert build_model("memmamba", SMALL).config.note_dim is None
