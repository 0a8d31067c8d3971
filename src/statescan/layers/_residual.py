"""The stack that language models share: pre-norm residual blocks around any sequence mixer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers._recompute import recomputed
from statescan.layers._state import State
from statescan.layers._tree import check_path, forward_tree, replay


def without_state(module: Any, return_state: bool) -> dict[str, Any]:
    """Keywords that have a module skip its last state, where that is not wanted and the module can (`skips_state`)."""
    return {} if return_state or not getattr(module, "skips_state", False) else {"return_state": False}


def with_prefix(module: Any, prefix: Tensor | None) -> dict[str, Any]:
    """Keywords that tell a module which positions are read in both directions, where it can (`takes_prefix`)."""
    return {} if prefix is None or not getattr(module, "takes_prefix", False) else {"prefix": prefix}


def check_prefix(module: Any, prefix: Tensor | None) -> None:
    """Refuse a prefix where nothing would read it."""
    if prefix is not None and not getattr(module, "takes_prefix", False):
        raise ValueError(
            "prefix: no mixer here reads in both directions; "
            "one that does is gated_ssm with bidirectional=True (bidirectional_prefix=True of a free layout)"
        )


class ResidualBlock(nn.Module):
    """x += mixer(norm(x)), then, where there is a channel mixer, x += channel_mixer(channel_norm(x)).

    Arguments:
        mixer: a sequence mixer, or None for a block that mixes channels only.
        norm: its norm.
        channel_mixer: a module from (..., dim) to (..., dim).
        channel_norm: its norm.
        scale: what both mixers give is multiplied by it before it is added (Granite).
    """

    skips_state = True

    def __init__(
        self,
        mixer: nn.Module | None,
        norm: nn.Module | None,
        channel_mixer: nn.Module | None = None,
        channel_norm: nn.Module | None = None,
        *,
        scale: float = 1.0,
    ):
        super().__init__()
        self.scale = scale
        self.norm = norm
        self.mixer: Any = mixer
        self.channel_norm = channel_norm
        self.channel_mixer: Any = channel_mixer

    @property
    def takes_prefix(self) -> bool:
        """Whether the mixer reads prefixes in both directions."""
        return getattr(self.mixer, "takes_prefix", False)

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """The mixer's."""
        return State() if self.mixer is None else self.mixer.initial_state(batch_size, **options)

    def forward(
        self,
        residual: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        prefix: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, State]:
        """residual (batch, length, dim) -> residual, and the mixer's state.

        `prefix` (batch, length) bool marks what a mixer that can (`takes_prefix`) reads in both directions; others leave it
        out. `return_state` False says that the state is not wanted: a mixer to which it is extra work leaves it out.
        """
        if self.mixer is None:
            return self._channels(residual), State()
        norm = self.norm
        assert norm is not None
        read = self._read(norm, residual)  # which the norm keeps anyhow, unlike a wider residual stream
        normed = norm(read)
        with recomputed(normed, lambda: norm.forward(read.detach())):
            mixed, state = self.mixer(
                normed,
                state or None,
                resets=resets,
                offsets=offsets,
                **with_prefix(self.mixer, prefix),
                **without_state(self.mixer, return_state),
            )
        return self._channels(residual + self._scaled(mixed)), state

    def step(self, residual: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: (batch, dim)."""
        if self.mixer is None:
            return self._channels(residual), state
        mixed, state = self.mixer.step(self._normed(self.norm, residual), state)
        return self._channels(residual + self._scaled(mixed)), state

    def advance(self, residual: Tensor, state: State) -> State:
        """The state that `step` leaves, without its output; where the mixer can, that is left out of the computation."""
        if self.mixer is None:
            return state
        x = self._normed(self.norm, residual)
        advance = getattr(self.mixer, "advance", None)
        return self.mixer.step(x, state)[1] if advance is None else advance(x, state)

    def forward_tree(self, residual: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """All nodes of a token tree: (batch, nodes, dim), and the mixer's trace."""
        if self.mixer is None:
            return self._channels(residual), State()
        mixed, trace = forward_tree(self.mixer, self._normed(self.norm, residual), parents, state)
        return self._channels(residual + self._scaled(mixed)), trace

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The mixer's state after a path."""
        return state if self.mixer is None else replay(self.mixer, trace, path, state)

    def _channels(self, residual: Tensor) -> Tensor:
        if self.channel_mixer is None:
            return residual
        return residual + self._scaled(self.channel_mixer(self._normed(self.channel_norm, residual)))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale

    @classmethod
    def _normed(cls, norm: nn.Module | None, residual: Tensor) -> Tensor:
        assert norm is not None
        return norm(cls._read(norm, residual))

    @staticmethod
    def _read(norm: nn.Module, residual: Tensor) -> Tensor:
        # The residual stream may be wider (float32) than the weights that read it.
        return residual.to(next(norm.parameters()).dtype)


class ResidualStack(nn.Module):
    """Blocks one after the other on one residual stream.

    Arguments:
        blocks: of `ResidualBlock`, or modules that keep its protocol.
        residual_in_float32: keep the stream in float32 whatever the weights are.
    """

    skips_state = True

    def __init__(self, blocks: Sequence[nn.Module], *, residual_in_float32: bool = True):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.residual_in_float32 = residual_in_float32
        self.gradient_checkpointing = False

    @property
    def takes_prefix(self) -> bool:
        """Whether a mixer of it reads prefixes in both directions."""
        return any(getattr(block, "takes_prefix", False) for block in self.blocks)

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """One entry a block, named by its number."""
        blocks: list[Any] = list(self.blocks)
        return State({str(i): block.initial_state(batch_size, **options) for i, block in enumerate(blocks)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        prefix: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> the stream after the last block, and the state of every block.

        `prefix` and `return_state` as in `ResidualBlock`.

        Raises:
            ValueError: a prefix for a stack of which no mixer reads in both directions.
        """
        check_prefix(self, prefix)
        residual = x.float() if self.residual_in_float32 and x.dtype != torch.float64 else x
        after: dict[str, Tensor | State] = {}
        for index, block in enumerate(self.blocks):
            before = state[str(index)] if state else None
            options: dict[str, Any] = without_state(block, return_state) | with_prefix(block, prefix)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                residual, after[str(index)] = checkpoint(
                    block, residual, before, resets=resets, offsets=offsets, use_reentrant=False, **options
                )
            else:
                residual, after[str(index)] = block(residual, before, resets=resets, offsets=offsets, **options)
        return residual, State(after)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim)."""
        residual = x.float() if self.residual_in_float32 and x.dtype != torch.float64 else x
        after: dict[str, Tensor | State] = {}
        blocks: list[Any] = list(self.blocks)
        for index, block in enumerate(blocks):
            residual, after[str(index)] = block.step(residual, state[str(index)])
        return residual, State(after)

    def forward_tree(self, x: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """All nodes of a token tree: x (batch, nodes, dim) -> the stream after the last block, and every block's trace."""
        residual = x.float() if self.residual_in_float32 and x.dtype != torch.float64 else x
        traces: dict[str, Tensor | State] = {}
        blocks: list[Any] = list(self.blocks)
        for index, block in enumerate(blocks):
            residual, traces[str(index)] = block.forward_tree(residual, parents, state[str(index)])
        return residual, State(traces)

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The state after the nodes `path` (batch, steps) int64 of the tree, -1 behind the end of a shorter path."""
        check_path(path, 2**62)
        blocks: list[Any] = list(self.blocks)
        names = [str(index) for index in range(len(blocks))]
        return State(
            {name: block.replay(trace[name], path, state[name]) for name, block in zip(names, blocks, strict=True)}
        )
