"""What backbones of one resolution share: their config, and the classifier of tokens with a class token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from statescan.layers.grid import ClassPlace, PatchTokens, embed_patches
from statescan.models._vision import FeatureInfo, HierarchicalModel, VisionConfig, VisionModel


@dataclass(frozen=True)
class PlainConfig(VisionConfig):
    """What they have in common.

    Arguments:
        dim: channels of the patches.
        depth: blocks.
        patch: side of a patch.
        position: whether patches have learned positions.
        dropout: after positions are added.
        route: order of the patches.
        feature_layers: blocks of which feature maps are made; four evenly spread unless given.
    """

    dim: int = 192
    depth: int = 24
    patch: int = 16
    position: bool = True
    dropout: float = 0.0
    route: str = "raster"
    feature_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dim", "depth", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, got {getattr(self, name)}")
        if min(self.image_shape) < self.patch:
            raise ValueError(f"image_size: at least patch={self.patch}, got {self.image_size}")
        for index in self.feature_layers or ():
            if not 0 <= index < self.depth:
                raise ValueError(f"feature_layers: from 0 to {self.depth - 1}, got {index}")

    @property
    def step(self) -> int:
        """Distance of neighbouring patches."""
        return self.patch

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in training."""
        height, width = self.image_shape
        return (height - self.patch) // self.step + 1, (width - self.patch) // self.step + 1

    @property
    def map_layers(self) -> tuple[int, ...]:
        """Blocks of which feature maps are made."""
        if self.feature_layers is not None:
            return tuple(self.feature_layers)
        count = min(4, self.depth)
        return tuple(self.depth * (i + 1) // count - 1 for i in range(count))


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value of a config's field that is not among the known ones."""
    if value not in known:
        raise ValueError(f"{name}: unknown {value!r}; known: {', '.join(map(str, known))}")


def linear_head(config: Any, std: float) -> nn.Module:
    """A linear classifier, weights normal and cut at two deviations, bias zero; nothing for no classes."""
    if not config.num_classes:
        return nn.Identity()
    head = nn.Linear(config.dim, config.num_classes)
    nn.init.trunc_normal_(head.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(head.bias)
    return head


class TokenClassifier(VisionModel):
    """Patches with positions and a class token, blocks, norm, linear head on the class token.

    Arguments:
        config: a `PlainConfig`.
        blocks: from (batch, length, dim) to the same shape.
        norm: makes the last norm.
        class_token: where it stands.
    """

    def __init__(
        self, config: Any, blocks: Sequence[nn.Module], norm: Callable[[int], nn.Module], class_token: ClassPlace
    ):
        super().__init__(config)
        self.tokens = PatchTokens(
            embed_patches(config.in_channels, config.dim, config.patch, config.step),
            config.dim,
            *config.grid,
            class_token=class_token,
            position=config.position,
            dropout=config.dropout,
            route=config.route,
        )
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(config.dim)
        self.feature_info = [FeatureInfo(config.dim, config.step, f"blocks.{i}") for i in config.map_layers]
        self.least_size = config.patch
        if not config.features_only:
            self.head = linear_head(config, 0.02)

    def forward_features(self, images: Tensor) -> Tensor:
        """images (batch, channels, height, width) -> tokens after the last norm (batch, length, dim)."""
        x, _, _ = self.tokens(images.permute(0, 2, 3, 1))
        return self.norm(self.run(self.blocks, x))

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Tokens (batch, length, dim) -> scores (batch, num_classes), or with `pre_logits` the class token."""
        (index,) = self.tokens.class_indices(features.shape[1] - self.tokens.extra)
        pooled = features[:, index]
        return pooled if pre_logits else self.head(pooled)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Maps (batch, dim, rows, columns) of `feature_layers`, the last block's after the last norm."""
        x, shape, indices = self.tokens(images.permute(0, 2, 3, 1))
        kept = []
        for index, block in enumerate(self.blocks):
            x = self.run([block], x)
            kept.append(self.norm(x) if index == len(self.blocks) - 1 else x)
        chosen = (kept[index] for index in self.config.map_layers)
        return [self.tokens.grid(tokens, shape, indices).permute(0, 3, 1, 2) for tokens in chosen]


def plain_blocks(model: nn.Module) -> nn.ModuleList:
    """The blocks of a backbone of one resolution, in their order.

    Raises:
        ValueError: a model whose resolution falls from stage to stage, or that is no image backbone.
    """
    blocks = getattr(model, "blocks", getattr(model, "layers", None))
    if (
        isinstance(model, HierarchicalModel)
        or not isinstance(model, VisionModel)
        or not isinstance(blocks, nn.ModuleList)
    ):
        reason = "its resolution falls from stage to stage" if isinstance(model, VisionModel) else "it reads no images"
        raise ValueError(
            f"model: a plain image backbone, of one resolution (vim, plainmamba, patch_scaling, vit, lbmamba, "
            f"shuffle_mamba …), got {type(model).__name__}: {reason}"
        )
    return blocks
