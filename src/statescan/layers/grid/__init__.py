"""Parts of image backbones: mixers of grids (batch, height, width, channels) and what stands around them."""

from statescan.layers.grid._attention import GridAttention
from statescan.layers.grid._cascade_scan import CascadeScan
from statescan.layers.grid._channel_mixers import ChannelGate, DepthwiseMLP, InvertedResidual
from statescan.layers.grid._channel_scan import ChannelDirection, ChannelScan
from statescan.layers.grid._deformable import DeformableAggregation, deformable_aggregation
from statescan.layers.grid._directional import DirectionalSS2D, place_cells, take_cells
from statescan.layers.grid._gated_convolution import GatedConvolution
from statescan.layers.grid._hidden_state_mixer import HiddenStateBlock, HiddenStateMixer
from statescan.layers.grid._local_mamba import LocalMamba
from statescan.layers.grid._local_scan import DIRECTIONS, LocalScan, WalkMixer, legacy_return, local_route
from statescan.layers.grid._morphology import ConvolvedMorphology, Morphology, dilation, erosion
from statescan.layers.grid._multi_head_scan import HEADS, GatedMultiHeadScan, MultiHeadScan
from statescan.layers.grid._multiscale import MultiScaleSS2D
from statescan.layers.grid._packed import PackedConvolution, PackedLinear, PackedRouteScan, pack, packs
from statescan.layers.grid._parts import (
    ConvolutionNorm,
    DropPath,
    GridBatchNorm,
    GridBlock,
    GridConvolution,
    NormLinear,
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
from statescan.layers.grid._route_ssd import RouteSSD
from statescan.layers.grid._self_distillation import mesa_loss
from statescan.layers.grid._ss2d import SS2D
from statescan.layers.grid._ssd import GridSSD
from statescan.layers.grid._stems import (
    ConvolutionMLP,
    ConvolutionStem,
    InvertedDownsample,
    Residual,
    ResidualStem,
    SqueezeDownsample,
    depthwise_norm,
    nearest_multiple,
)
from statescan.layers.grid._structure_aware_ssm import StateFusion, StructureAwareSSM
from statescan.layers.grid._tokens import ClassPlace, PatchTokens, embed_patches
from statescan.layers.grid._wavelets import (
    MultiReceptiveMixer,
    WaveletConvolution,
    haar_filters,
    inverse_wavelet_transform,
    wavelet_transform,
)

__all__ = [
    "DIRECTIONS",
    "HEADS",
    "SS2D",
    "CascadeScan",
    "ChannelDirection",
    "ChannelGate",
    "ChannelScan",
    "ClassPlace",
    "ConvolutionDownsample",
    "ConvolutionMLP",
    "ConvolutionNorm",
    "ConvolutionStem",
    "ConvolvedMorphology",
    "DeformableAggregation",
    "DepthwiseMLP",
    "DirectionalSS2D",
    "DropPath",
    "GatedConvolution",
    "GatedMultiHeadScan",
    "GridAttention",
    "GridBatchNorm",
    "GridBlock",
    "GridConvolution",
    "GridMaxPool",
    "GridSSD",
    "GridTransposedConvolution",
    "HiddenStateBlock",
    "HiddenStateMixer",
    "InvertedDownsample",
    "InvertedResidual",
    "LocalMamba",
    "LocalScan",
    "Morphology",
    "MultiHeadScan",
    "MultiReceptiveMixer",
    "MultiScaleSS2D",
    "NormLinear",
    "OverlappingStem",
    "PackedConvolution",
    "PackedLinear",
    "PackedRouteScan",
    "PatchEmbedding",
    "PatchMerging",
    "PatchTokens",
    "PositionGrid",
    "Residual",
    "ResidualStem",
    "RouteSSD",
    "RouteScan",
    "SimplePyramid",
    "SqueezeDownsample",
    "SqueezeExcite",
    "StateFusion",
    "StructureAwareSSM",
    "WalkMixer",
    "WaveletConvolution",
    "corner_cells",
    "deformable_aggregation",
    "depthwise",
    "depthwise_norm",
    "dilation",
    "drop_path_rates",
    "embed_patches",
    "erosion",
    "fold_norms",
    "grid_activation",
    "haar_filters",
    "inverse_wavelet_transform",
    "legacy_return",
    "local_route",
    "mesa_loss",
    "nearest_multiple",
    "pack",
    "packs",
    "pad_corner",
    "place_cells",
    "resize_grid",
    "take_cells",
    "wavelet_transform",
]
