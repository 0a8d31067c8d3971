"""One token of generation: S4, S4D and H3 beside a Transformer of the same width and depth with a cache.

python -m benchmarks.generation_step

steps models that differ in their mixers only (`hybrid`, the same gated MLP after each) after contexts of several
lengths, in turns of 25 tokens (5 of the Transformer's), and prints the median time of a step (of the processor, one
thread) and the bytes that a sequence keeps. The Transformer's cache
is filled with random keys and values, which cost what true ones cost. ``attention alone`` is only the reading of such a
cache where it lies, without a projection or a copy: a floor of any Transformer with one. ``--no-save`` leaves
``benchmarks/results/generation_step.json`` and ``.md`` as they are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks import _measure
from statescan.layers import State
from statescan.models.hybrid import HybridConfig, HybridLanguageModel

DIM, DEPTH, HEADS, MLP = 512, 2, 8, 832
CONTEXTS = (1024, 16_384)
MIXERS = ("s4", "s4d", "h3", "attention")


def build(mixer: str) -> Any:
    """A model whose every block has this mixer."""
    torch.manual_seed(0)
    config = HybridConfig(
        dim=DIM,
        depth=DEPTH,
        vocab_size=256,
        layout=(mixer,),
        mlp_dim=MLP,
        mlp_multiple_of=8,
        attention={"heads": HEADS, "rotary_dim": DIM // HEADS},
    )
    return HybridLanguageModel(config).eval()


def after(model: Any, mixer: str, context: int, batch: int) -> State:
    """The state after `context` tokens."""
    if mixer != "attention":
        return model(torch.randint(256, (batch, context)), last=1)[1]

    def filled(tensor: Tensor) -> Tensor:
        return tensor.new_empty(batch, HEADS, context, DIM // HEADS).normal_() if tensor.ndim == 4 else tensor

    return pytree.tree_map(filled, model.initial_state(batch))


def attention_alone(context: int, batch: int) -> Callable[[], None]:
    cache = [torch.randn(2, batch, HEADS, context, DIM // HEADS) for _ in range(DEPTH)]
    query = torch.randn(batch, HEADS, 1, DIM // HEADS)

    def run() -> None:
        for keys, values in cache:
            F.scaled_dot_product_attention(query, keys, values)

    return run


def kept(state: State) -> int:
    return sum(tensor.nbytes for tensor in pytree.tree_leaves(state))


@torch.no_grad()
def measure(seconds: float, batch: int) -> Iterator[dict[str, Any]]:
    built = {mixer: build(mixer) for mixer in MIXERS}  # not in inference mode: what a step keeps needs versions
    tokens = torch.randint(256, (batch,))
    for context in CONTEXTS:
        states = {mixer: after(model, mixer, context, batch) for mixer, model in built.items()}
        candidates: dict[str, Callable[[], Any]] = {
            mixer: (lambda m=mixer, s=states: built[m].step(tokens, s[m])) for mixer in MIXERS
        }
        candidates["attention alone"] = attention_alone(context, batch)
        often = {mixer: 25 for mixer in MIXERS if mixer != "attention"} | {"attention": 5, "attention alone": 5}
        times = _measure.milliseconds(candidates, seconds=seconds, repeats=often, clock=time.process_time)
        for mixer in MIXERS:
            yield {
                "mixer": mixer,
                "batch": batch,
                "context": context,
                "ms a token": times[mixer],
                "kept a sequence, kB": kept(states[mixer]) / batch / 1e3,
                "Transformer over it": times["attention"] / times[mixer],
                "attention alone over it": times["attention alone"] / times[mixer],
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each context (default: 2)")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    _measure.keep_freed_memory()
    torch.set_num_threads(1)
    rows = [row for batch in (1, 4) for row in measure(options.seconds, batch)]
    title = f"A token of generation: width {DIM}, depth {DEPTH}, float32, one thread"
    _measure.show(title, rows)
    if not options.no_save:
        print(f"written to {_measure.save('generation_step', rows, tables={title: rows})}")


if __name__ == "__main__":
    main()
