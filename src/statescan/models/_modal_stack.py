"""Pre-norm residual blocks around mixers that are told each token's modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers import ModalityGroups, State, build_norm


class ModalBlock(nn.Module):
    """x += mixer(norm(x), modality)."""

    def __init__(self, norm: nn.Module, mixer: nn.Module):
        super().__init__()
        self.norm = norm
        self.mixer: Any = mixer

    def forward(
        self,
        residual: Tensor,
        state: State | None,
        modality: ModalityGroups,
        resets: Tensor | None,
        offsets: Tensor | None,
    ) -> tuple[Tensor, State]:
        mixed, after = self.mixer(self._normed(residual), state, modality=modality, resets=resets, offsets=offsets)
        return residual + mixed, after

    def step(self, residual: Tensor, state: State, modality: ModalityGroups) -> tuple[Tensor, State]:
        mixed, after = self.mixer.step(self._normed(residual), state, modality=modality)
        return residual + mixed, after

    def _normed(self, residual: Tensor) -> Tensor:
        # the residual stream may be wider (float32) than the weights that read it
        return self.norm(residual.to(next(self.norm.parameters()).dtype))


class ModalStack(nn.Module):
    """Blocks one after the other on one residual stream; see `layers.ResidualStack`.

    Arguments:
        config: its dim, norm, norm_eps and residual_in_float32 are asked for.
        mixers: one a block.
    """

    def __init__(self, config: Any, mixers: Sequence[nn.Module]):
        super().__init__()
        self.blocks: Any = nn.ModuleList(
            ModalBlock(build_norm(config.norm, config.dim, config.norm_eps), mixer) for mixer in mixers
        )
        self.residual_in_float32 = config.residual_in_float32
        self.gradient_checkpointing = False

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """One entry a block, named by its number."""
        return State({str(i): block.mixer.initial_state(batch_size, **options) for i, block in enumerate(self.blocks)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        modality: ModalityGroups,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> the stream after the last block, and the state of every block."""
        residual = self._widened(x)
        after: dict[str, Tensor | State] = {}
        for index, block in enumerate(self.blocks):
            arguments = (residual, state[str(index)] if state else None, modality, resets, offsets)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                residual, after[str(index)] = checkpoint(block, *arguments, use_reentrant=False)
            else:
                residual, after[str(index)] = block(*arguments)
        return residual, State(after)

    def step(self, x: Tensor, state: State, *, modality: ModalityGroups) -> tuple[Tensor, State]:
        """One position: x (batch, dim)."""
        residual = self._widened(x)
        after: dict[str, Tensor | State] = {}
        for index, block in enumerate(self.blocks):
            residual, after[str(index)] = block.step(residual, state[str(index)], modality)
        return residual, State(after)

    def _widened(self, x: Tensor) -> Tensor:
        return x.float() if self.residual_in_float32 and x.dtype != torch.float64 else x
