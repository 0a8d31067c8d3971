"""Sampling against the logits processors of `transformers`, and its own promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as theirs

from statescan import generation

BATCH, VOCABULARY = 6, 50


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(BATCH, VOCABULARY, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, 9), generator=torch.Generator().manual_seed(1))


def seen_in(tokens: Tensor) -> Tensor:
    return torch.zeros(len(tokens), VOCABULARY, dtype=torch.bool).scatter(1, tokens, True)


SINGLE = [
    *((generation.keep_top_k, k, theirs.TopKLogitsWarper(k)) for k in (1, 5, 50)),
    *((generation.keep_top_p, p, theirs.TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.9, 0.999)),
    *((generation.keep_min_p, p, theirs.MinPLogitsWarper(p)) for p in (0.05, 0.5, 1.0)),
]


@pytest.mark.parametrize(("ours", "value", "oracle"), SINGLE)
def test_filters_keep_the_same_tokens_as_transformers(ours, value, oracle, logits, tokens):
    torch.testing.assert_close(ours(logits, value), oracle(tokens, logits.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_penalty_equals_transformers(penalty, logits, tokens):
    oracle = theirs.RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits.clone())
    torch.testing.assert_close(generation.penalize_repetition(logits, seen_in(tokens), penalty), oracle, rtol=0, atol=0)


def test_all_together_in_the_order_of_transformers(logits, tokens):
    config = generation.SamplingConfig(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.5)
    expected = logits.clone()
    for processor in (
        theirs.RepetitionPenaltyLogitsProcessor(1.5),
        theirs.TemperatureLogitsWarper(0.7),
        theirs.TopKLogitsWarper(20),
        theirs.TopPLogitsWarper(0.8),
        theirs.MinPLogitsWarper(0.05),
    ):
        expected = processor(tokens, expected)
    processed = generation.process_logits(logits, config, seen_in(tokens))
    torch.testing.assert_close(processed.softmax(-1), expected.softmax(-1))


def test_the_nucleus_of_a_wide_vocabulary_equals_sorting_it_all():
    logits = 2 * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(3))
    oracle = theirs.TopPLogitsWarper(0.9)(torch.empty(0), logits.clone())
    differing = (generation.keep_top_p(logits, 0.9).isinf() != oracle.isinf()).sum()
    assert differing <= 3  # both sum 20,000 floats; the last token of the nucleus may differ by rounding


def test_samples_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    logits = probabilities.log().expand(20_000, 4)
    drawn = generation.sample(logits, [0] * 20_000, range(20_000))
    frequencies = torch.bincount(drawn, minlength=4) / 20_000
    assert frequencies[1] == 0
    # four standard deviations of a frequency over 20,000 draws
    torch.testing.assert_close(frequencies, probabilities, rtol=0, atol=4 * math.sqrt(0.25 / 20_000))


def test_a_random_number_depends_on_seed_and_count_alone():
    numbers = [generation.uniform(seed, count) for seed in range(3) for count in range(3)]
    assert len(set(numbers)) == 9
    assert all(0 <= number < 1 for number in numbers)
    assert numbers == [generation.uniform(seed, count) for seed in range(3) for count in range(3)]
    assert generation.uniform(0, 0) == 0.3859926107094097  # a promise: stored states rely on it


def test_greedy_takes_the_largest_whatever_the_filters(logits):
    config = generation.SamplingConfig(temperature=0, top_k=3)
    assert torch.equal(generation.next_tokens(logits, config), logits.argmax(-1))


BAD = [
    ({"temperature": -0.1}, ValueError, r"temperature: expected a finite number >= 0 \(0 is greedy\), got -0.1"),
    ({"temperature": math.nan}, ValueError, "temperature: .* got nan"),
    ({"top_k": 0}, ValueError, "top_k: expected at least 1, or None to keep all tokens, got 0"),
    ({"top_k": 1.5}, TypeError, "top_k: expected an int or None, got 1.5"),
    ({"top_p": 0}, ValueError, r"top_p: expected a probability in \(0, 1\], got 0"),
    ({"top_p": 1.5}, ValueError, r"top_p: expected a probability in \(0, 1\], got 1.5"),
    ({"min_p": -1}, ValueError, r"min_p: expected a probability in \[0, 1\], got -1"),
    ({"repetition_penalty": 0}, ValueError, r"repetition_penalty: expected a finite number > 0 \(1 is none\), got 0"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        generation.SamplingConfig(**arguments)
