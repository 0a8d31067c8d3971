"""A document read once for a question, every sentence judged where it ends. "Single-Pass Document Scanning for Question
Answering" (2025, COLM), published under the name of Mamba Retriever too.

A Mamba-2 language model and beside its head another one with a single output, at every position. Peculiar: in the
published batches the index 0 is padding, so a sentence that ends at the first token is lost; here a mask can say which
sentences there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import State
from statescan.models._model import Model
from statescan.models._registry import Family, Tensors, build_model, family
from statescan.models.retriever import language_config


@dataclass(frozen=True)
class DocumentScannerConfig:
    """A scanner.

    Arguments:
        backbone: family of the language model.
        language_model: fields of its config.
    """

    backbone: str = "mamba2"
    language_model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        language_config(self.backbone, self.language_model, owner="backbone")


class DocumentScanner(Model):
    """question and document -> at every token how much the sentence that ends there answers, a logit.

    Arguments:
        config: a `DocumentScannerConfig`.
    """

    family = "document_scanner"

    def __init__(self, config: DocumentScannerConfig):
        super().__init__(config)
        self.language_model: Any = build_model(config.backbone, dict(config.language_model))
        self.undecayed = self.language_model.undecayed  # type: ignore[misc]
        self.binary_head = nn.Linear(self.language_model.config.dim, 1)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (batch, length) -> logits (batch, length), and the state, from which the document can go on."""
        features, state = self.language_model.hidden(tokens, state)
        return self.binary_head(features)[..., 0], state

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping what it computed."""
        self.language_model.set_gradient_checkpointing(enabled)


def sentence_logits(logits: Tensor, ends: Tensor) -> Tensor:
    """The logits of sentences: logits (batch, length), positions of last tokens (batch, sentences) -> like these.

    Raises:
        ValueError: for an end outside of the document.
    """
    if ends.numel() and not 0 <= int(ends.min()) <= int(ends.max()) < logits.shape[1]:
        raise ValueError(f"ends: expected from 0 to {logits.shape[1] - 1}, got {int(ends.min())} to {int(ends.max())}")
    return logits.gather(1, ends)


def sentence_loss(logits: Tensor, labels: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Binary cross-entropy in which answers weigh as much as all others together.

    Arguments:
        logits: (batch, sentences).
        labels: the same shape, 1 where a sentence answers.
        real: the same shape, bool: which of them are sentences; the published code takes those whose end is not 0.

    Returns:
        the mean over the real sentences; the loss of each place, also of those that are none; the weight of
        answers, negatives over positives of the batch (1 where it has no answer).
    """
    labels = labels.to(logits.dtype)
    positives = (labels * real).sum()
    weight = torch.where(positives > 0, (real.sum() - positives) / positives.clamp(min=1), torch.ones_like(positives))
    each = nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none")
    return (each * real).sum() / real.sum().clamp(min=1), each, weight


def _inner(config: DocumentScannerConfig) -> tuple[Family, Any]:
    return family(config.backbone), language_config(config.backbone, config.language_model, owner="backbone")


def from_published(tensors: Tensors, config: DocumentScannerConfig) -> Tensors:
    """Published names to ours."""
    found, inner = _inner(config)
    heads = {name: tensor for name, tensor in tensors.items() if name.startswith("binary_head.")}
    others = {name: tensor for name, tensor in tensors.items() if name not in heads}
    return {f"language_model.{name}": tensor for name, tensor in found.from_published(others, inner).items()} | heads


def to_published(tensors: Tensors, config: DocumentScannerConfig) -> Tensors:
    """The inverse of `from_published`."""
    found, inner = _inner(config)
    prefix = "language_model."
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    others = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name not in heads}
    return found.to_published(others, inner) | heads


VARIANTS: dict[str, dict[str, Any]] = {
    "document_scanner_tiny": dict(
        language_model=dict(dim=64, depth=2, vocab_size=256, state_dim=16, head_dim=16),
    ),
    "document_scanner_130m": dict(language_model=dict(dim=768, depth=24)),
    "document_scanner_1.3b": dict(language_model=dict(dim=2048, depth=48)),
}

FAMILY = Family("document_scanner", DocumentScannerConfig, DocumentScanner, VARIANTS, from_published, to_published)
