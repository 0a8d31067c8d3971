"""Baselines of language modelling: they must be right to be worth beating."""

import math
from collections import Counter

import pytest

from statescan.tasks.baselines import compressor_bits_per_byte, ngram_bits_per_byte

TEXT = b"the cat sat on the mat, and the rat sat on the cat; a bat ate the hat that sat on the mat. " * 3
HELD_OUT = b"the dog sat on the rat\xff\x00!"


def _slow_ngram(text, held_out, order):
    """Modified Kneser-Ney by dictionaries, a byte at a time."""
    tables = []
    for n in range(1, order + 1):
        if n == order:
            counts = Counter(text[i : i + n] for i in range(len(text) - n + 1))
        else:
            counts = Counter(gram[1:] for gram in {text[i : i + n + 1] for i in range(len(text) - n)})
        of = Counter(counts.values())
        discounts = [0, 0.5, 0.5, 0.5]
        if of[1] and of[2] and of[3]:
            y = of[1] / (of[1] + 2 * of[2])
            discounts = [0] + [k - (k + 1) * y * of[k + 1] / of[k] for k in (1, 2, 3)]
            discounts = [min(max(d, 0.05), k - 0.05) if k else 0 for k, d in enumerate(discounts)]
        tables.append((counts, discounts))

    def probability(history, byte):
        p = 1 / 256
        for n, (counts, discounts) in enumerate(tables):
            context = history[len(history) - n :]
            followers = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == context}
            if not followers:
                continue
            c = followers.get(byte, 0)
            given_up = sum(discounts[min(c, 3)] for c in followers.values())
            p = (c - discounts[min(c, 3)] + given_up * p) / sum(followers.values())
        return p

    whole = text + held_out
    for end in (len(text), len(text) + 5):  # it is a distribution
        assert sum(probability(whole[:end], byte) for byte in range(256)) == pytest.approx(1)
    return -sum(math.log2(probability(whole[:i], whole[i])) for i in range(len(text), len(whole))) / len(held_out)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngrams_agree_with_the_definition(order):
    assert ngram_bits_per_byte(TEXT, HELD_OUT, order=order) == pytest.approx(_slow_ngram(TEXT, HELD_OUT, order))


def test_ngrams_of_a_text_shorter_than_the_order():
    assert 0 < ngram_bits_per_byte(b"ab", b"abab", order=8) < 8.1


def test_what_repeats_costs_little():
    text = bytes(range(32, 90)) * 40
    for name in ("bz2", "xz"):
        assert compressor_bits_per_byte(text, text, name=name) < 0.5
    assert ngram_bits_per_byte(text, text, order=3) < 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ngram_bits_per_byte(b"abc", b"", order=2), "empty text"),
        (lambda: ngram_bits_per_byte(b"abc", b"abc", order=9), "between 1 and 8, got 9"),
        (lambda: compressor_bits_per_byte(b"abc", b"abc", name="zip"), "unknown compressor 'zip'; known: bz2, xz"),
        (lambda: compressor_bits_per_byte(b"abc", b"", name="xz"), "empty text"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
