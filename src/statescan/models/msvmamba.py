"""MSVMamba: one walk of the grid, three of a grid half as fine. Shi, Dong and Xu 2024, "Multi-Scale VMamba: Hierarchy in
Hierarchy Visual State Space Model", arXiv 2405.14174.

stem -> [block x depth -> downsampling] x stages -> norm -> mean -> head
block: x += MultiScaleSS2D(norm(x)); x += DepthwiseMLP(norm(x))

Peculiar: the three coarse walks are one sequence; ``joined=False`` scans them apart, as the paper's figure shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from torch import nn

from statescan import routes
from statescan.layers import MLP, grid
from statescan.models._names import Names, Rule, prefixed
from statescan.models._pyramid import (
    BLOCK,
    NORMS,
    SS2D_RULES,
    PyramidConfig,
    build_downsample,
    build_stem,
    choose,
    least_size,
    pyramid_rules,
    upgrade,
)
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, initialise_vision

CHANNEL_MIXERS = ("convolution", "mlp")


@dataclass(frozen=True)
class MSVMambaConfig(PyramidConfig):
    """An MSVMamba.

    Arguments:
        state_dim, expand, dt_rank, conv_kernel, conv_bias, activation, gate, route, low_route, joined, squeeze,
            separate_norms, initialisation, dropout: of `layers.grid.MultiScaleSS2D`.
        channel_mixer: ``convolution`` (`layers.grid.DepthwiseMLP`) or ``mlp``.
        mlp_ratio: its hidden channels over dim; 0 for none.
        mlp_dropout: of it.
    """

    depths: tuple[int, ...] = (1, 2, 9, 2)
    state_dim: int = 1
    expand: float = 2.0
    dt_rank: int | Literal["auto"] = "auto"
    conv_kernel: int = 3
    conv_bias: bool = True
    activation: str = "silu"
    gate: str = "silu"
    route: str = "raster"
    low_route: str = "raster_reversed+column+column_reversed"
    joined: bool = True
    squeeze: bool = True
    separate_norms: bool = False
    initialisation: Literal["v0", "v1", "v2"] = "v0"
    dropout: float = 0.0
    channel_mixer: str = "convolution"
    mlp_ratio: float = 2.0
    mlp_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        routes.get(self.route), routes.get(self.low_route)
        choose("channel_mixer", self.channel_mixer, CHANNEL_MIXERS)


_MIXER_FIELDS = ("state_dim", "expand", "dt_rank", "conv_kernel", "conv_bias", "activation", "gate", "route") + (
    ("low_route", "joined", "squeeze", "separate_norms", "initialisation", "dropout")
)


def build_block(config: MSVMambaConfig, dim: int, drop_path: float) -> grid.GridBlock:
    """A block of `dim` channels."""
    norm, hidden = NORMS[config.norm], int(config.mlp_ratio * dim)
    mixer = grid.MultiScaleSS2D(dim, **{name: getattr(config, name) for name in _MIXER_FIELDS})
    if hidden <= 0:
        return grid.GridBlock(mixer, norm(dim), drop_path=drop_path)
    channel_mixer: nn.Module
    if config.channel_mixer == "convolution":
        channel_mixer = grid.DepthwiseMLP(dim, hidden, dropout=config.mlp_dropout)
    else:
        channel_mixer = MLP(dim, hidden, activation=nn.GELU(), dropout=config.mlp_dropout)
    return grid.GridBlock(mixer, norm(dim), channel_mixer, norm(dim), drop_path=drop_path)


class MSVMamba(HierarchicalModel):
    """MSVMamba; see `MSVMambaConfig`.

    Arguments:
        config: an `MSVMambaConfig`.
    """

    family = "msvmamba"

    def __init__(self, config: MSVMambaConfig):
        rates = grid.drop_path_rates(config.drop_path_rate, config.depths)
        stages = [
            Stage([build_block(config, dim, rate) for rate in rates[stage]], build_downsample(config, stage))
            for stage, dim in enumerate(config.channels)
        ]
        super().__init__(
            config,
            build_stem(config),
            stages,
            config.channels,
            reduction=config.patch_size,
            norm=NORMS[config.norm],
        )
        self.least_size = least_size(config)
        initialise_vision(self)


_MIXER_RULES: list[Rule] = [
    ("conv2d_b1.*", "low_convolution.*"),
    ("se.fc.0.weight", "squeeze.reduce.weight"),
    ("se.fc.2.weight", "squeeze.expand.weight"),
    ("out_norm1.*", "full_norm.*"),
    *SS2D_RULES,
    ("out_norm0.*", "output_norm.*"),
]
_MLP_RULES: list[Rule] = [
    ("convFFN.linear1.*", "channel_mixer.input_projection.*"),
    ("convFFN.dwc.*", "channel_mixer.convolution.*"),
    ("convFFN.linear2.*", "channel_mixer.output_projection.*"),
]


@lru_cache(maxsize=16)
def names(config: MSVMambaConfig) -> Names:
    """Published names of an MSVMamba, and ours."""
    own = prefixed(_MLP_RULES, *BLOCK) if config.channel_mixer == "convolution" else []
    return Names(own + pyramid_rules(config, _MIXER_RULES))


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """A published MSVMamba's tensors under our names."""
    return names(config).from_published(tensors)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`. Where each resolution has its norm, the coarse one's has two published names."""
    published = names(config).to_published(tensors)
    if config.separate_norms:
        twice = {name.replace(".out_norm.", ".out_norm0."): t for name, t in published.items() if ".out_norm." in name}
        published |= twice
    return published


VARIANTS: dict[str, dict[str, Any]] = {
    "msvmamba_tiny": dict(dims=24, depths=(1, 1, 2, 1), num_classes=10, image_size=64),
    "msvmamba_n": dict(dims=48, depths=(1, 2, 5, 2), drop_path_rate=0.2),
    "msvmamba_m": dict(dims=64, depths=(1, 2, 5, 2), drop_path_rate=0.2),
    "msvmamba_t": dict(dims=96, depths=(1, 2, 9, 2), drop_path_rate=0.2),
}

FAMILY = Family("msvmamba", MSVMambaConfig, MSVMamba, VARIANTS, from_published, to_published, upgrade)
