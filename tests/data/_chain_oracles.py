"""Readers that solve the copying and chain-of-thought tasks from their questions alone, in plain Python."""

from __future__ import annotations

import itertools
from functools import cache

BOS, SEP, EQ, EOS, SYMBOL = 1, 2, 3, 4, 10


def _from(place: int, answers: list[int]) -> dict[int, int]:
    return {place + index: token for index, token in enumerate(answers)}


def copied(tokens: list[int], **_: int) -> dict[int, int]:
    end = tokens.index(SEP)
    return _from(end, tokens[1:end])


def last_occurrence(tokens: list[int], **_: int) -> dict[int, int]:
    end = tokens.index(SEP)
    pairs = dict(zip(tokens[1:end:2], tokens[2:end:2], strict=True))
    return {end + 1: pairs[tokens[end + 1]]}


def prefix_lookup(tokens: list[int], *, piece: int, **_: int) -> dict[int, int]:
    end = tokens.index(SEP)
    string, wanted = tokens[1:end], tokens[end + 1 : end + 1 + piece]
    place = max(i for i in range(len(string) - piece) if string[i : i + piece] == wanted)
    return {end + piece: string[place + piece]}


def longest_increasing(tokens: list[int], **_: int) -> dict[int, int]:
    end = tokens.index(EQ)
    values = tokens[1:end]

    @cache
    def length(i: int) -> int:
        return 1 + max((length(j) for j in range(i) if values[j] < values[i]), default=0)

    lengths = [length(i) for i in range(len(values))]
    best = max(
        size
        for size in range(1, len(values) + 1)
        if any(all(a < b for a, b in itertools.pairwise(part)) for part in itertools.combinations(values, size))
    )
    return _from(end, [SYMBOL + n for n in [*lengths, best]])


def edit_distance(tokens: list[int], *, symbols: int, **_: int) -> dict[int, int]:
    end, middle = tokens.index(EQ), tokens.index(SEP)
    s, t = tokens[1:middle], tokens[middle + 1 : end]

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (s[i - 1] != t[j - 1]))

    answers = []
    for i in range(len(s) + 1):
        answers += [SYMBOL + symbols + distance(i, j) for j in range(len(t) + 1)] + [SEP]
    return _from(end, [*answers, SYMBOL + symbols + distance(len(s), len(t))])


def arithmetic(tokens: list[int], *, modulus: int, length: int) -> dict[int, int]:
    letters = dict(zip(range(5, 10), "+-*()", strict=True))

    def text(part: list[int]) -> str:
        return "".join(letters.get(token, f" {token - SYMBOL} ") for token in part)

    end = tokens.index(EQ)
    value = eval(text(tokens[1:end]), {"__builtins__": {}}) % modulus
    lines = [list(group) for is_mark, group in itertools.groupby(tokens[1:], lambda t: t == EQ) if not is_mark]
    # Every line has the same value and four tokens fewer, the parts before and after the bracket unchanged.
    for before, after in itertools.pairwise(lines):
        assert len(before) == len(after) + 4
        assert eval(text(after), {"__builtins__": {}}) % modulus == value
    assert len(lines) == length + 1
    return _from(end, [*tokens[end + 1 : len(tokens) - 1], SYMBOL + value])


def local_program(tokens: list[int], *, weights: tuple[int, ...], modulus: int, **_: int) -> dict[int, int]:
    done: list[int] = []
    answers = {}
    for place in range(1, len(tokens), 2):
        value = tokens[place] - SYMBOL + sum(w * y for w, y in zip(weights, reversed(done), strict=False))
        done.append(value % modulus)
        answers[place] = SYMBOL + value % modulus
    return answers


ORACLES = {
    "arithmetic": arithmetic,
    "edit_distance": edit_distance,
    "last_occurrence": last_occurrence,
    "local_program": local_program,
    "longest_increasing": longest_increasing,
    "prefix_lookup": prefix_lookup,
    "string_copy": copied,
}
