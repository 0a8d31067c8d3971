"""Does a small retriever find documents by an ordered pair of keys that it never saw together, and what does a length cost?

python -m benchmarks.dense_retrieval [--quick]

The collection is generated (`data.make_retrieval`): two keys side by side in the noise of every document, a pair of its own,
and the query is that pair. A Mamba of two blocks pooled at the end of the text, a Transformer of as many parameters pooled
there too, and a bag of tokens (the same embedding without blocks, the mean of its features, which cannot tell the keys'
order) learn from the same pairs, with cosines over a temperature, and search the whole collection for pairs of unseen
documents. BM25 (k1 1.2, b 0.75) searches the same for single characters, and for pairs of neighbours, which is knowing the
task. Then the processor's time to embed one document of growing length, and the growth of the most memory held: the Mamba
512 tokens at a time, the Transformer at once. What was measured is kept in ``--out`` as it comes; a run that was killed goes
on there. Figures go to ``benchmarks/results/dense_retrieval.json`` and ``.md``, the picture to
``docs/assets/dense_retrieval.png``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import statescan
from benchmarks import _measure
from benchmarks._points import Points
from statescan import data, tasks
from statescan.models import build_model
from statescan.tasks.dense_search import retrieval_scores

PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "dense_retrieval.png"
_TRANSFORMER = ("dim=64", "depth=2", "mlp_dim=88", 'attention={"heads": 4, "rotary_dim": 16}')
#: A model's name, its fields and its pooling.
WAYS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "Mamba, end of text": ("mamba_tiny", ("dim=64", "depth=2"), "eos"),
    "Transformer, end of text": ("transformer_tiny", _TRANSFORMER, "eos"),
    "bag of tokens": ("mamba_tiny", ("dim=64", "depth=0"), "mean"),
}
#: How BM25 splits a text.
TERMS: dict[str, Callable[[str], list[str]]] = {
    "BM25, characters": list,
    "BM25, pairs of characters": lambda text: [text[i : i + 2] for i in range(len(text) - 1)],
}
LENGTHS = (512, 2048, 8192, 16384)
_ATTENTION = {"layout": ["attention"], "mlp_dim": 128, "attention": {"heads": 4, "rotary_dim": 32}}
READERS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "Mamba": ("mamba", {}, 512),
    "Transformer": ("hybrid", _ATTENTION, None),
}


def train(way: str, seed: int, steps: int, documents: int) -> dict[str, Any]:
    """One encoder and its scores on unseen documents."""
    name, fields, pooling = WAYS[way]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        data.make_retrieval(f"{folder}/made", documents=documents, seed=seed)
        settings = tasks.RetrievalTraining(
            data=Path(folder, "made"),
            test_split="test",
            out=Path(folder, "run"),
            model=name,
            set=fields,
            pooling=pooling,  # type: ignore[arg-type]
            normalise=True,
            temperature=0.05,
            symmetric=True,
            query_length=4,
            passage_length=16,
            steps=steps,
            batch_size=64,
            warmup=steps // 10,
            learning_rate=4e-3,
            seed=seed,
            accelerator="cpu",
            progress=False,
        )
        result = tasks.train_retrieval(settings)
    return {**result.test, "parameters": result.parameters, "seconds": time.process_time() - began}


def match(way: str, seed: int, documents: int) -> dict[str, Any]:
    """BM25 on the test of the same collection (Robertson and Zaragoza 2009, equation 3.15, with log(1 + ...))."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        data.make_retrieval(folder, documents=documents, seed=seed)
        made = data.read_retrieval(folder, "test")
    split, k1, b = TERMS[way], 1.2, 0.75
    counts = {name: Counter(split(text)) for name, text in made.documents.items()}
    mean = statistics.mean(c.total() for c in counts.values())
    holds = Counter(term for c in counts.values() for term in c)
    run = {}
    for query, text in made.queries.items():
        run[query] = {
            name: sum(
                math.log(1 + (len(counts) - holds[term] + 0.5) / (holds[term] + 0.5))
                * c[term]
                * (k1 + 1)
                / (c[term] + k1 * (1 - b + b * c.total() / mean))
                for term in split(text)
            )
            for name, c in counts.items()
        }
    return {**retrieval_scores(run, made.relevant), "parameters": 0, "seconds": time.process_time() - began}


@torch.no_grad()
def read(reader: str, length: int, repeats: int) -> dict[str, Any]:
    """One document."""
    torch.manual_seed(0)
    family, fields, chunk = READERS[reader]
    inner = {"dim": 128, "depth": 2, "vocab_size": 256, **fields}
    model = build_model("retriever", {"backbone": family, "language_model": inner}).eval()
    tokens = torch.randint(1, 256, (1, length))
    model(tokens[:, :512])
    before = _measure.reset_peak_memory()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        model(tokens, chunk=chunk)
        taken.append(time.process_time() - began)
    grown = (_measure.peak_memory() - before) / 2**20
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "milliseconds": 1e3 * statistics.median(taken), "MiB more held": grown}


def draw(means: list[dict[str, Any]], lengths: list[dict[str, Any]]) -> None:
    """What is found, and what reading costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [row["encoder"] for row in means][::-1]
    left.barh(names, [row["R@1"] for row in means][::-1], color="tab:blue")
    left.set(xlabel="recall at 1, unseen documents", xlim=(0, 1))
    for reader in READERS:
        rows = [row for row in lengths if row["encoder"] == reader]
        right.plot([row["tokens"] for row in rows], [row["milliseconds"] for row in rows], marker="o", label=reader)
    right.set(xscale="log", yscale="log", xlabel="tokens of a document", ylabel="milliseconds, one thread")
    right.legend()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Run, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/dense_retrieval.jsonl"), help="kept measurements")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.seeds, given.documents = 20, 1, 100
    torch.set_num_threads(1)
    points = Points(given.out)
    repeats, version = 1 if given.quick else 7, statescan.__version__
    lengths: list[dict[str, Any]] = []
    for reader in READERS:
        for length in LENGTHS[:2] if given.quick else LENGTHS:
            point = {"reader": reader, "length": length, "repeats": repeats, "version": version}
            found = points.get(point, lambda r=reader, n=length: read(r, n, repeats))  # type: ignore[misc]
            lengths.append({"encoder": reader, "tokens": length, **found})
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for way in (*WAYS, *TERMS):
            point = {"way": way, "seed": seed, "documents": given.documents}
            if way in WAYS:
                point["steps"] = given.steps
                found = points.get(point, lambda w=way, s=seed: train(w, s, given.steps, given.documents))  # type: ignore[misc]
            else:
                found = points.get(point, lambda w=way, s=seed: match(w, s, given.documents))  # type: ignore[misc]
            rows.append({"encoder": way, "seed": seed, **found})
            print(rows[-1], flush=True)
    means = [_mean(way, [row for row in rows if row["encoder"] == way]) for way in (*WAYS, *TERMS)]
    title = f"Unseen documents among {given.documents}: mean of {given.seeds} seeds, {given.steps} steps"
    _measure.show(title, means)
    reading = "One document: Mamba 512 tokens at a time, the Transformer at once; dim 128, depth 2, one thread"
    _measure.show(reading, lengths)
    if not given.quick:
        draw(means, lengths)
        _measure.save("dense_retrieval", rows + lengths, tables={title: means, "Each seed": rows, reading: lengths})


def _mean(way: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = [key for key in rows[0] if key not in ("encoder", "seed")]
    return {"encoder": way, **{key: statistics.mean(row[key] for row in rows) for key in keys}}


if __name__ == "__main__":
    main()
