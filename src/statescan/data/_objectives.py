"""Objectives of pre-training, as questions about a text: infill it, copy it, put it in order. Blouir et al. 2024 (Birdie).

An objective is a frozen dataclass. Called with the tokens of a text it gives what a model reads (`inputs`, its prefix) and
what it must then write (`labels`), a pure function of tokens, space, seed and settings. Markers are strings that `encode`
turns into tokens. A text that is too long is cut; one that is too short, or a space too small, gives None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch

from statescan.data._synthetic import IGNORED, SyntheticBatch, at_least

Order = Literal["query_context", "context_query"]
_ORDERS: tuple[Order, ...] = ("context_query", "query_context")

#: Turns a marker into tokens.
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class ObjectiveSample:
    """A question about a text, and its answer.

    Fields:
        inputs: tokens to read; may be empty.
        labels: tokens to write after them; only these are learnt.
        used: how many tokens of the text it is made of, from the text's beginning.
        asked: how many of them are masked, copied out or moved.
    """

    inputs: tuple[int, ...]
    labels: tuple[int, ...]
    used: int
    asked: int

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.inputs) + len(self.labels)


class Objective(Protocol):
    """What every objective can do; those of one `kind` are variants of each other."""

    kind: ClassVar[str]

    def __call__(self, tokens: Sequence[int], *, space: int, seed: int, encode: Encode) -> ObjectiveSample | None:
        """A sample of at most `space` tokens, or None where there is no room for one."""
        ...


@dataclass(frozen=True)
class NextTokens:
    """Write the text, having read nothing."""

    kind: ClassVar[str] = "next_token_prediction"
    paradigm: str = ""

    def __call__(self, tokens: Sequence[int], *, space: int, seed: int, encode: Encode) -> ObjectiveSample | None:
        """See `Objective`."""
        inputs = _marker(self.paradigm, encode)
        labels = tuple(tokens[: max(0, space - len(inputs))])
        return ObjectiveSample(inputs, labels, len(labels), len(labels)) if labels else None


@dataclass(frozen=True)
class PrefixContinuation:
    """Read the first part of a text and write the rest.

    Fields:
        fraction: of the text that is read.
    """

    kind: ClassVar[str] = "prefix_language_modeling"
    fraction: float = 0.75
    paradigm: str = "<|PREFIX LM|>"

    def __post_init__(self) -> None:
        _fraction("fraction", self.fraction)

    def __call__(self, tokens: Sequence[int], *, space: int, seed: int, encode: Encode) -> ObjectiveSample | None:
        """See `Objective`."""
        marker = _marker(self.paradigm, encode)
        used = tuple(tokens[: max(0, space - len(marker))])
        cut = int(len(used) * self.fraction)
        if not 0 < cut < len(used):
            return None
        return ObjectiveSample(marker + used[:cut], used[cut:], len(used), len(used) - cut)


@dataclass(frozen=True)
class TextCopying:
    """Write again what was read."""

    kind: ClassVar[str] = "copying"
    paradigm: str = "<|COPY|>"

    def __call__(self, tokens: Sequence[int], *, space: int, seed: int, encode: Encode) -> ObjectiveSample | None:
        """See `Objective`."""
        marker = _marker(self.paradigm, encode)
        used = tuple(tokens[: max(0, (space - len(marker)) // 2)])
        return ObjectiveSample(marker + used, used, len(used), len(used)) if used else None


@dataclass(frozen=True)
class Deshuffling:
    """Put a text in order again, some of whose tokens changed places with each other.

    Fields:
        fraction: of the tokens that are moved; one may come to stand where it stood.
    """

    kind: ClassVar[str] = "deshuffling"
    fraction: float = 0.75
    paradigm: str = "<|DESHUFFLE|>"

    def __post_init__(self) -> None:
        _fraction("fraction", self.fraction)

    def __call__(self, tokens: Sequence[int], *, space: int, seed: int, encode: Encode) -> ObjectiveSample | None:
        """See `Objective`."""
        marker = _marker(self.paradigm, encode)
        used = tuple(tokens[: max(0, (space - len(marker)) // 2)])
        moved = int(len(used) * self.fraction)
        if moved < 2:
            return None
        rng = np.random.default_rng(seed)
        places = rng.choice(len(used), moved, replace=False)
        shuffled = np.array(used)
        shuffled[places] = shuffled[rng.permutation(places)]
        return ObjectiveSample(marker + tuple(shuffled.tolist()), used, len(used), moved)


@dataclass(frozen=True)
class _Masking:
    """What infilling and autoencoding share: a walk over the text that replaces spans by numbered placeholders.

    Fields:
        rate: of tokens that are masked, roughly: at each position the rate is drawn between half and twice of it.
        span: mean tokens of a span, Poisson, between a third and three times of it.
        spans: at most; the text ends behind the last.
        attempts: walks until one masks something.
    """

    rate: float = 0.15
    span: float = 3.0
    spans: int = 20
    attempts: int = 100
    paradigm: str = ""
    placeholder: str = " [[mask_{number}]]"

    def __post_init__(self) -> None:
        _fraction("rate", self.rate)
        if not self.span >= 1:
            raise ValueError(f"span: expected at least 1, got {self.span}")
        at_least("spans", self.spans, 1)
        at_least("attempts", self.attempts, 1)

    #: Whether the label is the whole text, not the masked spans alone.
    _whole: ClassVar[bool] = False

    def __call__(self, tokens: Sequence[int], *, space: int, seed: int, encode: Encode) -> ObjectiveSample | None:
        """See `Objective`."""
        rng = np.random.default_rng(seed)
        marker = _marker(self.paradigm, encode)
        for _ in range(self.attempts):
            sample = self._walk(tokens, space, rng, marker, encode)
            if sample is None or sample.asked:
                return sample
        return None

    def _walk(
        self, tokens: Sequence[int], space: int, rng: np.random.Generator, marker: tuple[int, ...], encode: Encode
    ) -> ObjectiveSample | None:
        inputs, labels = list(marker), list[int]()
        place = masked = count = 0
        while place < len(tokens) and count < self.spans:
            rate = _drawn_rate(self.rate, rng)
            length = int(max(1, min(_poisson(self.span, rng), len(tokens) - place)))
            if rng.random() < rate / length:
                hole = list(_marker(self.placeholder.format(number=count), encode))
                hidden = list(tokens[place : place + length])
                answer = hidden if self._whole else hole + hidden
                if len(inputs) + len(hole) + len(labels) + len(answer) <= space:
                    inputs += hole
                    labels += answer
                    place, masked, count = place + length, masked + length, count + 1
                    continue
            if len(inputs) + len(labels) + 1 + self._whole > space:
                break
            inputs.append(tokens[place])
            if self._whole:
                labels.append(tokens[place])
            place += 1
        if not place:
            return None
        return ObjectiveSample(tuple(inputs), tuple(labels), place, masked)


@dataclass(frozen=True)
class Infilling(_Masking):
    """Write the spans that were replaced by placeholders, each after its placeholder.

    Fields:
        rate, span, spans, attempts: which spans, see the class above.
    """

    kind: ClassVar[str] = "infilling"
    paradigm: str = "<|INFILL|>"


@dataclass(frozen=True)
class Autoencoding(_Masking):
    """Write the whole text, having read it with placeholders for some spans."""

    kind: ClassVar[str] = "autoencoding"
    _whole: ClassVar[bool] = True
    spans: int = 1_000_000
    paradigm: str = "<|AUTOENCODE|>"


@dataclass(frozen=True)
class SpanRetrieval:
    """Selective copying of a text's spans: each is asked for by the tokens that stand before and behind it.

    Fields:
        rate: how probable it is that a span begins at a position that is looked at; between half and twice of it.
        span: mean tokens of a span, Poisson, between a third and three times of it.
        shortest, longest: tokens of a delimiter.
        order: whether the questions come before the text (``query_context``) or behind it (``context_query``).
        shuffle: ask in another order than the text's.
    """

    kind: ClassVar[str] = "selective_copying"
    rate: float = 0.5
    span: int = 8
    shortest: int = 8
    longest: int = 64
    order: Order = "query_context"
    shuffle: bool = True
    attempts: int = 100
    paradigm: str = "<|Selective Copying|>"

    def __post_init__(self) -> None:
        _fraction("rate", self.rate)
        for name in ("span", "shortest", "attempts"):
            at_least(name, getattr(self, name), 1)
        at_least("longest", self.longest, self.shortest)
        if self.order not in ("query_context", "context_query"):
            raise ValueError(f"order: unknown {self.order!r}; known: query_context, context_query")

    def __call__(self, tokens: Sequence[int], *, space: int, seed: int, encode: Encode) -> ObjectiveSample | None:
        """See `Objective`."""
        rng = np.random.default_rng(seed)
        opening = _marker(self.paradigm, encode)
        context = (_marker("\n\n[ctx]\n", encode), _marker("\n[/ctx]", encode))
        done = _marker("\n\n[done]", encode)
        fixed = len(opening) + len(context[0]) + len(context[1]) + len(done)
        least = 2 * self.shortest + max(1, self.span // 3)
        # The text takes at most half of the space, so that questions about it fit.
        text = tuple(tokens[: max(0, (space - fixed) // 2)])
        if len(text) < least:
            return None
        for _ in range(self.attempts):
            found = self._spans(text, space - fixed - len(text), rng, encode)
            if found:
                break
        else:
            return None
        order = rng.permutation(len(found)) if self.shuffle else np.arange(len(found))
        questions, answers = [], []
        for number, index in enumerate(order):
            before, start, end, behind = found[index]
            ask, answer = _question(number, text[before:start], text[start:end], text[end:behind], encode)
            questions += ask
            answers += answer
        shown = context[0] + text + context[1]
        asked = tuple(questions)
        inputs = opening + (asked + shown if self.order == "query_context" else shown + asked)
        labels = (*answers, *done)
        if len(inputs) + len(labels) > space:  # markers of other numbers may be longer
            return None
        return ObjectiveSample(inputs, labels, len(text), sum(end - start for _, start, end, _ in found))

    def _spans(
        self, text: tuple[int, ...], room: int, rng: np.random.Generator, encode: Encode
    ) -> list[tuple[int, int, int, int]]:
        """Spans that do not touch: where the delimiter before begins, the span, and where the delimiter behind ends."""
        shortest_span = max(1, self.span // 3)
        found: list[tuple[int, int, int, int]] = []
        place = self.shortest
        while place + shortest_span + self.shortest <= len(text):
            if rng.random() >= _drawn_rate(self.rate, rng):
                place += int(rng.integers(1, shortest_span + 1))
                continue
            longest_span = len(text) - self.shortest - place
            end = place + max(shortest_span, min(int(_poisson(self.span, rng)), longest_span))
            before = int(rng.integers(self.shortest, min(place, self.longest) + 1))
            behind = int(rng.integers(self.shortest, min(len(text) - end, self.longest) + 1))
            span = (place - before, place, end, end + behind)
            parts = _question(len(found), text[span[0] : place], text[place:end], text[end : span[3]], encode)
            room -= sum(map(len, parts))
            if room < 0:
                break
            found.append(span)
            place = end + behind + int(rng.integers(1, max(1, self.shortest // 2) + 1))
        return found


def birdie_mixture() -> tuple[Objective, ...]:
    """The fifteen settings that the published configuration mixes."""
    return (
        PrefixContinuation(),
        *(Infilling(rate=rate, span=span) for rate, span in ((0.15, 3), (0.15, 9), (0.5, 3))),
        *(Infilling(rate=rate, span=span) for rate, span in ((0.15, 8), (0.15, 64), (0.5, 64))),
        NextTokens(),
        *(SpanRetrieval(span=span, order=order, shortest=2, longest=16) for span in (16, 8) for order in _ORDERS),
        TextCopying(),
        Deshuffling(0.75),
        Deshuffling(0.25),
    )


@dataclass(frozen=True)
class PackedObjectives:
    """Samples packed into rows, each sample one sequence of its own.

    Fields:
        tokens: (batch, length) int64; padding at the end of a row is a sequence of its own.
        targets: (batch, length) int64, what stands at the next position, `IGNORED` but for labels.
        prefix: (batch, length) bool, the inputs of each sample.
        resets: (batch, length) bool, where samples and padding begin.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    prefix: torch.Tensor
    resets: torch.Tensor

    @property
    def batch(self) -> SyntheticBatch:
        """Tokens and targets alone."""
        return SyntheticBatch(self.tokens, self.targets)


def pack_objectives(rows: Sequence[Sequence[ObjectiveSample]], length: int, *, padding: int = 0) -> PackedObjectives:
    """Put the samples of each row one after the other.

    A sample's last label is never read, so that it takes one place less than it has tokens. A sample without inputs asks
    from its second token on.

    Raises:
        ValueError: the samples of a row need more than `length` places.
    """
    tokens = torch.full((len(rows), length), padding)
    targets = torch.full((len(rows), length), IGNORED)
    prefix = torch.zeros((len(rows), length), dtype=torch.bool)
    resets = torch.zeros((len(rows), length), dtype=torch.bool)
    for row, samples in enumerate(rows):
        place = 0
        for sample in samples:
            whole = torch.tensor(sample.inputs + sample.labels)
            end = place + len(whole) - 1
            if end > length:
                raise ValueError(f"rows: the samples of row {row} need {end} places or more, length is {length}")
            tokens[row, place:end] = whole[:-1]
            first = max(len(sample.inputs), 1)
            targets[row, place + first - 1 : end] = whole[first:]
            prefix[row, place : place + len(sample.inputs)] = True
            if place < length:
                resets[row, place] = True
            place = end
        if place < length:
            resets[row, place] = True
    return PackedObjectives(tokens, targets, prefix, resets)


def _question(
    number: int, before: Sequence[int], span: Sequence[int], behind: Sequence[int], encode: Encode
) -> tuple[list[int], list[int]]:
    """How a span is asked for, and the answer."""
    ask = [
        *encode(f"\n\n[find {number}]\n"),
        *before,
        *encode("\n[sep]\n"),
        *behind,
        *encode(f"\n[/find {number}]"),
    ]
    gap = "\n\n" if number else ""
    return ask, [*encode(f"{gap}[res {number}]\n"), *span]


def _marker(text: str, encode: Encode) -> tuple[int, ...]:
    return tuple(encode(text)) if text else ()


def _drawn_rate(rate: float, rng: np.random.Generator) -> float:
    return float(rng.uniform(rate / 2, min(0.95, 2 * rate)))


def _poisson(mean: float, rng: np.random.Generator) -> float:
    return float(np.clip(rng.poisson(mean), max(1.0, mean / 3), 3 * mean))


def _fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")
