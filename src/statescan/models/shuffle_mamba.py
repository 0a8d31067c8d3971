"""ShuffleMamba: a plain Vision Mamba trained with a stochastic layer-wise shuffle. Huang et al. 2024, arXiv 2408.17081.

Peculiar: in training a layer may see its tokens in random order, class tokens too; the deeper, the more often. Nothing of
it is left afterwards: a trained model is a Vim with a class token at its head, or one with class tokens spread among the
patches (Mamba-R, Wang et al. 2024, arXiv 2405.14858).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import (
    LayerShuffle,
    ScanBranch,
    ShuffleSchedule,
    build_norm,
    initialise_language_model,
    shuffle_rates,
)
from statescan.layers.grid import ClassPlace
from statescan.models import vim
from statescan.models._names import Names, Rule
from statescan.models._plain import check_choice, plain_blocks
from statescan.models._registry import Family
from statescan.models._vision import initialise_vision


def shuffle_layers(
    model: nn.Module,
    rate: float = 0.5,
    *,
    schedule: ShuffleSchedule = "linear",
    generator: torch.Generator | None = None,
) -> LayerShuffle:
    """Train any backbone of one resolution with the shuffle, from now on. In evaluation it stays what it is.

    Arguments:
        model: an image backbone with blocks of one resolution: Vim, PlainMamba, Adventurer, ViT, LBVim and the like.
        rate: probability that the last block's tokens are shuffled in a step.
        schedule: ``linear`` in depth, from 0 at the first block, or ``constant``.
        generator: of the draws, on the CPU; torch's own unless given.

    Returns:
        What shuffles; its ``remove()`` takes it away again.

    Raises:
        ValueError: a hierarchical model, a rate outside [0, 1], an unknown schedule, or a model that shuffles already.
    """
    blocks = plain_blocks(model)
    if getattr(model, "layer_shuffle", None) is not None:
        raise ValueError("model: it shuffles its layers already; call model.layer_shuffle.remove() first")
    shuffle = LayerShuffle(shuffle_rates(rate, len(blocks), schedule), generator=generator)
    model.layer_shuffle = shuffle.attach(blocks)  # type: ignore[assignment]
    return shuffle


@dataclass(frozen=True)
class ShuffleMambaConfig(vim.VimConfig):
    """A ShuffleMamba: a Vim, and:

    Arguments:
        class_token: ``head``, or ``spread`` for `class_tokens` among the patches (the register form).
        class_reduction: with ``spread``, class tokens are projected to dim / class_reduction before they are joined.
        shuffle_rate: probability that the last block's tokens are shuffled in a step of training.
        shuffle_schedule: ``linear`` in depth, or ``constant``.
        general_initialisation: draw every linear layer's weights alike, those of step sizes included, whose biases and
            the class token are then zero, as the published plain form does; the register form and Mamba spare them.
    """

    class_token: ClassPlace | None = "head"
    class_reduction: int = 1
    shuffle_rate: float = 0.0
    shuffle_schedule: ShuffleSchedule = "linear"
    general_initialisation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("class_token", self.class_token, ("head", "spread"))
        check_choice("mixer", self.mixer, ("separate",))
        shuffle_rates(self.shuffle_rate, self.depth, self.shuffle_schedule)
        if self.class_reduction < 1 or self.dim % self.class_reduction:
            raise ValueError(f"class_reduction: a divisor of dim={self.dim}, got {self.class_reduction}")
        if self.class_reduction > 1 and self.class_token != "spread":
            raise ValueError(f"class_reduction: 1 unless class_token='spread', got {self.class_reduction}")

    @property
    def pooled_dim(self) -> int:
        """Channels that the head reads."""
        return self.class_tokens * (self.dim // self.class_reduction)


class ShuffleMamba(vim.Vim):
    """A Vim whose layers are shuffled in training; its head reads one class token, or several, reduced and joined.

    Arguments:
        config: a `ShuffleMambaConfig`.
    """

    family = "shuffle_mamba"

    def __init__(self, config: ShuffleMambaConfig):
        super().__init__(config)
        self.reduction: nn.Module | None = None
        if config.class_reduction > 1 and not config.features_only:
            self.reduction = nn.Linear(config.dim, config.dim // config.class_reduction, bias=False)
            nn.init.trunc_normal_(self.reduction.weight, std=0.02)
            self.reduction_norm = build_norm(config.norm, config.pooled_dim, config.norm_eps)
        if config.general_initialisation:
            self._initialise_generally()
        self.layer_shuffle: LayerShuffle | None = None
        if config.shuffle_rate:
            shuffle_layers(self, config.shuffle_rate, schedule=config.shuffle_schedule)

    @torch.no_grad()
    def _initialise_generally(self) -> None:
        initialise_vision(self)
        initialise_language_model(self, depth=self.config.depth)
        for module in self.modules():
            if isinstance(module, ScanBranch):
                module.delta_bias.zero_()
        if self.tokens.class_token is not None and self.config.class_token == "head":
            self.tokens.class_token.zero_()

    def build_head(self, config: Any) -> nn.Module:
        """The classifier, of all class tokens."""
        if not config.num_classes:
            return nn.Identity()
        head = nn.Linear(config.pooled_dim, config.num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def pool(self, features: Tensor) -> Tensor:
        """Class tokens (batch, pooled_dim) of the tokens (batch, length, dim)."""
        chosen = features[:, self.tokens.class_indices(features.shape[1] - self.tokens.extra)]
        if self.reduction is None:
            return chosen.flatten(1)
        return self.reduction_norm(self.reduction(chosen).flatten(1))


_OWN: list[Rule] = [
    ("pos_embed_cls", "tokens.class_position"),
    ("neck.*", "reduction.*"),
    ("norm_neck.*", "reduction_norm.*"),
]


def names(config: Any) -> Names:
    """The table of names for a config."""
    return Names([*_OWN, *vim.rules(config)])


def from_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Tensors under our names."""
    return names(config).from_published(tensors, config)


def to_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The inverse."""
    return names(config).to_published(tensors, config)


def _registers(count: int, reduction: int) -> dict[str, Any]:
    return dict(class_token="spread", class_tokens=count, class_reduction=reduction)


VARIANTS: dict[str, dict[str, Any]] = {
    "shuffle_mamba_tiny": dict(dim=64, depth=4, patch=4, image_size=32, num_classes=10, shuffle_rate=0.5),
    "shuffle_mamba_tiny_registers": dict(
        dim=64, depth=4, patch=4, image_size=32, num_classes=10, shuffle_rate=0.5, **_registers(4, 2)
    ),
    "shuffle_mamba_small": dict(dim=384, shuffle_rate=0.5),
    "shuffle_mamba_middle": dict(dim=576, depth=32, norm="layer", shuffle_rate=0.5),
    "shuffle_mamba_base": dict(dim=768, shuffle_rate=0.5),
    "shuffle_mamba_large": dict(dim=1024, depth=48, shuffle_rate=0.5),
    "shuffle_mamba_large_40": dict(dim=1024, depth=40, shuffle_rate=0.5),
    "shuffle_mamba_small_registers": dict(dim=384, shuffle_rate=0.1, **_registers(12, 2)),
    "shuffle_mamba_base_registers": dict(dim=768, shuffle_rate=0.1, **_registers(12, 4)),
    "shuffle_mamba_large_registers": dict(dim=1024, depth=48, shuffle_rate=0.1, **_registers(16, 8)),
}

FAMILY = Family("shuffle_mamba", ShuffleMambaConfig, ShuffleMamba, VARIANTS, from_published, to_published)
