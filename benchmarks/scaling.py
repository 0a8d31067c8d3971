"""The cost model of docs/scaling.md beside this machine: rates measured, steps and tokens predicted, then timed.

python -m benchmarks.scaling

measures the rate of matrix products, of copies and reads of memory, and of scans, each by itself; predicts from them and
from shapes alone a training step (forward, backward, AdamW) of small language models, its memory, and a decoded token; and
times these. What the model of costs leaves out (norms, gates and what a program does beside its arithmetic) shows as a
prediction below what was measured; a ratio between 0.5 and 1.5 is the aim. ``--clock process`` (the default) is the
processor's time of one thread, ``--clock wall --threads N`` that of the room. ``--quick`` shows it at work on tiny models,
whose memory is mostly the program's own; nothing is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import statescan
from benchmarks import _measure
from benchmarks.decode_engine import Floor
from benchmarks.training_step import Worker
from statescan import inspect, ops
from statescan.generation import compile_for_generation

#: Family, width, blocks, tokens.
CASES = (
    ("mamba", 256, 8, 512),
    ("mamba", 256, 8, 2048),
    ("mamba", 512, 16, 2048),
    ("mamba2", 256, 8, 2048),
    ("mamba2", 512, 16, 2048),
)
QUICK = (("mamba", 64, 2, 128), ("mamba2", 64, 2, 128))
VOCABULARY = 4096
#: Bytes whose reading gives the bandwidth of decoding, which writes next to nothing.
READ = 1 << 27
AIM = (0.5, 1.5)


@torch.enable_grad()
def rates(family: str, dim: int, length: int, clock: Callable[[], float], seconds: float) -> inspect.Machine:
    """What this machine reaches, at the sizes of a model's layers."""
    inner = 2 * dim
    x, weight = torch.randn(length, dim), torch.randn(2 * inner, dim)
    source = torch.ones(1 << 24)
    target = torch.empty_like(source)
    scan, operations = scan_of(family, inner, length)
    times = _measure.milliseconds(
        {"product": lambda: x @ weight.T, "copy": lambda: target.copy_(source), "scan": scan},
        seconds=seconds,
        clock=clock,
    )
    return inspect.Machine(
        flops=2 * x.numel() * weight.shape[0] / (times["product"] / 1e3),
        bandwidth=2 * source.nbytes / (times["copy"] / 1e3),
        scan=3 * operations / (times["scan"] / 1e3),
        memory=1e12,
    )


def scan_of(family: str, inner: int, length: int) -> tuple[Callable[[], Any], float]:
    """A scan with its gradients, and the operations that the cost model counts for its forward pass."""
    torch.manual_seed(0)
    states = 16 if family == "mamba" else 128
    shape: tuple[int, ...] = (1, length, inner)
    B, C = torch.randn(2, 1, length, states)
    if family == "mamba2":
        shape = (1, length, inner // 64, 64)
        B, C = B[:, :, None], C[:, :, None]
    x = torch.randn(shape)
    delta = torch.rand(shape[:3]) * 0.1
    A = -torch.rand(inner, states) if family == "mamba" else -torch.rand(shape[2])
    leaves: list[Tensor] = [t.requires_grad_() for t in (x, delta, A, B, C)]
    call: Any = ops.selective_scan if family == "mamba" else ops.ssd
    grad = torch.ones(shape)
    per_state = 9 if family == "mamba" else 5  # as `inspect` counts them
    return lambda: torch.autograd.grad(call(*leaves), leaves, grad), float(length * inner * states * per_state)


def step_row(case: tuple[str, int, int, int], options: argparse.Namespace) -> dict[str, Any]:
    """A training step, predicted and timed."""
    family, dim, depth, length = case
    clock = time.process_time if options.clock == "process" else time.perf_counter
    states = 128 if family == "mamba2" else 16
    work = inspect.workload(
        f"{family}_tiny",
        length=length,
        dim=dim,
        depth=depth,
        vocab_size=VOCABULARY,
        state_dim=states,
        **({"head_dim": 64} if family == "mamba2" else {}),
    )
    sizes = dict(dim=dim, depth=depth, vocabulary=VOCABULARY, states=states)
    worker, lean = (Worker(family, options.threads, sizes, keep=keep) for keep in (True, False))
    try:
        worker.step(length)
        seconds, predicted = [], []
        for _ in range(options.rounds):  # rates drift: predicted and timed in turn
            machine = rates(family, dim, length, clock, options.seconds)
            predicted.append(inspect.training_step(work, machine))
            seconds.append(worker.step(length)[options.clock])
        lean.step(length)
        memory = lean.step(length)["all"]
    finally:
        worker.close()
        lean.close()
    ratio = statistics.median(cost.seconds / taken for cost, taken in zip(predicted, seconds, strict=True))
    of_memory = predicted[0].memory_bytes / memory
    return {
        "model": f"{family} {dim} x {depth}",
        "tokens": length,
        "M": work.parameters / 1e6,
        "GFLOP/s": machine.flops / 1e9,
        "GB/s": machine.bandwidth / 1e9,
        "scan, G/s": (machine.scan or 0) / 1e9,
        "predicted, ms": 1e3 * statistics.median(cost.seconds for cost in predicted),
        "measured, ms": 1e3 * statistics.median(seconds),
        "ratio": ratio,
        "predicted, MB": predicted[0].memory_bytes / 1e6,
        "measured, MB": memory / 1e6,
        "ratio, MB": of_memory,
        "aim": f"{AIM[0]} to {AIM[1]}",
        "held": "yes" if AIM[0] <= min(ratio, of_memory) and max(ratio, of_memory) <= AIM[1] else "no",
    }


def token_row(case: tuple[str, int, int, int], options: argparse.Namespace) -> dict[str, Any]:
    """A decoded token, predicted and timed."""
    family, dim, depth, _ = case
    clock = time.process_time if options.clock == "process" else time.perf_counter
    fields = dict(dim=dim, depth=depth, vocab_size=VOCABULARY)
    model = statescan.create_model(f"{family}_tiny", **fields).eval()
    work = inspect.workload(f"{family}_tiny", length=16, **fields)
    session = compile_for_generation(model, "float32").session(1)
    token, floor = torch.zeros(1, dtype=torch.int64), Floor(READ)
    seconds, predicted = [], []
    with torch.no_grad():
        session.step(token)
        for _ in range(options.rounds):
            read = _measure.milliseconds({"read": floor}, seconds=options.seconds / 4, clock=clock)["read"] / 1e3
            machine = dataclasses.replace(rates(family, dim, 256, clock, options.seconds), bandwidth=READ / read)
            predicted.append(inspect.decoding(work, machine).seconds)
            seconds.append(
                _measure.milliseconds({"step": lambda: session.step(token)}, seconds=0.2, clock=clock)["step"] / 1e3
            )
    ratio = statistics.median(a / b for a, b in zip(predicted, seconds, strict=True))
    return {
        "model": f"{family}, dim {dim}, depth {depth}",
        "MB moved": inspect.decoding(work, machine).read_bytes / 1e6,
        "predicted, us": 1e6 * statistics.median(predicted),
        "measured, us": 1e6 * statistics.median(seconds),
        "ratio": ratio,
        "aim": f"{AIM[0]} to {AIM[1]}",
        "held": "yes" if AIM[0] <= ratio <= AIM[1] else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of rates (default: 1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "process"), default="process")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    if options.clock == "process" and options.threads != 1:
        raise SystemExit("--clock process is of use with one thread alone")
    if options.quick:
        options.rounds, options.seconds = 1, 0.1
    torch.set_num_threads(options.threads)
    _measure.keep_freed_memory()
    cases = QUICK if options.quick else CASES
    where = f"{options.threads} thread{'s' if options.threads > 1 else ''}, {options.clock} clock"
    tables = {f"A training step, predicted and measured, batch 1, float32, {where}": []}
    for case in cases:
        next(iter(tables.values())).append(step_row(case, options))
        print(next(iter(tables.values()))[-1], flush=True)
    widest = {case[0]: case for case in cases}
    tables[f"A decoded token, float32 weights, {where}"] = [token_row(case, options) for case in widest.values()]
    for title, rows in tables.items():
        _measure.show(title, rows)
    if not (options.quick or options.no_save):
        print(f"written to {_measure.save('scaling', tables, tables=tables)}")


if __name__ == "__main__":
    main()
