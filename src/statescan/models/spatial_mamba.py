"""Spatial-Mamba: one scan a layer, whose states are mixed over the grid before they are read. Xiao et al. 2025, arXiv
2410.15091.

Peculiar: published weights were trained with replicated borders and measured with zeros (`train_padding`,
`eval_padding`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from statescan.layers import MLP
from statescan.layers.grid import (
    GridBlock,
    InvertedDownsample,
    ResidualStem,
    StructureAwareSSM,
    depthwise,
    drop_path_rates,
)
from statescan.models._convolution_names import inverted_downsample_rules, residual_stem_rules
from statescan.models._names import Names, Rule
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, VisionConfig, initialise_vision


@dataclass(frozen=True)
class SpatialMambaConfig(VisionConfig):
    """A Spatial-Mamba backbone; the width doubles from stage to stage.

    Arguments:
        dim: channels of the first stage.
        depths: blocks of each stage.
        state_dim: states of each inner channel.
        mlp_ratio: hidden channels of the channel mixers over the channels.
        route: of the scans, a route of one walk.
        train_padding, eval_padding: borders of the fusion, ``replicate`` or ``zeros``.
        merged: whether evaluation convolves once with the sum of the dilated kernels; the same result.
        fusion: whether states are mixed at all; without, layers are plain one-way scans.
    """

    dim: int = 64
    depths: tuple[int, ...] = (2, 4, 8, 4)
    state_dim: int = 1
    mlp_ratio: float = 4.0
    route: str = "raster"
    train_padding: Literal["replicate", "zeros"] = "replicate"
    eval_padding: Literal["replicate", "zeros"] = "zeros"
    merged: bool = True
    fusion: bool = True


class SpatialMamba(HierarchicalModel):
    """Stem, stages of [depthwise, structure-aware scan, depthwise, MLP], norm, mean over the grid, linear head.

    Arguments:
        config: a `SpatialMambaConfig`.
    """

    family = "spatial_mamba"

    def __init__(self, config: SpatialMambaConfig):
        widths = [config.dim * 2**stage for stage in range(len(config.depths))]
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        stages = [
            Stage(
                [build_block(config, width, rate) for rate in rates[index]],
                InvertedDownsample(width, 2 * width) if index + 1 < len(widths) else None,
            )
            for index, width in enumerate(widths)
        ]
        super().__init__(config, ResidualStem(config.in_channels, config.dim), stages, widths)
        initialise_vision(self)


def build_block(config: SpatialMambaConfig, width: int, drop_path: float) -> GridBlock:
    """A block."""
    mixer = StructureAwareSSM(
        width,
        state_dim=config.state_dim,
        route=config.route,
        train_padding=config.train_padding,
        eval_padding=config.eval_padding,
        merged=config.merged,
        fusion=config.fusion,
    )
    return GridBlock(
        mixer,
        nn.LayerNorm(width),
        MLP(width, int(width * config.mlp_ratio), activation=nn.GELU()),
        nn.LayerNorm(width),
        drop_path=drop_path,
        before=depthwise(width, 3),
        between=depthwise(width, 3),
    )


#: Names of a `layers.grid.StateFusion` alone.
FUSION_NAMES: list[Rule] = [
    ("kernel_3", "kernels.0"),
    ("kernel_3_1", "kernels.1"),
    ("kernel_3_2", "kernels.2"),
    ("alpha", "weights"),
]


def _rules() -> list[Rule]:
    block, ours = "layers.{}.blocks.{}.", "stages.{}.blocks.{}."
    scan, mixer = f"{block}self_attention.", f"{ours}mixer."
    return [
        *residual_stem_rules(),
        *inverted_downsample_rules(),
        (f"{block}cpe1.*", f"{ours}before.*"),
        (f"{block}cpe2.*", f"{ours}between.*"),
        (f"{block}ln_1.*", f"{ours}norm.*"),
        (f"{block}ln_2.*", f"{ours}channel_norm.*"),
        (f"{block}mlp.fc1.*", f"{ours}channel_mixer.input_projection.*"),
        (f"{block}mlp.fc2.*", f"{ours}channel_mixer.output_projection.*"),
        (f"{scan}in_proj.*", f"{mixer}input_projection.*"),
        (f"{scan}out_proj.*", f"{mixer}output_projection.*"),
        (f"{scan}out_norm.*", f"{mixer}norm.*"),
        (f"{scan}conv2d.*", f"{mixer}convolution.*"),
        (f"{scan}x_proj_weight", f"{mixer}selection_weight"),
        (f"{scan}dt_projs_weight", f"{mixer}delta_weight"),
        (f"{scan}dt_projs_bias", f"{mixer}delta_bias"),
        (f"{scan}A_logs", f"{mixer}A_log"),
        (f"{scan}Ds", f"{mixer}D"),
        *((f"{scan}state_fusion.{published}", f"{mixer}fusion.{own}") for published, own, *_ in FUSION_NAMES),
        ("outnorm{}.*", "feature_norms.{}.*"),
    ]


_NAMES = Names(_rules())


def from_published(tensors: Tensors, config: SpatialMambaConfig) -> Tensors:
    """A model's tensors under our names."""
    return _NAMES.from_published(tensors)


def to_published(tensors: Tensors, config: SpatialMambaConfig) -> Tensors:
    """The inverse of `from_published`."""
    return _NAMES.to_published(tensors)


VARIANTS: dict[str, dict[str, Any]] = {
    "spatial_mamba_tiny": dict(drop_path_rate=0.2),
    "spatial_mamba_small": dict(depths=(2, 4, 21, 5), drop_path_rate=0.3),
    "spatial_mamba_base": dict(dim=96, depths=(2, 4, 21, 5), drop_path_rate=0.5),
    "spatial_mamba_test": dict(dim=16, depths=(1, 1, 2, 1), image_size=64, num_classes=10),
}

FAMILY = Family("spatial_mamba", SpatialMambaConfig, SpatialMamba, VARIANTS, from_published, to_published)
