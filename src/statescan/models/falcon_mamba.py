"""Falcon Mamba: a Mamba language model with RMSNorm on delta, B and C. Zuo et al. 2024, arXiv 2410.05355.

Peculiar: the inner norms have no weight; the head is not tied; the vocabulary is not padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from statescan.models._registry import Family
from statescan.models._state_spaces import from_published, to_published
from statescan.models.mamba import MambaConfig, MambaLanguageModel


@dataclass(frozen=True)
class FalconMambaConfig(MambaConfig):
    """A Falcon Mamba language model."""

    vocab_size: int = 65024
    inner_norm: Any = "weightless"
    tie_embeddings: bool = False
    pad_vocab_size_multiple: int = 1


class FalconMambaLanguageModel(MambaLanguageModel):
    """`MambaLanguageModel` with inner norms."""

    family = "falcon_mamba"


VARIANTS: dict[str, dict[str, Any]] = {
    "falcon_mamba_tiny": dict(dim=128, depth=4, vocab_size=256),
    "falcon_mamba_7b": dict(dim=4096, depth=64),
}

FAMILY = Family("falcon_mamba", FalconMambaConfig, FalconMambaLanguageModel, VARIANTS, from_published, to_published)
