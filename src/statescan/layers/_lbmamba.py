"""Mamba with a locally bidirectional scan. Zhang et al. 2025, "LBMamba", arXiv 2506.15976."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from statescan import ops
from statescan.layers._mamba import Mamba
from statescan.layers._precision import widen
from statescan.layers._state import State


class LBMamba(Mamba):
    """`Mamba` whose scan looks ahead to the end of each window of positions: `ops.local_scan`.

    It walks a sequence in chunks that are multiples of the window. It has no step: an output needs its whole window.

    Arguments:
        dim: channels of input and output.
        window: positions in a window; ``auto`` follows the length as the published kernel does.
        options: of `Mamba`.
    """

    def __init__(self, dim: int, *, window: int | Literal["auto"] = "auto", **options: Any):
        super().__init__(dim, **options)
        if not self.selective:
            raise ValueError("selective: the local scan needs step sizes, B and C of every position")
        ops.local_window(window, 1)
        self.window: int | Literal["auto"] = window

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """That of `Mamba`, and ``position`` (batch,) int64: how many positions came before."""
        state = super().initial_state(batch_size, dtype=dtype, device=device)
        return State({**state, "position": torch.zeros(batch_size, dtype=torch.int64, device=self.A_log.device)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        Raises:
            ValueError: resets, offsets or positions; a state with window ``auto``, or one from the middle of a window.
        """
        if positions is not None:
            raise ValueError("positions: states age over gaps in plain scans alone, not in windows")
        if resets is not None or offsets is not None:
            raise ValueError("resets, offsets: windows are counted from the start of a row; give one sequence a row")
        position = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        if state:
            if self.window == "auto":
                raise ValueError("window: 'auto' depends on the length of the whole sequence; give a number for chunks")
            position = state["position"]
            if bool((position % self.window).any()):
                raise ValueError(
                    f"state: it ends within a window; all chunks but the last must be multiples of window={self.window}"
                )
        hidden, gate = self.input_projection(x).chunk(2, dim=-1)
        hidden, conv = self.convolution(hidden, state["conv"] if state else None)
        delta, B, C = self._select(hidden)
        y, ssm = ops.local_scan(
            hidden,
            delta,
            self._A(),
            B,
            C,
            widen(self.D),
            gate,
            window=self.window,
            delta_bias=widen(self.delta_bias),
            delta_softplus=True,
            initial_state=state["ssm"] if state else None,
            return_last_state=True,
        )
        return self.output_projection(y), State({"conv": conv, "ssm": ssm, "position": position + x.shape[1]})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Refused.

        Raises:
            NotImplementedError: always; `forward` takes whole windows with the state.
        """
        raise NotImplementedError(
            "LBMamba has no step: an output looks ahead within its window; call forward on chunks of whole windows"
        )
