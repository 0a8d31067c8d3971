"""HRVMamba: four resolutions in parallel, with scans fed by deformable aggregation. Zhang et al. 2024, arXiv 2410.03174.

The layout is HRNet's (Wang et al. 2020, arXiv 1908.07919): a stem to a quarter of the size, bottlenecks, then stages of
two, three and four branches, each twice as wide and half as large as the one before, which exchange after every module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import MLP
from statescan.layers.grid import (
    SS2D,
    ConvolutionNorm,
    DeformableAggregation,
    DropPath,
    GridBlock,
    depthwise,
    drop_path_rates,
    resize_grid,
)
from statescan.models._names import Names
from statescan.models._registry import Family
from statescan.models._vision import FeatureInfo, VisionConfig, VisionModel

_STEM = 64
_NECK = (128, 256, 512, 1024)
_POOLED = 2048


@dataclass(frozen=True)
class HRVMambaConfig(VisionConfig):
    """HRVMamba.

    Arguments:
        dim: channels of the finest branch; each coarser one has twice as many.
        bottlenecks: of the first stage.
        bottleneck_dim: their inner channels; they give four times as many.
        modules: modules of the stages with two, three and four branches.
        depths: blocks of each branch in a module, a number a stage.
        state_dim, expand, dt_rank: of the scans; see `layers.grid.SS2D`.
        mlp_ratio: hidden channels over dim.
        deformable_pointwise: the projections about the deformable step. The published code has them; the published
            parameter counts are those without.
        feature_norm: a norm of each feature map, as for segmentation.
        route: of the scans.
    """

    image_size: int | tuple[int, int] = 224
    dim: int = 32
    bottlenecks: int = 2
    bottleneck_dim: int = 64
    modules: tuple[int, int, int] = (1, 4, 2)
    depths: tuple[int, int, int] = (2, 2, 2)
    state_dim: int = 1
    expand: float = 2.0
    dt_rank: int | str = "auto"
    mlp_ratio: float = 2.0
    deformable_pointwise: bool = True
    feature_norm: bool = False
    route: str = "cross"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim < 4 or self.dim % 4:
            raise ValueError(f"dim: a multiple of 4, for the four kernels, got {self.dim}")
        if len(self.modules) != 3 or len(self.depths) != 3:
            raise ValueError(f"modules, depths: three of each, got {self.modules} and {self.depths}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the branches."""
        return tuple(self.dim * 2**branch for branch in range(4))


class MultiKernelConvolution(nn.Module):
    """Depthwise convolutions with kernels 3, 5, 7 and 9, each on a quarter of the channels, which are then dealt round.

    Arguments:
        dim: channels, a multiple of 4.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.parts = nn.ModuleList(depthwise(dim // 4, kernel) for kernel in (3, 5, 7, 9))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        parts = [part(group) for part, group in zip(self.parts, x.chunk(4, -1), strict=True)]
        return torch.stack(parts, -1).flatten(-2)


def dynamic_block(config: Any, dim: int, drop_path: float = 0.0) -> GridBlock:
    """The dynamic visual state-space block: kernels of four sizes, scans after deformable aggregation, MLP."""
    mixer = SS2D(
        dim,
        state_dim=config.state_dim,
        expand=config.expand,
        dt_rank=config.dt_rank,
        conv_kernel=1,
        gate=None,
        route=config.route,
    )
    mixer.convolution = DeformableAggregation(  # type: ignore[assignment]
        mixer.inner_dim,
        math.ceil(dim / 16) if config.dt_rank == "auto" else config.dt_rank,
        # The published rule: a convolution before the offsets where 80 divides the channels.
        offset_kernel=0 if dim % 80 else 3,
        pointwise=config.deformable_pointwise,
    )
    return GridBlock(
        mixer,
        nn.LayerNorm(dim),
        MLP(dim, int(dim * config.mlp_ratio), activation=nn.GELU()),
        nn.LayerNorm(dim),
        drop_path=drop_path,
        before=nn.Sequential(nn.LayerNorm(dim), MultiKernelConvolution(dim), nn.GELU(), DropPath(drop_path)),
    )


class Bottleneck(nn.Module):
    """relu(shortcut(x) + widen(convolve(reduce(x)))). He et al. 2016, arXiv 1512.03385.

    Arguments:
        in_channels, hidden, out_channels: channels.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int):
        super().__init__()
        self.reduce = ConvolutionNorm(in_channels, hidden, activation="relu")
        self.convolve = ConvolutionNorm(hidden, hidden, 3, activation="relu")
        self.widen = ConvolutionNorm(hidden, out_channels)
        self.shortcut = ConvolutionNorm(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, in_channels) -> (…, out_channels)."""
        return F.relu(self.shortcut(x) + self.widen(self.convolve(self.reduce(x))))


class ExchangeModule(nn.Module):
    """Blocks on each branch; then every branch becomes relu(sum of all, brought to its size and width).

    Arguments:
        branches: the blocks of each.
        widths: channels of each.
    """

    def __init__(self, branches: list[list[nn.Module]], widths: tuple[int, ...]):
        super().__init__()
        self.branches: Any = nn.ModuleList(nn.ModuleList(blocks) for blocks in branches)
        self.exchange: Any = nn.ModuleList(
            nn.ModuleList(_way(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, grids: list[Tensor]) -> list[Tensor]:
        """A grid (batch, height, width, channels) a branch, the same shapes out."""
        mixed = []
        for ways, own in zip(self.exchange, grids, strict=True):
            parts = [way(grid) for way, grid in zip(ways, grids, strict=True)]
            sized = [resize_grid(part, own.shape[1], own.shape[2], mode="bilinear") for part in parts]
            mixed.append(F.relu(sum(sized[1:], sized[0])))
        return mixed


def _way(widths: tuple[int, ...], source: int, target: int) -> nn.Module:
    """From a branch to another: down by strided convolutions, up by one that the caller enlarges."""
    if source == target:
        return nn.Identity()
    if source > target:
        return ConvolutionNorm(widths[source], widths[target])
    steps = []
    for step in range(source, target):
        last = step == target - 1
        steps.append(
            nn.Sequential(
                ConvolutionNorm(widths[source], widths[source], 3, stride=2, groups=widths[source]),
                ConvolutionNorm(
                    widths[source],
                    widths[target] if last else widths[source],
                    activation="identity" if last else "relu",
                ),
            )
        )
    return nn.Sequential(*steps)


class ClassificationNeck(nn.Module):
    """Widen every branch; add it to the finer ones, halved step by step; widen the last. HRNet's.

    Arguments:
        widths: channels of the branches.
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.widen = nn.ModuleList(Bottleneck(dim, wide // 4, wide) for dim, wide in zip(widths, _NECK, strict=True))
        self.down = nn.ModuleList(
            ConvolutionNorm(dim, wide, 3, stride=2, activation="relu")
            for dim, wide in zip(_NECK, _NECK[1:], strict=False)
        )
        self.last = ConvolutionNorm(_NECK[-1], _POOLED, activation="relu")

    def forward(self, grids: list[Tensor]) -> Tensor:
        """The branches' grids -> (batch, height / 32, width / 32, 2048)."""
        x = self.widen[0](grids[0])
        for down, widen, grid in zip(self.down, self.widen[1:], grids[1:], strict=True):
            x = down(x) + widen(grid)
        return self.last(x)


class HRVMamba(VisionModel):
    """Images to class scores, or with `features_only` to four maps of stride 4, 8, 16 and 32.

    Arguments:
        config: an `HRVMambaConfig`.
    """

    family = "hrvmamba"

    def __init__(self, config: HRVMambaConfig):
        super().__init__(config)
        widths = config.widths
        self.stem = nn.Sequential(
            ConvolutionNorm(config.in_channels, _STEM, 3, stride=2, activation="relu"),
            ConvolutionNorm(_STEM, _STEM, 3, stride=2, activation="relu"),
        )
        wide = 4 * config.bottleneck_dim
        self.bottlenecks = nn.ModuleList(
            Bottleneck(wide if index else _STEM, config.bottleneck_dim, wide) for index in range(config.bottlenecks)
        )
        # The first transition makes two branches; each further one adds the next.
        first = nn.Identity() if wide == widths[0] else ConvolutionNorm(wide, widths[0], 3, activation="relu")
        self.entry = first
        sources = (wide, *widths[1:3])
        self.transitions: Any = nn.ModuleList(
            ConvolutionNorm(source, width, 3, stride=2, activation="relu")
            for source, width in zip(sources, widths[1:], strict=True)
        )
        counts = [depth * modules for depth, modules in zip(config.depths, config.modules, strict=True)]
        self.stages: Any = nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(config.drop_path_rate, counts)):
            depth, used = config.depths[index], widths[: index + 2]
            self.stages.append(
                nn.ModuleList(
                    ExchangeModule(
                        [
                            [dynamic_block(config, dim, rate) for rate in rates[module * depth : (module + 1) * depth]]
                            for dim in used
                        ],
                        used,
                    )
                    for module in range(config.modules[index])
                )
            )
        self.feature_info = [
            FeatureInfo(width, 4 * 2**branch, f"branch {branch}") for branch, width in enumerate(widths)
        ]
        self.least_size = 32
        if not config.features_only:
            self.neck = ClassificationNeck(widths)
            self.head = nn.Linear(_POOLED, config.num_classes) if config.num_classes else nn.Identity()
        elif config.feature_norm:
            self.feature_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformableAggregation):
                module.reset_parameters()

    def branches(self, images: Tensor) -> list[Tensor]:
        """images (batch, channels, height, width) -> the four grids (batch, rows, columns, channels)."""
        x = self.run(self.bottlenecks, self.stem(images.permute(0, 2, 3, 1)))
        grids = [self.entry(x)]
        for index, (transition, stage) in enumerate(zip(self.transitions, self.stages, strict=True)):
            grids.append(transition(grids[-1] if index else x))
            for module in stage:
                grids = module([self.run(blocks, grid) for blocks, grid in zip(module.branches, grids, strict=True)])
        return grids

    def forward_features(self, images: Tensor) -> Tensor:
        """The neck's grid (batch, height / 32, width / 32, 2048)."""
        return self.neck(self.branches(images))

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The mean over the grid, and its scores (batch, num_classes) unless `pre_logits`."""
        pooled = features.mean((1, 2))
        return pooled if pre_logits else self.head(pooled)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """The branches' maps, normed where the config asks for it."""
        grids = self.branches(images)
        if self.config.feature_norm:
            grids = [norm(grid) for norm, grid in zip(self.feature_norms, grids, strict=True)]
        return [grid.permute(0, 3, 1, 2) for grid in grids]


def _convolution_norm(convolution: str, norm: str, ours: str) -> list[Any]:
    return [(f"{convolution}.weight", f"{ours}.convolution.weight"), (f"{norm}.*", f"{ours}.norm.*")]


def _bottleneck(published: str, ours: str) -> list[Any]:
    named = [("conv1", "bn1", "reduce"), ("conv2", "bn2", "convolve"), ("conv3", "bn3", "widen")]
    rules = [(f"{published}.{c}", f"{published}.{n}", f"{ours}.{o}") for c, n, o in named]
    rules.append((f"{published}.downsample.0", f"{published}.downsample.1", f"{ours}.shortcut"))
    return [rule for names in rules for rule in _convolution_norm(*names)]


BLOCK_RULES: list[Any] = [
    ("norm0.*", "before.0.*"),
    ("conv2d.{}.*", "before.1.parts.{}.*"),
    ("norm.*", "norm.*"),
    ("op.x_proj_weight", "mixer.scan.selection_weight"),
    ("op.dt_projs_weight", "mixer.scan.delta_weight"),
    ("op.dt_projs_bias", "mixer.scan.delta_bias"),
    ("op.A_logs", "mixer.scan.A_log"),
    ("op.Ds", "mixer.scan.D"),
    ("op.out_norm.*", "mixer.output_norm.*"),
    ("op.in_proj.weight", "mixer.input_projection.weight"),
    ("op.out_proj.weight", "mixer.output_projection.weight"),
    ("op.conv2d.offset_mask_dw.*", "mixer.convolution.offset_convolution.*"),
    ("op.conv2d.offset_mask.*", "mixer.convolution.offset_projection.*"),
    ("op.conv2d.value_proj.*", "mixer.convolution.input_projection.*"),
    ("op.conv2d.output_proj.*", "mixer.convolution.output_projection.*"),
    ("norm2.*", "channel_norm.*"),
    ("mlp.fc1.*", "channel_mixer.input_projection.*"),
    ("mlp.fc2.*", "channel_mixer.output_projection.*"),
]
_NAMES = Names(
    [
        *_convolution_norm("conv1", "bn1", "stem.0"),
        *_convolution_norm("conv2", "bn2", "stem.1"),
        *_bottleneck("layer1.{}", "bottlenecks.{}"),
        *_convolution_norm("transition1.0.0", "transition1.0.1", "entry"),
        *(
            rule
            for stage in range(3)
            for rule in _convolution_norm(
                f"transition{stage + 1}.{stage + 1}.0.0",
                f"transition{stage + 1}.{stage + 1}.0.1",
                f"transitions.{stage}",
            )
        ),
        *(
            rule
            for stage in range(3)
            for rule in [
                *(
                    (f"stage{stage + 2}.{{}}.branches.{{}}.{{}}.{a}", f"stages.{stage}.{{}}.branches.{{}}.{{}}.{b}")
                    for a, b in BLOCK_RULES
                ),
                *_convolution_norm(
                    f"stage{stage + 2}.{{}}.fuse_layers.{{}}.{{}}.{{}}.0",
                    f"stage{stage + 2}.{{}}.fuse_layers.{{}}.{{}}.{{}}.1",
                    f"stages.{stage}.{{}}.exchange.{{}}.{{}}.{{}}.0",
                ),
                *_convolution_norm(
                    f"stage{stage + 2}.{{}}.fuse_layers.{{}}.{{}}.{{}}.2",
                    f"stage{stage + 2}.{{}}.fuse_layers.{{}}.{{}}.{{}}.3",
                    f"stages.{stage}.{{}}.exchange.{{}}.{{}}.{{}}.1",
                ),
                *_convolution_norm(
                    f"stage{stage + 2}.{{}}.fuse_layers.{{}}.{{}}.0",
                    f"stage{stage + 2}.{{}}.fuse_layers.{{}}.{{}}.1",
                    f"stages.{stage}.{{}}.exchange.{{}}.{{}}",
                ),
            ]
        ),
        *_bottleneck("neck.increase_layers.{}.0", "neck.widen.{}"),
        *_convolution_norm("neck.downsample_layers.{}.conv", "neck.downsample_layers.{}.bn", "neck.down.{}"),
        *_convolution_norm("neck.final_layer.conv", "neck.final_layer.bn", "neck.last"),
        ("outnorm{}.*", "feature_norms.{}.*"),
    ]
)

VARIANTS: dict[str, dict[str, Any]] = {
    f"hrvmamba_{name}{suffix}": dict(options, deformable_pointwise=pointwise)
    for suffix, pointwise in (("", False), ("_pointwise", True))
    for name, options in (
        ("nano", dict(dim=8, bottleneck_dim=16)),
        ("tiny", dict(dim=16, bottleneck_dim=32)),
        ("small", dict(dim=32)),
        ("base", dict(dim=80)),
    )
}

FAMILY = Family("hrvmamba", HRVMambaConfig, HRVMamba, VARIANTS, _NAMES.from_published, _NAMES.to_published)
