"""Classical recurrent cells under the protocol of sequence mixers, to compare with and to exchange for them."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn

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
        if offsets is None:
            return self._walk(x, state, resets)
        parts, states = [x[:, :0]], []
        for number, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
            own = None if resets is None else resets[:, start:end]
            y, last = self._walk(x[:, start:end], state.select([number]) if state else None, own)
            parts.append(y)
            states.append(last)
        return torch.cat(parts, dim=1), State.concatenate(states)

    def _walk(self, x: Tensor, state: State | None, resets: Tensor | None) -> tuple[Tensor, State]:
        carried = dict(state or self.initial_state(x.shape[0], dtype=x.dtype, device=x.device))
        if not x.numel():
            return x, State(carried)
        length = x.shape[1]
        # Only where some sequence begins anew must the walk be interrupted.
        cuts = [] if resets is None else torch.nonzero(resets.any(dim=0)).flatten().tolist()
        outputs = []
        for start, end in itertools.pairwise(sorted({0, *cuts, length})):
            if resets is not None:
                kept = ~resets[:, start, None]
                carried = {name: torch.where(kept, tensor, 0.0) for name, tensor in carried.items()}
            part = x[:, start:end]
            if isinstance(self.recurrence, nn.GRU):
                y, hidden = self.recurrence(part, carried["hidden"][None].contiguous())
                carried = {"hidden": hidden[0]}
            else:
                before = (carried["hidden"][None].contiguous(), carried["cell"][None].contiguous())
                y, (hidden, cell) = self.recurrence(part, before)
                carried = {"hidden": hidden[0], "cell": cell[0]}
            outputs.append(y)
        return torch.cat(outputs, dim=1), State(carried)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        y, state = self(x[:, None], state)
        return y[:, 0], state
