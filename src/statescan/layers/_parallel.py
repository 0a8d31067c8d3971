"""Several mixers on one input, their outputs summed. Zuo et al. 2025 (Falcon-H1), arXiv 2507.22448, figure 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import _tree
from statescan.layers._state import State


class ParallelMixer(nn.Module):
    """sum_i output_scale_i mixer_i(input_scale_i x).

    Arguments:
        mixers: by name; the state has an entry a name.
        input_scales, output_scales: fixed factors by name; 1 where not given.
    """

    def __init__(
        self,
        mixers: Mapping[str, nn.Module],
        *,
        input_scales: Mapping[str, float] | None = None,
        output_scales: Mapping[str, float] | None = None,
    ):
        super().__init__()
        for label, scales in (("input_scales", input_scales or {}), ("output_scales", output_scales or {})):
            unknown = sorted(set(scales) - set(mixers))
            if unknown:
                raise ValueError(f"{label}: no mixer named {unknown[0]!r}; known: {', '.join(mixers)}")
        self.mixers = nn.ModuleDict(mixers)
        self.input_scales = {name: float((input_scales or {}).get(name, 1.0)) for name in mixers}
        self.output_scales = {name: float((output_scales or {}).get(name, 1.0)) for name in mixers}

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """An entry a mixer."""
        mixers: dict[str, Any] = dict(self.mixers.items())
        return State({n: m.initial_state(batch_size, dtype=dtype, device=device) for n, m in mixers.items()})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it; resets, offsets as in `ops`."""
        after: dict[str, Tensor | State] = {}
        parts = []
        for name, mixer in self.mixers.items():
            before = state[name] if state else None
            y, after[name] = mixer(_times(x, self.input_scales[name]), before, resets=resets, offsets=offsets)
            parts.append(_times(y, self.output_scales[name]))
        return torch.stack(parts).sum(0), State(after)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        after: dict[str, Tensor | State] = {}
        parts = []
        for name, mixer in self.mixers.items():
            one: Any = mixer
            y, after[name] = one.step(_times(x, self.input_scales[name]), state[name])
            parts.append(_times(y, self.output_scales[name]))
        return torch.stack(parts).sum(0), State(after)

    def forward_tree(self, x: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """All nodes of a token tree: x (batch, nodes, dim) -> output of the same shape, and every mixer's trace."""
        traces: dict[str, Tensor | State] = {}
        parts = []
        for name, mixer in self.mixers.items():
            y, traces[name] = _tree.forward_tree(mixer, _times(x, self.input_scales[name]), parents, state[name])
            parts.append(_times(y, self.output_scales[name]))
        return torch.stack(parts).sum(0), State(traces)

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The state after a path through the tree."""
        return State({name: _tree.replay(mixer, trace[name], path, state[name]) for name, mixer in self.mixers.items()})


def _times(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale
