"""Classifiers at intermediate layers that guess the next token, and say how sure they are of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan.layers import GatedMLP, Mamba, State, build_norm

ExitKind = Literal["linear", "ffn", "mamba"]
KINDS: tuple[ExitKind, ...] = ("linear", "ffn", "mamba")
Confidence = Literal["probability", "margin", "learned"]
CONFIDENCES: tuple[Confidence, ...] = ("probability", "margin", "learned")
SkippedStates = Literal["propagate", "skip"]
SKIPPED_STATES: tuple[SkippedStates, ...] = ("propagate", "skip")


@dataclass(frozen=True)
class ExitConfig:
    """Where tokens may leave a model, and how that is decided.

    Fields:
        layers: after how many blocks there is an exit, rising, each at least 1 and below the model's depth.
        kind: what stands before an exit's vocabulary: a ``linear`` layer (of CALM), a feed-forward block (``ffn``), or a
            ``mamba`` block, which remembers the tokens that came to it.
        confidence: the largest ``probability``, the ``margin`` between the two largest, or a number that a layer of its own
            has ``learned`` to give.
        thresholds: a token leaves where it is surer than this: one number for all exits, or one an exit. At 1 none leaves.
        skipped_states: what becomes of the states of blocks that a token does not reach: ``propagate`` advances them with
            what the token left with; ``skip`` leaves recurrent states as they are, and attention caches, which need an entry
            a token, get the key and value of the last attention layer that was reached.
        shared_head: the vocabulary is the model's own head; otherwise every exit has one, which begins as its copy.
        state_dim: of the Mamba block.
        mlp_dim: hidden channels of the feed-forward block; None: twice the width.
    """

    layers: tuple[int, ...]
    kind: ExitKind = "mamba"
    confidence: Confidence = "probability"
    thresholds: tuple[float, ...] = (1.0,)
    skipped_states: SkippedStates = "propagate"
    shared_head: bool = True
    state_dim: int = 16
    mlp_dim: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "thresholds", tuple(float(value) for value in self.thresholds))
        if not self.layers:
            raise ValueError("layers: expected at least one exit, got none")
        if any(isinstance(layer, bool) or not isinstance(layer, int) or layer < 1 for layer in self.layers):
            raise ValueError(f"layers: expected numbers of blocks from 1 on, got {list(self.layers)}")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers: expected rising numbers of blocks, got {list(self.layers)}")
        for name, known in (("kind", KINDS), ("confidence", CONFIDENCES), ("skipped_states", SKIPPED_STATES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        check_thresholds(self.thresholds, len(self.layers))


def check_thresholds(thresholds: tuple[float, ...], exits: int) -> None:
    """Refuse thresholds that are no numbers from 0 on, or neither one nor one an exit."""
    if len(thresholds) not in (1, exits):
        raise ValueError(f"thresholds: expected 1 or {exits}, one an exit, got {len(thresholds)}")
    if not all(value >= 0 for value in thresholds):
        raise ValueError(f"thresholds: expected numbers from 0 on, got {list(thresholds)}")


class ExitHead(nn.Module):
    """One exit's classifier: features = h, h + ffn(norm(h)) or h + mamba(norm(h)); logits = head(norm(features)).

    Arguments:
        backbone: the language model whose norm and head it begins with.
        config: of the exits.
    """

    def __init__(self, backbone: Any, config: ExitConfig):
        super().__init__()
        width, of = backbone.config.dim, backbone.config
        self.shared = config.shared_head
        self.norm = copy.deepcopy(backbone.norm).requires_grad_(True)
        self.block: Any = None
        self.block_norm: Any = None
        if config.kind == "ffn":
            self.block = GatedMLP(width, 2 * width if config.mlp_dim is None else config.mlp_dim)
        elif config.kind == "mamba":
            self.block = Mamba(width, state_dim=config.state_dim)
        if self.block is not None:
            self.block_norm = build_norm(of.norm, width, of.norm_eps)
            # The exit begins as the model's own norm and head at this layer.
            nn.init.zeros_(self.block.output_projection.weight)
        self.projection: Any = None
        if not config.shared_head:
            self.projection = nn.Linear(width, of.padded_vocab_size, bias=False)
            self.projection.weight.data.copy_(backbone.head.weight.detach())
        elif config.kind == "linear":
            self.projection = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.projection.weight)
        self.sureness = nn.Linear(width, 1) if config.confidence == "learned" else None
        if self.sureness is not None:
            nn.init.zeros_(self.sureness.weight)
            nn.init.zeros_(self.sureness.bias)
        self.to(backbone.head.weight.dtype).to(backbone.head.weight.device)

    @property
    def recurrent(self) -> bool:
        """Whether it remembers tokens."""
        return isinstance(self.block, Mamba)

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """Of its Mamba block; otherwise nothing."""
        return self.block.initial_state(batch_size, **options) if self.recurrent else State()

    def features(
        self, hidden: Tensor, state: State | None = None, *, resets: Tensor | None = None, offsets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Residual stream (batch, length, dim) -> what the vocabulary is read from, of the same shape, and its state."""
        hidden = hidden.to(self.norm.weight.dtype)
        after = State()
        if self.recurrent:
            mixed, after = self.block(self.block_norm(hidden), state or None, resets=resets, offsets=offsets)
            hidden = hidden + mixed
        elif self.block is not None:
            hidden = hidden + self.block(self.block_norm(hidden))
        return self._project(self.norm(hidden)), after

    def step(self, hidden: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: (batch, dim)."""
        if not self.recurrent:
            return self.features(hidden)
        hidden = hidden.to(self.norm.weight.dtype)
        mixed, after = self.block.step(self.block_norm(hidden), state)
        return self._project(self.norm(hidden + mixed)), after

    def logits(self, features: Tensor, backbone: Any) -> Tensor:
        """Features (..., dim) -> logits (..., vocabulary)."""
        return backbone._logits(features) if self.shared else self.projection(features)

    def sureness_logit(self, features: Tensor) -> Tensor:
        """Of the learned confidence: features (..., dim) -> (...,), before the sigmoid."""
        assert self.sureness is not None
        return self.sureness(features)[..., 0].float()

    def confidence(self, features: Tensor, logits: Tensor, kind: Confidence, vocabulary: int) -> Tensor:
        """How sure the exit is, from 0 to 1: (...,)."""
        if kind == "learned":
            return self.sureness_logit(features).sigmoid()
        probabilities = logits[..., :vocabulary].float().softmax(-1)
        if kind == "probability":
            return probabilities.amax(-1)
        largest = probabilities.topk(min(2, vocabulary), dim=-1).values
        return largest[..., 0] - largest[..., 1] if vocabulary > 1 else torch.ones_like(largest[..., 0])

    def _project(self, hidden: Tensor) -> Tensor:
        return self.projection(hidden) if self.shared and self.projection is not None else hidden
