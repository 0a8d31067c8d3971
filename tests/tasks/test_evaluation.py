"""Bits per byte and perplexity against sums written out, for every way of walking through the text."""

from __future__ import annotations

import math

import pytest
import torch

from statescan.checkpoints import ByteTokenizer
from statescan.tasks._likelihood import likelihoods
from statescan.tasks.evaluation import evaluate_language
from tests.generation import _models

TEXT = "Ein Häuschen, and a long enough story — told in bytes. " * 3


@pytest.fixture(params=_models.NAMES)
def model(request):
    return _models.build(request.param)


def nats_of(model, tokens: list[int]) -> list[float]:
    """Negative log-probability of each token but the first, from one forward call."""
    with torch.no_grad():
        logits, _ = model(torch.tensor([tokens]))
    log_probabilities = logits[0, :-1].double().log_softmax(-1)
    return [-float(row[token]) for row, token in zip(log_probabilities, tokens[1:], strict=True)]


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_stateful_is_one_forward_over_everything(model, chunk):
    nats = nats_of(model, ByteTokenizer().encode(TEXT))
    score = evaluate_language(model, TEXT, tokenizer=ByteTokenizer(), chunk=chunk)
    assert score.tokens == score.bytes == len(nats)
    # float32 logits, the same sums in another order
    assert score.log_likelihood == pytest.approx(-sum(nats), rel=1e-4)
    assert score.bits_per_byte == pytest.approx(sum(nats) / len(nats) / math.log(2), rel=1e-4)
    assert score.perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-3)
    assert score.as_dict()["bits_per_byte"] == score.bits_per_byte


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (16, 1), (50, None), (10_000, None)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_strided_scores_each_token_once_with_context_enough(model, window, stride, batch_size):
    tokens = ByteTokenizer().encode(TEXT)
    total, end = 0.0, min(window, len(tokens) - 1)
    total += sum(nats_of(model, tokens[: end + 1]))
    while end < len(tokens) - 1:
        new = min(stride or window // 2, len(tokens) - 1 - end)
        end += new
        total += sum(nats_of(model, tokens[end - window : end + 1])[-new:])
    score = evaluate_language(
        model, TEXT, tokenizer=ByteTokenizer(), mode="strided", window=window, stride=stride, batch_size=batch_size
    )
    assert score.tokens == len(tokens) - 1
    assert score.log_likelihood == pytest.approx(-total, rel=1e-4)


def test_a_begin_token_lets_the_first_byte_count(model):
    score = evaluate_language(model, TEXT, tokenizer=ByteTokenizer(), begin_token=0)
    assert score.bytes == score.tokens == len(TEXT.encode())
    assert score.log_likelihood == pytest.approx(-sum(nats_of(model, [0, *TEXT.encode()])), rel=1e-4)


class Pairs:
    """Tokens of two letters each, to see bytes and tokens counted apart."""

    vocab_size = 256

    def encode(self, text):
        return [ord(a) % 16 * 16 + ord(b) % 16 for a, b in zip(text[::2], text[1::2], strict=True)]

    def decode(self, tokens):
        return "xy" * len(tokens)


def test_bytes_are_those_of_the_text_and_tokens_those_of_the_tokenizer():
    model = _models.build("mock")
    score = evaluate_language(model, "abcdefgh", tokenizer=Pairs())
    assert (score.tokens, score.bytes) == (3, 6)
    assert score.bits_per_byte == pytest.approx(score.tokens * math.log2(score.perplexity) / score.bytes)


@pytest.mark.parametrize("chunk", [1, 3, 5, 1000])
def test_sequences_of_unequal_lengths_are_scored_as_if_alone(model, chunk):
    sequences = [[1, 2, 3], [4], list(range(20)), [7, 7], [9, 8, 7, 6]]
    together = likelihoods(model, sequences, chunk=chunk)
    for sequence, result in zip(sequences, together, strict=True):
        expected = -sum(nats_of(model, sequence)) if len(sequence) > 1 else 0.0
        assert result.log_likelihood == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_greedy_says_whether_each_token_is_the_most_probable():
    model = _models.build("mock")
    tokens = [5]
    for _ in range(6):
        tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
    wrong = [*tokens[:-1], (tokens[-1] + 1) % 256]
    assert [result.greedy for result in likelihoods(model, [tokens, wrong])] == [True, False]


def test_a_state_given_is_the_context(model):
    with torch.no_grad():
        _, state = model(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    results = likelihoods(model, [[7, 8, 9], [1, 2]], state)
    for context, sequence, result in zip([[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [1, 2]], results, strict=True):
        nats = nats_of(model, context + sequence)[3:]
        assert result.log_likelihood == pytest.approx(-sum(nats), rel=1e-4)


class Larger(ByteTokenizer):
    """Has more tokens than the model."""

    vocab_size = 1000


BAD = [
    ({"text": ""}, "text: it is empty; there is nothing to evaluate"),
    ({"text": "a"}, "text: 'a' is a single token, and a first token is not scored; give more text or a begin_token"),
    ({"mode": "sliding"}, "mode: expected one of stateful, strided, got 'sliding'"),
    ({"mode": "strided", "window": 0}, "window: expected at least 1 token, got 0"),
    ({"mode": "strided", "window": 8, "stride": 9}, r"stride: expected 1 to 8 \(the window\), got 9"),
    ({"mode": "strided", "batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ({"chunk": 0}, "chunk: expected at least 1 token, got 0"),
    ({"tokenizer": Larger()}, "tokenizer: it has 1,000 tokens, the model embeds 256; give the tokenizer"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_named(arguments, message):
    arguments = {"text": TEXT, "tokenizer": ByteTokenizer(), **arguments}
    with pytest.raises(ValueError, match=message):
        evaluate_language(_models.build("mock"), **arguments)
