"""Classical recurrent cells under the protocol of sequence mixers, to compare with and to exchange for them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from statescan.layers._segments import walk_segments
from statescan.layers._state import State


class RecurrentCell(nn.Module):
    """A GRU (Cho et al. 2014) or LSTM (Hochreiter and Schmidhuber 1997) of one layer, as a sequence mixer.

    Arguments:
        dim: channels of input, output and state.
        kind: ``gru`` or ``lstm``.
    """

    def __init__(self, dim: int, *, kind: Literal["gru", "lstm"] = "gru"):
        super().__init__()
        if kind not in ("gru", "lstm"):
            raise ValueError(f"kind: unknown {kind!r}; known: gru, lstm")
        self.dim, self.kind = dim, kind
        self.recurrence: nn.GRU | nn.LSTM = (nn.GRU if kind == "gru" else nn.LSTM)(dim, dim, batch_first=True)
        for name, parameter in self.recurrence.named_parameters():
            if name.startswith("weight_hh"):
                for gate in parameter.data.split(dim):
                    nn.init.orthogonal_(gate)
            elif name.startswith("bias"):
                nn.init.zeros_(parameter)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``hidden``, and for an LSTM ``cell``, each (batch, dim)."""
        names = ("hidden",) if self.kind == "gru" else ("hidden", "cell")
        weight = next(self.recurrence.parameters())
        return State({name: weight.new_zeros(batch_size, self.dim, dtype=dtype, device=device) for name in names})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        `resets` (batch, length) bool and `offsets` (sequences + 1,) mark where sequences begin, as in `ops`.
        """
        return walk_segments(self._walk, x, state or None, resets=resets, offsets=offsets)

    def _walk(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        state = state or self.initial_state(x.shape[0], dtype=x.dtype, device=x.device)
        if not x.numel():
            return x, state
        if isinstance(self.recurrence, nn.GRU):
            y, hidden = self.recurrence(x, state["hidden"][None].contiguous())
            return y, State({"hidden": hidden[0]})
        before = (state["hidden"][None].contiguous(), state["cell"][None].contiguous())
        y, (hidden, cell) = self.recurrence(x, before)
        return y, State({"hidden": hidden[0], "cell": cell[0]})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        y, state = self(x[:, None], state)
        return y[:, 0], state
