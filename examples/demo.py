"""Train a small Mamba on real text beside a Transformer of as many parameters, and compare what they cost.

`make demo` runs this: about five minutes on two cores. The text is the King James Bible from Genesis to Ruth (1611, public
domain; see README.md beside this file), read as bytes. Everything is left in runs/demo. A run that was interrupted goes on
where it stood, one that is finished is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import statescan
from statescan import inspect, tasks
from statescan.checkpoints import ByteTokenizer
from statescan.generation import progress_bar
from statescan.tasks.baselines import compressor_bits_per_byte, ngram_bits_per_byte

TEXT = Path(__file__).parent / "king_james_bible.txt"
#: Name, and the highest learning rate: the better of 4e-3 and 8e-3 for Mamba; for the Transformer, whose result hardly
#: depends on it there, of 1e-3, 2e-3 and 4e-3.
MODELS = {"Mamba": ("mamba_tiny", 8e-3), "Transformer": ("transformer_tiny", 4e-3)}
COLOURS = {"Mamba": "#0072B2", "Transformer": "#D55E00"}
HELD_OUT = 0.05
WINDOW = 256
CONTEXTS = (256, 512, 1024, 2048, 4096, 8192, 16384)


def train(out: Path, steps: int) -> dict[str, dict[str, Any]]:
    """Train both models on the same batches in the same order; their results by name."""
    results = {}
    for label, (model, learning_rate) in MODELS.items():
        parameters = inspect.count_parameters(model)
        console.print(f"\n[bold]{label}[/bold] ({model}, {parameters:,} parameters), {steps} steps")
        settings = tasks.LanguageTraining(
            out=out / label.lower(),
            model=model,
            data=(str(TEXT),),
            steps=steps,
            batch_size=8,
            length=WINDOW,
            learning_rate=learning_rate,
            warmup=40,
            validate_every=max(1, steps // 8),
            validation_fraction=HELD_OUT,
            validation_tokens=20_000,
            resume=True,
        )
        forget_other_run(settings)
        result = tasks.train_language(settings)
        rows = read_csv(settings.out / "metrics.csv")
        speed = read_csv(settings.out / "speed.csv")
        results[label] = {
            "model": result.model,
            "parameters": parameters,
            "learning_rate": learning_rate,
            "training_seconds": sum(row["seconds"] for row in speed),
            "training_tokens_per_second": statistics.median(row["tokens_per_second"] for row in speed),
            "curve": [
                (int(row["step"]), row["validation_bits_per_byte"]) for row in rows if "validation_bits_per_byte" in row
            ],
        }
    return results


def forget_other_run(settings: tasks.LanguageTraining) -> None:
    """Clear the way where the folder holds a run with other settings, say of another number of steps."""
    written = settings.out / "settings.json"
    if written.is_file() and json.loads(written.read_text()) != json.loads(json.dumps(settings.as_dict())):
        written.unlink()
        (settings.out / "checkpoint.ckpt").unlink(missing_ok=True)


def read_csv(path: Path) -> list[dict[str, float]]:
    """The numbers of a table; empty cells are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def score(results: dict[str, dict[str, Any]], text: bytes, held_out: bytes) -> dict[str, float]:
    """Bits for a byte of the held-out text: both models, and what is cheaper."""
    bits = {}
    for label, result in results.items():
        # Both read it the same way: windows of the length they were trained at, each byte from up to 256 before it.
        measured = tasks.evaluate_language(
            statescan.load(result["model"]),
            held_out.decode(),
            tokenizer=ByteTokenizer(),
            mode="strided",
            window=WINDOW,
            stride=WINDOW // 2,
            progress=True,
        )
        bits[label] = measured.bits_per_byte
    for order in (3, 8):
        bits[f"n-grams, order {order}, Kneser-Ney"] = ngram_bits_per_byte(text, held_out, order=order)
    for name in ("bz2", "xz"):
        bits[name] = compressor_bits_per_byte(text, held_out, name=name)
    return bits


@torch.inference_mode()
def generation_cost(label: str, model: Any, contexts: list[int], *, tokens: int = 24) -> list[dict[str, float]]:
    """Seconds a token and bytes of state after contexts of growing length."""
    costs = []
    state, read = None, 0
    text = torch.tensor(list(TEXT.read_bytes()[: max(contexts)]))[None]
    with progress_bar(f"generating with {label}", max(contexts), unit="tokens of context") as advance:
        for context in contexts:
            while read < context:
                end = min(context, read + 512)
                _, state = model(text[:, read:end], state, last=1)
                advance(end - read)
                read = end
            seconds = []
            for _ in range(tokens):
                start = time.perf_counter()
                model.step(text[:, 0], state)
                seconds.append(time.perf_counter() - start)
            median = statistics.median(seconds)
            costs.append({"context": context, "seconds_per_token": median, "state_bytes": state.nbytes})
    return costs


def draw(path: Path, results: dict[str, dict[str, Any]], bits: dict[str, float]) -> None:
    """Loss against steps, and what a token and the context cost against the context's length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    learning, cost, memory = figure.subplots(1, 3)
    for label, result in results.items():
        style = {"color": COLOURS[label], "marker": "o", "markersize": 4, "label": label}
        learning.plot(*zip(*result["curve"], strict=True), **style)
        contexts = [measured["context"] for measured in result["generation"]]
        cost.plot(contexts, [1e3 * measured["seconds_per_token"] for measured in result["generation"]], **style)
        memory.plot(contexts, [measured["state_bytes"] / 1024 for measured in result["generation"]], **style)
    for name, line in (("bz2", ":"), ("n-grams, order 8, Kneser-Ney", "--")):
        learning.axhline(bits[name], color="0.45", linestyle=line, linewidth=1.2, label=name)
    learning.set(title="learning", xlabel="steps", ylabel="bits per byte, held-out text")
    cost.set(title="time of generating a token", xlabel="bytes read before", ylabel="milliseconds", xscale="log")
    memory.set(title="memory of what was read", xlabel="bytes read before", ylabel="KiB", xscale="log", yscale="log")
    cost.set_ylim(bottom=0)
    for axes in (cost, memory):
        axes.minorticks_off()
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    for axes in (learning, cost, memory):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def report(results: dict[str, dict[str, Any]], bits: dict[str, float], contexts: tuple[int, int]) -> None:
    """Print both tables."""
    table = Table(title="held-out text (the last 5 %)", title_justify="left")
    table.add_column("predictor")
    table.add_column("bits per byte", justify="right")
    for label, value in sorted(bits.items(), key=lambda item: item[1]):
        table.add_row(label, f"{value:.3f}", style="bold" if label in results else None)
    console.print(table)
    table = Table(title="cost", title_justify="left")
    for column in ("", *results):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("parameters", *(f"{r['parameters']:,}" for r in results.values()))
    table.add_row("training, tokens/s", *(f"{r['training_tokens_per_second']:,.0f}" for r in results.values()))
    for context in contexts:
        costs = [next(c for c in r["generation"] if c["context"] == context) for r in results.values()]
        table.add_row(
            f"generation after {context:,} bytes, tokens/s", *(f"{1 / c['seconds_per_token']:,.0f}" for c in costs)
        )
        table.add_row(f"memory of {context:,} bytes", *(f"{c['state_bytes'] / 1024:,.0f} KiB" for c in costs))
    console.print(table)


def main() -> None:
    """Train, score, generate, draw, and say where everything lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything that is made")
    parser.add_argument("--steps", type=int, default=1200, help="optimiser steps of each model")
    parser.add_argument("--context", type=int, default=8192, help="longest context of the generation test")
    options = parser.parse_args()
    if options.steps < 1 or options.context < CONTEXTS[1]:
        parser.error(f"--steps must be at least 1 and --context at least {CONTEXTS[1]}")
    whole = TEXT.read_bytes()
    cut = len(whole) - int(len(whole) * HELD_OUT)
    results = train(options.out, options.steps)
    console.print("\nscoring the held-out text, and generating after contexts of growing length\n")
    bits = score(results, whole[:cut], whole[cut:])
    contexts = [context for context in CONTEXTS if context <= options.context]
    for label, result in results.items():
        result["generation"] = generation_cost(label, statescan.load(result["model"]), contexts)
    report(results, bits, (contexts[0], contexts[-1]))

    prompt = "And God said,"
    model = results["Mamba"]["model"]
    continued = statescan.generate(
        statescan.load(model),
        [prompt],
        tokenizer=ByteTokenizer(),
        max_new_tokens=300,
        temperature=0.7,
        top_p=0.9,
        seed=1,
    )[0]
    console.print(f"\n[bold]{prompt}[/bold]{continued.text} …\n", highlight=False)

    metrics, picture = options.out / "metrics.json", options.out / "picture.png"
    summary = {
        "steps": options.steps,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bits_per_byte": bits,
        "models": results,
        "sample": prompt + continued.text,
    }
    metrics.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw(picture, results, bits)
    console.print(f"model    {model}\nmetrics  {metrics}\npicture  {picture}\n", highlight=False, soft_wrap=True)
    console.print(
        "What to try next:\n"
        f'  statescan generate {model} --prompt "And it came to pass" --temperature 0.8\n'
        f"  statescan evaluate language {model} --data {TEXT}\n"
        "  statescan train language --data YOUR.txt --model mamba_small --out runs/yours",
        highlight=False,
        soft_wrap=True,
    )


console = Console()

if __name__ == "__main__":
    main()
