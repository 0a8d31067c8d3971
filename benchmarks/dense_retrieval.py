"""Does a small retriever find documents by an ordered pair of keys that it never saw together, and what does a length cost?

python -m benchmarks.dense_retrieval [--quick]

The collection is generated (`data.make_retrieval`): two keys side by side in the noise of every document, a pair of its own,
and the query is that pair. A Mamba of two blocks pooled at the end of the text is compared with a bag of tokens: the same
embedding without blocks, the mean of its features, which cannot tell the keys' order. Both learn from the same pairs, with
cosines over a temperature, and search the whole collection for pairs of unseen documents. Then the processor's time, and the
growth of the most memory held, to embed one document of 2,048 and of 8,192 tokens, 512 at a time. What was measured is kept
in ``--out`` as it comes; a run that was killed goes on there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import statescan
from benchmarks import _measure
from benchmarks._points import Points
from statescan import data, tasks
from statescan.models import build_model

#: Fields of the models, and their pooling.
WAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "Mamba, end of text": (("dim=64", "depth=2"), "eos"),
    "bag of tokens": (("dim=64", "depth=0"), "mean"),
}
LENGTHS = (2048, 8192)


def train(way: str, seed: int, steps: int, documents: int) -> dict[str, Any]:
    """One encoder and its scores on unseen documents."""
    fields, pooling = WAYS[way]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        data.make_retrieval(f"{folder}/made", documents=documents, seed=seed)
        settings = tasks.RetrievalTraining(
            data=Path(folder, "made"),
            test_split="test",
            out=Path(folder, "run"),
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


@torch.no_grad()
def read(length: int, repeats: int) -> dict[str, Any]:
    """One document."""
    torch.manual_seed(0)
    model = build_model("retriever", {"language_model": {"dim": 128, "depth": 2, "vocab_size": 256}}).eval()
    tokens = torch.randint(1, 256, (1, length))
    model(tokens[:, :512])
    before = _measure.reset_peak_memory()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        model(tokens, chunk=512)
        taken.append(time.process_time() - began)
    grown = (_measure.peak_memory() - before) / 2**20
    return {"milliseconds": 1e3 * statistics.median(taken), "MiB more held": grown}


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
    points = Points(given.out)
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for way in WAYS:
            point = {"way": way, "seed": seed, "steps": given.steps, "documents": given.documents}
            found = points.get(point, lambda way=way, seed=seed: train(way, seed, given.steps, given.documents))  # type: ignore[misc]
            rows.append({"encoder": way, "seed": seed, **found})
            print(rows[-1], flush=True)
    repeats = 1 if given.quick else 7
    lengths = []
    for length in LENGTHS:
        point = {"length": length, "repeats": repeats, "version": statescan.__version__}
        lengths.append({"tokens": length, **points.get(point, lambda length=length: read(length, repeats))})  # type: ignore[misc]
    means = [_mean(way, [row for row in rows if row["encoder"] == way]) for way in WAYS]
    title = f"Unseen documents among {given.documents}: mean of {given.seeds} seeds, {given.steps} steps"
    _measure.show(title, means)
    reading = f"One document, 512 tokens at a time; time at {LENGTHS[1]:,} over that at {LENGTHS[0]:,} tokens: "
    reading += f"{lengths[1]['milliseconds'] / lengths[0]['milliseconds']:.2f}"
    _measure.show(reading, lengths)
    if not given.quick:
        _measure.save("dense_retrieval", rows + lengths, tables={title: means, "Each seed": rows, reading: lengths})


def _mean(way: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = [key for key in rows[0] if key not in ("encoder", "seed")]
    return {"encoder": way, **{key: statistics.mean(row[key] for row in rows) for key in keys}}


if __name__ == "__main__":
    main()
