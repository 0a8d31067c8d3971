"""Baselines of language modelling: they must be right to be worth beating."""

import math

import pytest

from statescan.tasks.baselines import compressor_bits_per_byte, ngram_bits_per_byte


def _slow_ngram(text, held_out, order):
    """Witten-Bell by dictionaries, a byte at a time."""
    counts = {}
    for length in range(order):
        for i in range(length, len(text)):
            followers = counts.setdefault(text[i - length : i], {})
            followers[text[i]] = followers.get(text[i], 0) + 1
    bits, whole = 0.0, text + held_out
    for i in range(len(text), len(whole)):
        p = 1 / 256
        for length in range(order):
            followers = counts.get(whole[i - length : i], {})
            n, kinds = sum(followers.values()), len(followers)
            if n:
                p = (followers.get(whole[i], 0) + kinds * p) / (n + kinds)
        bits -= math.log2(p)
    return bits / len(held_out)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngram_agrees_with_the_definition(order):
    text, held_out = b"the cat sat on the mat, and the rat sat on the cat. " * 3, b"the dog sat on the rat\xff\x00!"
    assert ngram_bits_per_byte(text, held_out, order=order) == pytest.approx(_slow_ngram(text, held_out, order))


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
