"""VSSD: a hierarchical backbone whose mixer is Mamba-2's state-space duality without causality. Shi et al. 2025, arXiv
2407.18559.

Peculiar: the gate has no activation, the weights of cells are positive where Mamba-2's decay has a negative exponent,
and the last stage uses attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from statescan.layers import MLP
from statescan.layers.grid import (
    ConvolutionDownsample,
    GridAttention,
    GridBatchNorm,
    GridBlock,
    GridSSD,
    InvertedDownsample,
    PatchEmbedding,
    ResidualStem,
    depthwise,
    drop_path_rates,
)
from statescan.models._convolution_names import inverted_downsample_rules, residual_stem_rules
from statescan.models._names import Names, Rule
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, VisionConfig, initialise_vision

MIXERS = ("non_causal", "causal", "bidirectional", "attention")


@dataclass(frozen=True)
class VSSDConfig(VisionConfig):
    """A VSSD backbone; the width doubles from stage to stage.

    Arguments:
        dim: channels of the first stage.
        depths: blocks of each stage.
        heads: of each stage's mixers.
        mixers: of each stage: ``non_causal``, ``causal``, ``bidirectional`` or ``attention``.
        state_dim, expand, groups, conv_kernel, conv_bias, bias: of the state-space mixers, see `layers.grid.GridSSD`.
        negative: weights of cells below zero (an ablation).
        mlp_ratio: hidden channels of the channel mixers over the channels.
        simple_stem: one convolution 4 x 4 of stride 4.
        simple_downsample: one convolution 3 x 3 of stride 2.
    """

    dim: int = 64
    depths: tuple[int, ...] = (2, 4, 8, 4)
    heads: tuple[int, ...] = (2, 4, 8, 16)
    mixers: tuple[str, ...] = ("non_causal", "non_causal", "non_causal", "attention")
    state_dim: int = 64
    expand: int = 2
    groups: int = 1
    conv_kernel: int = 3
    conv_bias: bool = True
    bias: bool = False
    negative: bool = False
    mlp_ratio: float = 4.0
    simple_stem: bool = False
    simple_downsample: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.depths) == len(self.heads) == len(self.mixers):
            raise ValueError(
                f"depths, heads, mixers: one of each a stage, got {self.depths}, {self.heads} and {self.mixers}"
            )
        for mixer in self.mixers:
            if mixer not in MIXERS:
                raise ValueError(f"mixers: unknown {mixer!r}; known: {', '.join(MIXERS)}")


def build_mixer(config: VSSDConfig, stage: int) -> nn.Module:
    """A block's mixer."""
    width, kind = config.dim * 2**stage, config.mixers[stage]
    if kind == "attention":
        return GridAttention(width, config.heads[stage])
    return GridSSD(
        width,
        heads=config.heads[stage],
        state_dim=config.state_dim,
        expand=config.expand,
        groups=config.groups,
        direction="none" if kind == "non_causal" else kind,  # type: ignore[arg-type]
        negative=config.negative,
        conv_kernel=config.conv_kernel,
        conv_bias=config.conv_bias,
        bias=config.bias,
    )


class VSSD(HierarchicalModel):
    """Stem, stages of [depthwise, mixer, depthwise, MLP], norm, mean over the grid, linear head.

    Arguments:
        config: a `VSSDConfig`.
    """

    family = "vssd"

    def __init__(self, config: VSSDConfig):
        widths = [config.dim * 2**stage for stage in range(len(config.depths))]
        downsample: Callable[[int, int], nn.Module] = InvertedDownsample
        if config.simple_downsample:
            downsample = partial(ConvolutionDownsample, norm=_active_norm)
        stages = [
            Stage(
                [
                    GridBlock(
                        build_mixer(config, index),
                        nn.LayerNorm(width),
                        MLP(width, int(width * config.mlp_ratio), activation=nn.GELU()),
                        nn.LayerNorm(width),
                        drop_path=rate,
                        before=depthwise(width, 3),
                        between=depthwise(width, 3),
                    )
                    for rate in rates
                ],
                downsample(width, 2 * width) if index + 1 < len(widths) else None,
            )
            for index, (width, rates) in enumerate(
                zip(widths, drop_path_rates(config.drop_path_rate, config.depths), strict=True)
            )
        ]
        stem: nn.Module = ResidualStem(config.in_channels, config.dim)
        if config.simple_stem:
            stem = PatchEmbedding(config.in_channels, config.dim, 4, norm=_simple_norm, bias=False)
        super().__init__(config, stem, stages, widths)
        self.least_size = 4 if config.simple_stem else 1
        initialise_vision(self)


def _active_norm(channels: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.LayerNorm(channels))


def _simple_norm(channels: int) -> nn.Module:
    return nn.Sequential(GridBatchNorm(channels), nn.ReLU(), nn.LayerNorm(channels))


_BLOCK = "layers.{}.blocks.{}."
_OURS = "stages.{}.blocks.{}."
_RULES: list[Rule] = [
    (f"{_BLOCK}cpe1.*", f"{_OURS}before.*"),
    (f"{_BLOCK}cpe2.*", f"{_OURS}between.*"),
    (f"{_BLOCK}norm1.*", f"{_OURS}norm.*"),
    (f"{_BLOCK}norm2.*", f"{_OURS}channel_norm.*"),
    (f"{_BLOCK}mlp.fc1.*", f"{_OURS}channel_mixer.input_projection.*"),
    (f"{_BLOCK}mlp.fc2.*", f"{_OURS}channel_mixer.output_projection.*"),
    (f"{_BLOCK}attn.to_qkv.*", f"{_OURS}mixer.qkv.*"),
    (f"{_BLOCK}attn.to_out.*", f"{_OURS}mixer.output.*"),
    (f"{_BLOCK}attn.in_proj.*", f"{_OURS}mixer.input_projection.*"),
    (f"{_BLOCK}attn.out_proj.*", f"{_OURS}mixer.output_projection.*"),
    (f"{_BLOCK}attn.conv2d.*", f"{_OURS}mixer.convolution.*"),
    (f"{_BLOCK}attn.dt_bias", f"{_OURS}mixer.delta_bias"),
    (f"{_BLOCK}attn.*", f"{_OURS}mixer.*"),
    ("outnorm{}.*", "feature_norms.{}.*"),
]

#: The simple forms first: their names are not those of the others.
_SIMPLE: list[Rule] = [
    ("patch_embed.norm.*", "stem.norm.2.*"),
    ("layers.{}.downsample.norm.*", "stages.{}.downsample.norm.1.*"),
]
_SIMPLE_STEM: list[Rule] = [
    ("patch_embed.conv1.conv.*", "stem.projection.*"),
    ("patch_embed.conv1.norm.*", "stem.norm.0.*"),
]
_SIMPLE_DOWNSAMPLE: list[Rule] = [("layers.{}.downsample.conv.0.conv.*", "stages.{}.downsample.convolution.*")]


def _names(config: VSSDConfig) -> Names:
    stem = _SIMPLE_STEM if config.simple_stem else residual_stem_rules()
    downsample = _SIMPLE_DOWNSAMPLE if config.simple_downsample else inverted_downsample_rules()
    return Names([*stem, *downsample, *_SIMPLE, *_RULES])


def from_published(tensors: Tensors, config: VSSDConfig) -> Tensors:
    """A model's tensors under our names."""
    return _names(config).from_published(tensors)


def to_published(tensors: Tensors, config: VSSDConfig) -> Tensors:
    """The inverse of `from_published`."""
    return _names(config).to_published(tensors)


VARIANTS: dict[str, dict[str, Any]] = {
    "vssd_micro": dict(dim=48, depths=(2, 2, 8, 4), state_dim=48, drop_path_rate=0.1),
    "vssd_tiny": dict(drop_path_rate=0.2),
    "vssd_small": dict(depths=(3, 4, 21, 5), drop_path_rate=0.4),
    "vssd_base": dict(dim=96, depths=(3, 4, 21, 5), heads=(3, 6, 12, 24), drop_path_rate=0.6),
    "vssd_test": dict(dim=16, depths=(1, 2, 1, 1), state_dim=8, image_size=64, num_classes=10),
}

FAMILY = Family("vssd", VSSDConfig, VSSD, VARIANTS, from_published, to_published)
