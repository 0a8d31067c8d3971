"""Token trees in sequence mixers: one pass over all nodes, then the state after the path that was accepted.

A mixer with `forward_tree(x, parents, state) -> (y, trace)` and `replay(trace, path, state) -> State` takes part. The
trace holds what the replay needs of every node (inputs, not states). Any other mixer that has a `step` is walked node by
node, with a state a node.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.layers._state import State


def pick(values: Tensor, path: Tensor) -> Tensor:
    """The nodes of a path: values (batch, nodes, …), path (batch, steps) -> (batch, steps, …); -1 picks node 0."""
    return values[torch.arange(path.shape[0], device=path.device)[:, None], path.clamp(min=0)]


def check_path(path: Tensor, nodes: int) -> None:
    """Refuse what is no path: (batch, steps) int64, at least one step, -1 only behind the end of a shorter one."""
    if path.ndim != 2 or path.dtype != torch.int64 or not path.shape[1]:
        raise ValueError(f"path: expected int64 (batch, steps) with a step at least, got {tuple(path.shape)}")
    held = path >= 0
    if bool((path >= nodes).any()) or not bool(held[:, 0].all()) or bool((held[:, 1:] & ~held[:, :-1]).any()):
        raise ValueError(f"path: nodes below {nodes} from the root on, -1 behind the last one, got {path.tolist()}")


def slide(state: Tensor, inputs: Tensor, path: Tensor) -> Tensor:
    """A convolution's state after a path: state (batch, width - 1, channels), inputs (batch, nodes, channels)."""
    taps = torch.cat([state.to(inputs.dtype), pick(inputs, path)], dim=1)
    index = (path >= 0).sum(1, keepdim=True) + torch.arange(state.shape[1], device=path.device)
    return torch.gather(taps, 1, index[..., None].expand(-1, -1, taps.shape[2])).to(state.dtype)


def forward_tree(mixer: Any, x: Tensor, parents: Tensor, state: State, **options: Any) -> tuple[Tensor, State]:
    """The mixer's own tree pass, or one node after the other."""
    if hasattr(mixer, "forward_tree"):
        return mixer.forward_tree(x, parents, state, **options)
    if not hasattr(mixer, "step"):
        raise NotImplementedError(f"{type(mixer).__name__} has no step: it cannot read a tree of tokens")
    above = parents.expand(x.shape[0], -1).tolist()
    shared = parents.ndim == 1
    states: list[State] = []
    outputs = []
    for node in range(x.shape[1]):
        if shared:
            before = state if above[0][node] < 0 else states[above[0][node]]
        else:
            rows = [(state if up[node] < 0 else states[up[node]]).select([row]) for row, up in enumerate(above)]
            before = State.concatenate(rows)
        y, after = mixer.step(x[:, node], before, **options)
        outputs.append(y)
        states.append(after)
    return torch.stack(outputs, dim=1), State({str(node): after for node, after in enumerate(states)})


def replay(mixer: Any, trace: State, path: Tensor, state: State) -> State:
    """The state after the path."""
    if hasattr(mixer, "replay"):
        return mixer.replay(trace, path, state)
    last = path.gather(1, (path >= 0).sum(1, keepdim=True) - 1)[:, 0].tolist()
    if len(set(last)) == 1:
        return trace[str(last[0])]
    return State.concatenate([trace[str(node)].select([row]) for row, node in enumerate(last)])
