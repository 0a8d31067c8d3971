"""Sequence classifiers of any mixer: the same encoder, norms, pooling and head around the mixer that a word names.

For comparisons of one's own; published classifiers have families of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from statescan.layers import UNDECAYED, GatedMLP, build_mixer, check_mixer
from statescan.models._classifier import Classifier, ClassifierConfig
from statescan.models._registry import Family


@dataclass(frozen=True)
class MixerClassifierConfig(ClassifierConfig):
    """A classifier around any mixer. Mixers read from left to right; the mean over positions sees all.

    Arguments:
        mixer: its name (`layers.MIXERS`).
        options: its options where they differ from the defaults.
        mlp_dim: hidden width of a gated MLP after every mixer; 0 for none.
    """

    mixer: str = "mamba"
    options: dict[str, Any] = field(default_factory=dict)
    mlp_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixer(self.mixer, self.options)
        if self.mlp_dim < 0:
            raise ValueError(f"mlp_dim: 0 or more, got {self.mlp_dim}")


class MixerClassifier(Classifier):
    """Depth blocks of the named mixer, each followed by an MLP where the config asks for one."""

    family = "classifier"
    undecayed = UNDECAYED

    def __init__(self, config: MixerClassifierConfig):
        parts: list[nn.Module] = []
        for _ in range(config.depth):
            parts.append(build_mixer(config.mixer, config.dim, **config.options))
            if config.mlp_dim:
                parts.append(GatedMLP(config.dim, config.mlp_dim))
        super().__init__(config, parts)


VARIANTS: dict[str, dict[str, Any]] = {
    "classifier_tiny": dict(dim=64, depth=2),
    "transformer_classifier_tiny": dict(dim=64, depth=2, mixer="attention", mlp_dim=128),
}


def _as_ours(tensors: Any, config: Any) -> Any:
    return tensors


FAMILY = Family("classifier", MixerClassifierConfig, MixerClassifier, VARIANTS, _as_ours, _as_ours)
