"""The Vision Transformer in DeiT's sizes: what plain state-space backbones are measured against. Dosovitskiy et al. 2021,
arXiv 2010.11929; Touvron et al. 2021, arXiv 2012.12877.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from statescan.layers import MLP, Attention
from statescan.layers.grid import GridBlock, drop_path_rates
from statescan.models._names import Names
from statescan.models._plain import PlainConfig, TokenClassifier
from statescan.models._registry import Family
from statescan.models._vision import initialise_vision


@dataclass(frozen=True)
class ViTConfig(PlainConfig):
    """A ViT.

    Arguments:
        heads: of the attention.
        mlp_ratio: channels within an MLP over dim.
        norm_eps: of all norms.
    """

    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads: a divisor of dim={self.dim}, got {self.heads}")


class FullAttention(Attention):
    """`layers.Attention` of every token to every other, as a module of tokens."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads, qkv_bias=True, output_bias=True, causal=False)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:  # type: ignore[override]
        """(batch, length, dim) to the same shape."""
        return super().forward(x, *args, **options)[0]


class ViT(TokenClassifier):
    """A class token and patches, blocks of attention and MLPs, norm, linear head on the class token.

    Arguments:
        config: a `ViTConfig`.
    """

    family = "vit"

    def __init__(self, config: ViTConfig):
        def norm(dim: int) -> nn.Module:
            return nn.LayerNorm(dim, eps=config.norm_eps)

        blocks = [
            GridBlock(
                FullAttention(config.dim, config.heads),
                norm(config.dim),
                MLP(config.dim, int(config.dim * config.mlp_ratio), activation=nn.GELU()),
                norm(config.dim),
                drop_path=rate,
            )
            for rate in drop_path_rates(config.drop_path_rate, [config.depth])[0]
        ]
        super().__init__(config, blocks, norm, "head")
        initialise_vision(self)


_NAMES = Names(
    [
        ("blocks.{}.norm1.*", "blocks.{}.norm.*"),
        ("blocks.{}.norm2.*", "blocks.{}.channel_norm.*"),
        ("blocks.{}.attn.qkv.*", "blocks.{}.mixer.input_projection.*"),
        ("blocks.{}.attn.proj.*", "blocks.{}.mixer.output_projection.*"),
        ("blocks.{}.mlp.fc1.*", "blocks.{}.channel_mixer.input_projection.*"),
        ("blocks.{}.mlp.fc2.*", "blocks.{}.channel_mixer.output_projection.*"),
        ("patch_embed.proj.*", "tokens.embedding.projection.*"),
        ("pos_embed", "tokens.position"),
        ("cls_token", "tokens.class_token"),
    ]
)

VARIANTS: dict[str, dict[str, Any]] = {
    "vit_micro": dict(dim=64, depth=4, heads=2, patch=4, image_size=32, num_classes=10),
    "deit_tiny": dict(dim=192, heads=3),
    "deit_small": dict(dim=384, heads=6),
    "deit_base": dict(dim=768, heads=12),
    "deit_tiny_patch1": dict(dim=192, heads=3, patch=1),
}

FAMILY = Family("vit", ViTConfig, ViT, VARIANTS, _NAMES.from_published, _NAMES.to_published)
