"""ListOps: trees, tokens, values, and the task's limits."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan.data import LISTOPS_VOCABULARY, ListOps, evaluate_listops, listops_tokens, listops_value

SMALL = ListOps(shortest=5, longest=80, max_depth=5, max_operands=5)


@given(st.integers(0, 10_000))
def test_the_value_of_the_tokens_is_that_of_the_tree(seed):
    for tree in SMALL.trees(5, seed=seed):
        tokens = list(listops_tokens(tree))
        assert 5 < len(tokens) < 80
        assert evaluate_listops(tokens) == listops_value(tree)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MAX 2 9 X", 9),
        ("[MIN 4 [MAX 2 9 X 3 X", 3),
        ("[SM 9 9 [SM 1 1 X X", 0),
        ("[MED 1 4 X", 2),  # the mean of the middle two, rounded down
        ("[MED 7 1 3 X", 3),
        ("5", 5),
    ],
)
def test_operators(text, value):
    assert evaluate_listops(text.split()) == value


@pytest.mark.parametrize("text", ["[MAX 1 2", "1 2", "X", "[MAX X", "[MAX 12 X", "", "[MUL 1 2 X"])
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="listops: "):
        evaluate_listops(text.split())


def test_sequences_are_padded_ended_and_distinct():
    tokens, lengths, values = SMALL.sequences(50, seed=3)
    assert tokens.shape == (50, int(lengths.max()))
    for row, length, value in zip(tokens, lengths.tolist(), values.tolist(), strict=True):
        words = [LISTOPS_VOCABULARY[i] for i in row.tolist()]
        assert words[length - 1] == "<eos>" and set(words[length:]) <= {"<pad>"}
        assert evaluate_listops(words[: length - 1]) == value
    assert len({tuple(row.tolist()) for row in tokens}) == 50
    again = SMALL.sequences(50, seed=3)
    assert torch.equal(tokens, again[0]) and torch.equal(values, again[2])


def test_global_random_numbers_are_left_alone():
    random.seed(0)
    before = random.getstate()
    SMALL.sequences(3, seed=1)
    assert random.getstate() == before
