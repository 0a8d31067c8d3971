"""What the backbones after VMamba share: their config, stems, downsamplings and norms by name, and published names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from statescan.layers import grid
from statescan.models._names import Reshape, Rule, prefixed
from statescan.models._registry import Tensors
from statescan.models._vision import VisionConfig

#: Norms by name: over the channels of each cell, or over batch and grid.
NORMS: dict[str, Callable[[int], nn.Module]] = {"layer_norm": nn.LayerNorm, "batch_norm": grid.GridBatchNorm}
STEMS = ("patches", "overlapping")
DOWNSAMPLES = ("merging", "convolution2", "convolution3", "none")


@dataclass(frozen=True)
class PyramidConfig(VisionConfig):
    """Stages of falling resolution.

    Arguments:
        dims: channels of each stage, or of the first alone: each further one then has twice as many.
        depths: blocks of each stage.
        patch_size: side of a patch.
        stem: ``patches``: one convolution of patch_size without overlap; ``overlapping``: two of half the stride.
        patch_norm: whether the stem has norms.
        downsample: ``merging``: four neighbours into one, odd sides padded; ``convolution2``, ``convolution3``: a
            convolution of that side and stride 2; ``none``: all stages have one resolution.
        norm: ``layer_norm`` or ``batch_norm``.
        position_embedding: a learned vector a cell is added after the stem.
    """

    dims: int | tuple[int, ...] = 96
    depths: tuple[int, ...] = (2, 2, 9, 2)
    patch_size: int = 4
    stem: str = "patches"
    patch_norm: bool = True
    downsample: str = "merging"
    norm: str = "layer_norm"
    position_embedding: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.dims, int) and len(self.dims) != len(self.depths):
            raise ValueError(f"dims, depths: one of each a stage, got {len(self.dims)} and {len(self.depths)}")
        if min(self.channels) < 1 or min(self.depths) < 0:
            raise ValueError(f"dims: positive, depths: not negative; got {self.channels} and {self.depths}")
        choose("stem", self.stem, STEMS)
        choose("downsample", self.downsample, DOWNSAMPLES)
        choose("norm", self.norm, NORMS)
        if self.stem == "overlapping" and self.patch_size % 2:
            raise ValueError(f"patch_size: even with the overlapping stem, got {self.patch_size}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        if isinstance(self.dims, int):
            return tuple(self.dims * 2**stage for stage in range(len(self.depths)))
        return tuple(self.dims)


def choose(what: str, name: Any, known: Any) -> None:
    """Refuse a name that is not known."""
    if name not in known:
        raise ValueError(f"{what}: unknown {name!r}; known: {', '.join(map(str, known))}")


def build_stem(config: PyramidConfig) -> nn.Module:
    """From images to the first stage's grid."""
    norm = NORMS[config.norm] if config.patch_norm else None
    if config.stem == "patches":
        return grid.PatchEmbedding(config.in_channels, config.channels[0], config.patch_size, norm=norm)
    return grid.OverlappingStem(config.in_channels, config.channels[0], norm=norm, patch=config.patch_size)


def build_position(config: PyramidConfig) -> nn.Module | None:
    """Positions of the first stage's cells, if the config has them."""
    if not config.position_embedding:
        return None
    height, width = config.image_shape
    return grid.PositionGrid(config.channels[0], height // config.patch_size, width // config.patch_size)


def build_downsample(config: PyramidConfig, stage: int) -> nn.Module | None:
    """From one stage's grid to the next; None after the last."""
    if stage + 1 >= len(config.depths) or config.downsample == "none":
        return None
    dim, out_dim = config.channels[stage : stage + 2]
    norm = NORMS[config.norm]
    if config.downsample == "merging":
        return grid.PatchMerging(dim, out_dim, norm=norm)
    return grid.ConvolutionDownsample(dim, out_dim, kernel=int(config.downsample[-1]), norm=norm)


def least_size(config: PyramidConfig) -> int:
    """The least side of an image that leaves every stage a cell."""
    least = config.patch_size if config.stem == "patches" else 1
    if config.downsample == "convolution2":
        least = config.patch_size * 2 ** (len(config.depths) - 1)
        if config.stem == "overlapping":
            least -= config.patch_size - 1
    return least


#: A table over cells (1, channels, rows, columns), for us (1, rows, columns, channels).
CHANNELS_LAST = Reshape(lambda table: table.permute(0, 2, 3, 1), lambda table: table.permute(0, 3, 1, 2))


def stem_rules(config: PyramidConfig) -> list[Rule]:
    """Published names of the stem."""
    if config.stem == "patches":
        parts = {"0": "projection", "2": "norm"}
    else:
        parts = {"0": "convolution1", "2": "norm1", "5": "convolution2", "7": "norm2"}
    return [(f"patch_embed.{index}.*", f"stem.{name}.*") for index, name in parts.items()]


def downsample_rules(config: PyramidConfig) -> list[Rule]:
    """Published names of the downsamplings."""
    parts = {"": ""} if config.downsample == "merging" else {"1.": "convolution.", "3.": "norm."}
    return [(f"layers.{{}}.downsample.{theirs}*", f"stages.{{}}.downsample.{ours}*") for theirs, ours in parts.items()]


#: Published names of what follows the stages.
HEAD_RULES: list[Rule] = [
    ("classifier.norm.*", "norm.*"),
    ("classifier.head.*", "head.*"),
    ("outnorm{}.*", "feature_norms.{}.*"),
]
#: Published names of an SS2D with a gate or without, and ours.
SS2D_RULES: list[Rule] = [
    ("in_proj.*", "input_projection.*"),
    ("conv2d.*", "convolution.*"),
    ("x_proj_weight", "scan.selection_weight"),
    ("dt_projs_weight", "scan.delta_weight"),
    ("dt_projs_bias", "scan.delta_bias"),
    ("A_logs", "scan.A_log"),
    ("Ds", "scan.D"),
    ("out_norm.*", "output_norm.*"),
    ("out_proj.*", "output_projection.*"),
]
#: Published names of what stands around a mixer in a block.
BLOCK_RULES: list[Rule] = [
    ("norm.*", "norm.*"),
    ("norm2.*", "channel_norm.*"),
    ("mlp.fc1.*", "channel_mixer.input_projection.*"),
    ("mlp.fc2.*", "channel_mixer.output_projection.*"),
]
BLOCK = ("layers.{}.blocks.{}.", "stages.{}.blocks.{}.")


def pyramid_rules(config: PyramidConfig, mixer: list[Rule]) -> list[Rule]:
    """Published names of a whole model whose blocks have a mixer of these names."""
    return [
        ("pos_embed", "position.weight", CHANNELS_LAST),
        *stem_rules(config),
        *prefixed(prefixed(mixer, "op.", "mixer."), *BLOCK),
        *prefixed(BLOCK_RULES, *BLOCK),
        *downsample_rules(config),
        *HEAD_RULES,
    ]


_EARLIER = (
    ("patch_embed.proj.", "patch_embed.0."),
    ("patch_embed.norm.", "patch_embed.2."),
    (".ln_1.", ".norm."),
    (".self_attention.", ".op."),
)


def upgrade(tensors: Tensors) -> Tensors:
    """Names and forms of earlier releases: other prefixes, and linear weights kept as 1 x 1 convolutions."""
    out = {}
    for name, tensor in tensors.items():
        for old, new in _EARLIER:
            name = name.replace(old, new)
        if name.startswith(("norm.", "head.")):
            name = f"classifier.{name}"
        linear = name.endswith(("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight", "reduction.weight"))
        out[name] = tensor.flatten(1) if linear and tensor.ndim == 4 else tensor
    return out
