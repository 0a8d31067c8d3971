"""MambaOut: a hierarchical backbone of Mamba blocks without their scan, the control of every visual Mamba. Yu and Wang
2025, arXiv 2405.07992.

The forms that timm added (`stem_norm`, `norm_first`, `layer_scale`, `head`) are options; its checkpoints are read under
its own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from statescan.layers.grid import (
    ConvolutionDownsample,
    GatedConvolution,
    GridBlock,
    OverlappingStem,
    drop_path_rates,
)
from statescan.models._names import Names, Rule
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, VisionConfig, initialise_vision

Norm = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class MambaOutConfig(VisionConfig):
    """A MambaOut backbone.

    Arguments:
        depths: blocks of each stage.
        widths: channels of each stage.
        expansion: hidden channels of a block over its channels.
        conv_ratio: convolved channels over a block's channels.
        conv_kernel: side of the depthwise kernels, odd.
        activation: of the stem and the gates.
        head_dropout: before the classifier's last layer.
        stem_norm: whether there is a norm between the stem's two convolutions.
        norm_first: whether a downsampling's norm stands before its convolution.
        layer_scale: first value of a weight a channel on each block's branch; None for none.
        head: ``mlp``: mean, norm, linear, GELU, norm, linear; ``norm_mlp``: norm, mean, linear, GELU, linear.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 576)
    expansion: float = 8 / 3
    conv_ratio: float = 1.0
    conv_kernel: int = 7
    activation: str = "gelu"
    head_dropout: float = 0.0
    stem_norm: bool = True
    norm_first: bool = False
    layer_scale: float | None = None
    head: Literal["mlp", "norm_mlp"] = "mlp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != len(self.widths) or not self.depths:
            raise ValueError(f"depths, widths: one of each a stage, got {self.depths} and {self.widths}")
        if self.head not in ("mlp", "norm_mlp"):
            raise ValueError(f"head: mlp or norm_mlp, got {self.head!r}")


class MLPHead(nn.Module):
    """Norm, linear to four times the width, GELU, norm, dropout, linear.

    Arguments:
        dim: channels.
        num_classes: outputs.
        dropout: before the last layer.
        inner_norm: whether there is a norm before the last layer.
    """

    def __init__(self, dim: int, num_classes: int, *, dropout: float = 0.0, inner_norm: bool = True):
        super().__init__()
        self.norm = Norm(dim)
        self.hidden = nn.Linear(dim, 4 * dim)
        self.activation = nn.GELU()
        self.inner_norm = Norm(4 * dim) if inner_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(4 * dim, num_classes)

    def pre_logits(self, pooled: Tensor) -> Tensor:
        """(batch, dim), normed -> what the last layer reads, (batch, 4 dim)."""
        return self.dropout(self.inner_norm(self.activation(self.hidden(pooled))))


class MambaOut(HierarchicalModel):
    """Stem, stages of gated convolutions, mean over the grid, a head with one hidden layer.

    Arguments:
        config: a `MambaOutConfig`.
    """

    family = "mambaout"

    def __init__(self, config: MambaOutConfig):
        widths = config.widths
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        stages = []
        for index, width in enumerate(widths):
            blocks = [
                GridBlock(
                    GatedConvolution(
                        width,
                        expansion=config.expansion,
                        conv_ratio=config.conv_ratio,
                        kernel=config.conv_kernel,
                        activation=config.activation,
                        layer_scale=config.layer_scale,
                    ),
                    Norm(width),
                    drop_path=rate,
                )
                for rate in rates[index]
            ]
            downsample = (
                ConvolutionDownsample(widths[index - 1], width, norm=Norm, norm_first=config.norm_first)
                if index
                else None
            )
            stages.append(Stage(blocks, downsample))
        stem = OverlappingStem(
            config.in_channels, widths[0], norm=Norm, inner_norm=config.stem_norm, activation=config.activation
        )
        if config.num_classes:
            head: nn.Module = MLPHead(
                widths[-1], config.num_classes, dropout=config.head_dropout, inner_norm=config.head == "mlp"
            )
        else:
            head = nn.Identity()
        super().__init__(config, stem, stages, widths, norm=None, head=head, downsample_first=True)
        initialise_vision(self, convolutions=True)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The last grid -> class scores (batch, num_classes), or what the last layer reads, (batch, 4 channels)."""
        if not isinstance(self.head, MLPHead):
            return features.mean((1, 2))
        if self.config.head == "mlp":
            pooled = self.head.norm(features.mean((1, 2)))
        else:
            pooled = self.head.norm(features).mean((1, 2))
        hidden = self.head.pre_logits(pooled)
        return hidden if pre_logits else self.head.output(hidden)


_RULES: list[Rule] = [
    ("downsample_layers.0.conv1.*", "stem.convolution1.*"),
    ("downsample_layers.0.conv2.*", "stem.convolution2.*"),
    ("downsample_layers.0.norm1.*", "stem.norm1.*"),
    ("downsample_layers.0.norm2.*", "stem.norm2.*"),
    ("downsample_layers.{}.conv.*", "stages.{}.downsample.convolution.*"),
    ("downsample_layers.{}.norm.*", "stages.{}.downsample.norm.*"),
    ("stages.{}.{}.norm.*", "stages.{}.blocks.{}.norm.*"),
    ("stages.{}.{}.fc1.*", "stages.{}.blocks.{}.mixer.input_projection.*"),
    ("stages.{}.{}.conv.*", "stages.{}.blocks.{}.mixer.convolution.*"),
    ("stages.{}.{}.fc2.*", "stages.{}.blocks.{}.mixer.output_projection.*"),
    ("stages.{}.{}.ls.gamma", "stages.{}.blocks.{}.mixer.scale"),
    ("norm.*", "head.norm.*"),
    ("head.fc1.*", "head.hidden.*"),
    ("head.norm.*", "head.inner_norm.*"),
    ("head.fc2.*", "head.output.*"),
]
_NAMES = Names(_RULES)

#: timm's names and those of the paper's code, of the same tensors.
_TIMM = Names(
    [
        ("stem.*", "downsample_layers.0.*"),
        ("stages.{}.blocks.{}.*", "stages.{}.{}.*"),
        ("stages.{}.downsample.*", "downsample_layers.{}.*"),
        ("head.norm.*", "norm.*"),
        ("head.pre_logits.fc.*", "head.fc1.*"),
        ("head.pre_logits.norm.*", "head.norm.*"),
        ("head.fc.*", "head.fc2.*"),
    ]
)


def from_timm(tensors: Tensors) -> Tensors:
    """timm's names -> those of the paper's code; others stay."""
    return _TIMM.from_published(tensors) if "stem.conv1.weight" in tensors else tensors


def to_timm(tensors: Tensors) -> Tensors:
    """The inverse of `from_timm`."""
    return _TIMM.to_published(tensors)


#: What timm's experiments (`_rw`) have in common.
_RW: dict[str, Any] = dict(stem_norm=False, norm_first=True, layer_scale=1e-5, head="norm_mlp")
_SMALL: dict[str, Any] = dict(depths=(3, 4, 27, 3), widths=(96, 192, 384, 576))
_BASE: dict[str, Any] = dict(depths=(3, 4, 27, 3), widths=(128, 256, 512, 768))

VARIANTS: dict[str, dict[str, Any]] = {
    "mambaout_femto": dict(depths=(3, 3, 9, 3), widths=(48, 96, 192, 288), drop_path_rate=0.025),
    "mambaout_kobe": dict(depths=(3, 3, 15, 3), widths=(48, 96, 192, 288), drop_path_rate=0.025),
    "mambaout_tiny": dict(depths=(3, 3, 9, 3), widths=(96, 192, 384, 576), drop_path_rate=0.2),
    "mambaout_small": _SMALL | dict(drop_path_rate=0.4),
    "mambaout_base": _BASE | dict(drop_path_rate=0.6),
    "mambaout_small_rw": _SMALL | _RW,
    "mambaout_base_short_rw": _BASE | _RW | dict(depths=(3, 3, 25, 3), expansion=3.0, conv_ratio=1.25),
    "mambaout_base_tall_rw": _BASE | _RW | dict(depths=(3, 4, 30, 3), expansion=2.5, conv_ratio=1.25),
    "mambaout_base_wide_rw": _BASE | _RW | dict(expansion=3.0, conv_ratio=1.5, activation="silu"),
    "mambaout_base_plus_rw": _BASE | _RW | dict(depths=(3, 4, 30, 3), expansion=3.0, conv_ratio=1.5, activation="silu"),
    "mambaout_test": _RW
    | dict(depths=(1, 1, 3, 1), widths=(16, 32, 48, 64), expansion=3.0, activation="silu", image_size=160),
}

FAMILY = Family(
    "mambaout", MambaOutConfig, MambaOut, VARIANTS, _NAMES.from_published, _NAMES.to_published, upgrade=from_timm
)
