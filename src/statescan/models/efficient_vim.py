"""EfficientViM: a fast backbone that mixes channels on a few hidden states, and classifies from the states of all
stages. Lee et al. 2025, arXiv 2411.15241."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers.grid import (
    ConvolutionMLP,
    ConvolutionStem,
    DropPath,
    HiddenStateBlock,
    HiddenStateMixer,
    Residual,
    SqueezeDownsample,
    depthwise_norm,
    drop_path_rates,
)
from statescan.models._convolution_names import convolution_norm_rules
from statescan.models._names import POINTWISE, POINTWISE_1D, Names, Reshape, Rule
from statescan.models._registry import Family
from statescan.models._vision import HierarchicalModel, Stage, VisionConfig, initialise_vision


@dataclass(frozen=True)
class EfficientViMConfig(VisionConfig):
    """An EfficientViM backbone.

    Arguments:
        widths: channels of each stage.
        depths: blocks of each stage.
        state_dims: hidden states of each stage's mixers.
        expand: inner channels of the hidden state mixer over the width.
        mlp_ratio: hidden channels of the channel mixers over the width.
        distillation: a second set of heads for a teacher; training gives both scores, evaluation their mean.
    """

    widths: tuple[int, ...] = (128, 192, 320)
    depths: tuple[int, ...] = (2, 2, 2)
    state_dims: tuple[int, ...] = (49, 25, 9)
    expand: float = 1.0
    mlp_ratio: float = 4.0
    distillation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.widths) == len(self.depths) == len(self.state_dims) or min(self.depths, default=0) < 1:
            raise ValueError(
                "widths, depths, state_dims: one of each a stage, at least one block, got "
                f"{self.widths}, {self.depths} and {self.state_dims}"
            )


class StatesHead(nn.Module):
    """Scores as a weighted sum of those of linear heads, the weights a softmax of learned numbers.

    Arguments:
        widths: of the vectors that the heads read.
        num_classes: outputs.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(len(widths)))
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)

    def forward(self, pooled: list[Tensor]) -> Tensor:
        """Vectors (batch, width) -> (batch, num_classes)."""
        weights = self.weights.softmax(-1)
        scores = [weight * head(vector) for weight, head, vector in zip(weights, self.heads, pooled, strict=True)]
        return torch.stack(scores).sum(0)


class EfficientViM(HierarchicalModel):
    """Stem of stride 16, stages of hidden state mixers, heads on the states of every stage's last block and on the mean
    of the last grid.

    Arguments:
        config: an `EfficientViMConfig`.
    """

    family = "efficient_vim"

    def __init__(self, config: EfficientViMConfig):
        widths = config.widths
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        stages = [
            Stage([build_block(config, index, rate) for rate in rates[index]], build_downsample(widths, index))
            for index in range(len(widths))
        ]
        stem = ConvolutionStem(config.in_channels, widths[0])
        super().__init__(config, stem, stages, widths, reduction=16, norm=None, head=nn.Identity())
        if not config.features_only:
            read = (*widths, widths[-1])
            self.norm = nn.ModuleList(nn.LayerNorm(width) for width in read)
            if config.num_classes:
                self.head = StatesHead(read, config.num_classes)
                if config.distillation:
                    self.distillation_head = StatesHead(read, config.num_classes)
        initialise_vision(self)

    def stages_with_states(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Each stage's grid (batch, rows, columns, width) before its downsampling, and the states (batch, states, width)
        of its last block."""
        x = self.stem(images.permute(0, 2, 3, 1))
        grids, states = [], []
        for stage in self.stages:
            for block in stage.blocks:
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    x, mixed = checkpoint(block, x, use_reentrant=False)  # type: ignore[misc]
                else:
                    x, mixed = block(x)
            grids.append(x)
            states.append(mixed)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return grids, states

    def stage_outputs(self, images: Tensor) -> list[Tensor]:
        """Each stage's grid, before its downsampling."""
        return self.stages_with_states(images)[0]

    def forward_features(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        """images -> the states of each stage (batch, states, width), and the last grid (batch, rows, columns, width);
        all after their norms."""
        grids, states = self.stages_with_states(images)
        return [norm(part) for norm, part in zip(self.norm, [*states, grids[-1]], strict=True)]

    def forward_head(self, features: Any, *, pre_logits: bool = False) -> Any:
        """What `forward_features` gave -> class scores (batch, num_classes); with `distillation` the pair of both heads
        in training, their mean in evaluation; with `pre_logits` the vectors that the heads read, side by side."""
        pooled = [part.flatten(1, -2).mean(1) for part in features]
        if not isinstance(self.head, StatesHead):
            return pooled[-1]
        if pre_logits:
            return torch.cat(pooled, -1)
        scores = self.head(pooled)
        if not self.config.distillation:
            return scores
        distilled = self.distillation_head(pooled)
        return (scores, distilled) if self.training else (scores + distilled) / 2


def build_block(config: EfficientViMConfig, stage: int, drop_path: float) -> HiddenStateBlock:
    """A block. Published code resets the norms that its parts start at zero, so all start at one."""
    width = config.widths[stage]
    return HiddenStateBlock(
        HiddenStateMixer(width, state_dim=config.state_dims[stage], expand=config.expand),
        nn.LayerNorm(width),
        (depthwise_norm(width), depthwise_norm(width)),
        ConvolutionMLP(width, int(width * config.mlp_ratio), norm_weight=1.0),
        width,
        drop_path=DropPath(drop_path),
    )


def build_downsample(widths: tuple[int, ...], stage: int) -> nn.Module | None:
    """The way from a stage to the next."""
    if stage + 1 == len(widths):
        return None
    before, after = widths[stage], widths[stage + 1]
    return nn.Sequential(
        Residual(depthwise_norm(before)),
        SqueezeDownsample(before, after, 4 * after),
        Residual(depthwise_norm(after)),
    )


#: Norms over channels whose weights are published as (1, channels, 1) and (1, channels, 1, 1).
_CHANNELS_1D = Reshape(lambda tensor: tensor.flatten(), lambda tensor: tensor[None, :, None])
_CHANNELS_2D = Reshape(lambda tensor: tensor.flatten(), lambda tensor: tensor[None, :, None, None])


def _rules(stages: int) -> list[Rule]:
    block, down = "stages.{}.blocks.{}.", "stages.{}.downsample."
    rules: list[Rule] = [
        *convolution_norm_rules("patch_embed.conv.{}", "stem.{}"),
        (f"{block}alpha", f"{block}alpha"),
        (f"{block}mixer.A", f"{block}mixer.A"),
        (f"{block}mixer.D", f"{block}mixer.D"),
        (f"{block}mixer.BCdt_proj.conv.weight", f"{block}mixer.selection_projection.weight", POINTWISE_1D),
        (f"{block}mixer.dw.conv.*", f"{block}mixer.convolution.*"),
        (f"{block}mixer.hz_proj.conv.weight", f"{block}mixer.input_projection.weight", POINTWISE_1D),
        (f"{block}mixer.out_proj.conv.weight", f"{block}mixer.output_projection.weight", POINTWISE_1D),
        (f"{block}norm.weight", f"{block}norm.weight", _CHANNELS_1D),
        (f"{block}norm.bias", f"{block}norm.bias", _CHANNELS_1D),
        *convolution_norm_rules(f"{block}dwconv1", f"{block}convolution1"),
        *convolution_norm_rules(f"{block}dwconv2", f"{block}convolution2"),
        *convolution_norm_rules(f"{block}ffn.fc1", f"{block}channel_mixer.input_projection"),
        *convolution_norm_rules(f"{block}ffn.fc2", f"{block}channel_mixer.output_projection"),
        *convolution_norm_rules(f"{down}dwconv1", f"{down}0.module"),
        *convolution_norm_rules(f"{down}conv.0", f"{down}1.expand"),
        *convolution_norm_rules(f"{down}conv.1", f"{down}1.convolution"),
        (f"{down}conv.2.fc1.weight", f"{down}1.squeeze.reduce.weight", POINTWISE),
        (f"{down}conv.2.fc1.bias", f"{down}1.squeeze.reduce.bias"),
        (f"{down}conv.2.fc2.weight", f"{down}1.squeeze.expand.weight", POINTWISE),
        (f"{down}conv.2.fc2.bias", f"{down}1.squeeze.expand.bias"),
        *convolution_norm_rules(f"{down}conv.3", f"{down}1.project"),
        *convolution_norm_rules(f"{down}dwconv2", f"{down}2.module"),
        ("weights", "head.weights"),
        ("heads.{}.*", "head.heads.{}.*"),
        ("weights_dist", "distillation_head.weights"),
        ("heads_dist.{}.*", "distillation_head.heads.{}.*"),
    ]
    for leaf in ("weight", "bias"):
        last = f"norm.{stages}.{leaf}"
        rules += [(last, last, _CHANNELS_2D), (f"norm.{{}}.{leaf}", f"norm.{{}}.{leaf}", _CHANNELS_1D)]
    return rules


def from_published(tensors: dict[str, Tensor], config: EfficientViMConfig) -> dict[str, Tensor]:
    """A model's tensors under our names."""
    return Names(_rules(len(config.widths))).from_published(tensors)


def to_published(tensors: dict[str, Tensor], config: EfficientViMConfig) -> dict[str, Tensor]:
    """The inverse of `from_published`."""
    return Names(_rules(len(config.widths))).to_published(tensors)


VARIANTS: dict[str, dict[str, Any]] = {
    "efficient_vim_m1": dict(),
    "efficient_vim_m2": dict(widths=(128, 256, 512)),
    "efficient_vim_m3": dict(widths=(224, 320, 512)),
    "efficient_vim_m4": dict(widths=(224, 320, 512), depths=(3, 4, 2), state_dims=(64, 32, 16), image_size=256),
    "efficient_vim_tiny": dict(
        widths=(16, 32, 48), depths=(1, 2, 1), state_dims=(16, 9, 4), image_size=64, num_classes=10
    ),
}

FAMILY = Family("efficient_vim", EfficientViMConfig, EfficientViM, VARIANTS, from_published, to_published)
