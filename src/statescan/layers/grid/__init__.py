"""Parts of image backbones: mixers of grids (batch, height, width, channels) and what stands around them."""

from statescan.layers.grid._directional import DirectionalSS2D
from statescan.layers.grid._parts import (
    ConvolutionNorm,
    DropPath,
    GridBatchNorm,
    GridBlock,
    GridConvolution,
    SqueezeExcite,
    depthwise,
    drop_path_rates,
    fold_norms,
    grid_activation,
    resize_grid,
)
from statescan.layers.grid._patches import (
    ConvolutionDownsample,
    OverlappingStem,
    PatchEmbedding,
    PatchMerging,
    PositionGrid,
    corner_cells,
    pad_corner,
)
from statescan.layers.grid._pyramid import GridMaxPool, GridTransposedConvolution, SimplePyramid
from statescan.layers.grid._route_scan import RouteScan
from statescan.layers.grid._ss2d import SS2D
from statescan.layers.grid._tokens import ClassPlace, PatchTokens, embed_patches

__all__ = [
    "SS2D",
    "ClassPlace",
    "ConvolutionDownsample",
    "ConvolutionNorm",
    "DirectionalSS2D",
    "DropPath",
    "GridBatchNorm",
    "GridBlock",
    "GridConvolution",
    "GridMaxPool",
    "GridTransposedConvolution",
    "OverlappingStem",
    "PatchEmbedding",
    "PatchMerging",
    "PatchTokens",
    "PositionGrid",
    "RouteScan",
    "SimplePyramid",
    "SqueezeExcite",
    "corner_cells",
    "depthwise",
    "drop_path_rates",
    "embed_patches",
    "fold_norms",
    "grid_activation",
    "pad_corner",
    "resize_grid",
]
