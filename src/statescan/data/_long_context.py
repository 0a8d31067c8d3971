"""Recall over long texts: a passkey in filler, a number in a phone book. Their tokens are bytes.

Passkey: Mohtashami and Jaggi 2023 (Landmark Attention), figure 2. Phone book: Jelassi et al. 2024 (Repeat After Me),
section 4.2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from statescan.data._synthetic import IGNORED, SyntheticBatch, at_least

_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
_PASSKEY = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
_QUESTION = "\nWhat is the pass key? The pass key is "

_FIRST_NAMES = """
Ada Alan Alma Amos Anna Arne Basil Betty Boris Carl Clara Colin Daisy Dario Doris Edgar Edith Elias Emma Erik Fanny
Felix Flora Frank Freya Georg Gloria Hanna Henry Hilda Hugo Ida Igor Irene Ivan Jane Jonas Judith Karl Klara Laura
Leon Lena Louis Lydia Magda Marco Maria Max Mira Nils Nora Olga Oscar Otto Paula Peter Quentin Rita Rosa Ruben Sara
Simon Sofia Stefan Tessa Theo Tilda Ulla Vera Victor Wanda Walter Xenia Yannis Yvonne Zeno Zoe
"""
_LAST_NAMES = """
Abbott Adler Ames Archer Baker Barlow Becker Berg Bishop Brandt Brook Carver Chase Conrad Cooper Cross Dahl Dalton
Decker Dixon Drake Ellis Engel Farmer Fischer Fleming Forster Fox Fuller Gardner Gibson Glover Graves Hale Harper Hart
Heller Holm Hughes Hunter Jansen Jensen Joyce Keller Kessler King Kramer Lambert Lane Larsen Lehmann Locke Lorenz
Marsh Mason Mercer Meyer Miller Moss Newton Nolan Norton Olsen Parker Pierce Porter Quinn Ramsey Reed Richter Sawyer
Schmidt Shaw Sommer Stone Tanner Thorn Turner Vogel Wagner Walker Weaver Weber Winter Wolf York Zeller
"""


@dataclass(frozen=True)
class Passkey:
    """A number of five digits at a random depth of filler; the text ends with the question for it.

    Fields:
        length: bytes of the text and the digits of the answer together.
    """

    length: int = 1024

    @property
    def vocab_size(self) -> int:
        """256: bytes."""
        return 256

    def texts(self, count: int, *, seed: int) -> list[tuple[str, str]]:
        """Prompts and their answers, five digits each."""
        at_least("count", count, 0)
        fixed = len(_TASK) + len(_PASSKEY.format(key="00000")) + len(_QUESTION) + 5
        filler_length = self.length - fixed
        at_least("length", self.length, fixed + 1)
        filler = (_FILLER * (filler_length // len(_FILLER) + 1))[:filler_length]
        rng = np.random.default_rng(seed)
        examples = []
        for _ in range(count):
            key = str(rng.integers(10_000, 100_000))
            depth = int(rng.integers(filler_length + 1))
            sentence = _PASSKEY.format(key=key)
            examples.append((_TASK + filler[:depth] + sentence + filler[depth:] + _QUESTION, key))
        return examples

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples; each digit of the passkey is asked."""
        return _as_batch(self.texts(batch_size, seed=seed))


@dataclass(frozen=True)
class PhoneBook:
    """Entries "Name: number", two worked examples, then a name whose number is asked.

    Fields:
        entries: of the book, at least 3, no two of one name.
        digits: of a number.
    """

    entries: int = 20
    digits: int = 7

    @property
    def vocab_size(self) -> int:
        """256: bytes."""
        return 256

    def texts(self, count: int, *, seed: int) -> list[tuple[str, str]]:
        """Prompts and their answers."""
        at_least("count", count, 0)
        at_least("entries", self.entries, 3)
        at_least("digits", self.digits, 1)
        names = [f"{first} {last}" for first, last in itertools.product(_FIRST_NAMES.split(), _LAST_NAMES.split())]
        if self.entries > len(names):
            raise ValueError(f"entries: expected at most {len(names)} (the names there are), got {self.entries}")
        rng = np.random.default_rng(seed)
        examples = []
        for _ in range(count):
            people = [names[index] for index in rng.choice(len(names), self.entries, replace=False)]
            numbers = ["".join(map(str, row)) for row in rng.integers(0, 10, (self.entries, self.digits))]
            book = [f"{name}: {number}" for name, number in zip(people, numbers, strict=True)]
            first, second, asked = rng.choice(self.entries, 3, replace=False)
            lines = [*book, "", book[first], book[second], f"{people[asked]}: "]
            examples.append(("\n".join(lines), numbers[asked]))
        return examples

    def batch(self, batch_size: int, *, seed: int) -> SyntheticBatch:
        """Draw examples, padded at the end with line breaks; each digit of the number is asked."""
        return _as_batch(self.texts(batch_size, seed=seed))


def _as_batch(examples: list[tuple[str, str]]) -> SyntheticBatch:
    width = max((len(prompt) + len(answer) for prompt, answer in examples), default=1)
    sequences = torch.full((len(examples), width), ord("\n"))
    targets = torch.full((len(examples), width - 1), IGNORED)
    for row, (prompt, answer) in enumerate(examples):
        sequences[row, : len(prompt) + len(answer)] = torch.tensor(list((prompt + answer).encode()))
        places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        targets[row, places] = sequences[row, 1:][places]
    return SyntheticBatch(sequences[:, :-1].contiguous(), targets)
