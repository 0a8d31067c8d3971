"""Tokens a second after ever longer contexts: a Mamba beside a Transformer with as many parameters.

python -m benchmarks.contexts --llama-python PATH

A Mamba of 129M random weights on the native engine, in float32 and bfloat16; a Llama of as many parameters with its cache in
transformers, in the same two types, and the same Llama as GGUF in llama.cpp (``--llama-python`` names a Python that has
`llama-cpp-python`, default: the environment variable LLAMA_PYTHON), in float32 and float16. At each context (tokens already
read) all take turns at decoding a few tokens, batch 1; ratios are medians of paired turns.

The Mamba does read the context, in float32. The Llama's caches are filled: with random numbers in transformers, with copies
of the first 512 entries moved to their places in llama.cpp; the time of a token does not depend on the numbers.
transformers has the cache of fixed size (`StaticCache`), just as long as needed: its growing one copies all entries
at every token and is several times slower. llama.cpp has a float16 cache, its default, whatever the type of weights.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import statescan
from benchmarks import _measure
from benchmarks.decode_engine import Llama, circumstances, median_ratio, parse, repeated
from statescan.checkpoints import _gguf
from statescan.generation import CompiledModel, Session, compile_for_generation

CONTEXTS = (512, 4_096, 32_768)
#: llama.cpp's type of matrices beside ours.
PEERS = {"float32": "float32", "bfloat16": "float16"}
OURS = "Mamba, ours"
TOKENS = 4  # a turn
#: What the last context is to show: so many times the tokens of a Transformer.
TARGET = 5.0
PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "contexts.png"


def transformer(model: Any) -> Any:
    """A Llama of random weights with as many parameters as a Mamba: its width, half its depth, heads of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    width, depth = config.dim, max(1, config.depth // 2)
    rest = sum(parameter.numel() for parameter in model.stack.parameters()) / depth - 4 * width**2
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.padded_vocab_size,
            hidden_size=width,
            intermediate_size=8 * round(rest / (3 * width) / 8),
            num_hidden_layers=depth,
            num_attention_heads=max(1, width // 64),
            max_position_embeddings=2 * max(CONTEXTS),
            tie_word_embeddings=True,
        )
    ).eval()


def write_llama(model: Any, path: str, dtype: str) -> None:
    """A Llama of transformers as a GGUF file."""
    import gguf

    config, heads = model.config, model.config.num_attention_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(_gguf.TYPES[dtype][1])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # that of the embedding
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # Rotated are neighbours there, a head's halves here.
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        kind = gguf.GGMLQuantizationType[_gguf.TYPES[dtype][0] if tensor.ndim > 1 else "F32"]
        array = gguf.quants.quantize(tensor.float().contiguous().numpy(), kind)
        writer.add_tensor(names.get_name(name, (".weight",)), array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Cached:
    """A Llama in transformers with a cache that holds a context of random entries."""

    def __init__(self, model: Any, context: int):
        from transformers import StaticCache

        self.model, self.context = model, context
        self.token = torch.ones(1, 1, dtype=torch.int64)
        self.cache = StaticCache(config=model.config, max_cache_len=context + 1)
        self._run()  # which makes the tensors
        for layer in self.cache.layers:
            layer.keys.normal_()
            layer.values.normal_()

    def _run(self) -> Any:
        return self.model(self.token, past_key_values=self.cache, use_cache=True)

    def step(self) -> Any:
        """One more token, always at the place after the context."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context)
        return self._run()

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def logit_distance(model: Any, llama: Llama) -> float:
    """The largest difference of a logit between transformers and llama.cpp over the largest logit, after nine tokens."""
    tokens = torch.arange(2, 11)[None]
    theirs = torch.tensor(llama.ask("logits " + " ".join(map(str, tokens[0].tolist()))))
    wanted = model(tokens).logits[0, -1].float()
    return float((wanted - theirs).abs().max() / wanted.abs().max())


def measure(
    context: int,
    sessions: dict[str, Session],
    transformers: dict[str, Any],
    llamas: dict[str, Llama],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The rows of a context: all take turns."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    token = torch.zeros(1, dtype=torch.int64)
    calls: dict[tuple[str, str, str], Callable[[], float]] = {}
    memory: dict[tuple[str, str, str], float] = {}
    for dtype, session in sessions.items():
        key = (OURS, dtype, dtype)
        calls[key] = lambda session=session: repeated(lambda: session.step(token), clock, TOKENS)
        memory[key] = session.nbytes
    for dtype, model in transformers.items():
        cached, key = Cached(model, context), ("Transformer, transformers", dtype, dtype)
        calls[key] = lambda cached=cached: repeated(cached.step, clock, TOKENS)
        memory[key] = cached.nbytes
    for dtype, llama in llamas.items():
        key = ("Transformer, llama.cpp", PEERS[dtype], dtype)
        memory[key] = llama.ask(f"fill {context}")[0]
        calls[key] = lambda llama=llama: llama.seconds(f"next {TOKENS}") / TOKENS
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    for _ in range(options.rounds):
        for key, call in calls.items():
            times[key].append(call())
    rows = []
    for (engine, dtype, beside), taken in times.items():
        rows.append(
            {
                "context": context,
                "model": engine,
                "weights": dtype,
                "tokens a second": 1 / statistics.median(taken),
                "ms a token": 1e3 * statistics.median(taken),
                "cache or state, MB": memory[engine, dtype, beside] / 1e6,
                "Mamba is faster by": median_ratio(taken, times[OURS, beside, beside]),
            }
        )
        print(rows[-1], flush=True)
    return rows


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached, of what was measured."""
    last = max(row["context"] for row in rows)
    return [
        {
            "context": last,
            "beside": row["model"],
            "weights": row["weights"],
            "ratio": row["Mamba is faster by"],
            "target": TARGET,
            "held": "yes" if row["Mamba is faster by"] >= TARGET else "no",
        }
        for row in rows
        if row["context"] == last and row["model"] != OURS
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second against the context, a line an engine and type of weights."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    colours = {OURS: "tab:red", "Transformer, transformers": "tab:blue", "Transformer, llama.cpp": "tab:green"}
    for engine, dtype in dict.fromkeys((row["model"], row["weights"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["weights"]) == (engine, dtype)]
        axes.loglog(
            [row["context"] for row in chosen],
            [row["tokens a second"] for row in chosen],
            "o-" if dtype == "float32" else "s--",
            color=colours[engine],
            label=f"{engine}, {dtype}",
        )
    contexts = sorted({row["context"] for row in rows})
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens read before")
    axes.set_ylabel("tokens a second")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = statescan.create_model(options.model).eval()
    compiled: dict[str, CompiledModel] = {dtype: compile_for_generation(model, dtype) for dtype in PEERS}
    llama_model = transformer(model)
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (model, llama_model)]
    print(f"parameters: Mamba {counts[0]:,}, Transformer {counts[1]:,}")
    transformers = {dtype: transformer(model).to(getattr(torch, dtype)) for dtype in PEERS}  # the same weights
    llamas: dict[str, Llama] = {}
    rows, reader, read = [], compiled["float32"].session(), 0
    with contextlib.ExitStack() as stack:
        if options.llama_python:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=options.scratch))
            for dtype, theirs in PEERS.items():
                file = os.path.join(folder, f"{theirs}.gguf")
                write_llama(llama_model, file, theirs)
                room = max(options.contexts) + 512  # it rounds up; a few tokens are decoded
                llamas[dtype] = Llama(options.llama_python, file, wall=options.clock == "wall", context=room)
                stack.callback(llamas[dtype].close)
                print(f"logits of {theirs}, from transformers': {logit_distance(llama_model, llamas[dtype]):.2e}")
        for context in sorted(options.contexts):
            reader.read(torch.randint(model.config.vocab_size, (1, context - read)))
            read = context
            sessions = {dtype: one.session(reader.state()) for dtype, one in compiled.items()}
            rows += measure(context, sessions, transformers, llamas, options)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mamba_130m")
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS), help="multiples of 512, or fewer")
    parser.add_argument(
        "--picture", type=Path, default=None, help=f"where to draw (default: {PICTURE.name} of the docs)"
    )
    options = parse(parser, rounds=7)
    if options.quick:
        options.model, options.rounds, options.contexts = "mamba_small", 2, [64, 1024]
    with torch.no_grad():
        rows = run(options)
    tables = {f"Decoding after a context, {options.model} and a Llama as large, {circumstances(options)}": rows}
    tables["Targets"] = targets(rows)
    save = not (options.quick or options.no_save)
    if options.picture or save:
        draw(rows, options.picture or PICTURE)
    for title, table in tables.items():
        _measure.show(title, table)
    if save:
        everything = {"contexts": rows, "command": sys.argv[1:]}
        print(f"written to {_measure.save('contexts', everything, tables=tables)} and {options.picture or PICTURE}")


if __name__ == "__main__":
    main()
