"""The benchmark of objectives, at sizes that take seconds: its books, its questions, and that a killed training goes on."""

import numpy as np
import pytest
import torch

from benchmarks import objectives
from statescan import data


def test_a_book_holds_what_is_asked():
    sample = objectives.phone_book(np.random.default_rng(0), 8, 3)
    book, question = objectives.spelled(sample.inputs).split("?")
    halves = (text.split() for text in (book, objectives.spelled(sample.labels)))
    entries, answers = (dict(zip(words[::2], words[1::2], strict=True)) for words in halves)
    assert len(entries) == 8 and len(answers) == 3
    assert answers.items() <= entries.items()
    assert question.split() == list(answers)
    assert all(len(number) == objectives.DIGITS and number.isdigit() for number in entries.values())
    assert len(dict(objectives.names())) == len(set(dict(objectives.names()).values())) == objectives.NAMES


def test_models_see_the_same_books_and_markers_are_single_tokens():
    for step in range(3):
        some, every = (objectives.book_rows(step, 0, everything=everything) for everything in (False, True))
        assert [[s.inputs + s.labels for s in row] for row in some] == [[s.labels for s in row] for row in every]
        tokens = [data.pack_objectives(rows, objectives.LENGTH).tokens for rows in (some, every)]
        assert torch.equal(*tokens)
    assert len(objectives.encode("<|INFILL|>")) == len(objectives.encode(" [[mask_3]]")) == 1
    assert objectives.encode("no marker") == list(b"no marker")
    assert objectives.vocabulary() < 400


def test_unmasking_gives_the_text_again():
    text = list(b"And God said, Let there be light: and there was light." * 3)
    objective = data.Infilling(rate=0.3, span=3)
    sample = objective(text, space=300, seed=1, encode=objectives.encode)
    rebuilt, masked = objectives.unmasked(sample, objectives.encode(objective.paradigm)[0])
    assert rebuilt == text[: len(rebuilt)] and len(rebuilt) == sample.used
    assert sum(masked) == sample.asked > 0


@pytest.mark.parametrize("name", list(objectives.ARMS))
def test_a_killed_training_goes_on(name, tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "KEPT_EVERY", 2)
    monkeypatch.setattr(objectives, "BOOK_ROWS", 1)
    monkeypatch.setattr(objectives, "TEXT_ROWS", 1)
    monkeypatch.setattr(objectives, "ROUNDS", 2)
    monkeypatch.setattr(objectives, "DIM", 16)
    arm = objectives.ARMS[name]

    def training(kept):
        return objectives.Training(arm, steps=3, seed=0, kept=tmp_path / kept)

    whole, killed = training("whole.pt"), training("killed.pt")
    whole.run("")
    monkeypatch.setattr(killed, "steps", 3)
    original = killed._keep

    def keep_and_stop():
        original()
        raise KeyboardInterrupt

    monkeypatch.setattr(killed, "_keep", keep_and_stop)
    with pytest.raises(KeyboardInterrupt):
        killed.run("")
    resumed = training("killed.pt")
    assert resumed.step == 2
    resumed.run("")
    assert resumed.losses == whole.losses
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_look_ups_count_whole_numbers(monkeypatch):
    """A model that copies the answer out of the book finds all; one that gets last digits wrong finds none."""
    rng = np.random.default_rng(objectives.batch_seed(0, "new books", 1000 * 4 + 2))
    samples = [objectives.phone_book(rng, 4, 2) for _ in range(3)]

    class Oracle:
        def __init__(self, change):
            self.rows = torch.tensor([sample.labels for sample in samples])
            self.rows[:, 2::3] = change(self.rows[:, 2::3])
            self.place = 0

        def answer(self):
            return torch.nn.functional.one_hot(self.rows[:, min(self.place, 5)], 400).double()

        def step(self, tokens, state):
            self.place += 1
            return self.answer(), None

    for change, want in ((lambda digits: digits, 1.0), (lambda digits: digits + 1, 0.0)):
        oracle = Oracle(change)
        monkeypatch.setattr(objectives, "prefill", lambda model, prompts, chunk: (model.answer(), None))
        assert objectives.look_ups(oracle, 4, 2, books=3, seed=0) == want
