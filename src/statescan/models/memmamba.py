"""MemMamba: Mamba with notes. "MemMamba: Rethinking Memory Patterns in State Space Model" (2025), arXiv 2510.03279.

Before its mixer every block looks up what it has noted of earlier tokens, some also what the blocks before them have; see
`layers.MemoryNotes`. No code was published: the definition is the library's. Without notes it is the Mamba language model,
of the same weights under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers import GatedMLP, MemoryNotes, NotePool, ResidualBlock, State, build_norm
from statescan.layers._memory_notes import Aggregation, Overflow
from statescan.layers._segments import walk_segments
from statescan.layers._tree import check_path, forward_tree, replay
from statescan.models._language_model import LanguageModel, build_attention
from statescan.models._registry import Family
from statescan.models._state_spaces import from_published, to_published
from statescan.models.mamba import MambaConfig, build_mixer


@dataclass(frozen=True)
class MemMambaConfig(MambaConfig):
    """A MemMamba language model: a `MambaConfig`, and of its notes (see `layers.MemoryNotes`):

    Arguments:
        note_dim: channels of a note; None: dim / 4.
        pool_size: notes that a block keeps.
        note_threshold: importance above which a token is noted; infinity: none is, and the model is Mamba.
        recall_threshold: forgetting score above which a block reads its own notes; infinity: none does.
        overflow: which note a full pool gives up: the ``least_important`` or the ``oldest``.
        chunk: positions between refreshments of the pools.
        cross_layer_every: p: blocks p, 2p, ... also read the pools of the p blocks before them; 0: none does.
        aggregation: ``concatenate``: all of their notes; ``mean``: the mean of each pool.
    """

    note_dim: int | None = None
    pool_size: int = 50
    note_threshold: float = 0.5
    recall_threshold: float = 0.5
    overflow: Overflow = "least_important"
    chunk: int = 1
    cross_layer_every: int = 4
    aggregation: Aggregation = "concatenate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cross_layer_every < 0:
            raise ValueError(f"cross_layer_every: blocks, or 0 for none, got {self.cross_layer_every}")
        for name in ("note_threshold", "recall_threshold"):
            object.__setattr__(self, name, float(getattr(self, name)))  # files spell infinity as a word


class MemoryBlock(ResidualBlock):
    """x += recall(norm(x)), then x += mixer(norm(x)), with norms of their own.

    Arguments:
        mixer, norm, channel_mixer, channel_norm: as in `layers.ResidualBlock`.
        notes: what is noted and recalled.
        notes_norm: its norm.
    """

    def __init__(
        self,
        mixer: nn.Module,
        norm: nn.Module,
        notes: MemoryNotes,
        notes_norm: nn.Module,
        channel_mixer: nn.Module | None = None,
        channel_norm: nn.Module | None = None,
    ):
        super().__init__(mixer, norm, channel_mixer, channel_norm)
        self.notes_norm = notes_norm
        self.notes = notes

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """``mixer`` and ``notes``."""
        states = {part: getattr(self, part).initial_state(batch_size, **options) for part in ("mixer", "notes")}
        return State(states)

    def forward(  # type: ignore[override]
        self,
        residual: Tensor,
        state: State | None = None,
        *,
        earlier: Sequence[NotePool] = (),
        resets: Tensor | None = None,
    ) -> tuple[Tensor, State, NotePool]:
        """residual (batch, length, dim) and the pools of blocks before -> residual, the state, the block's pool."""
        before, noted = (state["mixer"], state["notes"]) if state else (None, None)
        x = self._normed(self.notes_norm, residual)
        recalled, noted, pool = self.notes(x, noted, earlier=earlier, resets=resets)
        residual, mixed = super().forward(residual + recalled, before, resets=resets)
        return residual, State({"mixer": mixed, "notes": noted}), pool

    def step(  # type: ignore[override]
        self, residual: Tensor, state: State, *, earlier: Sequence[NotePool] = ()
    ) -> tuple[Tensor, State, NotePool]:
        """One position: residual (batch, dim)."""
        x = self._normed(self.notes_norm, residual)
        recalled, noted, pool = self.notes.step(x, state["notes"], earlier=earlier)
        residual, mixed = super().step(residual + recalled, state["mixer"])
        return residual, State({"mixer": mixed, "notes": noted}), pool


class MemoryStack(nn.Module):
    """Blocks with notes one after the other; see `layers.ResidualStack`.

    Arguments:
        blocks: in order.
        residual_in_float32: keep the stream in float32 whatever the weights are.
        cross_layer_every: how many blocks' pools are handed to each next block that reads layers.
    """

    def __init__(self, blocks: Sequence[MemoryBlock], *, residual_in_float32: bool, cross_layer_every: int):
        super().__init__()
        self.blocks: Any = nn.ModuleList(blocks)
        self.residual_in_float32 = residual_in_float32
        self.cross_layer_every = cross_layer_every
        self.gradient_checkpointing = False

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """One entry a block, named by its number."""
        return State({str(i): block.initial_state(batch_size, **options) for i, block in enumerate(self.blocks)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> the stream after the last block, and the state of every block.

        Packed sequences (`offsets`) are read one after the other.
        """
        if offsets is not None:
            return walk_segments(lambda part, before: self(part, before), x, state, offsets=offsets)
        residual = self._widened(x)
        after: dict[str, Tensor | State] = {}
        pools: list[NotePool] = []
        for index, block in enumerate(self.blocks):
            before = state[str(index)] if state else None
            options: dict[str, Any] = dict(earlier=self._earlier(index, pools), resets=resets)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                residual, after[str(index)], pool = checkpoint(block, residual, before, use_reentrant=False, **options)
            else:
                residual, after[str(index)], pool = block(residual, before, **options)
            pools.append(pool)
        return residual, State(after)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim)."""
        residual = self._widened(x)
        after: dict[str, Tensor | State] = {}
        pools: list[NotePool] = []
        for index, block in enumerate(self.blocks):
            earlier = self._earlier(index, pools)
            residual, after[str(index)], pool = block.step(residual, state[str(index)], earlier=earlier)
            pools.append(pool)
        return residual, State(after)

    def forward_tree(self, x: Tensor, parents: Tensor, state: State) -> tuple[Tensor, State]:
        """All nodes of a token tree, a step a node: x (batch, nodes, dim) -> the stream, and the state after each node."""
        return forward_tree(_Stepping(self), x, parents, state)

    def replay(self, trace: State, path: Tensor, state: State) -> State:
        """The state after the nodes `path` (batch, steps) int64 of the tree, -1 behind the end of a shorter path."""
        check_path(path, len(trace))
        return replay(_Stepping(self), trace, path, state)

    def _earlier(self, index: int, pools: Sequence[NotePool]) -> list[NotePool]:
        return list(pools[index - self.cross_layer_every :]) if _reads_layers(index, self.cross_layer_every) else []

    def _widened(self, x: Tensor) -> Tensor:
        return x.float() if self.residual_in_float32 and x.dtype != torch.float64 else x


class _Stepping:
    """A stack of which a tree sees the single step alone."""

    def __init__(self, stack: MemoryStack):
        self.step = stack.step


def _reads_layers(index: int, every: int) -> bool:
    return every > 0 and index > 0 and index % every == 0


def _build_block(config: MemMambaConfig, index: int) -> MemoryBlock:
    def norm() -> nn.Module:
        return build_norm(config.norm, config.dim, config.norm_eps)

    attends = index in config.attention_layers
    notes = MemoryNotes(
        config.dim,
        max(1, config.dim // 4) if config.note_dim is None else config.note_dim,
        pool_size=config.pool_size,
        note_threshold=config.note_threshold,
        recall_threshold=config.recall_threshold,
        overflow=config.overflow,
        chunk=config.chunk,
        reads_layers=_reads_layers(index, config.cross_layer_every),
        aggregation=config.aggregation,
    )
    block = MemoryBlock(build_attention(config) if attends else build_mixer(config), norm(), notes, norm())
    if config.mlp_dim:
        block.channel_norm = norm()
        block.channel_mixer = GatedMLP(
            config.dim, config.mlp_dim, multiple_of=config.mlp_multiple_of, bias=config.mlp_bias
        )
    return block


class MemMambaLanguageModel(LanguageModel):
    """Depth blocks of `layers.Mamba` with notes (attention at `attention_layers`)."""

    family = "memmamba"

    def __init__(self, config: MemMambaConfig):
        stack = MemoryStack(
            [_build_block(config, index) for index in range(config.depth)],
            residual_in_float32=config.residual_in_float32,
            cross_layer_every=config.cross_layer_every,
        )
        super().__init__(config, stack)
        for block in stack.blocks:
            nn.init.ones_(block.notes.forgetting.bias)  # recall begins open more often than not

    @classmethod
    def of(cls, model: Any, **options: Any) -> MemMambaLanguageModel:
        """A Mamba language model with notes added: its weights, and fresh ones for the notes.

        Arguments:
            model: of the family ``mamba``; it stays as it is.
            options: fields of `MemMambaConfig` that differ from its defaults.

        Raises:
            TypeError: another model.
        """
        if getattr(model, "family", None) != "mamba":
            raise TypeError(f"model: a Mamba language model, got {type(model).__name__}")
        fields = {name: getattr(model.config, name) for name in asdict(model.config)}
        made = cls(MemMambaConfig(**{**fields, **options}))
        weight = model.embedding.weight
        made.to(device=weight.device, dtype=weight.dtype).load_state_dict(model.state_dict(), strict=False)
        return made


VARIANTS: dict[str, dict[str, Any]] = {
    "memmamba_tiny": dict(dim=128, depth=4, vocab_size=256, cross_layer_every=2),
    "memmamba_small": dict(dim=256, depth=8, vocab_size=256),
    "memmamba_130m": dict(dim=768, depth=24),
    "memmamba_370m": dict(dim=1024, depth=48),
    "memmamba_790m": dict(dim=1536, depth=48),
    "memmamba_1.4b": dict(dim=2048, depth=48),
    "memmamba_2.8b": dict(dim=2560, depth=64),
}

FAMILY = Family("memmamba", MemMambaConfig, MemMambaLanguageModel, VARIANTS, from_published, to_published)
