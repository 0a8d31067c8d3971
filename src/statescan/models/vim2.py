"""ViM2: scans over cells and over channels, each reading averages of all before it in its stage. Behrouz et al. 2024,
"MambaMixer", arXiv 2403.19888, section 3.3 and the table of its appendix.

The authors released neither code nor weights. Two token blocks and one channel block make a layer, as the table counts
them; each has a norm before it and a residual about it, which the paper does not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from statescan.layers import MLP, DualMixer
from statescan.layers.grid import SS2D, ChannelScan, GridBlock, PatchEmbedding, PatchMerging, drop_path_rates
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, VisionConfig, initialise_vision


@dataclass(frozen=True)
class ViM2Config(VisionConfig):
    """ViM2.

    Arguments:
        patch_size: of the stem.
        dims: channels of the stages.
        channel_dims: channels that the channel mixers scan.
        depths: layers of the stages, each of two token blocks and a channel block.
        token_blocks: token blocks of a layer.
        state_dim: N, of both scans.
        expand: inner channels of the token blocks over dims.
        channel_mixer: ``scan``, or ``mlp`` for the paper's ablation (ViM2-MLP).
        mixing: weights of earlier outputs: ``free``, beginning as a plain stack, or ``softmax``, beginning equal.
        route: of the token blocks' scans.
    """

    patch_size: int = 4
    dims: tuple[int, ...] = (96, 192, 384, 768)
    channel_dims: tuple[int, ...] = (192, 384, 768, 768)
    depths: tuple[int, ...] = (1, 1, 3, 1)
    token_blocks: int = 2
    state_dim: int = 16
    expand: float = 2.0
    channel_mixer: Literal["scan", "mlp"] = "scan"
    mixing: Literal["free", "softmax"] = "free"
    route: str = "cross"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.dims) == len(self.channel_dims) == len(self.depths):
            raise ValueError(
                f"dims, channel_dims, depths: as many of each, got {self.dims}, {self.channel_dims}, {self.depths}"
            )
        for name, known in (("channel_mixer", ("scan", "mlp")), ("mixing", ("free", "softmax"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {' or '.join(known)}, got {getattr(self, name)!r}")


def _layers(config: ViM2Config, stage: int, rates: list[float]) -> DualMixer:
    dim, hidden = config.dims[stage], config.channel_dims[stage]

    def token_mixer(rate: float) -> nn.Module:
        return nn.Sequential(
            *(
                GridBlock(
                    SS2D(dim, state_dim=config.state_dim, expand=config.expand, route=config.route),
                    nn.LayerNorm(dim),
                    drop_path=rate,
                )
                for _ in range(config.token_blocks)
            )
        )

    def channel_mixer(rate: float) -> nn.Module:
        mixer = ChannelScan(dim, hidden, state_dim=config.state_dim) if config.channel_mixer == "scan" else None
        return GridBlock(mixer or MLP(dim, 4 * dim), nn.LayerNorm(dim), drop_path=rate)

    return DualMixer(
        [token_mixer(rate) for rate in rates],
        [channel_mixer(rate) for rate in rates],
        softmax=config.mixing == "softmax",
    )


class ViM2(HierarchicalModel):
    """Images to class scores, or with `features_only` to four maps.

    Arguments:
        config: a `ViM2Config`.
    """

    family = "vim2"
    undecayed = (*HierarchicalModel.undecayed, "delta_weight", "averages")

    def __init__(self, config: ViM2Config):
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        last = len(config.dims) - 1
        super().__init__(
            config,
            PatchEmbedding(config.in_channels, config.dims[0], config.patch_size, norm=nn.LayerNorm),
            [
                Stage(
                    [_layers(config, index, rates[index])],
                    PatchMerging(dim, config.dims[index + 1]) if index < last else None,
                )
                for index, dim in enumerate(config.dims)
            ],
            config.dims,
            reduction=config.patch_size,
        )
        self.least_size = config.patch_size
        initialise_vision(self)


def _same(tensors: Tensors, config: Any) -> Tensors:
    """Our names are the only ones."""
    return dict(tensors)


_SMALL = dict(depths=(1, 1, 9, 1))
_BASE = dict(dims=(128, 256, 512, 1024), channel_dims=(256, 512, 1024, 1024), depths=(1, 1, 9, 1))
VARIANTS: dict[str, dict[str, Any]] = {
    "vim2_nano": dict(
        dims=(16, 32, 64, 128), channel_dims=(32, 64, 128, 128), depths=(1, 1, 1, 1), state_dim=4, image_size=64
    ),
    "vim2_tiny": dict(),
    "vim2_small": _SMALL,
    "vim2_base": _BASE,
}

FAMILY = Family("vim2", ViM2Config, ViM2, VARIANTS, _same, _same)
