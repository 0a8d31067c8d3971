"""A training step of 30 million parameters: Mamba and Mamba-2 beside mambapy, transformers' Mamba and a Transformer.

python -m benchmarks.training_step --out runs/training_step

times forward pass, cross-entropy, backward pass and AdamW on one sequence of 2,048 tokens, float32, with one and two
threads. Every model lives in a process of its own; a peer and our two take turns, a step each, and what counts are medians
of the ratios of one turn. All have width 512 and a vocabulary of 4,096, tied; the state-space models 16 blocks, the
Transformer (plain PyTorch: LayerNorm, `scaled_dot_product_attention`, a GELU MLP, no positions, which cost nothing) 9 blocks
whose MLP is as wide as makes the parameters equal. A peer that keeps every state for its backward pass may not fit the
memory, or take minutes a step: it is tried at 256 tokens first, and where four times the length would need more than
``--memory`` of the free memory or ``--patience`` seconds a step, the turn is at the shorter length; the table says so.

Then the memory of a step at 8,192 tokens: the peak of a process over what it held before there was a model, so with
weights, gradients and both means of AdamW.

``--clock process`` takes the processor's time, for a machine that others use too, and leaves two threads out. Finished
turns are kept in ``OUT/points.jsonl``: a killed run goes on there. ``--quick`` shows it at work on tiny models; nothing is
written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import statescan
from benchmarks import _measure
from benchmarks._points import Points

LENGTH, LONG, SHORTEST = 2048, 8192, 256
DIM, DEPTH, VOCABULARY, STATES = 512, 16, 4096, 128
OURS = ("mamba", "mamba2")
PEERS = ("transformer", "mambapy", "transformers")
PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "training_step.png"
QUICK = dict(dim=64, depth=2, vocabulary=256, states=16)
SIZES = dict(dim=DIM, depth=DEPTH, vocabulary=VOCABULARY, states=STATES)


# ---- the models ----------------------------------------------------------------------------------------------------


class TransformerBlock(nn.Module):
    """x += attention(norm(x)); x += MLP(norm(x))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.heads = max(1, dim // 64)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """A language model of so many parameters."""

    def __init__(self, dim: int, depth: int, vocabulary: int, parameters: int):
        super().__init__()
        left = parameters - vocabulary * dim - depth * 4 * dim * dim
        hidden = max(16, round(left / (depth * 2 * dim) / 16) * 16)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


class PlainMamba(nn.Module):
    """mambapy's blocks as a language model; its own shell imports a package that needs CUDA."""

    def __init__(self, dim: int, depth: int, vocabulary: int):
        from mambapy.mamba import Mamba, MambaConfig, RMSNorm

        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks, self.norm = Mamba(MambaConfig(d_model=dim, n_layers=depth)), RMSNorm(dim, 1e-5, False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.norm(self.blocks(self.embedding(tokens))), self.embedding.weight)


def build(
    name: str, *, dim: int, depth: int, vocabulary: int, states: int
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A model, and what gives its logits."""
    torch.manual_seed(0)
    if name in OURS:
        options = {"state_dim": states, "head_dim": min(64, dim)} if name == "mamba2" else {}
        model = statescan.create_model(f"{name}_tiny", dim=dim, depth=depth, vocab_size=vocabulary, **options)
        return model, lambda tokens: model(tokens, return_state=False)[0]
    if name == "transformer":
        like, _ = build("mamba", dim=dim, depth=depth, vocabulary=vocabulary, states=states)
        transformer = Transformer(dim, max(1, round(depth * 9 / 16)), vocabulary, parameters(like))
        return transformer, transformer
    if name == "mambapy":
        plain = PlainMamba(dim, depth, vocabulary)
        return plain, plain
    from transformers import MambaConfig, MambaForCausalLM

    theirs = MambaForCausalLM(
        MambaConfig(vocab_size=vocabulary, hidden_size=dim, num_hidden_layers=depth, use_cache=False)
    )
    return theirs, lambda tokens: theirs(tokens).logits


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- a process a model -----------------------------------------------------------------------------------------------


def serve(name: str, sizes: dict[str, int], *, keep: bool) -> None:
    """Answer a line of JSON for every length on standard input: a step's seconds by both clocks, and memory."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a package prints is no answer
    if keep:
        _measure.keep_freed_memory()
    # What is imported, loaded and planned on first use is there before.
    first, logits = build(name, dim=64, depth=1, vocabulary=64, states=16)
    logits(torch.ones(1, 8, dtype=torch.int64)).sum().backward()
    torch.optim.AdamW(first.parameters(), fused=True).step()
    del first, logits
    before_model = _measure.reset_peak_memory()
    model, logits = build(name, **sizes)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    print(json.dumps({"parameters": parameters(model)}), file=answers)
    for line in sys.stdin:
        length = int(line)
        tokens = torch.randint(1, sizes["vocabulary"], (1, length + 1), generator=torch.Generator().manual_seed(length))
        before = _measure.reset_peak_memory()
        wall, process = time.perf_counter(), time.process_time()
        loss = F.cross_entropy(logits(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        answer = {"wall": time.perf_counter() - wall, "process": time.process_time() - process, "loss": loss.item()}
        del loss
        peak = _measure.peak_memory()
        print(json.dumps(answer | {"added": peak - before, "all": peak - before_model}), file=answers)


class Worker:
    """A model in its own process; `keep`: with freed memory kept, for speed."""

    def __init__(self, name: str, threads: int, sizes: dict[str, int], *, keep: bool = True):
        how = "keep" if keep else "free"
        command = [sys.executable, "-m", "benchmarks.training_step", "--serve", name, json.dumps(sizes), how]
        # Sleeping threads, so that a process that waits for its turn takes nothing from the others.
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        self.parameters: int = self._answer()["parameters"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            raise ChildProcessError(f"{self.name}: ended with {status}\n{self._errors.read()[-1500:]}")
        return json.loads(line)

    def step(self, length: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(length, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()


def free_memory() -> int:
    """Bytes that programs can still have."""
    information = Path("/proc/meminfo")
    if not information.exists():
        return 8 << 30
    line = next(line for line in information.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


# ---- what is measured ------------------------------------------------------------------------------------------------


def length_for(peer: Worker, longest: int, options: argparse.Namespace) -> tuple[int, str]:
    """How long a sequence the peer can take here, and why none longer."""
    length = min(SHORTEST, longest)
    peer.step(16)
    while length < longest:
        longer, seen = min(longest, 4 * length), peer.step(length)
        times = longer / length
        if times * seen["added"] > options.memory * free_memory():
            return length, f"{times * seen['added'] / 1e9:.0f} GB at {longer} tokens"
        if times * seen[options.clock] > options.patience:
            return length, f"{times * seen['wall']:.0f} s a step at {longer} tokens"
        length = longer
    return length, ""


def turns(peer: str, threads: int, longest: int, options: argparse.Namespace) -> dict[str, Any]:
    """Steps of the peer and ours in turn: seconds of each."""
    sizes = QUICK if options.quick else SIZES
    with contextlib.ExitStack() as stack:
        workers = []
        for name in (*OURS, peer):
            workers.append(Worker(name, threads, sizes))
            stack.callback(workers[-1].close)
        length, shortened = length_for(workers[-1], longest, options)
        for worker in workers:
            worker.step(length)
        seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for _ in range(options.rounds):
            for worker in workers:
                seconds[worker.name].append(worker.step(length)[options.clock])
        sizes_of = {worker.name: worker.parameters for worker in workers}
    return {"length": length, "shortened": shortened, "seconds": seconds, "parameters": sizes_of}


def speed_rows(points: Points, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each of ours, peer and number of threads."""
    rows = []
    for threads in options.threads:
        for peer in options.peers:
            longest = 128 if options.quick else LENGTH
            point = {"peer": peer, "threads": threads, "length": longest, "clock": options.clock, "sizes": SIZES}
            found = points.get(
                point | {"rounds": options.rounds, "quick": options.quick},
                lambda peer=peer, threads=threads, longest=longest: turns(peer, threads, longest, options),  # type: ignore[misc]
            )
            for ours in OURS:
                mine, theirs = found["seconds"][ours], found["seconds"][peer]
                ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
                rows.append({
                    "ours": ours,
                    "peer": peer,
                    "threads": threads,
                    "tokens": found["length"],
                    "parameters": f"{found['parameters'][ours] / 1e6:.1f}M, {found['parameters'][peer] / 1e6:.1f}M",
                    "ours, tokens a second": found["length"] / statistics.median(mine),
                    "peer, tokens a second": found["length"] / statistics.median(theirs),
                    "ratio": ratio,
                    "target": "above 1",
                    "held": "yes" if ratio > 1 else "no",
                    "no longer because": found["shortened"],
                })  # fmt: skip
            print(rows[-2], rows[-1], sep="\n", flush=True)
    return rows


def peak(name: str, length: int, quick: bool) -> dict[str, Any]:
    """Memory of the second step at this length."""
    worker = Worker(name, 1, QUICK if quick else SIZES, keep=False)
    try:
        worker.step(length)
        return worker.step(length) | {"parameters": worker.parameters}
    finally:
        worker.close()


def memory_rows(points: Points, quick: bool) -> list[dict[str, Any]]:
    """Peaks of ours and of the Transformer."""
    length = 512 if quick else LONG
    names = (*OURS, "transformer")
    found = {
        name: points.get(
            {"memory": name, "length": length, "sizes": SIZES, "quick": quick},
            lambda name=name: peak(name, length, quick),  # type: ignore[misc]
        )
        for name in names
    }
    limit = found["transformer"]["all"]
    return [
        {
            "model": name,
            "tokens": length,
            "peak with weights and AdamW, MB": found[name]["all"] / 1e6,
            "of the Transformer's": found[name]["all"] / limit,
            "target": "below 1" if name in OURS else "",
            "held": ("yes" if found[name]["all"] < limit else "no") if name in OURS else "",
        }
        for name in names
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second, a group of bars a peer."""
    from matplotlib.figure import Figure

    threads = sorted({row["threads"] for row in rows})
    figure = Figure(figsize=(4.2 * len(threads), 3.4), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(threads), squeeze=False)[0], threads, strict=True):
        chosen = [row for row in rows if row["threads"] == count]
        peers = list(dict.fromkeys(row["peer"] for row in chosen))
        for place, ours in enumerate(OURS):
            of_ours = [row for row in chosen if row["ours"] == ours]
            bars = axes.bar(
                [index + 0.27 * place for index in range(len(peers))],
                [row["ours, tokens a second"] for row in of_ours],
                0.25,
                label=f"ours, {ours}",
            )
            axes.bar_label(bars, [f"{row['ratio']:.1f}x" for row in of_ours], fontsize=7)
        theirs = [row for row in chosen if row["ours"] == OURS[0]]
        places = [index + 0.54 for index in range(len(peers))]
        axes.bar(places, [row["peer, tokens a second"] for row in theirs], 0.25, label="peer", color="grey")
        labels = [f"{row['peer']}\n{row['tokens']} tokens" for row in theirs]
        axes.set_xticks([index + 0.27 for index in range(len(peers))], labels, fontsize=8)
        axes.set_title(f"{count} thread{'s' if count > 1 else ''}", fontsize=9)
        axes.set_ylabel("tokens trained a second")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/training_step"), help="folder of finished turns")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    parser.add_argument("--memory", type=float, default=0.7, help="part of the free memory that a peer may take")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that a peer's step may take")
    parser.add_argument("--quick", action="store_true", help="tiny models, two turns, nothing written")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], json.loads(options.serve[1]), keep=options.serve[2] == "keep")
        return
    if options.clock == "process":
        options.threads = [1]
    if options.quick:
        options.rounds, options.threads = 2, [1]
    points = Points(options.out / ("quick.jsonl" if options.quick else "points.jsonl"))
    torch.set_num_threads(max(options.threads))
    tables = {f"A training step, batch 1, float32, {options.clock} clock": speed_rows(points, options)}
    tables["Memory of a training step, batch 1, float32"] = memory_rows(points, options.quick)
    for title, rows in tables.items():
        _measure.show(title, rows)
    if not (options.quick or options.no_save):
        draw(next(iter(tables.values())), PICTURE)
        print(f"written to {_measure.save('training_step', tables, tables=tables)} and {PICTURE}")


if __name__ == "__main__":
    main()
