"""Parts of image backbones: mixers of grids (batch, height, width, channels) and what stands around them."""

from statescan.layers.grid._channel_scan import ChannelDirection, ChannelScan
from statescan.layers.grid._deformable import DeformableAggregation, deformable_aggregation
from statescan.layers.grid._multi_head_scan import HEADS, GatedMultiHeadScan, MultiHeadScan
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
from statescan.layers.grid._route_scan import RouteScan
from statescan.layers.grid._ss2d import SS2D

__all__ = [
    "HEADS",
    "SS2D",
    "ChannelDirection",
    "ChannelScan",
    "ConvolutionDownsample",
    "ConvolutionNorm",
    "DeformableAggregation",
    "DropPath",
    "GatedMultiHeadScan",
    "GridBatchNorm",
    "GridBlock",
    "GridConvolution",
    "MultiHeadScan",
    "OverlappingStem",
    "PatchEmbedding",
    "PatchMerging",
    "PositionGrid",
    "RouteScan",
    "SqueezeExcite",
    "deformable_aggregation",
    "depthwise",
    "drop_path_rates",
    "fold_norms",
    "grid_activation",
    "resize_grid",
]
