"""What image models share: checked input, features of several resolutions, a head, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.models._model import Model


@dataclass(frozen=True)
class VisionConfig:
    """What image backbones have in common.

    Arguments:
        in_channels: of the images.
        num_classes: outputs of the head; 0 for none: the model then gives the pooled features.
        image_size: side, or (height, width), of the images of training: where position embeddings were made for.
        drop_path_rate: probability that the last block is skipped for a sample in training; earlier ones less.
        features_only: no head; the model gives a list of feature maps.
        out_indices: which feature maps; all unless given.
    """

    in_channels: int = 3
    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    drop_path_rate: float = 0.0
    features_only: bool = False
    out_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.in_channels < 1 or self.num_classes < 0:
            raise ValueError(
                f"in_channels, num_classes: at least 1 and 0, got {self.in_channels} and {self.num_classes}"
            )
        if min(self.image_shape) < 1:
            raise ValueError(f"image_size: positive, got {self.image_size}")
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate: in [0, 1), got {self.drop_path_rate}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images of training."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map.

    Arguments:
        channels: of the map.
        reduction: pixels of the image for one cell, along each side.
        module: where it comes from.
    """

    channels: int
    reduction: int
    module: str


class VisionModel(Model):
    """Base of image models.

    A subclass sets `feature_info` and defines `forward_features`, `forward_head` and `forward_maps`.
    """

    undecayed: ClassVar[tuple[str, ...]] = ("A_log", "delta_bias", ".D", "position", "class_token")

    #: The least side of an image; smaller ones are refused.
    least_size: int = 1
    feature_info: list[FeatureInfo]

    def __init__(self, config: Any):
        super().__init__(config)
        self.gradient_checkpointing = False

    def forward_features(self, images: Tensor) -> Tensor:
        """images (batch, channels, height, width) -> what the head reads; its shape is the model's own."""
        raise NotImplementedError

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave -> class scores (batch, num_classes), or what the last layer reads."""
        raise NotImplementedError

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps of `feature_info`, all of them, (batch, channels, height, width) each."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Any:
        """Class scores (batch, num_classes); with `features_only` the list of feature maps `out_indices`.

        Arguments:
            images: (batch, channels, height, width).

        Raises:
            ValueError: another number of channels or axes, or sides that are too small.
        """
        self.check_images(images)
        if not self.config.features_only:
            return self.forward_head(self.forward_features(images))
        maps = self.forward_maps(images)
        return [maps[index] for index in self.out_indices]

    @property
    def out_indices(self) -> tuple[int, ...]:
        """Indices of the feature maps that are given."""
        chosen = self.config.out_indices
        if chosen is None:
            return tuple(range(len(self.feature_info)))
        for index in chosen:
            if not 0 <= index < len(self.feature_info):
                raise ValueError(f"out_indices: from 0 to {len(self.feature_info) - 1}, got {index}")
        return tuple(chosen)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Whether blocks are computed again in the backward pass instead of kept: less memory, more time."""
        self.gradient_checkpointing = enabled

    def check_images(self, images: Tensor) -> None:
        """Refuse what is no batch of images for this model."""
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(
                f"images: (batch, {channels} channels, height, width), got {tuple(images.shape)}"
                + (f"; this model was made for in_channels={channels}" if images.ndim == 4 else "")
            )
        if not images.is_floating_point():
            raise TypeError(f"images: floating-point numbers, got {images.dtype}; divide bytes by 255 and normalise")
        if min(images.shape[2:]) < self.least_size:
            raise ValueError(
                f"images: sides of at least {self.least_size} pixels for this model, got "
                f"{images.shape[2]} x {images.shape[3]}"
            )

    def run(self, blocks: Iterable[nn.Module], x: Tensor, **options: Any) -> Tensor:
        """x through blocks, each checkpointed if that is on; options go to the blocks."""
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, **options)  # type: ignore[assignment]
            else:
                x = block(x, **options)
        return x


class Stage(nn.Module):
    """Blocks of one resolution, and the way to the next.

    Arguments:
        blocks: modules on grids.
        downsample: from this stage's grid to the next; None at the last.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class HierarchicalModel(VisionModel):
    """Stem, stages of falling resolution, norm, mean over the grid, linear head. The shape of Swin and VMamba.

    Arguments:
        config: a `VisionConfig`.
        stem: from images as grids (batch, height, width, channels) to the first stage's grid.
        stages: modules from grid to grid; a stage's downsampling follows its blocks.
        channels: of each stage.
        reduction: of the first stage; each further one doubles it.
        norm: makes the norm before the head, and of each feature map with `features_only`; None for none.
        head: the classifier from (batch, channels) to scores, a linear layer unless given.
        downsample_first: a stage's downsampling comes before its blocks.
        position: from the stem's grid to the same with positions added; None for none.
    """

    def __init__(
        self,
        config: Any,
        stem: nn.Module,
        stages: Sequence[Stage],
        channels: Sequence[int],
        *,
        reduction: int = 4,
        norm: Any = nn.LayerNorm,
        head: nn.Module | None = None,
        downsample_first: bool = False,
        position: nn.Module | None = None,
    ):
        super().__init__(config)
        self.stem = stem
        self.position = position
        self.stages: Any = nn.ModuleList(stages)
        self.downsample_first = downsample_first
        self.feature_info = [
            FeatureInfo(width, reduction * 2**index, f"stages.{index}") for index, width in enumerate(channels)
        ]
        self.least_size = 1
        if config.features_only:
            self.feature_norms = nn.ModuleDict(
                {str(index): norm(channels[index]) if norm is not None else nn.Identity() for index in self.out_indices}
            )
        else:
            self.norm = norm(channels[-1]) if norm is not None else nn.Identity()
            if head is None:
                head = nn.Linear(channels[-1], config.num_classes) if config.num_classes else nn.Identity()
            self.head = head

    def stage_outputs(self, images: Tensor) -> list[Tensor]:
        """Each stage's grid (batch, height, width, channels) after its blocks, before any norm."""
        x = self.stem(images.permute(0, 2, 3, 1))
        if self.position is not None:
            x = self.position(x)
        outputs = []
        for index, stage in enumerate(self.stages):
            if self.downsample_first and stage.downsample is not None:
                x = stage.downsample(x)
            x = self.run(stage.blocks, x)
            outputs.append(x)
            if not self.downsample_first and stage.downsample is not None and index + 1 < len(self.stages):
                x = stage.downsample(x)
        return outputs

    def forward_features(self, images: Tensor) -> Tensor:
        """images (batch, channels, height, width) -> the last stage's grid after the norm, (batch, rows, columns,
        channels)."""
        return self.norm(self.stage_outputs(images)[-1])

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The mean over the grid (batch, channels), and the head's scores (batch, num_classes) unless `pre_logits`."""
        pooled = features.mean((1, 2))
        return pooled if pre_logits else self.head(pooled)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """All stages' maps, with their norms where they have one."""
        maps = []
        for index, grid in enumerate(self.stage_outputs(images)):
            if str(index) in self.feature_norms:
                grid = self.feature_norms[str(index)](grid)
            maps.append(grid.permute(0, 3, 1, 2))
        return maps


def initialise_vision(model: nn.Module, std: float = 0.02, *, convolutions: bool = False) -> None:
    """Linear weights from a truncated normal distribution, their biases zero; those of convolutions too if asked. Scan
    parameters keep what they have."""
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    for module in model.modules():
        if isinstance(module, kinds):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
