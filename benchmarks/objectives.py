"""Objectives of pre-training against next-token prediction: look-ups in a phone book and infilling of text, a gated SSM.

python -m benchmarks.objectives --out runs/objectives

Three models, each the same gated SSM of bytes, learn for equal steps from the same data: phone books (generated names, each
one token, and their numbers; then some of the names, and again their numbers) and the text of `examples`.

- next token: every byte is learnt, of books and of text.
- mixture: of a book the look-ups alone are learnt, having read the rest; the text is asked about by Birdie's mixture of
  objectives, whose probabilities the reward model chooses.
- mixture, both directions: the same samples, and half of the channels read what is not to be learnt (the prefix) backwards.

Then new books are read and continued greedily; a look-up counts if all digits of its number are right. And spans of held-out
text are to be filled in, a byte at a time: asked with placeholders, or from the text before the span alone, which needs no
objective but the next byte.

The picture goes to ``docs/assets/objectives.png``, figures to ``benchmarks/results/objectives.json`` and ``.md``. Finished
models stay in ``OUT/points.jsonl``, and one in training is kept every so many steps: a killed run goes on there. ``--quick``
shows it at work. Blouir et al. 2024, "Birdie" (arXiv 2411.01030).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import statescan
from benchmarks import _bible, _measure
from benchmarks._points import Points
from statescan import data
from statescan.data import IGNORED, ObjectiveSample, batch_seed
from statescan.generation import prefill, progress_bar
from statescan.tasks import ObjectiveSampler
from statescan.tasks.objectives import MixedBatches

ROOT = Path(__file__).parent.parent
DIM, DEPTH, LENGTH = 128, 4, 256
#: Rows of a batch: books, and text.
BOOK_ROWS, TEXT_ROWS = 4, 2
STEPS, RATE, ROUNDS, KEPT_EVERY = 2000, 4e-3, 12, 100
NAMES, DIGITS = 64, 2
#: Names in a book and look-ups, as they are learnt.
TRAINED = ((2, 4, 8), (1, 2, 4))
#: The same, as they are asked for: look-ups in a book of 8 grow, then the books.
ASKED = ((8, 1), (8, 2), (8, 4), (8, 8), (2, 2), (4, 2), (16, 2))
_FIRST_MARKER, _NUMBERS, _NAMES_APART = 128, 24, 2


@dataclass(frozen=True)
class Arm:
    """One way to train: what is learnt, and whether prefixes are read in both directions."""

    mixture: bool
    both_directions: bool


ARMS = {
    "next token": Arm(mixture=False, both_directions=False),
    "mixture": Arm(mixture=True, both_directions=False),
    "mixture, both directions": Arm(mixture=True, both_directions=True),
}


# -- tokens and samples ------------------------------------------------------------------------------------------------


@functools.cache
def _markers() -> dict[str, int]:
    """Tokens that no text uses, one a marker of the mixture."""
    names = [getattr(objective, "paradigm", "") for objective in data.birdie_mixture()]
    numbered = (" [[mask_{}]]", "\n\n[find {}]\n", "\n[/find {}]", "[res {}]\n", "\n\n[res {}]\n")
    names += ["\n[sep]\n", "\n\n[ctx]\n", "\n[/ctx]", "\n\n[done]"]
    names += [form.format(number) for form in numbered for number in range(_NUMBERS)]
    found: dict[str, int] = {}
    for name in filter(None, names):
        found.setdefault(name, _FIRST_MARKER + len(found))
    return found


def encode(text: str) -> list[int]:
    """A marker as one token; what is no marker as bytes."""
    marker = _markers().get(text)
    return list(text.encode()) if marker is None else [marker]


def vocabulary() -> int:
    """Bytes of text, markers and names."""
    return names()[-1][1] + 1


@functools.cache
def texts() -> tuple[data.TokenStream, data.TokenStream]:
    """Text to learn from and held-out text."""
    parts = [part.numpy().astype(np.uint16) for part in _bible.tokens()]
    return tuple(data.TokenStream(part, np.zeros(1, np.int64)) for part in parts)  # type: ignore[return-value]


@functools.cache
def names() -> tuple[tuple[str, int], ...]:
    """Generated names, each a token of its own."""
    first = _FIRST_MARKER + len(_markers())
    syllables = [consonant + vowel for consonant in "bdklmnrs" for vowel in "aeio"]
    made = [(one + other).capitalize() for one, other in itertools.product(syllables, syllables[::7])][::_NAMES_APART]
    return tuple((name, first + number) for number, name in enumerate(made[:NAMES]))


def spelled(tokens: Sequence[int]) -> str:
    """Tokens of a book as text."""
    by_token = {token: f" {name} " for name, token in names()}
    return "".join(by_token.get(token, chr(token)) for token in tokens)


def phone_book(rng: np.random.Generator, entries: int, asked: int) -> ObjectiveSample:
    """A book of so many names with their numbers, and so many of them to look up: the names asked for stand at its end."""
    chosen = [names()[index][1] for index in rng.choice(NAMES, entries, replace=False)]
    numbers = [list(map(ord, map(str, digits))) for digits in rng.integers(0, 10, (entries, DIGITS))]
    wanted = rng.choice(entries, asked, replace=False)
    lines = [[name, *number] for name, number in zip(chosen, numbers, strict=True)]
    inputs = [*itertools.chain(*lines), ord("?"), *(chosen[index] for index in wanted), ord("\n")]
    labels = itertools.chain(*(lines[index] for index in wanted))
    return ObjectiveSample(tuple(inputs), tuple(labels), len(inputs), DIGITS * asked)


def plain(sample: ObjectiveSample) -> ObjectiveSample:
    """The same tokens, all of them to be learnt."""
    return ObjectiveSample((), sample.inputs + sample.labels, sample.used, sample.asked)


def book_rows(step: int, seed: int, *, everything: bool) -> list[list[ObjectiveSample]]:
    """The books of a step's batch: rows filled with them, the same for every model."""
    rng = np.random.default_rng(batch_seed(seed, "books", step))
    rows = []
    for _ in range(BOOK_ROWS):
        row: list[ObjectiveSample] = []
        space = LENGTH
        while True:
            entries = int(rng.choice(TRAINED[0]))
            sample = phone_book(rng, entries, min(entries, int(rng.choice(TRAINED[1]))))
            if sample.size - 1 > space:
                break
            row.append(plain(sample) if everything else sample)
            space -= sample.size - 1
        rows.append(row)
    return rows


def joined(first: data.PackedObjectives, second: data.PackedObjectives) -> data.PackedObjectives:
    """Two batches as one."""
    return data.PackedObjectives(
        **{name: torch.cat([value, getattr(second, name)]) for name, value in vars(first).items()}
    )


def _mixed(objectives: Sequence[data.Objective], chances: Tensor, *, seed: int, stream: str, rows: int) -> MixedBatches:
    source = texts()[stream != "train"]
    options: dict[str, Any] = {"encode": encode, "length": LENGTH, "batch_size": rows, "seed": seed, "stream": stream}
    return MixedBatches(source, objectives, lambda index: chances, **options)


# -- training ----------------------------------------------------------------------------------------------------------


def create(arm: Arm, seed: int) -> Any:
    """The model with fresh weights."""
    torch.manual_seed(seed)
    return statescan.create_model(
        "hybrid_tiny",
        dim=DIM,
        depth=DEPTH,
        vocab_size=vocabulary(),
        layout=("gated_ssm",),
        mixers={"gated_ssm": {"initial_decay": (0.3, 0.98)}},
        bidirectional_prefix=arm.both_directions,
    )


def logits_of(model: Any, batch: data.PackedObjectives) -> Tensor:
    """Of a batch, its prefixes read as the model reads them."""
    prefix = {"prefix": batch.prefix} if model.reads_prompts_as_prefix else {}
    return model(batch.tokens, resets=batch.resets, return_state=False, **prefix)[0]


def loss_of(model: Any, batch: data.PackedObjectives) -> Tensor:
    """Mean negative log-likelihood of what is to be learnt."""
    logits = logits_of(model, batch)
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)


@torch.inference_mode()
def _objective_losses(model: Any, objectives: Sequence[data.Objective], seed: int) -> list[float]:
    """On held-out text, an objective at a time."""
    model.eval()
    losses = []
    for number, objective in enumerate(objectives):
        batches = _mixed([objective], torch.ones(1), seed=seed, stream=f"round {number}", rows=2)
        losses.append(float(loss_of(model, batches.batch(0))))
    model.train()
    return losses


class Training:
    """One model's training, kept in a file as it goes on.

    Arguments:
        arm: of `ARMS`.
        steps: of the optimiser.
        seed: of weights and data.
        kept: the file.
    """

    def __init__(self, arm: Arm, *, steps: int, seed: int, kept: Path):
        self.arm, self.steps, self.seed, self.kept = arm, steps, seed, kept
        self.model = create(arm, seed)
        self.optimiser = torch.optim.AdamW(self.model.parameter_groups(0.1), lr=RATE, betas=(0.9, 0.95))
        self.objectives = data.birdie_mixture() if arm.mixture else (data.NextTokens(),)
        self.sampler = ObjectiveSampler(
            [objective.kind for objective in self.objectives],
            steps=max(20, steps),
            width=32,
            depth=2,
            iterations=50,
            candidates=256,
            seed=seed,
        )
        self.chances = self.sampler.probabilities
        self.step, self.seconds, self.losses = 0, 0.0, list[float]()
        if kept.is_file():
            self._resume(torch.load(kept, weights_only=False))

    def run(self, show: str) -> None:
        """Train to the end."""
        began = time.process_time() - self.seconds
        self.model.train()
        every = max(1, self.steps // ROUNDS)
        with progress_bar(show, self.steps, unit="steps", shown=bool(show)) as advance:
            advance(self.step)
            while self.step < self.steps:
                if self.arm.mixture and self.step % every == 0:
                    losses = _objective_losses(self.model, self.objectives, self.seed)
                    self.chances = self.sampler.update(losses, step=self.step)
                self._one_step()
                advance(1)
                self.seconds = time.process_time() - began
                if self.step % KEPT_EVERY == 0 and self.step < self.steps:
                    self._keep()
        self.model.eval()

    def _one_step(self) -> None:
        part = self.step / self.steps
        factor = min(1.0, (self.step + 1) / max(1, self.steps // 20))
        for group in self.optimiser.param_groups:
            group["lr"] = RATE * factor * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
        books = data.pack_objectives(book_rows(self.step, self.seed, everything=not self.arm.mixture), LENGTH)
        text = _mixed(self.objectives, self.chances, seed=self.seed, stream="train", rows=TEXT_ROWS).batch(self.step)
        # Books and text have the same weight, however much of them is to be learnt.
        batch = joined(books, text)
        logits = logits_of(self.model, batch)
        parts = (slice(None, BOOK_ROWS), slice(BOOK_ROWS, None))
        losses = [
            F.cross_entropy(logits[rows].flatten(0, 1), batch.targets[rows].flatten(), ignore_index=IGNORED)
            for rows in parts
        ]
        loss = (losses[0] + losses[1]) / 2
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self.losses.append(float(loss.detach()))

    def _keep(self) -> None:
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        partial = self.kept.with_suffix(".partial")
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimiser", "sampler")}
        rest = {name: getattr(self, name) for name in ("chances", "step", "seconds", "losses")}
        torch.save(parts | rest, partial)
        os.replace(partial, self.kept)

    def _resume(self, kept: dict[str, Any]) -> None:
        for name in ("model", "optimiser", "sampler"):
            getattr(self, name).load_state_dict(kept[name])
        for name in ("chances", "step", "seconds", "losses"):
            setattr(self, name, kept[name])


# -- what is measured --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def look_ups(model: Any, entries: int, asked: int, *, books: int, seed: int) -> float:
    """The fraction of numbers that are right to the last digit, of look-ups in new books."""
    rng = np.random.default_rng(batch_seed(seed, "new books", 1000 * entries + asked))
    samples = [phone_book(rng, entries, asked) for _ in range(books)]
    answers = torch.tensor([sample.labels for sample in samples])
    logits, state = prefill(model, [sample.inputs for sample in samples], chunk=1 << 20)
    written = []
    for _ in range(answers.shape[1]):
        written.append(logits.argmax(-1))
        logits, state = model.step(written[-1], state)
    right = (torch.stack(written, 1) == answers).unflatten(1, (asked, 1 + DIGITS))[:, :, 1:]
    return float(right.all(-1).double().mean())


def unmasked(sample: ObjectiveSample, paradigm: int) -> tuple[list[int], list[bool]]:
    """The text that a sample of infilling was made of, and which of it was masked."""
    spans: dict[int, list[int]] = {}
    for token in sample.labels:
        if token >= _FIRST_MARKER:
            spans[token] = []
        else:
            spans[next(reversed(spans))].append(token)
    text: list[int] = []
    masked: list[bool] = []
    for token in sample.inputs:
        if token == paradigm:
            continue
        part = spans.get(token, [token])
        text += part
        masked += [token in spans] * len(part)
    return text, masked


@torch.inference_mode()
def infilling(model: Any, *, span: int, windows: int, seed: int) -> tuple[float, float]:
    """Fractions of masked bytes that are found most probable: asked with placeholders, and from the text before alone."""
    objective = data.Infilling(rate=0.15, span=span)
    paradigm = _markers()[objective.paradigm]
    rng = np.random.default_rng(batch_seed(seed, "windows", span))
    held_out = texts()[1].tokens
    right, asked = np.zeros(2), np.zeros(2)
    for _ in range(windows):
        start = int(rng.integers(len(held_out) - LENGTH))
        sample = objective(
            held_out[start : start + LENGTH].tolist(), space=LENGTH, seed=int(rng.integers(1 << 62)), encode=encode
        )
        if sample is None:
            continue
        text, masked = unmasked(sample, paradigm)
        placed = data.pack_objectives([[sample]], sample.size)
        wanted = (placed.targets != IGNORED) & (placed.targets < _FIRST_MARKER)
        found = logits_of(model, placed).argmax(-1)
        right[0] += int((found == placed.targets)[wanted].sum())
        asked[0] += int(wanted.sum())
        row = torch.tensor([text])
        before = model(row[:, :-1], return_state=False)[0].argmax(-1)
        hidden = torch.tensor([masked])[:, 1:]
        right[1] += int((before == row[:, 1:])[hidden].sum())
        asked[1] += int(hidden.sum())
    first, second = (right / np.maximum(asked, 1)).tolist()
    return first, second


def measure(name: str, *, steps: int, seed: int, folder: Path, books: int, windows: int, show: str) -> dict[str, Any]:
    """Train one model and ask it."""
    training = Training(ARMS[name], steps=steps, seed=seed, kept=folder / f"{name.replace(' ', '_')}_{steps}_{seed}.pt")
    training.run(show)
    model = training.model
    spans = {span: infilling(model, span=span, windows=windows, seed=seed) for span in (3, 9)}
    kinds: dict[str, float] = {}
    for objective, chance in zip(training.objectives, training.chances.tolist(), strict=True):
        kinds[objective.kind] = kinds.get(objective.kind, 0.0) + chance
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "seconds": training.seconds,
        "last losses": sum(training.losses[-20:]) / len(training.losses[-20:]),
        "look-ups": {f"{n}, {k}": look_ups(model, n, k, books=books, seed=seed) for n, k in ASKED},
        "infilled, asked": {str(span): found[0] for span, found in spans.items()},
        "infilled, text before": {str(span): found[1] for span, found in spans.items()},
        "last probabilities": kinds,
    }


# -- what is shown -----------------------------------------------------------------------------------------------------


def mean(found: Sequence[dict[str, Any]], what: str, key: str) -> float:
    """Over seeds."""
    return sum(one[what][key] for one in found) / len(found)


def tables(results: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Look-ups and infilling, a row a model."""
    steps, seeds = (next(iter(results.values()))[0]["steps"], len(next(iter(results.values()))))
    looked = [
        {"trained on": name, "parameters": found[0]["parameters"], "minutes": found[0]["seconds"] / 60}
        | {f"{n} names, {k}": round(mean(found, "look-ups", f"{n}, {k}"), 4) for n, k in ASKED}
        for name, found in results.items()
    ]
    filled = [
        {"trained on": name}
        | {
            f"spans of {span}, {how}": round(mean(found, f"infilled, {how}", span), 4)
            for span, how in itertools.product(("3", "9"), ("asked", "text before"))
        }
        for name, found in results.items()
    ]
    return {
        f"Numbers found, by names in the book and look-ups; {steps} steps, seeds: {seeds}": looked,
        "Masked bytes found most probable, asked with placeholders or from the text before alone": filled,
    }


def draw(path: Path, results: dict[str, list[dict[str, Any]]]) -> None:
    """Look-ups against their number and the book's size, and infilling."""
    from matplotlib.figure import Figure

    from statescan.tasks._picture import COLOURS

    figure = Figure(figsize=(11.5, 3.7), layout="constrained")
    places = figure.subplots(1, 3)
    sizes = ([(n, k) for n, k in ASKED if n == 8], sorted((n, k) for n, k in ASKED if k == 2))
    for place, settings, which in zip(places, sizes, (1, 0), strict=False):
        for colour, marker, (name, found) in zip(COLOURS, "osD", results.items(), strict=False):
            values = [mean(found, "look-ups", f"{n}, {k}") for n, k in settings]
            place.plot([size[which] for size in settings], values, marker, linestyle="-", color=colour, label=name)
        place.set_xscale("log", base=2)
        place.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        place.set_ylim(-0.03, 1.03)
    places[0].set_xlabel("look-ups, 8 names in the book")
    places[1].set_xlabel("names in the book, 2 look-ups")
    places[0].set_ylabel("fraction of numbers found")
    places[0].legend(frameon=False, fontsize=8)
    labels = [f"{how},\nspans of {span}" for span, how in itertools.product(("3", "9"), ("asked", "text before"))]
    for number, (colour, (name, found)) in enumerate(zip(COLOURS, results.items(), strict=False)):
        values = [
            mean(found, f"infilled, {how}", span)
            for span, how in itertools.product(("3", "9"), ("asked", "text before"))
        ]
        places[2].bar(np.arange(4) + 0.27 * (number - 1), values, 0.25, color=colour, label=name)
    places[2].set_xticks(range(4), labels, fontsize=7)
    places[2].set_ylabel("fraction of masked bytes found")
    for place in places:
        place.grid(alpha=0.25)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train, ask, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"), help="folder of what is finished")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of each model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of weights and data")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see it at work; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = 4 if options.quick else options.steps
    books, windows = (4, 2) if options.quick else (128, 64)
    points = Points(options.out / "points.jsonl")
    results: dict[str, list[dict[str, Any]]] = {}
    for seed, name in itertools.product(options.seeds, ARMS):
        show = f"{name}, seed {seed}"
        call = functools.partial(measure, name, folder=options.out, books=books, windows=windows, show=show)
        setting = {"steps": steps, "seed": seed}
        point = {
            "arm": name,
            "dim": DIM,
            "depth": DEPTH,
            "rate": RATE,
            "rows": (BOOK_ROWS, TEXT_ROWS),
            "books": books,
        } | setting
        results.setdefault(name, []).append(points.get(point, functools.partial(call, **setting)))
        print(f"{show}: {results[name][-1]}", flush=True)
    found = tables(results)
    for title, rows in found.items():
        _measure.show(title, rows)
    if not options.quick:
        picture = ROOT / "docs" / "assets" / "objectives.png"
        draw(picture, results)
        print(picture, _measure.save("objectives", results, tables=found))


if __name__ == "__main__":
    main()
