"""MemMamba: finding a passkey far beyond the training length, with notes and without, at equal parameters.

python -m benchmarks.memory_notes --out runs/memory_notes

trains Mamba and MemMamba on texts of at most 512 tokens, short ones first, and asks them at up to 64 times that.
``digits``: three marked digits among random tokens; ``passkey``: five digits in filler text, in bytes
(`statescan.data.Passkey`). Mamba is made wider until it has as many parameters as MemMamba. Both see the same batches, as
many as their processor time allows. Beside the fraction of digits that are right: milliseconds a token of a whole text and
of single steps, bytes of the state, how much of the digits stands in the notes of a block when they are asked for, and the
memory fidelity of both (`statescan inspect memory`).

On one thread, in processor time (`--minutes` for each training). Models and finished figures are kept in OUT: a killed run
goes on there. Figures go to ``benchmarks/results/memory_notes.json`` and ``.md``, the picture to OUT/memory_notes.png and
``docs/assets/memory_notes.png``. --quick shows within a minute that it works, and saves nothing but in OUT.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import statescan
from benchmarks import _bible, _measure
from benchmarks._points import Points
from benchmarks.long_context import ASKED, marked_digits
from statescan import inspect
from statescan.data import IGNORED, Passkey

ROOT = Path(__file__).parents[1]
TRAINED = 512
LENGTHS = (512, 1024, 2048, 4096, 8192, 32768)
#: MemMamba's fields by task; Mamba has the same but its width and what concerns notes.
FIELDS: dict[str, dict[str, Any]] = {
    "digits": dict(dim=48, depth=2, state_dim=8, vocab_size=32),
    "passkey": dict(dim=64, depth=2, state_dim=16, vocab_size=256),
}
NOTES: dict[str, Any] = dict(cross_layer_every=0, pool_size=50)
#: Learning rates.
RATES = {"digits": 5e-3, "passkey": 3e-3}
MODELS = ("mamba", "memmamba")


def create(kind: str, task: str, seed: int) -> Any:
    """A model with fresh weights; Mamba at least as large as MemMamba, and hardly larger."""
    torch.manual_seed(seed)
    fields = FIELDS[task]
    if kind == "memmamba":
        return statescan.create_model("memmamba_tiny", **fields, **NOTES)
    with torch.device("meta"):
        wanted = inspect.count_parameters(statescan.create_model("memmamba_tiny", **fields, **NOTES))
    dim = fields["dim"]
    while True:
        with torch.device("meta"):
            found = inspect.count_parameters(statescan.create_model("mamba_tiny", **{**fields, "dim": dim}))
        if found >= wanted:
            return statescan.create_model("mamba_tiny", **{**fields, "dim": dim})
        dim += 1


def digits_batch(count: int, length: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens (count, length), and targets of the same shape, ignored but where digits are asked for."""
    tokens, digits = marked_digits(count, length, seed=seed)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -ASKED:] = digits
    return tokens, targets


def passkey_batch(count: int, length: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """The same of texts with a passkey."""
    drawn = Passkey(length).batch(count, seed=seed)
    return drawn.tokens, drawn.targets


def digits_loss(model: Any, step: int, *, tokens_a_step: int = 8192) -> Tensor:
    """Of the answers, at lengths in turn: 16 at first, every 150 steps also twice the longest, up to 512.

    Short texts, of which there are more at a time, teach the way.
    """
    lengths = [length for length in (16, 32, 64, 128, 256, TRAINED) if length <= 16 << min(step // 150, 5)]
    length = lengths[step % len(lengths)]
    tokens, targets = digits_batch(min(64, max(1, tokens_a_step // length)), length, seed=step)
    logits, _ = model(tokens, last=ASKED, return_state=False)
    return F.cross_entropy(logits.flatten(0, 1), targets[:, -ASKED:].flatten())


def passkey_loss(model: Any, step: int, *, tokens_a_step: int = 8192) -> Tensor:
    """Of all digits: each number stands twice in the text and is asked for; the second copies the first over a short way."""
    length = (288, 384, TRAINED)[step % 3]
    tokens, targets = passkey_batch(max(1, tokens_a_step // length), length, seed=step)
    following = torch.cat([tokens[:, 1:], targets[:, -1:]], dim=1)
    is_digit = (following >= ord("0")) & (following <= ord("9"))
    features, _ = model.hidden(tokens, return_state=False)
    return F.cross_entropy(model.head(features[is_digit]), following[is_digit])


TASKS: dict[str, tuple[Any, Any]] = {
    "digits": (digits_batch, digits_loss),
    "passkey": (passkey_batch, passkey_loss),
}


@torch.inference_mode()
def found_digits(model: Any, task: str, length: int, *, examples: int, seed: int) -> dict[str, Any]:
    """Fraction of digits that are right, each after the right ones before it, and of answers that are so as a whole."""
    right = whole = asked = 0
    for number in range(examples):  # one at a time bounds memory
        tokens, targets = TASKS[task][0](1, length, seed=1_000_000 * (seed + 1) + number)
        wanted = targets != IGNORED
        logits, _ = model(tokens, last=16)  # answers are shorter
        hits = (logits.argmax(-1) == targets[:, -16:])[wanted[:, -16:]]
        right, whole, asked = right + int(hits.sum()), whole + int(hits.all()), asked + len(hits)
    return {"digits": right / asked, "answers": whole / examples}


@torch.inference_mode()
def noted(model: Any, task: str, length: int, *, examples: int, seed: int) -> float | None:
    """How much of a passkey's digits stands in notes of a block at the end, of the block with most; None without notes."""
    if model.family != "memmamba":
        return None
    shares = []
    for number in range(examples):
        tokens, targets = TASKS[task][0](1, length, seed=2_000_000 * (seed + 1) + number)
        first = int((targets != IGNORED).int().argmax())
        below = 10 if task == "digits" else ord("9") + 1
        digit = (tokens[0] < below) & (tokens[0] >= (0 if task == "digits" else ord("0")))
        places = digit[: first + 1].nonzero().flatten()
        _, state = model(tokens[:, : first + 1])
        blocks = [state[str(index)]["notes"] for index in range(model.config.depth)]
        kept = [torch.isin(places, block["position"][block["valid"]]).double().mean() for block in blocks]
        shares.append(float(max(kept)))
    return sum(shares) / len(shares)


@torch.inference_mode()
def costs(model: Any, task: str, length: int) -> dict[str, Any]:
    """Milliseconds of processor time a token, of reading a text and of steps behind it, and bytes of the state."""
    tokens, _ = TASKS[task][0](1, length, seed=0)
    began = time.process_time()
    runs = 0
    while runs < 2 or time.process_time() - began < 1.0:
        _, state = model(tokens, last=1)
        runs += 1
    read = (time.process_time() - began) / runs / tokens.shape[1]
    began, steps, after = time.process_time(), 0, state
    while steps < 20 or time.process_time() - began < 0.5:
        _, after = model.step(tokens[:, steps % tokens.shape[1]], after)
        steps += 1
    step = (time.process_time() - began) / steps
    return {"read": 1e3 * read, "step": 1e3 * step, "state_bytes": state.nbytes}


@torch.inference_mode()
def fidelity(model: Any, task: str) -> dict[str, Any]:
    """Memory fidelity on texts of the training length."""
    tokens, _ = TASKS[task][0](32, TRAINED, seed=3_000_000)
    found = inspect.memory_fidelity(model, tokens)
    return {"etmf": {str(d): v for d, v in found.etmf.items()}, "eclmf": {str(g): v for g, v in found.eclmf.items()}}


def draw(path: Path, task: str, found: dict[str, list[dict[str, Any]]]) -> Path:
    """Draw digits and time over length, a curve a model (its seeds as thin lines)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = {"mamba": "#D55E00", "memmamba": "#0072B2"}
    names = {"mamba": "Mamba", "memmamba": "MemMamba"}
    for kind, rows in found.items():
        lengths = sorted({row["tokens"] for row in rows})
        for seed in sorted({row["seed"] for row in rows}):
            own = sorted((row for row in rows if row["seed"] == seed), key=lambda row: row["tokens"])
            left.plot(lengths, [row["digits"] for row in own], color=colours[kind], linewidth=0.7, alpha=0.5)
        means = [_mean(row["digits"] for row in rows if row["tokens"] == length) for length in lengths]
        left.plot(lengths, means, "o-", color=colours[kind], linewidth=2, markersize=4, label=names[kind])
        for what, line in (("read", "o-"), ("step", "s--")):
            times = [_mean(row[what] for row in rows if row["tokens"] == length) for length in lengths]
            label = f"{names[kind]}, {'whole text' if what == 'read' else 'single steps'}"
            right.plot(lengths, times, line, color=colours[kind], markersize=4, label=label)
    left.axvline(TRAINED, color="0.6", linestyle=":", linewidth=1)
    left.axhline(0.1, color="0.6", linestyle="--", linewidth=1)
    left.text(TRAINED * 1.04, 0.02, "trained up to here", fontsize=8, color="0.4")
    left.set_ylabel("digits that are right")
    left.set_ylim(0, 1.03)
    left.set_title(f"{task}: recall over length (dashed: guessing)", fontsize=10)
    right.set_ylabel("milliseconds a token")
    right.set_yscale("log")
    right.set_title("processor time, one thread", fontsize=10)
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, labels=[f"{length:,}" for length in lengths])
        panel.set_xlabel("tokens")
        panel.grid(alpha=0.25)
        panel.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def main() -> None:
    """Train, measure, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/memory_notes"), help="folder of what is finished")
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--minutes", type=float, default=5, help="processor time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of first weights")
    parser.add_argument("--examples", type=int, default=50, help="texts a length")
    parser.add_argument("--longest", type=int, default=1 << 20, help="leave out longer texts")
    parser.add_argument("--quick", action="store_true", help="little of everything, results not saved")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.examples, options.longest = min(options.minutes, 0.15), 4, 2048
    torch.set_num_threads(1)
    points = Points(options.out / "points.jsonl")
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in MODELS}
    fidelities: list[dict[str, Any]] = []
    for kind, seed in itertools.product(MODELS, options.seeds):
        model = _bible.trained(
            options.out / f"{kind}_{options.task}_{seed}_{options.minutes:g}",
            functools.partial(create, kind, options.task, seed),
            TASKS[options.task][1],
            seconds=60 * options.minutes,
            rate=RATES[options.task],
        )
        settings = {"task": options.task, "model": kind, "seed": seed, "minutes": options.minutes}
        for length in (length for length in LENGTHS if length <= options.longest):

            def measure(model: Any = model, length: int = length, seed: int = seed) -> dict[str, Any]:
                task, examples = options.task, options.examples
                scores = found_digits(model, task, length, examples=examples, seed=seed)
                share = noted(model, task, length, examples=max(1, examples // 5), seed=seed)
                return {**scores, "noted": share, **costs(model, task, length)}

            values = points.get({**settings, "tokens": length, "examples": options.examples}, measure)
            found[kind].append({"model": kind, "seed": seed, "tokens": length, **values})
        values = points.get({**settings, "fidelity": TRAINED}, functools.partial(fidelity, model, options.task))
        fidelities.append(
            {"model": kind, "seed": seed, "parameters": inspect.count_parameters(model)}
            | {f"ETMF {distance}": value for distance, value in values["etmf"].items()}
            | {f"ECLMF {gap}": value for gap, value in values["eclmf"].items()}
        )
    title = f"{options.task}, trained at up to {TRAINED} tokens for {options.minutes:g} minutes each"
    tables = {title: [row for kind in MODELS for row in found[kind]], "memory fidelity": fidelities}
    for name, rows in tables.items():
        _measure.show(name, rows)
    picture = draw(options.out / "memory_notes.png", options.task, found)
    print(picture)
    if not options.quick:
        shutil.copyfile(picture, ROOT / "docs" / "assets" / "memory_notes.png")
        rows = {"minutes": options.minutes, "examples": options.examples, "tables": tables}
        print(_measure.save("memory_notes", rows, tables=tables))


if __name__ == "__main__":
    main()
