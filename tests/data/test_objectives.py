"""Objectives of pre-training: what a reader can check of question and answer without knowing how they were drawn."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from statescan.data import (
    IGNORED,
    Autoencoding,
    Deshuffling,
    Infilling,
    NextTokens,
    ObjectiveSample,
    PrefixContinuation,
    SpanRetrieval,
    TextCopying,
    birdie_mixture,
    pack_objectives,
)

TEXT = list(range(400))
MARKERS = 1000


class Markers:
    """One token a marker, and back."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, text: str) -> list[int]:
        if text not in self.names:
            self.names.append(text)
        return [MARKERS + self.names.index(text)]

    def name(self, token: int) -> str:
        return self.names[token - MARKERS].strip() if token >= MARKERS else ""


def as_bytes(text: str) -> list[int]:
    return [MARKERS + letter for letter in text.encode()]


MIXTURE = [*birdie_mixture(), Autoencoding(), SpanRetrieval()]
everyone = pytest.mark.parametrize("objective", MIXTURE, ids=lambda objective: str(objective))
SEEDS = range(12)


def samples(
    objective: Callable, markers: Callable, *, space: int = 512, text: list[int] = TEXT
) -> list[ObjectiveSample]:
    made = [objective(text, space=space, seed=seed, encode=markers) for seed in SEEDS]
    assert all(made)
    return made


@everyone
@pytest.mark.parametrize("encode", [Markers(), as_bytes], ids=["tokens", "bytes"])
@pytest.mark.parametrize("space", [1, 7, 40, 200, 512, 2000])
def test_samples_fit(objective: Callable, encode: Callable, space: int) -> None:
    for seed in SEEDS:
        sample = objective(TEXT, space=space, seed=seed, encode=encode)
        assert sample is None or (0 < sample.size <= space and sample.labels and 0 < sample.asked <= sample.used <= 400)


@everyone
def test_samples_follow_from_the_seed(objective: Callable) -> None:
    made = samples(objective, markers := Markers())
    assert made == samples(objective, markers)
    if objective.kind in ("infilling", "autoencoding", "deshuffling", "selective_copying"):
        assert len(set(made)) > 1


@everyone
def test_short_texts_have_no_sample(objective: Callable) -> None:
    assert objective([], space=512, seed=0, encode=Markers()) is None


def test_next_tokens_prefix_and_copying() -> None:
    markers = Markers()
    assert NextTokens()(TEXT, space=9, seed=0, encode=markers) == ObjectiveSample((), tuple(range(9)), 9, 9)
    prefix = PrefixContinuation()(TEXT, space=401, seed=0, encode=markers)
    assert (prefix.inputs[1:], prefix.labels) == (tuple(range(300)), tuple(range(300, 400)))
    copy = TextCopying()(TEXT, space=512, seed=0, encode=markers)
    assert copy.inputs[1:] == copy.labels == tuple(range(255))


@pytest.mark.parametrize("objective", [o for o in MIXTURE if o.kind == "infilling"], ids=str)
def test_infilling_rebuilds_the_text(objective: Infilling) -> None:
    for sample in samples(objective, markers := Markers()):
        answers: dict[int, list[int]] = {}
        for token in sample.labels:
            if token >= MARKERS:
                current = answers.setdefault(token, [])
            else:
                current.append(token)
        assert 1 <= len(answers) <= 20
        holes = [markers.name(token) for token in answers]
        assert holes == [f"[[mask_{number}]]" for number in range(len(holes))]
        rebuilt = [new for token in sample.inputs[1:] for new in answers.get(token, [token])]
        assert rebuilt == TEXT[: sample.used]
        assert sample.asked == sum(map(len, answers.values()))


def test_autoencoding_writes_the_whole_text() -> None:
    for sample in samples(Autoencoding(), Markers()):
        assert list(sample.labels) == TEXT[: sample.used]
        kept = [token for token in sample.inputs if token < MARKERS]
        assert kept == sorted(kept) and len(kept) == sample.used - sample.asked


@pytest.mark.parametrize(
    "objective", [Infilling(0.15, 3), Infilling(0.15, 9), Infilling(0.5, 3), Autoencoding()], ids=str
)
def test_masked_fraction(objective: Infilling) -> None:
    made = [objective(TEXT, space=900, seed=seed, encode=Markers()) for seed in range(80)]
    fraction = sum(sample.asked for sample in made) / sum(sample.used for sample in made)
    assert objective.rate / 2 <= fraction <= 2 * objective.rate


@pytest.mark.parametrize("fraction", [0.75, 0.25])
def test_deshuffling_moves_a_fraction(fraction: float) -> None:
    for sample in samples(Deshuffling(fraction), Markers()):
        shuffled = sample.inputs[1:]
        assert sorted(shuffled) == list(sample.labels) == TEXT[: sample.used]
        moved = np.not_equal(shuffled, sample.labels).sum()
        assert 0.8 * fraction * sample.used <= moved <= fraction * sample.used


@pytest.mark.parametrize("objective", [o for o in MIXTURE if o.kind == "selective_copying"], ids=str)
def test_spans_stand_between_their_delimiters(objective: SpanRetrieval) -> None:
    for sample in samples(objective, markers := Markers()):
        questions: dict[str, list[list[int]]] = {}
        context: list[int] = []
        for token in sample.inputs[1:]:
            name = markers.name(token)
            if name == "[ctx]":
                current = context
            elif opened := re.fullmatch(r"\[find (\d+)\]", name):
                questions[opened[1]] = [[], []]
                current = questions[opened[1]][0]
            elif name == "[sep]":
                current = list(questions.values())[-1][1]
            elif not name:
                current.append(token)
        assert context == TEXT[: sample.used]
        assert markers.name(sample.inputs[1]) == ("[ctx]" if objective.order == "context_query" else "[find 0]")
        answers: dict[str, list[int]] = {}
        assert markers.name(sample.labels[-1]) == "[done]"
        for token in sample.labels[:-1]:
            if opened := re.fullmatch(r"\[res (\d+)\]", markers.name(token)):
                current = answers[opened[1]] = []
            else:
                current.append(token)
        assert answers.keys() == questions.keys() and answers
        for number, (before, behind) in questions.items():
            assert context[before[-1] + 1 : behind[0]] == answers[number]
            assert max(1, objective.span // 3) <= len(answers[number]) <= 3 * objective.span
            assert all(objective.shortest <= len(part) <= objective.longest for part in (before, behind))
        assert sum(map(len, answers.values())) == sample.asked


def test_mixture_is_the_published_one() -> None:
    kinds = [objective.kind for objective in birdie_mixture()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "prefix_language_modeling": 1,
        "infilling": 6,
        "next_token_prediction": 1,
        "selective_copying": 4,
        "copying": 1,
        "deshuffling": 2,
    }


def test_packing() -> None:
    first, second = ObjectiveSample((1, 2), (3, 4), 4, 2), ObjectiveSample((), (5, 6, 7), 3, 3)
    packed = pack_objectives([[first, second], [second]], 6, padding=9)
    no = IGNORED
    assert packed.tokens.tolist() == [[1, 2, 3, 5, 6, 9], [5, 6, 9, 9, 9, 9]]
    assert packed.targets.tolist() == [[no, 3, 4, 6, 7, no], [6, 7, no, no, no, no]]
    assert packed.prefix.tolist() == [[True, True, *[False] * 4], [False] * 6]
    assert packed.resets.nonzero().tolist() == [[0, 0], [0, 3], [0, 5], [1, 0], [1, 2]]
    assert torch.equal(packed.batch.targets, packed.targets)
    with pytest.raises(ValueError, match="rows: the samples of row 0 need 6 places or more, length is 5"):
        pack_objectives([[first, first]], 5)


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (PrefixContinuation(), {"fraction": 1.0}, "fraction: expected a number between 0 and 1, got 1.0"),
        (Deshuffling(), {"fraction": 0}, "fraction: expected a number between 0 and 1, got 0"),
        (Infilling(), {"rate": -0.1}, "rate: expected a number between 0 and 1, got -0.1"),
        (Infilling(), {"span": 0.5}, "span: expected at least 1, got 0.5"),
        (Autoencoding(), {"spans": 0}, "spans: expected at least 1, got 0"),
        (SpanRetrieval(), {"longest": 3}, "longest: expected at least 8, got 3"),
        (SpanRetrieval(), {"order": "both"}, "order: unknown 'both'; known: query_context, context_query"),
    ],
)
def test_bad_settings(objective: Infilling, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(objective, **changes)
