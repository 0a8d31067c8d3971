"""What it costs to learn from contexts of 1,024 steps: an agent's forward and backward pass with S5, GRU or LSTM inside.

python -m benchmarks.policy_update

takes turns, at the sizes of ``s5_rl_tiny`` and of the published agent, with an episode beginning at every hundredth step and
with none; ``ratio`` is the time in units of S5's. ``s5, products alone`` are the matrix products that S5's agent makes:
no other way of computing it can leave them out. Figures go to ``benchmarks/results/policy_update.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

import statescan
from benchmarks import _measure
from statescan import inspect

LENGTH = 1024
#: Contexts, width, state, layers.
SIZES = {
    "one context": (1, 64, 64, 2),
    "small": (16, 64, 64, 2),
    "one context, published": (1, 256, 256, 4),
    "published": (4, 256, 256, 4),
}
CORES = ("s5", "gru", "lstm")


def update(
    core: str, batch: int, dim: int, states: int, depth: int, *, episodes: bool = True
) -> tuple[int, Callable[[], Any]]:
    """Parameters of an agent, and a pass over a batch of contexts with its gradient."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {"dim": dim, "encoder_dim": dim, "head_dim": dim, "depth": depth, "core": core}
    agent = statescan.create_model("s5_rl_tiny", **fields, **({"state_dim": states} if core == "s5" else {}))
    observations = torch.randn(batch, LENGTH, agent.config.observation_dim)
    starts = torch.rand(batch, LENGTH) < 0.01 if episodes else None
    parameters = list(agent.parameters())

    def run() -> Any:
        policy, values, _ = agent(observations, resets=starts)
        return torch.autograd.grad(policy.square().mean() + values.square().mean(), parameters, allow_unused=True)

    return inspect.count_parameters(agent), run


def products(batch: int, dim: int, states: int, depth: int) -> Callable[[], None]:
    """The matrix products of an S5 agent's pass, each with those of its two gradients."""
    layer = [(dim, states), (states, dim), (dim, dim), (dim, dim)]  # B, C, and the gate's two
    sizes = [(dim, dim), *depth * layer, *4 * [(dim, dim)]]  # the encoder's second, and two of each head
    rows = batch * LENGTH
    made = {pair: (torch.randn(rows, pair[0]), torch.randn(*pair), torch.randn(rows, pair[1])) for pair in set(sizes)}

    def run() -> None:
        for pair in sizes:
            x, weight, gradient = made[pair]
            x @ weight
            gradient @ weight.T
            gradient.T @ x

    return run


def main() -> None:
    """Measure, show, write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    _measure.keep_freed_memory()
    rows = []
    for size, (batch, dim, states, depth) in SIZES.items():
        for episodes in (True, False):
            made = {core: update(core, batch, dim, states, depth, episodes=episodes) for core in CORES}
            calls = {core: call for core, (_, call) in made.items()}
            alone = "s5, products alone"
            times = _measure.milliseconds(calls | {alone: products(batch, dim, states, depth)}, seconds=8)
            rows += [
                {
                    "size": f"{size}: {batch} x {LENGTH} steps, dim {dim}, {depth} layers",
                    "episodes": "begin at 1 % of steps" if episodes else "none begins",
                    "core": name,
                    "parameters": made[name][0] if name in made else None,
                    "ms": taken,
                    "ratio": taken / times["s5"],
                }
                for name, taken in times.items()
            ]
    title = "An update's forward and backward pass, medians"
    _measure.show(title, rows)
    print(f"written to {_measure.save('policy_update', rows, tables={title: rows})}")


if __name__ == "__main__":
    main()
