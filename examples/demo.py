"""Train a small Mamba on real text beside a Transformer of as many parameters, and compare what they cost.

`make demo` runs this: about five minutes on two cores. The text is the King James Bible from Genesis to Ruth (1611, public
domain; king_james_bible.txt beside this file), read as bytes. Everything is left in runs/demo.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import statescan
from statescan import inspect, tasks
from statescan.checkpoints import ByteTokenizer
from statescan.tasks.baselines import compressor_bits_per_byte, ngram_bits_per_byte

TEXT = Path(__file__).parent / "king_james_bible.txt"
MODELS = {"Mamba": "mamba_tiny", "Transformer": "transformer_tiny"}
HELD_OUT = 0.05


def train(out: Path, steps: int) -> dict[str, dict]:
    """Train both models on the same batches; their results by name."""
    results = {}
    for label, model in MODELS.items():
        parameters = inspect.count_parameters(model)
        console.print(f"\n[bold]{label}[/bold] ({model}, {parameters:,} parameters): {steps} steps")
        settings = tasks.LanguageTraining(
            out=out / label.lower(),
            model=model,
            data=(str(TEXT),),
            steps=steps,
            batch_size=16,
            length=256,
            learning_rate=4e-3,
            warmup=30,
            validate_every=max(1, steps // 6),
            validation_fraction=HELD_OUT,
            validation_tokens=20_000,
            overwrite=True,
        )
        result = tasks.train_language(settings)
        results[label] = {
            "parameters": parameters,
            "training_seconds": result.seconds,
            "training_tokens_per_second": steps * 16 * 256 / result.seconds,
            "model": result.model,
            "metrics": result.metrics,
        }
    return results


def score(results: dict[str, dict], text: bytes, held_out: bytes) -> dict[str, float]:
    """Bits for a byte of the held-out text: both models, and what is cheaper."""
    bits = {}
    for label, result in results.items():
        model = statescan.load(result["model"])
        # Both read it the same way: in windows of the length they were trained at, each byte from up to 256 before it.
        measured = tasks.evaluate_language(
            model, held_out.decode(), tokenizer=ByteTokenizer(), mode="strided", window=256, stride=128
        )
        bits[label] = measured.bits_per_byte
    bits["n-grams (order 6)"] = ngram_bits_per_byte(text, held_out, order=6)
    for name in ("bz2", "xz"):
        bits[name] = compressor_bits_per_byte(text, held_out, name=name)
    return bits


@torch.inference_mode()
def generation_cost(model, contexts: list[int], *, tokens: int = 16) -> list[dict[str, float]]:
    """Seconds a token and bytes of state after contexts of growing length."""
    costs = []
    state, read = None, 0
    text = torch.tensor(list(TEXT.read_bytes()[: max(contexts)]))[None]
    for context in contexts:
        while read < context:
            end = min(context, read + 512)
            _, state = model(text[:, read:end], state, last=1)
            read = end
        after, token = state, text[:, 0]
        model.step(token, after)  # once, so that the clock sees no first times
        start = time.perf_counter()
        for _ in range(tokens):
            _, after = model.step(token, after)
        seconds = (time.perf_counter() - start) / tokens
        costs.append({"context": context, "seconds_per_token": seconds, "state_bytes": state.nbytes})
    return costs


def draw(path: Path, results: dict[str, dict]) -> None:
    """Loss against steps, and the cost of a token against the context."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for label, result in results.items():
        with open(result["metrics"], newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("validation_bits_per_byte")]
        steps = [int(row["step"]) for row in rows]
        left.plot(steps, [float(row["validation_bits_per_byte"]) for row in rows], marker="o", label=label)
        contexts = [cost["context"] for cost in result["generation"]]
        middle.plot(contexts, [1e3 * c["seconds_per_token"] for c in result["generation"]], marker="o", label=label)
        right.plot(contexts, [c["state_bytes"] / 1024 for c in result["generation"]], marker="o", label=label)
    left.set(title="learning", xlabel="steps", ylabel="bits per byte, held-out text")
    middle.set(
        title="cost of generating a token", xlabel="context (tokens)", ylabel="milliseconds", xscale="log", ylim=0
    )
    right.set(title="memory of the context", xlabel="context (tokens)", ylabel="KiB", xscale="log", yscale="log")
    for axes in (middle, right):
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axes.minorticks_off()
    for axes in (left, middle, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(results: dict[str, dict], bits: dict[str, float], contexts: tuple[int, int]) -> None:
    """Print both tables."""
    table = Table(title="held-out text (the last 5 %)", title_justify="left")
    table.add_column("predictor")
    table.add_column("bits per byte", justify="right")
    for label, value in sorted(bits.items(), key=lambda item: item[1]):
        table.add_row(label, f"{value:.3f}")
    console.print(table)
    table = Table(title="cost", title_justify="left")
    for column in ("", *results):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("parameters", *(f"{r['parameters']:,}" for r in results.values()))
    table.add_row("training, tokens/s", *(f"{r['training_tokens_per_second']:,.0f}" for r in results.values()))
    for context in contexts:
        costs = [next(c for c in r["generation"] if c["context"] == context) for r in results.values()]
        table.add_row(f"generation at {context:,}, tokens/s", *(f"{1 / c['seconds_per_token']:,.0f}" for c in costs))
        table.add_row(f"memory of {context:,} tokens", *(f"{c['state_bytes'] / 1024:,.0f} KiB" for c in costs))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything that is made")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each model")
    parser.add_argument("--context", type=int, default=8192, help="longest context of the generation test")
    options = parser.parse_args()
    if options.steps < 1 or options.context < 512:
        parser.error("--steps must be at least 1 and --context at least 512")
    torch.manual_seed(0)
    whole = TEXT.read_bytes()
    cut = int(len(whole) * (1 - HELD_OUT))
    text, held_out = whole[:cut], whole[cut:]
    results = train(options.out, options.steps)
    with console.status("scoring the held-out text"):
        bits = score(results, text, held_out)
    contexts = [c for c in (256, 512, 1024, 2048, 4096, 8192, 16384) if c <= options.context]
    for label, result in results.items():
        with console.status(f"generating with {label} after up to {contexts[-1]:,} tokens"):
            result["generation"] = generation_cost(statescan.load(result["model"]), contexts)
    console.print()
    report(results, bits, (contexts[0], contexts[-1]))
    prompt = "And God said,"
    mamba = statescan.load(results["Mamba"]["model"])
    continued = statescan.generate(
        mamba, [prompt], tokenizer=ByteTokenizer(), max_new_tokens=240, temperature=0.7, top_p=0.9, seed=1
    )[0]
    console.print(f"\n[bold]{prompt}[/bold]{continued.text}\n", highlight=False)
    metrics = options.out / "metrics.json"
    summary = {"steps": options.steps, "bits_per_byte": bits, "models": results, "sample": prompt + continued.text}
    metrics.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    picture = options.out / "picture.png"
    draw(picture, results)
    model = results["Mamba"]["model"]
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
