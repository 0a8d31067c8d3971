"""PlainMamba: a backbone of one resolution that scans along snakes. Yang et al. 2024, arXiv 2403.17695.

Peculiar: step sizes, B and C stay in raster order while the scanned input follows the snake; the step sizes' bias counts
twice. Trained weights depend on both; `reorder` and `double_bias` give the clean forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from statescan import routes
from statescan.layers import build_norm
from statescan.layers.grid import (
    ConvolutionNorm,
    DirectionalSS2D,
    GridBlock,
    GridConvolution,
    PositionGrid,
    corner_cells,
    drop_path_rates,
    pad_corner,
)
from statescan.models._names import Names, Reshape, Rule, prefixed
from statescan.models._plain import PlainConfig, linear_head
from statescan.models._registry import Family
from statescan.models._vision import FeatureInfo, VisionModel


@dataclass(frozen=True)
class PlainMambaConfig(PlainConfig):
    """A PlainMamba.

    Arguments:
        stem_convolutions: 3 x 3 convolutions of the stem between its first one and the patches.
        convolution_layers: blocks after which a depthwise convolution, without a residual, follows.
        norm: of the blocks, ``layer`` or ``rms``.
        final_norm: whether a LayerNorm follows the last block.
        norm_eps: of that norm and those of feature maps.
        state_dim, expand, dt_rank, conv_kernel, conv_bias, bias, layer_scale: of the mixers, which walk the `route`.
        reorder: ``input`` as published, or ``all``; see `layers.grid.DirectionalSS2D`.
        double_bias: as published; see there.
    """

    stem_convolutions: int = 1
    convolution_layers: tuple[int, ...] = ()
    norm: str = "layer"
    final_norm: bool = True
    norm_eps: float = 1e-6
    state_dim: int = 16
    expand: float = 2
    dt_rank: int | Literal["auto"] = "auto"
    conv_kernel: int = 7
    conv_bias: bool = True
    bias: bool = True
    layer_scale: float | None = None
    route: str = "snake"
    reorder: Literal["input", "all"] = "input"
    double_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch < 2 or self.patch % 2:
            raise ValueError(f"patch: even, for the stem halves the image, got {self.patch}")
        if self.stem_convolutions < 0:
            raise ValueError(f"stem_convolutions: not negative, got {self.stem_convolutions}")
        for index in self.convolution_layers:
            if not 0 <= index < self.depth:
                raise ValueError(f"convolution_layers: from 0 to {self.depth - 1}, got {index}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in training."""
        rows, columns = (corner_cells(size // 2, self.patch // 2) for size in self.image_shape)
        return rows, columns


class ConvolutionStem(nn.Module):
    """A 7 x 7 convolution of stride 2, some of 3 x 3, then the patches; batch norm and ReLU between.

    Arguments:
        in_channels: of the image.
        dim: channels of the patches.
        patch: side of a patch, in pixels of the image.
        convolutions: how many of 3 x 3.
    """

    def __init__(self, in_channels: int, dim: int, patch: int, convolutions: int):
        super().__init__()
        self.patch = patch // 2
        self.first = ConvolutionNorm(in_channels, 64, 7, stride=2, activation="relu")
        self.convolutions = nn.ModuleList(ConvolutionNorm(64, 64, 3, activation="relu") for _ in range(convolutions))
        self.projection = GridConvolution(64, dim, self.patch, stride=self.patch)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, in_channels) -> (batch, rows, columns, dim), padded at the bottom and the right."""
        x = self.first(x)
        for convolution in self.convolutions:
            x = convolution(x)
        return self.projection(pad_corner(x, self.patch, self.patch))


class PlainMamba(VisionModel):
    """Convolutions to patches, positions, blocks of direction-aware scans, norm, mean, linear head.

    Arguments:
        config: a `PlainMambaConfig`.
    """

    family = "plainmamba"
    undecayed: ClassVar[tuple[str, ...]] = (*VisionModel.undecayed, "direction_B")

    def __init__(self, config: PlainMambaConfig):
        super().__init__(config)
        routes.get(config.route)
        self.stem = ConvolutionStem(config.in_channels, config.dim, config.patch, config.stem_convolutions)
        self.position = PositionGrid(config.dim, *config.grid) if config.position else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            GridBlock(
                DirectionalSS2D(
                    config.dim,
                    state_dim=config.state_dim,
                    expand=config.expand,
                    dt_rank=config.dt_rank,
                    conv_kernel=config.conv_kernel,
                    conv_bias=config.conv_bias,
                    bias=config.bias,
                    layer_scale=config.layer_scale,
                    route=config.route,
                    reorder=config.reorder,
                    double_bias=config.double_bias,
                ),
                build_norm(config.norm, config.dim),
                drop_path=rate,
            )
            for rate in drop_path_rates(config.drop_path_rate, [config.depth])[0]
        )
        self.convolutions = nn.ModuleDict(
            {
                str(index): ConvolutionNorm(config.dim, config.dim, 3, groups=config.dim, activation="gelu")
                for index in config.convolution_layers
            }
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.final_norm else nn.Identity()
        self.feature_info = [FeatureInfo(config.dim, config.patch, f"blocks.{i}") for i in config.map_layers]
        self.feature_norms = nn.ModuleDict()
        if config.features_only:
            for index in config.map_layers:
                if index != config.depth - 1:
                    self.feature_norms[str(index)] = nn.LayerNorm(config.dim, eps=config.norm_eps)
        else:
            self.head = linear_head(config, 0.01)

    def run_blocks(self, images: Tensor) -> list[Tensor]:
        """images (batch, channels, height, width) -> the grid (batch, rows, columns, dim) after every block, the last one
        after the last norm."""
        x = self.stem(images.permute(0, 2, 3, 1))
        if self.position is not None:
            x = self.position(x)
        x = self.dropout(x)
        grids = []
        for index, block in enumerate(self.blocks):
            x = self.run([block], x)
            if str(index) in self.convolutions:
                x = self.convolutions[str(index)](x)
            grids.append(x)
        grids[-1] = self.norm(x)
        return grids

    def forward_features(self, images: Tensor) -> Tensor:
        """images (batch, channels, height, width) -> the grid after the last norm, (batch, rows, columns, dim)."""
        return self.run_blocks(images)[-1]

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The mean over the grid (batch, dim), and the head's scores (batch, num_classes) unless `pre_logits`."""
        pooled = features.mean((1, 2))
        return pooled if pre_logits else self.head(pooled)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Maps (batch, dim, rows, columns) of `feature_layers`, each after its norm."""
        return self.maps_of(self.run_blocks(images))

    def maps_of(self, grids: list[Tensor]) -> list[Tensor]:
        """The maps among the grids that `run_blocks` gave."""
        maps = []
        for index in self.config.map_layers:
            grid = grids[index]
            if str(index) in self.feature_norms:
                grid = self.feature_norms[str(index)](grid)
            maps.append(grid.permute(0, 3, 1, 2))
        return maps


def _norm(published: str, ours: str) -> list[Rule]:
    """A convolution without bias and its batch norm, which follow each other in a published list."""
    place = published.rsplit(".", 1)
    after = f"{place[0]}.{int(place[1]) + 1}"
    return [(f"{published}.*", f"{ours}.convolution.*"), (f"{after}.*", f"{ours}.norm.*")]


def names(config: Any) -> Names:
    """The table of names for a config."""
    grid = Reshape(lambda table: table.unflatten(1, config.grid), lambda table: table.flatten(1, 2))
    table: list[Rule] = [("pos_embed", "position.weight", grid), *_norm("patch_embed.stem.0", "stem.first")]
    for index in range(config.stem_convolutions):
        table += _norm(f"patch_embed.convs.{3 * index}", f"stem.convolutions.{index}")
    table += [
        ("patch_embed.projection.*", "stem.projection.*"),
        ("layers.{}.norm.*", "blocks.{}.norm.*"),
        ("layers.{}.dw.0.*", "convolutions.{}.convolution.*"),
        ("layers.{}.dw.1.*", "convolutions.{}.norm.*"),
        ("ln1.*", "norm.*"),
    ]
    table += [(f"norm_layer{index}.*", f"feature_norms.{index}.*") for index in config.map_layers]
    mixer: list[Rule] = [
        ("A_log", "A_log"),
        ("D", "D"),
        ("gamma", "layer_scale"),
        ("direction_Bs", "direction_B"),
        ("in_proj.*", "input_projection.*"),
        ("conv2d.*", "convolution.*"),
        ("x_proj.*", "selection_projection.*"),
        ("dt_proj.weight", "delta_projection.weight"),
        ("dt_proj.bias", "delta_bias"),
        ("out_proj.*", "output_projection.*"),
    ]
    table += prefixed(mixer, "layers.{}.mamba.", "blocks.{}.mixer.")
    if not config.features_only:
        table = [*prefixed(table, "backbone.", ""), ("head.fc.*", "head.*")]
    return Names(table)


def from_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Tensors under our names: those of a classifier (``backbone.…``, ``head.fc``), or with features_only a backbone's."""
    return names(config).from_published(tensors, config)


def to_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The inverse."""
    return names(config).to_published(tensors, config)


VARIANTS: dict[str, dict[str, Any]] = {
    "plainmamba_tiny": dict(dim=64, depth=4, patch=8, image_size=64, num_classes=10),
    "plainmamba_l1": dict(dim=192, depth=24, stem_convolutions=1, convolution_layers=(0,)),
    "plainmamba_l2": dict(dim=384, depth=24, stem_convolutions=2),
    "plainmamba_l3": dict(dim=448, depth=36, stem_convolutions=2),
}

FAMILY = Family("plainmamba", PlainMambaConfig, PlainMamba, VARIANTS, from_published, to_published)
