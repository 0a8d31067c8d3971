"""The native decode engine beside the bandwidth of memory, llama.cpp and transformers.

python -m benchmarks.decode_engine --llama-python PATH

times a Mamba of 129M random weights: one token at a time, 16 sequences at a time, and a prompt of 512, for every type of
packed weights. Between any two samples all bytes that a token reads are read once and nothing else (the floor), and each
peer takes a turn: what is reported are medians of paired ratios, since a machine's bandwidth drifts. ``--llama-python``
names a Python that has `llama-cpp-python` (default: the environment variable LLAMA_PYTHON); it gets the same weights as
GGUF and runs in a process of its own. ``--transformers`` adds the CPU path of transformers. ``--clock process`` takes the
processor's time (one thread), for a machine that others use too; ``--model`` names another model, ``--quick`` shows it at
work on a tiny one.

Then a small model is trained on the King James Bible for ``--text-seconds`` of the processor and its perplexity on unseen
verses is given for every type of weights, and the time of a token after contexts of up to a million tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import statescan
from benchmarks import _measure
from statescan.checkpoints import _gguf
from statescan.generation import CompiledModel, compile_for_generation
from statescan.generation._arena import Arena
from statescan.kernels import cpu

TYPES = ("float32", "bfloat16", "int8", "int4")
#: llama.cpp's type of matrices beside ours.
PEERS = {"float32": "float32", "bfloat16": "float16", "int8": "q8_0", "int4": "q4_0"}
BATCH, PROMPT = 16, 512
#: What a column is to reach, for each type of weights.
TARGETS: dict[str, dict[str, float]] = {
    "of the floor": {"float32": 0.85, "bfloat16": 0.85, "int8": 0.85, "int4": 0.65},
    f"batch {BATCH} over batch 1": {"float32": 10, "bfloat16": 10},
    "over llama.cpp": {"float32": 1, "bfloat16": 1.5, "int8": 2},
    "prompt, over llama.cpp": {"float32": 4, "bfloat16": 6},
}
TEXT = Path(__file__).parents[1] / "examples" / "king_james_bible.txt"


class Floor:
    """Reads so many bytes with all threads."""

    def __init__(self, nbytes: int):
        self._memory = Arena().take(nbytes)  # of the kind that weights lie in
        self._memory.fill_(1)  # memory that was never written is not there
        self._sink = torch.zeros(1)
        self._read = cpu.function("read_memory", "plpi")

    def __call__(self) -> None:
        self._read(self._memory.data_ptr(), self._memory.nbytes, self._sink.data_ptr(), cpu.threads())


class Llama:
    """llama.cpp in its own process, with a GGUF file; `context` is the length of its one sequence, 0 is 16 short ones."""

    def __init__(self, python: str, file: str, *, wall: bool, context: int = 0):
        script = str(Path(__file__).with_name("_llama.py"))
        command = [python, script, file, str(torch.get_num_threads()), str(context)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        self._wall = wall
        if self._line() != "ready":
            raise RuntimeError(f"llama.cpp does not start: {' '.join(command)}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, command: str) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return [float(number) for number in self._line().split()]

    def seconds(self, command: str) -> float:
        return self.ask(command)[0 if self._wall else 1]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def timed(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def repeated(call: Callable[[], Any], clock: Callable[[], float], times: int = 4) -> float:
    """Seconds a call, of a few in a row after one that finds the cache as others left it; so it is with llama.cpp."""
    call()
    return timed(lambda: [call() for _ in range(times)], clock) / times


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def transformers_step(config: Any) -> Callable[[], Any]:
    """A token of transformers' Mamba with a cache, of random weights."""
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(
        MambaConfig(vocab_size=config.padded_vocab_size, hidden_size=config.dim, num_hidden_layers=config.depth)
    ).eval()
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    cache = model(torch.zeros(1, 8, dtype=torch.int64), use_cache=True).cache_params
    return lambda: model(tokens, cache_params=cache, use_cache=True)


def logit_distance(compiled: CompiledModel, llama: Llama) -> float:
    """The largest difference of a logit over the largest logit, after nine tokens."""
    tokens = torch.arange(2, 11)[None]
    ours = compiled.session().read(tokens)[0, 0]
    theirs = torch.tensor(llama.ask("logits " + " ".join(map(str, tokens[0].tolist()))))
    return float((ours - theirs).abs().max() / ours.abs().max())


def measure(model: Any, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the first table."""
    wall = options.clock == "wall"
    clock = time.perf_counter if wall else time.process_time
    compiled = compile_for_generation(model, dtype)
    alone, many = compiled.session(1), compiled.session(BATCH)
    floor = Floor(compiled.weight_bytes + alone.nbytes)
    one, several = torch.zeros(1, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)
    prompt = torch.zeros(1, PROMPT, dtype=torch.int64)
    row: dict[str, Any] = {"weights": dtype, "MB a token": (compiled.weight_bytes + alone.nbytes) / 1e6}
    calls: dict[str, Callable[[], float]] = {
        "step": lambda: repeated(lambda: alone.step(one), clock),
        "floor": lambda: repeated(floor, clock),
        "batch": lambda: repeated(lambda: many.step(several), clock, 1),
    }
    slow: dict[str, Callable[[], float]] = {"prompt": lambda: timed(lambda: alone.read(prompt), clock)}
    with contextlib.ExitStack() as stack:
        if options.llama_python:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=options.scratch))
            file = os.path.join(folder, f"{PEERS[dtype]}.gguf")
            _gguf.write(model, file, dtype=PEERS[dtype])
            llama = Llama(options.llama_python, file, wall=wall)
            stack.callback(llama.close)
            row["logits, from llama.cpp's"] = logit_distance(compiled, llama)
            calls["llama step"] = lambda: llama.seconds("decode 4") / 4
            slow["llama prompt"] = lambda: llama.seconds(f"prefill {PROMPT}")
            slow["llama batch"] = lambda: llama.seconds(f"batch {BATCH}")
        if options.transformers:
            step = transformers_step(model.config)
            calls["transformers step"] = lambda: timed(step, clock)
        times: dict[str, list[float]] = {name: [] for name in (*calls, *slow)}
        for call in (*calls.values(), *slow.values()):
            call()
        for rounds in range(options.rounds):
            for name, call in (calls | slow if rounds % 4 == 0 else calls).items():
                times[name].append(call())
    typical = {name: statistics.median(taken) for name, taken in times.items()}
    row |= {
        "tokens a second": 1 / typical["step"],
        "of the floor": median_ratio(times["floor"], times["step"]),
        f"batch {BATCH}, tokens a second": BATCH / typical["batch"],
        f"batch {BATCH} over batch 1": BATCH * median_ratio(times["step"], times["batch"]),
        f"prompt of {PROMPT}, tokens a second": PROMPT / typical["prompt"],
    }
    if options.llama_python:
        row |= {
            "llama.cpp, tokens a second": 1 / typical["llama step"],
            "over llama.cpp": median_ratio(times["llama step"], times["step"]),
            "prompt, over llama.cpp": median_ratio(times["llama prompt"], times["prompt"]),
            f"batch {BATCH}, over llama.cpp": typical["llama batch"] / typical["batch"],
        }
    if options.transformers:
        row["over transformers"] = median_ratio(times["transformers step"], times["step"])
    print(row, flush=True)
    return row


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached, of what was measured."""
    found = [
        {"what": what, "weights": row["weights"], "ratio": row[what], "target": str(wanted[row["weights"]])}
        for what, wanted in TARGETS.items()
        for row in rows
        if what in row and row["weights"] in wanted
    ]
    by_type = {row["weights"]: row["tokens a second"] for row in rows}
    if {"int4", "int8"} <= set(by_type):
        ratio = by_type["int4"] / by_type["int8"]
        found.append({"what": "over int8", "weights": "int4", "ratio": ratio, "target": "1.5"})
    return [row | {"held": "yes" if row["ratio"] >= float(row["target"]) else "no"} for row in found]


def perplexities(seconds: float) -> Iterator[dict[str, Any]]:
    """Perplexity a byte on unseen verses, of a small model trained for so long."""
    text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    train, held = text[:-200_000], text[-32_769:]
    torch.manual_seed(0)
    model = statescan.create_model("mamba_tiny", dim=128, depth=4).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    end, steps = time.process_time() + seconds, 0
    while time.process_time() < end:
        starts = torch.randint(0, len(train) - 257, (8,))
        batch = torch.stack([train[start : start + 257] for start in starts.tolist()])
        loss = F.cross_entropy(model(batch[:, :-1])[0].flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    model.eval()

    def perplexity(candidate: Any) -> float:
        with torch.no_grad():
            logits = candidate(held[None, :-1])[0]
        return float(F.cross_entropy(logits[0], held[1:]).exp())

    layers = perplexity(model)
    for dtype in TYPES:
        found = perplexity(compile_for_generation(model, dtype))
        yield {
            "weights": dtype,
            "steps of training": steps,
            "perplexity of the layers": round(layers, 4),
            "of the engine": round(found, 4),
            "more, %": 100 * (found / layers - 1),
        }


def contexts(lengths: list[int]) -> Iterator[dict[str, Any]]:
    """The time of a token after ever longer contexts."""
    compiled = compile_for_generation(statescan.create_model("mamba_tiny").eval())
    session, read = compiled.session(), 0
    token = torch.zeros(1, dtype=torch.int64)
    for length in lengths:
        session.read(torch.randint(256, (1, length - read)))
        read = length
        taken = []
        for _ in range(300):
            taken.append(timed(lambda: session.step(token), time.process_time))
            read += 1
        yield {
            "context": length,
            "microseconds a token, median": 1e6 * statistics.median(taken),
            "least": 1e6 * min(taken),
            "bytes of state": session.nbytes,
        }


def parse(parser: argparse.ArgumentParser, *, rounds: int) -> argparse.Namespace:
    """The options of a parser, with those of every benchmark of decoding beside llama.cpp; sets torch's threads."""
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each (default: {rounds})")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", choices=("wall", "process"), default="wall")
    parser.add_argument(
        "--llama-python", default=os.environ.get("LLAMA_PYTHON"), help="a Python that has llama-cpp-python"
    )
    parser.add_argument("--scratch", help="folder for GGUF files")
    parser.add_argument("--note", default="", help="said in the title: what else the machine was doing")
    parser.add_argument("--quick", action="store_true", help="a tiny model, a few turns, nothing written")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    if options.clock == "process":
        options.threads = 1
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def circumstances(options: argparse.Namespace) -> str:
    """For titles: threads, clock, and what else the machine was doing."""
    note = f", {options.note}" if options.note else ""
    return f"{torch.get_num_threads()} threads, {options.clock} clock{note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mamba_130m")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--text-seconds", type=float, default=60.0)
    options = parse(parser, rounds=20)
    if options.quick:
        options.model, options.rounds, options.text_seconds = "mamba_small", 4, 2.0
    model = statescan.create_model(options.model).eval()
    with torch.no_grad():
        rows = [measure(model, dtype, options) for dtype in options.types]
        long = list(contexts([1_000, 10_000] if options.quick else [1_000, 10_000, 100_000, 1_000_000]))
    text = list(perplexities(options.text_seconds))
    where = circumstances(options)
    tables = {f"One token at a time, {options.model}, {where}": rows}
    tables[f"Perplexity a byte of a small model of the King James Bible, {options.text_seconds:.0f} s of training"] = (
        text
    )
    tables["A token of mamba_tiny after long contexts, processor's time"] = long
    tables["Targets"] = targets(rows)
    for title, table in tables.items():
        _measure.show(title, table)
    if not (options.quick or options.no_save):
        everything = {"decoding": rows, "perplexity": text, "contexts": long, "command": sys.argv[1:]}
        print(f"written to {_measure.save('decode_engine', everything, tables=tables)}")


if __name__ == "__main__":
    main()
