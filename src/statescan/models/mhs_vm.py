"""MHS-VM: a U-Net whose blocks scan in narrow heads, each along its own walks. Ji 2024, arXiv 2406.05992.

Skips are taken before each encoder stage and added. Peculiar: no projection follows the gate of a block, and with a
threshold of the route attention above zero, heads whose walks agree give exactly nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from statescan.layers.grid import (
    HEADS,
    GatedMultiHeadScan,
    GridBlock,
    GridConvolution,
    PatchEmbedding,
    PatchMerging,
    drop_path_rates,
)
from statescan.models._names import Names
from statescan.models._registry import Family, Tensors
from statescan.models._vision import FeatureInfo, Stage, VisionConfig, VisionModel, initialise_vision


@dataclass(frozen=True)
class MHSVMConfig(VisionConfig):
    """MHS-VM's U-Net.

    Arguments:
        num_classes: channels of the output; 1 for a foreground's logit.
        patch_size: of the embedding; the output is enlarged as much.
        dims: channels of the encoder's stages; each is twice the one before.
        depths: blocks of each.
        decoder_depths: blocks of each decoder stage, from the coarsest.
        state_dim: N.
        num_heads: how many of the published heads (snakes, zigzags, spirals, rows and columns), in this order.
        heads: routes of the heads instead, one a head.
        threshold: of the route attention.
        head_projection: a norm and a linear layer over the joined heads.
    """

    num_classes: int = 1
    image_size: int | tuple[int, int] = 256
    drop_path_rate: float = 0.2
    patch_size: int = 4
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    decoder_depths: tuple[int, ...] = (2, 2, 2, 1)
    state_dim: int = 16
    num_heads: int = 4
    heads: tuple[str, ...] | None = None
    threshold: float = 0.0
    head_projection: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        stages = {len(self.dims), len(self.depths), len(self.decoder_depths)}
        if len(stages) != 1 or any(wide != 2 * dim for dim, wide in zip(self.dims, self.dims[1:], strict=False)):
            raise ValueError(
                "dims, depths, decoder_depths: as many of each, and dims that double, got "
                f"{self.dims}, {self.depths}, {self.decoder_depths}"
            )
        if self.heads is None and not 1 <= self.num_heads <= len(HEADS):
            raise ValueError(f"num_heads: from 1 to {len(HEADS)}, got {self.num_heads}; or name routes in heads")

    @property
    def routes(self) -> tuple[str, ...]:
        """Of the heads."""
        return tuple(HEADS.values())[: self.num_heads] if self.heads is None else self.heads


def multi_head_blocks(config: Any, dim: int, rates: list[float]) -> list[nn.Module]:
    """x += drop_path(gated multi-head scan(norm(x))), once for each rate."""
    return [
        GridBlock(
            GatedMultiHeadScan(
                dim,
                config.routes,
                state_dim=config.state_dim,
                threshold=config.threshold,
                head_projection=config.head_projection,
            ),
            nn.LayerNorm(dim),
            drop_path=rate,
        )
        for rate in rates
    ]


class PatchExpanding(nn.Module):
    """A linear layer makes a cell's channels into scale x scale cells; then a norm. Cao et al. 2021, "Swin-Unet", arXiv
    2105.05537.

    Arguments:
        dim, out_dim: channels.
        scale: how much larger each side becomes.
    """

    def __init__(self, dim: int, out_dim: int, scale: int = 2):
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, scale**2 * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> (batch, scale x height, scale x width, out_dim)."""
        cells = self.expand(x).unflatten(-1, (self.scale, self.scale, -1))  # row, column, channels
        return self.norm(cells.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3))


class MHSVM(VisionModel):
    """Images (batch, channels, height, width) -> logits (batch, num_classes, height, width).

    Arguments:
        config: an `MHSVMConfig`.
    """

    family = "mhs_vm"

    def __init__(self, config: MHSVMConfig):
        super().__init__(config)
        dims, depths = config.dims, config.depths
        last = len(dims) - 1
        self.least_size = config.patch_size * 2**last
        self.stem = PatchEmbedding(config.in_channels, dims[0], config.patch_size, norm=nn.LayerNorm)
        self.feature_info = [
            FeatureInfo(dim, config.patch_size * 2**index, f"stages.{index}") for index, dim in enumerate(dims)
        ]
        rates = drop_path_rates(config.drop_path_rate, depths)
        self.stages: Any = nn.ModuleList(
            Stage(multi_head_blocks(config, dim, rates[index]), PatchMerging(dim) if index < last else None)
            for index, dim in enumerate(dims)
        )
        if not config.features_only:
            falling = drop_path_rates(config.drop_path_rate, config.decoder_depths[::-1])[::-1]
            self.decoder: Any = nn.ModuleList(
                Stage(
                    multi_head_blocks(config, dims[last - index], falling[index][::-1]),
                    PatchExpanding(2 * dims[last - index], dims[last - index]) if index else None,
                )
                for index in range(last + 1)
            )
            self.enlarge = PatchExpanding(dims[0], dims[0] // 4, config.patch_size)
            self.head = GridConvolution(dims[0] // 4, config.num_classes, 1)
        initialise_vision(self)

    def forward(self, images: Tensor) -> Any:
        """Logits (batch, num_classes, height, width); with `features_only` the encoder's maps. Images of one channel
        are repeated to three, as the published wrapper does.

        Raises:
            ValueError: sides that the patches and the halvings do not divide.
        """
        if images.ndim == 4 and images.shape[1] == 1 and self.config.in_channels == 3:
            images = images.expand(-1, 3, -1, -1)
        return super().forward(images)

    def check_images(self, images: Tensor) -> None:
        """Refuse also sides that the patches and the halvings do not divide."""
        super().check_images(images)
        if images.shape[2] % self.least_size or images.shape[3] % self.least_size:
            raise ValueError(
                f"images: sides that {self.least_size} divides, got {images.shape[2]} x {images.shape[3]}; pad them"
            )

    def _encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What goes into each stage, and what its blocks give."""
        x = self.stem(images.permute(0, 2, 3, 1))
        inputs, outputs = [], []
        for stage in self.stages:
            inputs.append(x)
            outputs.append(self.run(stage.blocks, x))
            x = outputs[-1] if stage.downsample is None else stage.downsample(outputs[-1])
        return inputs, outputs

    def forward_features(self, images: Tensor) -> Tensor:
        """The decoder's last grid (batch, height / patch, width / patch, dims[0])."""
        skips, (*_, x) = self._encode(images)
        for stage in self.decoder:
            if stage.downsample is not None:  # here: the way to the finer grid
                x = stage.downsample(x + skips.pop())
            x = self.run(stage.blocks, x)
        return x

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Logits (batch, num_classes, height, width), or the enlarged grid before the last convolution."""
        grid = self.enlarge(features)
        return grid if pre_logits else self.head(grid).permute(0, 3, 1, 2)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """What the blocks of each encoder stage give."""
        return [grid.permute(0, 3, 1, 2) for grid in self._encode(images)[1]]


_SCAN = [
    ("x_proj_weight", "selection_weight"),
    ("dt_projs_weight", "delta_weight"),
    ("dt_projs_bias", "delta_bias"),
    ("A_logs", "A_log"),
    ("Ds", "D"),
]
#: A head's scan has two published names; the second is in force where they differ.
_ENGINES = ("mambaeng", "scanning.seq2seq_engine")
BLOCK_RULES: list[Any] = [
    ("in_proj.weight", "input_projection.weight"),
    ("conv2d.*", "convolution.*"),
    ("mhs.x_ssproj.weight", "scan.input_projection.weight"),
    ("mhs.x_ssproj_W", "scan.input_projection.weight"),
    ("mhs.cat_norm.*", "scan.norm.*"),
    ("mhs.y_proj.weight", "scan.output_projection.weight"),
    ("out_norm.*", "output_norm.*"),
    *(
        (f"mhs.scanhead_{letter}.{engine}.{published}", f"scan.scans.{index}.{ours}")
        for index, letter in enumerate(HEADS)
        for engine in _ENGINES
        for published, ours in _SCAN
    ),
]
_STAGE: list[Any] = [
    ("blocks.{}.ln_1.*", "blocks.{}.norm.*"),
    *((f"blocks.{{}}.self_attention.{a}", f"blocks.{{}}.mixer.{b}") for a, b in BLOCK_RULES),
]
_NAMES = Names(
    [
        ("patch_embed.proj.*", "stem.projection.*"),
        ("patch_embed.norm.*", "stem.norm.*"),
        *((f"layers.{{}}.{a}", f"stages.{{}}.{b}") for a, b in [*_STAGE, ("downsample.*", "downsample.*")]),
        *((f"layers_up.{{}}.{a}", f"decoder.{{}}.{b}") for a, b in [*_STAGE, ("upsample.*", "downsample.*")]),
        ("final_up.*", "enlarge.*"),
        ("final_conv.*", "head.*"),
    ]
)


def from_published(tensors: Tensors, config: Any = None) -> Tensors:
    """Names of the published code, with ``vmunet.`` before them or not, in ours."""
    return _NAMES.from_published({name.removeprefix("vmunet."): tensor for name, tensor in tensors.items()})


def to_published(tensors: Tensors, config: Any = None) -> Tensors:
    """Names of the published code; shared tensors under both of theirs."""
    named = _NAMES.to_published(tensors)
    seconds = {name.replace("mambaeng", _ENGINES[1]): tensor for name, tensor in named.items() if "mambaeng" in name}
    short = {
        name.replace("x_ssproj.weight", "x_ssproj_W"): tensor for name, tensor in named.items() if "x_ssproj.w" in name
    }
    return named | seconds | short


VARIANTS: dict[str, dict[str, Any]] = {
    "mhs_vm_tiny": dict(
        dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1), state_dim=4, image_size=64
    ),
    "mhs_vm_3_heads": dict(num_heads=3),
    "mhs_vm_4_heads": dict(num_heads=4),
}

FAMILY = Family("mhs_vm", MHSVMConfig, MHSVM, VARIANTS, from_published, to_published)
