"""Streams of tokens, and the batches that orders cut from them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from statescan.data import (
    IGNORED,
    ContinuedOrder,
    SequentialOrder,
    ShuffledOrder,
    TextPiece,
    TokenBatches,
    TokenStream,
    fingerprint,
    tokenize,
    write_tokens,
)

PIECES = [TextPiece("one ", True), TextPiece("more", False), TextPiece("é", True)]


def stream(length: int, starts=(0,)) -> TokenStream:
    return TokenStream(np.arange(length, dtype=np.uint16), np.array(starts, np.int64))


def test_bytes_and_where_documents_begin():
    tokens = tokenize(PIECES)
    assert bytes(tokens.tokens) == "one moreé".encode()
    assert tokens.starts.tolist() == [0, 8]
    assert tokens.tokens.dtype == np.uint8


def test_a_tokenizer_and_end_tokens():
    tokens = tokenize(PIECES, encode=lambda text: [len(text)], vocab_size=300, end_token=299)
    assert tokens.tokens.tolist() == [4, 4, 299, 1, 299]
    assert tokens.starts.tolist() == [0, 3]
    assert tokens.tokens.dtype == np.uint16


@pytest.mark.parametrize(("token", "message"), [(300, "token 300, outside the vocabulary of 300"), (-1, "token -1")])
def test_tokens_outside_the_vocabulary_are_named(token, message):
    with pytest.raises(ValueError, match=message):
        tokenize(PIECES, encode=lambda text: [token], vocab_size=300)


def test_an_end_token_must_be_in_the_vocabulary():
    with pytest.raises(ValueError, match="end_token: expected 0 to 255, got 256"):
        tokenize(PIECES, end_token=256)


def test_written_tokens_are_those_in_memory(tmp_path):
    settings = {"encode": lambda text: [ord(letter) for letter in text], "vocab_size": 70_000, "end_token": 7}
    plain, mapped = tokenize(PIECES, **settings), write_tokens(tmp_path / "new" / "cache", PIECES, **settings)
    assert isinstance(mapped.tokens, np.memmap)
    assert mapped.tokens.dtype == plain.tokens.dtype == np.uint32
    assert np.array_equal(plain.tokens, mapped.tokens)
    assert np.array_equal(plain.starts, mapped.starts)
    # A folder that is there is not written again.
    assert np.array_equal(write_tokens(tmp_path / "new" / "cache", []).tokens, plain.tokens)


def test_an_interrupted_cache_leaves_nothing(tmp_path):
    def interrupted():
        yield PIECES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "cache", interrupted())
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache: cannot write .*cache.: "):
        write_tokens(tmp_path / "file" / "cache", PIECES)


def test_fingerprints_tell_sources_and_settings_apart(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    first = fingerprint([path], tokenizer="bytes")
    assert first == fingerprint([path], tokenizer="bytes")
    assert first != fingerprint([path], tokenizer="other")
    path.write_text("b")
    os.utime(path, ns=(1, 1))
    assert first != fingerprint([path], tokenizer="bytes")


def test_split_keeps_documents():
    before, behind = stream(10, (0, 4, 6)).split(5)
    assert before.tokens.tolist() == [0, 1, 2, 3, 4]
    assert before.starts.tolist() == [0, 4]
    assert behind.tokens.tolist() == [5, 6, 7, 8, 9]
    assert behind.starts.tolist() == [1]


# -- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "length", "batch_size"), [(101, 10, 3), (11, 10, 2), (1000, 7, 8)])
def test_shuffled_order_reads_every_window_once_an_epoch(tokens, length, batch_size):
    order = ShuffledOrder(tokens, length, batch_size, seed=1)
    steps = 3 * order.windows
    positions = np.concatenate([order.positions(step) for step in range(steps)])
    for epoch in range(3):
        cut = np.sort(positions[epoch * order.windows : (epoch + 1) * order.windows])
        assert (np.diff(cut) == length).all()
        assert cut[0] >= 0
        assert cut[-1] + length + 1 <= tokens
    if order.windows > 20:
        assert not np.array_equal(positions[: order.windows], positions[order.windows : 2 * order.windows])


def test_orders_are_pure_functions_of_seed_and_step():
    first, again, other = (ShuffledOrder(5000, 16, 4, seed=seed) for seed in (1, 1, 2))
    for step in (700, 3, 250):
        assert np.array_equal(first.positions(step), again.positions(step))
        assert not np.array_equal(first.positions(step), other.positions(step))


def test_continued_order_goes_on_where_the_row_stood():
    order = ContinuedOrder(200, 10, 3)
    assert order.steps == 6
    for step in range(13):
        assert order.fresh(step) == (step % 6 == 0)
        if not order.fresh(step):
            assert np.array_equal(order.positions(step), order.positions(step - 1) + 10)


@pytest.mark.parametrize("order", [ContinuedOrder(205, 10, 3, repeat=False), SequentialOrder(205, 10, 3)])
def test_every_token_but_the_first_is_asked_once_in_validation(order):
    batches = TokenBatches(stream(205), order, length=10, resets=False, last=order.steps)
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert sorted(targets[targets != IGNORED].tolist()) == list(range(1, 205))


@pytest.mark.parametrize(
    ("order", "arguments", "message"),
    [
        (ShuffledOrder, (10, 10, 1), "10 tokens are not enough for a sequence of 10"),
        (ContinuedOrder, (30, 10, 3), "30 tokens are not enough for 3 rows of 10"),
    ],
)
def test_too_little_text_is_named(order, arguments, message):
    with pytest.raises(ValueError, match=message):
        order(*arguments)


# -- batches ----------------------------------------------------------------------------------------------------------


def test_targets_follow_tokens_and_documents_reset():
    order = SequentialOrder(12, 6, 2)
    batch = TokenBatches(stream(12, (0, 3, 6, 11)), order, length=6).batch(0)
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    none = IGNORED
    assert batch.targets.tolist() == [[1, 2, none, 4, 5, none], [7, 8, 9, 10, none, none]]
    assert batch.resets.nonzero().tolist() == [[0, 0], [0, 3], [1, 0], [1, 5]]


def test_joined_documents_have_no_resets():
    batch = TokenBatches(stream(12, (0, 3)), SequentialOrder(12, 6, 2), length=6, resets=False).batch(0)
    assert batch.resets is None
    assert batch.targets[0].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("order", [ShuffledOrder(999, 8, 4, seed=5), ContinuedOrder(999, 8, 4)])
def test_processes_share_a_batch_and_resume_in_its_midst(order):
    def batches(**settings):
        iterator = iter(TokenBatches(stream(999), order, length=8, **settings))
        return [next(iterator) for _ in range(5)]

    whole, late = batches(), batches(first=3)
    shares = [batches(rank=rank, world=2) for rank in range(2)]
    for step in range(5):
        joined = torch.cat([share[step].tokens for share in shares])
        assert torch.equal(whole[step].tokens, joined)
    assert torch.equal(whole[3].tokens, late[0].tokens)
    assert whole[3].fresh == late[0].fresh


def test_processes_must_share_evenly():
    with pytest.raises(ValueError, match="3 rows cannot be shared evenly by 2 processes"):
        TokenBatches(stream(99), SequentialOrder(99, 8, 3), length=8, world=2)
