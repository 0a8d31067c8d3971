"""Chain-of-thought tasks: their two parts never meet, their forms, and wrong settings."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from statescan.data import (
    IGNORED,
    Arithmetic,
    EditDistance,
    LastOccurrence,
    LocalProgram,
    LongestIncreasing,
    PrefixLookup,
    StringCopy,
)

TASKS = [
    StringCopy(length=3, symbols=4),
    LastOccurrence(length=3, keys=2, values=3),
    PrefixLookup(length=6, symbols=3),
    LongestIncreasing(length=4, largest=5),
    EditDistance(length=3, symbols=2),
    Arithmetic(length=2, modulus=3),
    LocalProgram(length=4, modulus=3),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_what_is_learnt_and_what_is_tested_never_meet(task) -> None:
    learnt, tried = (dataclasses.replace(task, part=part).batch(400, seed=1).tokens for part in ("train", "test"))
    assert not {tuple(row) for row in learnt.tolist()} & {tuple(row) for row in tried.tolist()}
    assert len(learnt) == len(tried) == 400


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_the_last_answer_is_the_end_mark(task) -> None:
    batch = task.batch(5, seed=0)
    assert (batch.targets[:, -1] == 4).all()
    asked = batch.targets != IGNORED
    assert (asked == asked[0]).all()
    # What is asked for is what comes next.
    assert torch.equal(batch.targets[:, :-1][asked[:, :-1]], batch.tokens[:, 1:][asked[:, :-1]])


@pytest.mark.parametrize("task", [LongestIncreasing(length=6), EditDistance(length=4), Arithmetic(length=3)])
def test_without_a_chain_of_thought_the_answer_follows_the_question(task) -> None:
    with_steps, without = (
        dataclasses.replace(task, chain_of_thought=shown).batch(20, seed=2) for shown in (True, False)
    )
    question = int((without.targets[0] == IGNORED).sum())
    assert torch.equal(with_steps.tokens[:, : question + 1], without.tokens[:, : question + 1])
    assert torch.equal(with_steps.targets[:, -2:], without.targets[:, -2:])
    assert (without.targets[0] != IGNORED).sum() == 2


def test_a_local_program_can_give_all_inputs_first() -> None:
    near, far = (LocalProgram(length=6, interleaved=interleaved).batch(8, seed=3) for interleaved in (True, False))
    assert torch.equal(far.tokens[:, 1:7], near.tokens[:, 1::2])
    assert torch.equal(far.targets[:, 7:-1], near.targets[:, 1:-1:2])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (StringCopy(length=0), "length: expected at least 1, got 0"),
        (StringCopy(part="valid"), "part: all, train or test, got 'valid'"),
        (StringCopy(length=1, symbols=1, part="test"), "part: there are hardly any questions for 'test'"),
        (PrefixLookup(length=3, piece=3), "length: expected at least 4, got 3"),
        (LastOccurrence(keys=0), "keys: expected at least 1, got 0"),
        (EditDistance(other=0), "other: expected at least 1, got 0"),
        (Arithmetic(modulus=1), "modulus: expected at least 2, got 1"),
        (LongestIncreasing(largest=0), "largest: expected at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task.batch(4, seed=0)
