"""Parts of image backbones: mixers of grids (batch, height, width, channels) and what stands around them."""

from statescan.layers.grid._cascade_scan import CascadeScan
from statescan.layers.grid._channel_mixers import ChannelGate, ConvolutionMLP, InvertedResidual
from statescan.layers.grid._local_mamba import LocalMamba
from statescan.layers.grid._local_scan import DIRECTIONS, LocalScan, WalkMixer, legacy_return, local_route
from statescan.layers.grid._multiscale import MultiScaleSS2D
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
)
from statescan.layers.grid._pyramid import GridMaxPool, GridTransposedConvolution, SimplePyramid
from statescan.layers.grid._route_scan import RouteScan
from statescan.layers.grid._route_ssd import RouteSSD
from statescan.layers.grid._ss2d import SS2D
from statescan.layers.grid._tokens import ClassPlace, PatchTokens, embed_patches

__all__ = [
    "DIRECTIONS",
    "SS2D",
    "CascadeScan",
    "ChannelGate",
    "ClassPlace",
    "ConvolutionDownsample",
    "ConvolutionMLP",
    "ConvolutionNorm",
    "DropPath",
    "GridBatchNorm",
    "GridBlock",
    "GridConvolution",
    "GridMaxPool",
    "GridTransposedConvolution",
    "InvertedResidual",
    "LocalMamba",
    "LocalScan",
    "MultiScaleSS2D",
    "OverlappingStem",
    "PatchEmbedding",
    "PatchMerging",
    "PatchTokens",
    "PositionGrid",
    "RouteSSD",
    "RouteScan",
    "SimplePyramid",
    "SqueezeExcite",
    "WalkMixer",
    "depthwise",
    "drop_path_rates",
    "embed_patches",
    "fold_norms",
    "grid_activation",
    "legacy_return",
    "local_route",
    "resize_grid",
]
