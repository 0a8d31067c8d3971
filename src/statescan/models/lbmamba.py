"""LBVim: Vision Mamba with a locally bidirectional scan and no way back. Zhang et al. 2025, arXiv 2506.15976.

Peculiar: the order of the tokens is reversed after every block, so that two blocks cover both directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers import BidirectionalMamba, LBMamba
from statescan.layers.grid import ClassPlace
from statescan.models import vim
from statescan.models._names import Names
from statescan.models._registry import Family


@dataclass(frozen=True)
class LBVimConfig(vim.VimConfig):
    """An LBVim: a Vim, and:

    Arguments:
        window: positions in a window of the local scan; ``auto``: 4 up to 128 tokens, 8 up to 256, 16 beyond.
        alternate: whether the order of the tokens is reversed after every block.
        attention_heads: of the attention that pools the tokens; 0 for their mean.
        attention_query: whether its latent query is projected.
        attention_head_norm: whether its queries and keys are normalised within heads.
        attention_norm: whether its output is normalised.
    """

    class_token: ClassPlace | None = None
    mixer: Literal["separate", "shared", "causal", "pairs"] = "causal"
    window: int | Literal["auto"] = "auto"
    alternate: bool = True
    attention_heads: int = 0
    attention_query: bool = False
    attention_head_norm: bool = False
    attention_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        ops.local_window(self.window, 1)
        if self.mixer not in ("causal", "separate"):
            raise ValueError(f"mixer: 'causal' or 'separate' with a local scan, got {self.mixer!r}")
        if self.alternate and self.flip_probability:
            raise ValueError("flip_probability: 0 with alternate, which reverses the tokens itself")
        if self.attention_heads and self.dim % self.attention_heads:
            raise ValueError(f"attention_heads: a divisor of dim={self.dim}, got {self.attention_heads}")


class LBVim(vim.Vim):
    """A Vim of `layers.LBMamba`, the tokens reversed after every block.

    Arguments:
        config: an `LBVimConfig`.
    """

    family = "lbmamba"

    def build_mixer(self, config: Any) -> nn.Module:
        """The mixer of one block; with ``separate`` the way back is a plain scan."""
        options = config.mixer_options | {"window": config.window}
        if config.mixer == "separate":
            return BidirectionalMamba(config.dim, halve=config.halve, **options)
        return ScaledLBMamba(config.dim, **options)

    def build_head(self, config: Any) -> nn.Module:
        """Linear, after an attention that pools if the config has one."""
        head = super().build_head(config)
        if not config.attention_heads:
            return head
        pool = AttentionPool(
            config.dim,
            config.attention_heads,
            query=config.attention_query,
            head_norm=config.attention_head_norm,
            norm=config.attention_norm,
        )
        return nn.Sequential(pool, head)

    @property
    def alternates(self) -> bool:
        """Whether the tokens are reversed after every block."""
        return self.config.alternate

    def pool(self, features: Tensor) -> Tensor:
        """What the head reads of the tokens (batch, length, dim)."""
        if self.config.attention_heads:
            return features
        if self.config.pool == "last" and self.config.class_token is None and self.alternates and self.config.depth % 2:
            return features[:, 0]  # where the last block ended its walk
        return super().pool(features)


class ScaledLBMamba(vim.Scaled, LBMamba):
    """`layers.LBMamba` whose output is multiplied by a learned factor a channel."""


class AttentionPool(nn.Module):
    """One learned query attends to all tokens. Zhai et al. 2022, arXiv 2106.04560, without its MLP.

    Arguments:
        dim: channels.
        heads: of the attention.
        query: whether the learned query is projected.
        head_norm: whether queries and keys are normalised within heads.
        norm: whether the output is normalised.
    """

    def __init__(self, dim: int, heads: int, *, query: bool = False, head_norm: bool = False, norm: bool = True):
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.latent, std=dim**-0.5, a=-2 * dim**-0.5, b=2 * dim**-0.5)
        self.query = nn.Linear(dim, dim) if query else None
        self.key_value = nn.Linear(dim, 2 * dim)
        self.query_norm = nn.LayerNorm(dim // heads) if head_norm else None
        self.key_norm = nn.LayerNorm(dim // heads) if head_norm else None
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        for layer in (self.query, self.key_value):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length, dim) -> (batch, dim)."""
        batch, _, dim = tokens.shape

        def split(part: Tensor) -> Tensor:
            return part.unflatten(-1, (self.heads, dim // self.heads)).transpose(1, 2)

        key, value = (split(part) for part in self.key_value(tokens).chunk(2, dim=-1))
        query = split(self.latent if self.query is None else self.query(self.latent))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        out = F.scaled_dot_product_attention(query.expand(batch, -1, -1, -1), key, value)
        return self.norm(out.flatten(1))


_POOL_NAMES = [
    ("head.0.kv.*", "head.0.key_value.*"),
    ("head.0.q.*", "head.0.query.*"),
    ("head.0.q_norm.*", "head.0.query_norm.*"),
    ("head.0.k_norm.*", "head.0.key_norm.*"),
    ("head.0.post_norm.*", "head.0.norm.*"),
]


def names(config: Any) -> Names:
    """The table of names for a config."""
    return Names([*vim.rules(config), *_POOL_NAMES])


def from_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Tensors under our names."""
    return names(config).from_published(tensors, config)


def to_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The inverse."""
    return names(config).to_published(tensors, config)


VARIANTS: dict[str, dict[str, Any]] = {
    "lbvim_micro": dict(dim=64, depth=4, patch=4, image_size=32, num_classes=10),
    "lbvim_tiny": dict(dim=192),
    "lbvim_300": dict(dim=300),
    "lbvim_small": dict(dim=384),
    "lbvim_528_attention": dict(dim=528, attention_heads=6),
}

FAMILY = Family("lbmamba", LBVimConfig, LBVim, VARIANTS, from_published, to_published)
