"""LongMamba: rules of filtering, calibration, and models that filter while they read and generate."""

from __future__ import annotations

import math
import os

import pytest
import torch
import torch.nn.functional as F

from statescan.generation import (
    LongContext,
    LongContextTable,
    ModelDraft,
    align_thresholds,
    calibrate_long_context,
    generate,
    token_filters,
)
from statescan.layers import Mamba, Mamba2
from tests.generation import _models

NAMES = ["mamba_tiny", "mamba2_tiny", "hybrid_tiny"]
LENGTH = 16


def steps(batch=1, length=45, channels=6, seed=0):
    return F.softplus(torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(seed)) - 2)


def table_of(model, **options):
    sequences = torch.randint(256, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    return calibrate_long_context(model, list(sequences), **options)


def remembering(name):
    """A model whose channels decay so slowly that they are global."""
    model = _models.build(name)
    for module in model.modules():
        if isinstance(module, (Mamba, Mamba2)):
            torch.nn.init.constant_(module.A_log, math.log(0.5))
            torch.nn.init.uniform_(module.delta_bias, -4, -2, generator=torch.Generator().manual_seed(0))
    return model


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_rules_keep_what_they_say():
    given = steps()
    kept = token_filters.keep_above(given, torch.full((6,), 0.1))
    assert torch.equal(kept, given > 0.1)
    assert token_filters.keep_top_share(given, torch.full((6,), 0.2)).sum(1).tolist() == [[9] * 6]
    assert token_filters.keep_top_share(given, torch.full((6,), 3.0)).all()
    budget = token_filters.keep_within_budget(given, torch.full((6,), 1.0))
    sums = (given * budget).sum(1)
    assert (sums <= 1.0).all()
    assert (sums + given.masked_fill(budget, 0).amax(1) > 1.0).all()  # the next one would not fit
    mask, limits = token_filters.keep_from_rank(given, torch.full((6,), 0.2))
    assert mask.sum(1).tolist() == [[10] * 6]
    assert torch.equal(mask, given >= limits[:, None])
    torch.testing.assert_close(
        token_filters.scale_to_budget(given, torch.full((6,), 2.0)).sum(1), torch.full((1, 6), 2.0)
    )
    assert token_filters.keep_top_k_channelwise(given, 15).sum(1).tolist() == [[15] * 6]
    tokens = token_filters.top_tokens_by_norm(given, 5)[0].tolist()
    assert tokens == sorted(given[0].norm(dim=1).topk(5).indices.tolist())


@pytest.mark.parametrize("batch", [1, 3])
def test_rules_keep_the_tail(batch):
    given = steps(batch)
    share, budget = torch.full((6,), 0.1), torch.full((6,), 0.5)
    masks = [
        token_filters.keep_above(given, budget, keep_tail=4),
        token_filters.keep_top_k_channelwise(given, 5, keep_tail=4),
        token_filters.keep_top_share(given, share, keep_tail=4),
        token_filters.keep_within_budget(given, budget, keep_tail=4),
        token_filters.keep_from_rank(given, share, keep_tail=4)[0],
    ]
    for mask in masks:
        assert mask.shape == given.shape
        assert mask[:, -4:].all()
        assert not mask.all()
    scaled = token_filters.scale_to_budget(given, budget, keep_tail=4)
    assert torch.equal(scaled[:, -4:], given[:, -4:])
    assert token_filters.top_tokens_by_norm(given, 5, keep_tail=4)[:, -4:].tolist() == [[41, 42, 43, 44]] * batch


# ---- calibration -----------------------------------------------------------------------------------------------------


def test_the_steps_kept_of_a_longer_sequence_sum_to_the_budget():
    train = steps(length=20_000, channels=8)[0]
    A = -torch.linspace(0.01, 0.1, 8)
    found = align_thresholds(train, A, train_length=20_000, lengths=(10_000, 20_000, 40_000, 80_000), clamp_top=1e-4)
    assert found.threshold[:2].eq(0).all()
    assert found.share[:2].eq(1).all()
    torch.testing.assert_close(found.log_decay, found.budget * A)
    for row, length in ((2, 40_000), (3, 80_000)):
        longer = steps(length=length, channels=8, seed=1)
        kept = (longer * token_filters.keep_above(longer, found.threshold[row])).sum(1)[0]
        assert ((kept / found.budget - 1).abs() < 0.1).all()
        assert (found.share[row] < 0.5).all()


def test_clamped_steps_count_as_the_limit():
    train = steps(length=400, channels=8)[0]
    plain, clamped = (
        align_thresholds(train, -torch.ones(8), train_length=400, lengths=(800,), clamp_top=top) for top in (1e-4, 0.2)
    )
    limit = train.sort(dim=0, descending=True).values[79]
    torch.testing.assert_close(clamped.budget, torch.minimum(train, limit).sum(0))
    assert (clamped.budget < plain.budget).all()
    assert (clamped.threshold <= limit).all()


def test_tables_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    model = remembering("hybrid_tiny")
    table = table_of(model, clamp_top=0.2)
    assert table.lengths[0] == 8
    assert table.lengths[-1] == 96 * LENGTH
    assert table.train_length == LENGTH
    path = table.save(tmp_path)
    assert path == tmp_path / "longmamba.safetensors"
    back = LongContextTable.load(tmp_path)
    assert (back.lengths, back.train_length, back.clamp_top, back.sequences) == (table.lengths, LENGTH, 0.2, 3)
    for combination, mixers in table.mixers.items():
        for name, channels in mixers.items():
            for field in ("log_decay", "budget", "share", "threshold"):
                assert torch.equal(getattr(back.mixers[combination][name], field), getattr(channels, field))
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        table.save(tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_largest_of_all_sequences_is_stored_too():
    table = table_of(remembering("mamba2_tiny"))
    for name, mean in table.mixers["average"].items():
        most = table.mixers["max"][name]
        assert (most.threshold >= mean.threshold).all()
        assert (most.log_decay >= mean.log_decay - 1e-5).all()


# ---- filtered models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_short_texts_and_local_channels_are_left_exactly_alone(name):
    model = remembering(name)
    table = table_of(model)
    tokens = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(1))
    want, _ = model(tokens)
    for context, length in (
        (LongContext(table), LENGTH),
        (LongContext(table), int(1.4 * LENGTH)),
        (LongContext(table, decay_threshold=1.0), 40),
        (LongContext(table, scale=0.0), 40),
    ):
        with context.applied(model, [length]):
            assert torch.equal(model(tokens)[0], want)
    with LongContext(table).applied(model, [40]):
        assert not torch.equal(model(tokens)[0], want)
    assert torch.equal(model(tokens)[0], want)  # the filter is gone afterwards


@pytest.mark.parametrize("build", [lambda: Mamba(16, state_dim=4), lambda: Mamba2(16, state_dim=8, head_dim=8)])
@torch.no_grad()
def test_a_filtered_token_passes_the_state_by(build):
    mixer = build().eval()
    x = torch.randn(2, 9, 16)
    _, state = mixer(x)
    mixer.token_filter = torch.zeros_like
    _, after = mixer(torch.randn(2, 5, 16), state)
    torch.testing.assert_close(after["ssm"], state["ssm"])
    assert not torch.equal(after["conv"], state["conv"])
    _, after = mixer.step(torch.randn(2, 16), state)
    torch.testing.assert_close(after["ssm"], state["ssm"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_chunks_steps_and_trees_filter_alike(name):
    model = remembering(name)
    context = LongContext(table_of(model))
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
    with context.applied(model, [40, 200]):
        whole, _ = model(tokens)
        part, state = model(tokens[:, :30])
        parts = [part]
        for t in range(30, 40):
            y, state = model.step(tokens[:, t], state)
            parts.append(y[:, None])
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-3, atol=1e-3)
        _, before = model(tokens[:, :30])
        tree, _ = model.forward_tree(tokens[:, 30:], torch.arange(-1, 9), before)
        torch.testing.assert_close(tree, whole[:, 30:], rtol=1e-3, atol=1e-3)
    for row, length in enumerate((40, 200)):  # each sequence has the filter of its own length
        with context.applied(model, [length]):
            torch.testing.assert_close(model(tokens[row : row + 1])[0], whole[row : row + 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("during", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_generation_filters_each_prompt_by_its_length(name, during):
    model = remembering(name)
    context = LongContext(table_of(model), generation=during)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(256, (length,), generator=generator).tolist() for length in (10, 40, 90)]
    settings = dict(max_new_tokens=8, temperature=0, long_context=context)
    together = generate(model, prompts, **settings)
    for prompt, result in zip(prompts, together, strict=True):
        (alone,) = generate(model, prompt, prefill_chunk=7, **settings)
        assert alone.tokens == result.tokens
        (drafted,) = generate(model, prompt, draft=ModelDraft(model, depth=2), **settings)
        assert drafted.tokens == result.tokens
        with torch.no_grad(), context.applied(model, [len(prompt)]):
            logits, _ = model(torch.tensor([prompt]), last=1)
        assert result.tokens[0] == int(logits[0, -1].argmax())
    plain = generate(model, prompts, max_new_tokens=8, temperature=0)
    assert plain[0].tokens == together[0].tokens
    assert all(module.token_filter is None for module in model.modules() if hasattr(module, "token_filter"))


def test_a_state_after_a_filtered_prompt_goes_on_with_ordinary_steps():
    model = remembering("mamba2_tiny")
    context = LongContext(table_of(model), generation=False)
    prompt = torch.randint(256, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    settings = dict(temperature=0)
    (whole,) = generate(model, prompt, max_new_tokens=9, long_context=context, **settings)
    (first,) = generate(model, prompt, max_new_tokens=4, long_context=context, keep_states=True, **settings)
    (rest,) = generate(model, state=first.state, max_new_tokens=5, **settings)
    assert first.tokens + rest.tokens == whole.tokens


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: calibrate_long_context(m, []), ValueError, "sequences: none given"),
        (lambda m: table_of(m, train_length=99), ValueError, "the shortest has 16 tokens, of a training length of 99"),
        (lambda m: table_of(m, clamp_top=0), ValueError, "clamp_top: expected a share"),
        (lambda m: table_of(m, lengths=[0, 5]), ValueError, "lengths: expected at least one"),
        (lambda m: table_of(_models.build("transformer_tiny")), ValueError, "has no Mamba or Mamba-2 mixer"),
        (lambda m: LongContext(table_of(m), scale=-1), ValueError, "scale: expected at least 0"),
        (lambda m: LongContext(table_of(m), decay_threshold=-1), ValueError, "decay_threshold: expected at least 0"),
        (
            lambda m: LongContext(table_of(m), combination="sum"),
            ValueError,
            "combination: expected one of average, max",
        ),
        (lambda m: LongContextTable.load("nowhere"), FileNotFoundError, "statescan calibrate longmamba"),
        (
            lambda m: generate(
                m, [1], long_context=LongContext(table_of(_models.build("mamba2_tiny"))), max_new_tokens=1
            ),
            ValueError,
            "the calibration is another model's",
        ),
        (
            lambda m: generate(m, [1], long_context=LongContext(table_of(_models.build("mamba_tiny", depth=3)))),
            ValueError,
            "of 3 mixers, where this one has 2",
        ),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(_models.build("mamba_tiny"))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    _models.build("mamba_tiny").initial_state(1).save(path)
    with pytest.raises(ValueError, match="holds no calibration"):
        LongContextTable.load(path)
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="is no complete safetensors file"):
        LongContextTable.load(path)
