"""What a language model must beat: compressors, and a table of n-grams."""

from __future__ import annotations

import bz2
import lzma

import numpy as np


def compressor_bits_per_byte(text: bytes, held_out: bytes, *, name: str) -> float:
    """Bits that a compressor needs for a byte of `held_out` once it has seen `text`.

    Arguments:
        text: what comes before.
        held_out: what is coded, at least one byte.
        name: ``bz2`` or ``xz``.
    """
    compress = {"bz2": lambda data: bz2.compress(data, 9), "xz": lambda data: lzma.compress(data, preset=9)}
    if name not in compress:
        raise ValueError(f"name: unknown compressor {name!r}; known: bz2, xz")
    if not held_out:
        raise ValueError("held_out: empty text")
    extra = len(compress[name](text + held_out)) - len(compress[name](text))
    return 8 * extra / len(held_out)


def ngram_bits_per_byte(text: bytes, held_out: bytes, *, order: int = 8) -> float:
    """Bits a byte under an n-gram model of bytes with interpolated, modified Kneser-Ney smoothing, counted on `text`.

    Chen and Goodman 1999, section 4.1: a gram that occurred once, twice, or more often gives up one of three discounts,
    and what a context's grams gave up weighs the shorter context's prediction. Shorter grams count the different bytes
    before them, not their occurrences. The shortest prediction is uniform over 256 bytes.

    Arguments:
        text: what is counted.
        held_out: what is predicted, each byte from those before it.
        order: longest context plus one, at most 8.
    """
    if not 1 <= order <= 8:
        raise ValueError(f"order: between 1 and 8, got {order}")
    if not text or not held_out:
        raise ValueError("text, held_out: empty text")
    order = min(order, len(text))
    seen = np.frombuffer(text, dtype=np.uint8).astype(np.uint64)
    before = text[len(text) - order + 1 :]
    after = np.frombuffer(before + held_out, dtype=np.uint8).astype(np.uint64)
    probability = np.full(len(held_out), 1 / 256)
    for length in range(order):  # bytes of context
        grams = _windows(seen, length + 1)
        if length < order - 1:
            grams = np.unique(_windows(seen, length + 2)) & np.uint64((1 << 8 * (length + 1)) - 1)
        unique, counts = np.unique(grams, return_counts=True)
        discounts = _discounts(counts)
        contexts, number = np.unique(unique >> np.uint64(8) if length else 0 * unique, return_inverse=True)
        total = np.bincount(number, counts)
        given_up = np.bincount(number, discounts[np.minimum(counts, 3)])
        asked = _windows(after, length + 1)[len(before) - length :]
        context = asked >> np.uint64(8) if length else 0 * asked
        count = _look_up(unique, counts, asked)
        occurred, weight = _look_up(contexts, total, context), _look_up(contexts, given_up, context)
        kept = count - discounts[np.minimum(count, 3).astype(int)]
        mixed = (kept + weight * probability) / np.where(occurred > 0, occurred, 1)
        probability = np.where(occurred > 0, mixed, probability)
    return float(-np.log2(probability).mean())


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What grams that occurred 0, 1, 2, and 3 or more times give up; 1/2 where too few occurred seldom to tell."""
    once, twice, thrice, four_times = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return np.array([0, 0.5, 0.5, 0.5])
    share = once / (once + 2 * twice)
    told = [1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four_times / thrice]
    # Never all of a count, so that no gram that was seen loses its own evidence.
    return np.array([0, *np.clip(told, 0.05, [0.95, 1.95, 2.95])])


def _windows(values: np.ndarray, length: int) -> np.ndarray:
    """Every run of `length` bytes as one number, the last byte lowest."""
    packed = np.zeros(max(0, len(values) - length + 1), dtype=np.uint64)
    for offset in range(length):
        packed = (packed << np.uint64(8)) | values[offset : offset + len(packed)]
    return packed


def _look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0).astype(np.float64)
