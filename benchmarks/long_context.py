"""LongMamba: a passkey and the perplexity of text far beyond the training length, with and without token filtering.

python -m benchmarks.long_context --out runs/long_context

trains three small Mamba-2 models: one finds three marked digits among random tokens, at most 256; one a passkey of five
digits in filler, at most 512 bytes (`statescan.data.Passkey`; only digits count in the loss); one models the text of
`examples`. Each is calibrated on sequences of its training length, of its own kind, then read at up to 16,384 tokens as it
is and filtered. The threshold that makes a channel global is the published 0.05, or the one that was best at eight times
the training length on examples that are not tested on.

On one thread, in processor time (`--minutes` for each training). Models and finished figures are kept in OUT: a killed run
goes on there. LongMamba (ICLR 2025), arXiv 2504.16053. --quick shows in a few minutes that it works.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import statescan
from benchmarks import _bible, _measure
from benchmarks._points import Points
from statescan.data import IGNORED, Passkey
from statescan.generation import LongContext, LongContextTable, calibrate_long_context

#: Tokens of the longest training sequences, by task.
TRAINED = {"digits": 256, "passkey": 512, "text": 512}
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
#: The threshold is chosen at so many times that.
CHOSEN_AT = 8
#: Decay thresholds that are tried; 0.05 is the published one, 0 makes every channel global.
THRESHOLDS = (0.05, 0.5, 1e-3, 1e-6, 1e-12, 0.0)
PUBLISHED = THRESHOLDS[0]
MODELS: dict[str, dict[str, Any]] = {
    "mamba2": dict(name="mamba2_tiny", dim=64, depth=2, state_dim=32, head_dim=16, vocab_size=256),
    "mamba": dict(name="mamba_tiny", dim=64, depth=2, state_dim=16, vocab_size=256),
}


def create(fields: dict[str, Any]) -> Any:
    """A model with fresh weights."""
    fields = dict(fields)
    return statescan.create_model(fields.pop("name"), **fields)


#: Of the marked digits: tokens 0 to 9 are digits, then what marks them, what asks for them, and 20 kinds of noise.
MARK, ASK, FIRST_NOISE, KINDS, ASKED = 10, 11, 12, 20, 3


def marked_digits(count: int, length: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences (count, length), and the digits (count, 3) that follow their last three tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = FIRST_NOISE + torch.randint(KINDS, (count, length), generator=generator)
    digits = torch.randint(10, (count, ASKED), generator=generator)
    room = length - 2 * ASKED - 1  # the mark and the digits before the question; the last digit is not read
    starts = torch.randint(room, (count,), generator=generator)
    rows = torch.arange(count)
    tokens[rows, starts] = MARK
    for place in range(ASKED):
        tokens[rows, starts + 1 + place] = digits[:, place]
    tokens[:, -ASKED] = ASK
    tokens[:, 1 - ASKED :] = digits[:, :-1]
    return tokens, digits


def digits_loss(model: Any, step: int, *, batch: int = 32) -> Tensor:
    """Of the answers, in sequences of 32 to 256 tokens."""
    tokens, digits = marked_digits(batch, (32, 64, 128, TRAINED["digits"])[step % 4], seed=step)
    logits, _ = model(tokens, last=ASKED, return_state=False)
    return F.cross_entropy(logits.flatten(0, 1), digits.flatten())


@torch.inference_mode()
def digits_accuracy(model: Any, length: int, *, examples: int, seed: int, context: LongContext | None) -> float:
    """Fraction of digits that are right, each after the right ones before it."""
    right = 0
    for number in range(examples):
        tokens, digits = marked_digits(1, length, seed=1_000_000 * seed + 500_000 + number)
        right += int((read(model, tokens, context, last=ASKED).argmax(-1) == digits).sum())
    return right / (examples * ASKED)


def passkey_loss(model: Any, step: int, *, batch: int = 16) -> Tensor:
    """Of all digits, in texts of 288 to 512 bytes: each number stands there twice, and is asked for.

    Nothing foretells the first one; copying it to the second is the same skill as answering, over a shorter way.
    """
    length = (288, 384, TRAINED["passkey"])[step % 3]
    drawn = Passkey(length).batch(batch, seed=step)
    targets = torch.cat([drawn.tokens[:, 1:], drawn.targets[:, -1:]], dim=1)
    is_digit = (targets >= ord("0")) & (targets <= ord("9"))
    logits, _ = model(drawn.tokens, return_state=False)
    return F.cross_entropy(logits[is_digit], targets[is_digit])


@torch.inference_mode()
def passkey_accuracy(model: Any, length: int, *, examples: int, seed: int, context: LongContext | None) -> float:
    """Fraction of digits that are right, each after the right ones before it."""
    right = asked = 0
    for number in range(examples):  # one at a time bounds memory
        drawn = Passkey(length).batch(1, seed=1_000_000 * seed + number)
        logits = read(model, drawn.tokens, context)
        wanted = drawn.targets != IGNORED
        right += int((logits.argmax(-1) == drawn.targets)[wanted].sum())
        asked += int(wanted.sum())
    return right / asked


@torch.inference_mode()
def text_bits(model: Any, length: int, *, examples: int, seed: int, context: LongContext | None) -> float:
    """Bits per byte of the last 256 bytes of windows of held-out text."""
    rows = _bible.windows(_bible.tokens()[1], examples, length + 1, seed=seed)
    total = 0.0
    for row in rows:
        logits = read(model, row[None, :-1], context, last=256)
        total += float(F.cross_entropy(logits[0], row[-256:]))
    return total / examples / math.log(2)


def read(model: Any, tokens: Tensor, context: LongContext | None, **options: Any) -> Tensor:
    """Logits, filtered or not."""
    if context is None:
        return model(tokens, **options)[0]
    with context.applied(model, [tokens.shape[1]]):
        return model(tokens, **options)[0]


def calibrate(model: Any, folder: Path, sequences: list[Tensor]) -> LongContextTable:
    """The calibration beside the model, made where there is none."""
    if not (folder / "longmamba.safetensors").is_file():
        lengths = [factor * len(sequences[0]) for factor in (1, 2, 4, 8, 16, 32, 64)]
        calibrate_long_context(model, sequences, lengths=lengths, progress=True).save(folder)
    return LongContextTable.load(folder)


#: What is measured, how, and whether more is better.
TASKS: dict[str, tuple[Any, Any, bool]] = {
    "digits": (digits_loss, digits_accuracy, True),
    "passkey": (passkey_loss, passkey_accuracy, True),
    "text": (functools.partial(_bible.text_loss, batch=16, length=TRAINED["text"]), text_bits, False),
}


def calibration_text(task: str, count: int) -> list[Tensor]:
    """Sequences of the training length, of the task's own kind."""
    length = TRAINED[task]
    if task == "text":
        return list(_bible.windows(_bible.tokens()[0], count, length, seed=99))
    if task == "digits":
        return list(marked_digits(count, length, seed=2_000_000)[0])
    return [Passkey(length + 1).batch(1, seed=2_000_000 + number).tokens[0] for number in range(count)]


def main() -> None:
    """Train, calibrate, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/long_context"), help="folder of what is finished")
    parser.add_argument("--minutes", type=float, default=15, help="processor time of each training")
    parser.add_argument("--model", choices=MODELS, default="mamba2")
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--examples", type=int, default=20, help="texts a length")
    parser.add_argument("--quick", action="store_true", help="little of everything, results not saved")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.examples, options.lengths = min(options.minutes, 0.5), 4, (512, 1024, 2048)
    torch.set_num_threads(1)
    points = Points(options.out / "points.jsonl")
    tables: dict[str, list[dict[str, Any]]] = {}
    for task in options.tasks:
        loss, measure, more = TASKS[task]
        folder = options.out / f"{options.model}_{task}"
        build = functools.partial(create, MODELS[options.model])
        model = _bible.trained(folder, build, loss, seconds=60 * options.minutes)
        table = calibrate(model, folder, calibration_text(task, 5 if options.quick else 50))

        def value(
            length: int,
            threshold: float | None,
            seed: int,
            *,
            task: str = task,
            model: Any = model,
            measure: Any = measure,
            table: LongContextTable = table,
        ) -> float:
            context = None if threshold is None else LongContext(table, decay_threshold=threshold)
            settings = {"task": task, "model": options.model, "minutes": options.minutes, "examples": options.examples}
            found = points.get(
                settings | {"length": length, "threshold": threshold, "seed": seed},
                lambda: {
                    "value": measure(model, length, examples=options.examples, seed=seed, context=context),
                },
            )
            return found["value"]

        chosen_at = CHOSEN_AT * TRAINED[task]
        trials = {threshold: value(chosen_at, threshold, 1) for threshold in THRESHOLDS}
        best = (max if more else min)(trials, key=trials.__getitem__)
        print(f"{task}: at {chosen_at:,} tokens by threshold, on other examples: {trials}", flush=True)
        title = (
            f"{task}, {'fraction of digits right' if more else 'bits per byte of the last 256 bytes'}, {options.model}"
        )
        tables[title] = [
            {
                "tokens": length,
                "as it is": value(length, None, 0),
                f"filtered, threshold {PUBLISHED:g}": value(length, PUBLISHED, 0),
                f"filtered, threshold {best:g}": value(length, best, 0),
            }
            for length in options.lengths
        ]
        _measure.show(title, tables[title])
    if not options.quick:
        rows = {"minutes": options.minutes, "examples": options.examples, "tables": tables}
        print(_measure.save("long_context", rows, tables=tables))


if __name__ == "__main__":
    main()
