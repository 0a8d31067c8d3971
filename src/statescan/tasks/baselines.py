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


def ngram_bits_per_byte(text: bytes, held_out: bytes, *, order: int = 6) -> float:
    """Bits a byte under an interpolated n-gram model of bytes, counted on `text`.

    Witten and Bell 1991, method C: a context that was followed by T different bytes in n occurrences gives the shorter
    context's prediction the weight T / (n + T). The shortest is uniform over 256 bytes.

    Arguments:
        text: what is counted.
        held_out: what is predicted, each byte from those before it.
        order: longest context plus one, at most 8.
    """
    if not 1 <= order <= 8:
        raise ValueError(f"order: between 1 and 8, got {order}")
    if not text or not held_out:
        raise ValueError("text, held_out: empty text")
    seen = np.frombuffer(text, dtype=np.uint8).astype(np.uint64)
    after = np.frombuffer(text[-(order - 1) :] + held_out if order > 1 else held_out, dtype=np.uint8).astype(np.uint64)
    skip = len(after) - len(held_out)
    probability = np.full(len(held_out), 1 / 256)
    for length in range(order):  # bytes of context
        grams, contexts = _windows(seen, length + 1), _windows(seen[:-1], length) if length else None
        unique, counts = np.unique(grams, return_counts=True)
        asked = _windows(after, length + 1)[skip - length :]
        count = _look_up(unique, counts, asked)
        if contexts is None:
            total, kinds = np.float64(len(seen)), np.float64(len(unique))
        else:
            parents, totals = np.unique(contexts, return_counts=True)
            first, kinds_of = np.unique(unique >> np.uint64(8), return_counts=True)
            context = asked >> np.uint64(8)
            total, kinds = _look_up(parents, totals, context), _look_up(first, kinds_of, context)
        weight = total + kinds
        known = weight > 0
        mixed = (count + kinds * probability) / np.where(known, weight, 1)
        probability = np.where(known, mixed, probability)
    return float(-np.log2(probability).mean())


def _windows(values: np.ndarray, length: int) -> np.ndarray:
    """Every run of `length` bytes as one number, the last byte lowest."""
    packed = np.zeros(max(0, len(values) - length + 1), dtype=np.uint64)
    for offset in range(length):
        packed = (packed << np.uint64(8)) | values[offset : offset + len(packed)]
    return packed


def _look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0).astype(np.float64)
