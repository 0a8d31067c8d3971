"""EfficientVMamba: scans of every second cell beside a convolution, then convolutions alone. Pei, Huang and Xu 2024,
"EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", arXiv 2403.09977.

stem -> stages 1, 2: scan blocks -> stages 3, 4: inverted residuals -> norm -> mean -> head
scan block: h = norm(x); x += gate(SS2D along the atrous route(h)) + gate(convolutions(h)), one gate for both

Peculiar: each cell is walked once, so that the four scans together are as long as one raster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from statescan import routes
from statescan.layers import MLP, grid
from statescan.models._names import POINTWISE, Names, Rule, prefixed
from statescan.models._pyramid import (
    BLOCK,
    BLOCK_RULES,
    HEAD_RULES,
    NORMS,
    SS2D_RULES,
    PyramidConfig,
    build_downsample,
    build_stem,
    downsample_rules,
    least_size,
    stem_rules,
    upgrade,
)
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, initialise_vision

#: Stages of scan blocks; the others are of convolutions.
SCANNED = 2


@dataclass(frozen=True)
class EfficientVMambaConfig(PyramidConfig):
    """An EfficientVMamba.

    Arguments:
        route: the walks, by name.
        state_dim: states of each inner channel.
        expand: inner channels over dim.
        mlp_ratio: hidden channels of the MLP of scan blocks over dim; 0, as published, for no MLP.
    """

    depths: tuple[int, ...] = (2, 2, 4, 2)
    dims: int | tuple[int, ...] = 48
    route: str = "atrous_step2"
    state_dim: int = 16
    expand: float = 2.0
    mlp_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        routes.get(self.route)


class ScanBesideConvolution(nn.Module):
    """gate(scan(h)) + gate(convolutions(h)): a mixer of grids.

    Arguments:
        dim: channels of input and output.
        scan: a mixer of grids.
    """

    def __init__(self, dim: int, scan: nn.Module):
        super().__init__()
        self.scan = scan
        self.convolutions = nn.Sequential(
            grid.depthwise(dim, 3), grid.GridBatchNorm(dim), nn.GELU(), grid.GridConvolution(dim, dim, 1)
        )
        self.gate = grid.ChannelGate(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        return self.gate(self.scan(x)) + self.gate(self.convolutions(x))


def build_scan_block(config: EfficientVMambaConfig, dim: int, drop_path: float) -> grid.GridBlock:
    """A block of the first stages."""
    norm = NORMS[config.norm]
    mixer = ScanBesideConvolution(
        dim, grid.SS2D(dim, state_dim=config.state_dim, expand=config.expand, route=config.route)
    )
    if config.mlp_ratio <= 0:
        return grid.GridBlock(mixer, norm(dim), drop_path=drop_path)
    mlp = MLP(dim, int(config.mlp_ratio * dim), activation=nn.GELU())
    return grid.GridBlock(mixer, norm(dim), mlp, norm(dim), drop_path=drop_path)


class EfficientVMamba(HierarchicalModel):
    """EfficientVMamba; see `EfficientVMambaConfig`.

    Arguments:
        config: an `EfficientVMambaConfig`.
    """

    family = "efficient_vmamba"

    def __init__(self, config: EfficientVMambaConfig):
        rates = grid.drop_path_rates(config.drop_path_rate, config.depths)
        stages = []
        for stage, dim in enumerate(config.channels):
            if stage < SCANNED:
                blocks: list[nn.Module] = [build_scan_block(config, dim, rate) for rate in rates[stage]]
            else:
                blocks = [grid.InvertedResidual(dim, drop_path=rate) for rate in rates[stage]]
            stages.append(Stage(blocks, build_downsample(config, stage)))
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
        for module in self.modules():
            if isinstance(module, grid.SqueezeExcite):
                # Published as convolutions, which keep PyTorch's own first values.
                module.reduce.reset_parameters()
                module.expand.reset_parameters()


_SCAN_BLOCK: list[Rule] = [
    *prefixed(SS2D_RULES, "op.", "mixer.scan."),
    ("conv_branch.*", "mixer.convolutions.*"),
    ("se.norm.*", "mixer.gate.norm.*"),
    ("se.global_reduce.*", "mixer.gate.reduce.*"),
    ("se.channel_select.*", "mixer.gate.expand.*"),
]
_CONVOLUTION_BLOCK: list[Rule] = [
    *[
        rule
        for theirs, ours in (("conv_pw", "widen"), ("conv_dw", "depthwise"), ("conv_pw2", "project"))
        for rule in ((f"{theirs}.0.*", f"{ours}.convolution.*"), (f"{theirs}.1.*", f"{ours}.norm.*"))
    ],
    ("se.conv_reduce.weight", "excite.reduce.weight", POINTWISE),
    ("se.conv_reduce.bias", "excite.reduce.bias"),
    ("se.conv_expand.weight", "excite.expand.weight", POINTWISE),
    ("se.conv_expand.bias", "excite.expand.bias"),
]


@lru_cache(maxsize=16)
def names(config: EfficientVMambaConfig) -> Names:
    """Published names of an EfficientVMamba, and ours."""
    rules: list[Rule] = [*stem_rules(config)]
    for stage, depth in enumerate(config.depths):
        if stage < SCANNED:
            rules += prefixed([*_SCAN_BLOCK, *BLOCK_RULES], *(part.replace("{}", str(stage), 1) for part in BLOCK))
        else:
            # One list of turning round, blocks, turning back, downsampling: blocks count from 1.
            for index in range(depth):
                places = f"layers.{stage}.{index + 1}.", f"stages.{stage}.blocks.{index}."
                rules += prefixed(_CONVOLUTION_BLOCK, *places)
            place = f"layers.{stage}.{depth + 2}."
            rules += [
                (published.replace("layers.{}.downsample.", place), ours.replace("{}", str(stage)))
                for published, ours in downsample_rules(config)
            ]
    return Names([*rules, *downsample_rules(config), *HEAD_RULES])


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """A published EfficientVMamba's tensors under our names."""
    return names(config).from_published(tensors)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    return names(config).to_published(tensors)


VARIANTS: dict[str, dict[str, Any]] = {
    "efficient_vmamba_tiny": dict(dims=24, depths=(1, 1, 2, 1), num_classes=10, image_size=64),
    "efficient_vmamba_t": dict(dims=48, depths=(2, 2, 4, 2), drop_path_rate=0.1),
    "efficient_vmamba_s": dict(dims=64, depths=(2, 2, 4, 2), drop_path_rate=0.1),
    "efficient_vmamba_b": dict(dims=96, depths=(2, 2, 9, 2), drop_path_rate=0.1),
}

FAMILY = Family(
    "efficient_vmamba", EfficientVMambaConfig, EfficientVMamba, VARIANTS, from_published, to_published, upgrade
)
