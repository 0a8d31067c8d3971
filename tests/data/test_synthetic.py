"""The synthetic tasks: every one can be solved from its tokens alone, and is a pure function of its seed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from statescan.data import (
    IGNORED,
    SYNTHETIC_TASKS,
    Copying,
    Passkey,
    PhoneBook,
    adding,
    batch_seed,
    delay,
    induction_head_sequences,
    multi_query_recall,
    synthetic_task,
)
from tests.data import _chain_oracles as chains

# -- oracles: what a reader who understood the task answers, token by token ------------------------------------------


def copied(tokens: list[int], vocab_size: int) -> dict[int, int]:
    first = tokens.index(vocab_size - 1)
    data = [token for token in tokens[:first] if token != 0]
    return {first + place: token for place, token in enumerate(data)}


def after_trigger(tokens: list[int], vocab_size: int, answers: int = 1) -> dict[int, int]:
    trigger = vocab_size - 1
    first = tokens.index(trigger)
    last = len(tokens) - answers
    assert tokens[last] == trigger
    return {last + place: tokens[first + 1 + place] for place in range(answers)}


def looked_up(tokens: list[int], vocab_size: int, key_length: int = 1) -> dict[int, int]:
    ask = tokens.index(vocab_size - 1)
    pairs = [tokens[place : place + key_length + 1] for place in range(0, ask, key_length + 1)]
    values = {tuple(pair[:-1]): pair[-1] for pair in pairs}
    return {len(tokens) - 1: values.get(tuple(tokens[ask + 1 :]), 0)}


def looked_up_often(tokens: list[int], pairs: int) -> dict[int, int]:
    values = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
    return {place: values[token] for place, token in enumerate(tokens) if place >= 2 * pairs and token in values}


def read_passkey(tokens: list[int]) -> dict[int, int]:
    text = bytes(tokens).decode()
    (key,) = re.findall(r"pass key is (\d{5})\. Remember", text)
    return {len(tokens) - 5 + place: ord(digit) for place, digit in enumerate(key)}


def read_phone_book(tokens: list[int]) -> dict[int, int]:
    text = bytes(tokens).decode()
    book, _, rest = text.partition("\n\n")
    numbers = dict(line.split(": ") for line in book.split("\n"))
    asked = rest.split("\n")[2].split(": ")[0]
    place = len(book) + 2 + rest.index(asked + ": ") + len(asked) + 1
    return {place + index: ord(digit) for index, digit in enumerate(numbers[asked])}


def running_sum(tokens: list[int], modulus: int) -> dict[int, int]:
    return {place: sum(tokens[: place + 1]) % modulus for place in range(len(tokens))}


def replayed(task: str, settings: dict) -> Callable[[list[int]], dict[int, int]]:
    """What follows the question, from `tests.data._chain_oracles`; the last answer is the end mark."""

    def oracle(tokens: list[int]) -> dict[int, int]:
        answers = chains.ORACLES[task](tokens, **settings)
        return answers | {len(tokens) - 1: chains.EOS}

    return oracle


def chain(task: str, **settings) -> tuple[dict, Callable[[list[int]], dict[int, int]]]:
    return settings, replayed(task, settings)


ORACLES = {
    "arithmetic": chain("arithmetic", length=5, modulus=11),
    "edit_distance": chain("edit_distance", length=4, other=6, symbols=3),
    "last_occurrence": chain("last_occurrence", length=12, keys=5, values=9),
    "local_program": chain("local_program", length=9, weights=(2, 0, 5), modulus=7),
    "longest_increasing": chain("longest_increasing", length=10, largest=12),
    "prefix_lookup": chain("prefix_lookup", length=15, piece=2, symbols=3),
    "string_copy": chain("string_copy", length=9, symbols=5),
    "modular_sum": ({"length": 20, "modulus": 7}, lambda t: running_sum(t, 7)),
    "parity": ({"length": 20}, lambda t: running_sum(t, 2)),
    "associative_recall": ({"allow_absent": True, "key_length": 2}, lambda t: looked_up(t, 20, 2)),
    "copying": ({"length": 20, "memorize": 5}, lambda t: copied(t, 16)),
    "induction_head": ({"induction_length": 3, "triggers": 4}, lambda t: after_trigger(t, 20, 3)),
    "induction_heads": ({"length": 64}, lambda t: after_trigger(t, 16)),
    "mqar": ({"length": 64, "pairs": 8}, lambda t: looked_up_often(t, 8)),
    "passkey": ({"length": 600}, read_passkey),
    "phone_book": ({"entries": 12}, read_phone_book),
    "selective_copying": ({"length": 40, "memorize": 8}, lambda t: copied(t, 16)),
}


def accuracy(tokens: Tensor, targets: Tensor, oracle) -> float:
    asked = right = 0
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        answers = oracle(row)
        questions = [place for place, token in enumerate(wanted) if token != IGNORED]
        asked += len(questions)
        right += sum(answers.get(place) == wanted[place] for place in questions)
    return right / asked


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_an_oracle_answers_everything(name):
    settings, oracle = ORACLES[name]
    task = synthetic_task(name, settings)
    batch = task.batch(40, seed=3)
    assert accuracy(batch.tokens, batch.targets, oracle) == 1.0
    assert batch.tokens.shape == batch.targets.shape
    assert batch.tokens.min() >= 0
    assert batch.tokens.max() < task.vocab_size


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_batches_are_pure_functions_of_the_seed(name):
    task = synthetic_task(name)
    first, again, other = (task.batch(4, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.targets, again.targets)
    assert first.tokens.shape != other.tokens.shape or not torch.equal(first.tokens, other.tokens)


def test_seeds_of_batches_differ():
    seeds = {
        batch_seed(seed, stream, index)
        for seed in range(3)
        for stream in ("train", "validation")
        for index in range(50)
    }
    assert len(seeds) == 300
    assert batch_seed(0, "train", 7) == batch_seed(0, "train", 7)


def test_copying_stands_at_the_front():
    tokens = Copying(length=9, memorize=3).batch(5, seed=0).tokens
    assert (tokens[:, :3] > 0).all()
    assert (tokens[:, 3:12] == 0).all()
    assert (tokens[:, 12:] == 15).all()


def test_several_triggers_have_one_answer():
    sequences = induction_head_sequences(200, vocab_size=12, input_length=40, induction_length=2, triggers=5)
    seen = 0
    for row in sequences.tolist():
        places = [place for place, token in enumerate(row) if token == 11]
        seen += len(places) > 2
        assert len({tuple(row[place + 1 : place + 3]) for place in places}) == 1
        assert 0 not in row
    assert seen > 50


def test_associative_recall_always_shows_the_key_unless_absence_is_allowed():
    for allowed in (False, True):
        task = synthetic_task("associative_recall", {"allow_absent": allowed, "length": 8})
        answers = task.batch(200, seed=1).targets[:, -1]
        assert bool((answers == 0).any()) == allowed


def test_multi_query_recall_fills_the_gaps_with_random_tokens():
    settings = {"vocab_size": 64, "input_length": 32, "pairs": 4, "seed": 2}
    zeros, labels = multi_query_recall(20, random_non_queries=False, **settings)
    filled, same = multi_query_recall(20, random_non_queries=True, **settings)
    assert torch.equal(labels, same)
    assert torch.equal(filled[zeros != 0], zeros[zeros != 0])
    assert len(filled[zeros == 0].unique()) > 30


def test_the_passkey_text_has_the_asked_length():
    (prompt, key), *_ = Passkey(length=777).texts(3, seed=0)
    assert len(prompt) + len(key) == 777
    assert prompt.endswith("What is the pass key? The pass key is ")


def test_phone_book_names_do_not_repeat():
    prompt, number = PhoneBook(entries=50).texts(1, seed=0)[0]
    book = prompt.split("\n\n")[0].split("\n")
    assert len(number) == 7
    assert len({line.split(":")[0] for line in book}) == 50


def test_delay_gives_the_signal_some_time_ago():
    x, y = delay(3, length=400, lag=50, lags=2, seed=1)
    assert x.shape == (3, 400, 1)
    assert y.shape == (3, 400, 2)
    assert torch.equal(y[:, 50:, 0], x[:, :-50, 0])
    assert torch.equal(y[:, 100:, 1], x[:, :-100, 0])
    assert (y[:, :50] == 0).all()
    # Nothing above the cut-off: 1,000 Hz at 4,000 samples a second is half of the spectrum.
    power = torch.fft.rfft(x[..., 0]).abs().square()
    assert power[:, 101:].sum() < 1e-6 * power.sum()


def test_adding_marks_one_number_in_each_half():
    x, y = adding(50, length=21, seed=4)
    assert (x[:, :10, 1].sum(1) == 1).all()
    assert (x[:, 10:, 1].sum(1) == 1).all()
    torch.testing.assert_close((x[..., 0] * x[..., 1]).sum(1, keepdim=True), y)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("selective_copyin", {}, "unknown name 'selective_copyin'; nearest: 'selective_copying'"),
        ("mqar", {"pair": 3}, "unknown setting 'pair'; nearest: 'pairs'"),
        (
            "mqar",
            {"pairs": 40},
            "expected an even number, at least 4 tokens for each of 40 pairs, got 64",
        ),
        ("mqar", {"vocab_size": 60}, "vocab_size: expected more than the input_length of 64, got 60"),
        ("selective_copying", {"memorize": 0}, "memorize: expected at least 1, got 0"),
        ("induction_heads", {"length": 2}, "length: expected at least 3, got 2"),
        ("induction_head", {"length": 2, "induction_length": 2}, "input_length: expected at least 4, got 2"),
        ("passkey", {"length": 20}, "length: expected at least"),
        ("phone_book", {"entries": 2}, "entries: expected at least 3, got 2"),
        ("phone_book", {"entries": 10**6}, "entries: expected at most"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        synthetic_task(name, settings).batch(2, seed=0)
