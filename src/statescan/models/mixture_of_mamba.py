"""Mixture-of-Mamba over several vocabularies: text, image and speech tokens in one autoregressive model.

Liang et al. 2025, arXiv 2501.16295: the setting of Chameleon (discrete tokens of all modalities, section 4.2 and 4.3). The
vocabulary is the vocabularies one after the other, so a token's number says its modality and the model is used like any
language model. Two Mamba blocks stand for one Transformer layer; there is no MLP. ``split=()`` gives the dense baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from statescan.layers import PROJECTIONS, MixtureOfMamba, ModalityGroups, State
from statescan.layers._residual import check_prefix
from statescan.models._language_model import LanguageModel, LanguageModelConfig
from statescan.models._modal_stack import ModalStack
from statescan.models._modality_names import from_published, to_published
from statescan.models._registry import Family


@dataclass(frozen=True)
class MixtureOfMambaConfig(LanguageModelConfig):
    """A Mixture-of-Mamba language model; the mixer's fields are those of `layers.MixtureOfMamba`.

    Arguments:
        vocabularies: tokens of each modality; those of modality m follow those of m - 1.
        vocab_size: their sum; 0: as it follows from them.
        split: projections of which every modality has its own copy: ``input``, ``selection``, ``delta``, ``output``.
    """

    vocab_size: int = 0
    vocabularies: tuple[int, ...] = (65536, 8192)
    split: tuple[str, ...] = PROJECTIONS
    state_dim: int = 16
    conv_kernel: int = 4
    expand: float = 2
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_init: Literal["random", "constant"] = "random"
    dt_scale: float = 1.0
    bias: bool = False
    conv_bias: bool = True
    ignore_shared_delta_bias: bool = False

    def __post_init__(self) -> None:
        vocabularies = tuple(self.vocabularies)
        if not vocabularies or any(not isinstance(size, int) or size < 1 for size in vocabularies):
            raise ValueError(f"vocabularies: a positive whole number a modality, got {self.vocabularies!r}")
        object.__setattr__(self, "vocabularies", vocabularies)
        object.__setattr__(self, "split", (self.split,) if isinstance(self.split, str) else tuple(self.split))
        if self.vocab_size not in (0, sum(vocabularies)):
            raise ValueError(f"vocab_size: the vocabularies have {sum(vocabularies)} tokens, got {self.vocab_size}")
        object.__setattr__(self, "vocab_size", sum(vocabularies))
        super().__post_init__()
        if self.attention_layers or self.mlp_dim:
            raise ValueError("attention_layers, mlp_dim: a Mixture-of-Mamba has neither attention nor MLPs")

    @property
    def modalities(self) -> int:
        """How many there are."""
        return len(self.vocabularies)


def build_mixer(config: Any) -> MixtureOfMamba:
    """The mixer of a config."""
    return MixtureOfMamba(
        config.dim,
        config.modalities,
        split=config.split,
        state_dim=config.state_dim,
        conv_kernel=config.conv_kernel,
        expand=config.expand,
        dt_rank=config.dt_rank,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        dt_floor=config.dt_floor,
        dt_init=config.dt_init,
        dt_scale=config.dt_scale,
        bias=config.bias,
        conv_bias=config.conv_bias,
        ignore_shared_delta_bias=config.ignore_shared_delta_bias,
    )


class MixtureOfMambaLanguageModel(LanguageModel):
    """embedding -> depth blocks of `layers.MixtureOfMamba` -> norm -> head over all vocabularies."""

    family = "mixture_of_mamba"
    undecayed = (*LanguageModel.undecayed, ".bias")

    def __init__(self, config: MixtureOfMambaConfig):
        super().__init__(config, ModalStack(config, [build_mixer(config) for _ in range(config.depth)]))

    def modality(self, tokens: Tensor) -> Tensor:
        """Modality of each token, shaped as `tokens`."""
        found = torch.zeros_like(tokens)
        first = 0
        for size in self.config.vocabularies[:-1]:
            first += size
            found = found + (tokens >= first).to(tokens.dtype)
        return found

    def hidden(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        prefix: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, State]:
        """Features after the last norm: tokens (batch, length) -> (batch, length, dim), and the state."""
        self._check(tokens, 2)
        check_prefix(self.stack, prefix)
        groups = ModalityGroups(self.modality(tokens), self.config.modalities)
        features, state = self.stack(self._embed(tokens), state, modality=groups, resets=resets, offsets=offsets)
        return self._finish(features), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token a sequence: tokens (batch,) -> logits (batch, vocabulary) and the next state."""
        self._check(tokens, 1)
        groups = ModalityGroups(self.modality(tokens), self.config.modalities)
        features, state = self.stack.step(self._embed(tokens), state, modality=groups)
        return self._logits(self._finish(features)), state


#: Text and one kind of image tokens (Chameleon), or speech tokens too; dims and depths of the block's table.
VARIANTS: dict[str, dict[str, Any]] = {
    "mixture_of_mamba_tiny": dict(dim=96, depth=4, vocabularies=(258, 64), pad_vocab_size_multiple=1),
    "mixture_of_mamba_speech_tiny": dict(dim=96, depth=4, vocabularies=(258, 64, 32), pad_vocab_size_multiple=1),
    "mixture_of_mamba_768": dict(dim=768, depth=24),
    "mixture_of_mamba_2048": dict(dim=2048, depth=48),
}

FAMILY = Family(
    "mixture_of_mamba", MixtureOfMambaConfig, MixtureOfMambaLanguageModel, VARIANTS, from_published, to_published
)
