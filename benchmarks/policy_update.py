"""What it costs to learn from contexts of 1,024 steps: an agent's forward and backward pass with S5, GRU or LSTM inside.

python -m benchmarks.policy_update

takes turns, at the sizes of ``s5_rl_tiny`` and of the published agent; ``ratio`` is the time in units of S5's. Figures go to
``benchmarks/results/policy_update.json`` and ``.md``.
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
#: Copies of the environment, width, state, layers.
SIZES = {"small": (16, 64, 64, 2), "published": (4, 256, 256, 4)}


def update(core: str, batch: int, dim: int, states: int, depth: int) -> tuple[int, Callable[[], Any]]:
    """Parameters of an agent, and a pass over a batch of contexts with its gradient."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {"dim": dim, "encoder_dim": dim, "head_dim": dim, "depth": depth, "core": core}
    agent = statescan.create_model("s5_rl_tiny", **fields, **({"state_dim": states} if core == "s5" else {}))
    observations = torch.randn(batch, LENGTH, agent.config.observation_dim)
    starts = torch.rand(batch, LENGTH) < 0.01
    parameters = list(agent.parameters())

    def run() -> Any:
        policy, values, _ = agent(observations, resets=starts)
        return torch.autograd.grad(policy.square().mean() + values.square().mean(), parameters, allow_unused=True)

    return inspect.count_parameters(agent), run


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for size, (batch, dim, states, depth) in SIZES.items():
        cores = {
            "s5": update("s5", batch, dim, states, depth),
            "gru": update("gru", batch, dim, states, depth),
            "lstm": update("lstm", batch, dim, states, depth),
        }
        times = _measure.milliseconds({name: call for name, (_, call) in cores.items()}, seconds=8)
        rows += [
            {
                "size": f"{size}: {batch} x {LENGTH} steps, dim {dim}, {depth} layers",
                "core": name,
                "parameters": parameters,
                "ms": times[name],
                "ratio": times[name] / times["s5"],
            }
            for name, (parameters, _) in cores.items()
        ]
    title = "An update's forward and backward pass, medians"
    _measure.show(title, rows)
    print(f"written to {_measure.save('policy_update', rows, tables={title: rows})}")


if __name__ == "__main__":
    main()
