"""Res-VMamba: VMamba's first form with a branch around each stage. Chen et al. 2024, "Res-VMamba: Fine-Grained Food
Category Visual Classification Using Selective State Space Models with Deep Residual Learning", arXiv 2402.15761.

stem -> stages, each but the last: x = stage(x) + convolution1x1(maxpool(x)) -> norm -> mean -> head

Peculiar: the published code makes the three convolutions anew at every call, with random weights that nothing trains.
Here they are trained (``residual="learned"``); ``residual="resampled"`` is the published behaviour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import grid
from statescan.models import vmamba
from statescan.models._names import Names, Rule
from statescan.models._pyramid import choose
from statescan.models._registry import Family, Tensors

RESIDUALS = ("learned", "resampled", "none")


@dataclass(frozen=True)
class ResVMambaConfig(vmamba.VMambaConfig):
    """A Res-VMamba; the fields of `vmamba.VMambaConfig`, in its first form.

    Arguments:
        residual: ``learned``: 1 x 1 convolutions around stages, trained; ``resampled``: drawn anew at every call, in
            evaluation too, as published: the same input then gives other scores each time; ``none``: VMamba.
        residual_seed: with ``resampled``, draw the same numbers at every call; None for others each time.
    """

    depths: tuple[int, ...] = (2, 2, 9, 2)
    stem: str = "patches"
    downsample: str = "merging"
    state_dim: int = 16
    expand: float = 2.0
    conv_bias: bool = True
    gate: str | None = "silu"
    mlp_ratio: float = 0.0
    residual: str = "learned"
    residual_seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("residual", self.residual, RESIDUALS)
        if self.downsample == "none":
            raise ValueError("downsample: branches around stages halve the grid; give one that does so as well")


class ResampledPointwise(nn.Module):
    """A 1 x 1 convolution with weights drawn anew at every call, uniform within 1 / sqrt(channels in).

    Arguments:
        in_channels, out_channels: channels.
        seed: draw the same at every call.
    """

    def __init__(self, in_channels: int, out_channels: int, *, seed: int | None = None):
        super().__init__()
        self.in_channels, self.out_channels, self.seed = in_channels, out_channels, seed

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, in_channels) -> (batch, height, width, out_channels)."""
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        numbers = torch.rand(self.out_channels, self.in_channels + 1, generator=generator).to(x)
        numbers = (2 * numbers - 1) / math.sqrt(self.in_channels)
        return F.linear(x, numbers[:, :-1], numbers[:, -1])


class ResVMamba(vmamba.VMamba):
    """Res-VMamba; see `ResVMambaConfig`.

    Arguments:
        config: a `ResVMambaConfig`.
    """

    family = "res_vmamba"

    def __init__(self, config: ResVMambaConfig):
        super().__init__(config)
        pairs = list(zip(config.channels, config.channels[1:], strict=False))
        branches: list[nn.Module] = []
        if config.residual == "learned":
            branches = [grid.GridConvolution(dim, out_dim, 1) for dim, out_dim in pairs]
        elif config.residual == "resampled":
            branches = [
                ResampledPointwise(
                    dim, out_dim, seed=None if config.residual_seed is None else config.residual_seed + stage
                )
                for stage, (dim, out_dim) in enumerate(pairs)
            ]
        self.branches: Any = nn.ModuleList(branches)

    def stage_outputs(self, images: Tensor) -> list[Tensor]:
        """Each stage's grid (batch, height, width, channels) after its blocks, before any norm."""
        x = self.stem(images.permute(0, 2, 3, 1))
        if self.position is not None:
            x = self.position(x)
        outputs = []
        for index, stage in enumerate(self.stages):
            outputs.append(self.run(stage.blocks, x))
            if stage.downsample is not None:
                below = stage.downsample(outputs[-1])
                x = below + self.branches[index](halve(x)) if len(self.branches) else below
        return outputs

    def check_images(self, images: Tensor) -> None:
        """Refuse what is no batch of images for this model."""
        super().check_images(images)
        step = self.config.patch_size * 2 ** (len(self.config.depths) - 1)
        rounded_up = self.config.downsample != "convolution2" and len(self.branches) > 0
        if rounded_up and any(side % step for side in images.shape[2:]):
            raise ValueError(
                f"images: sides that are multiples of {step} pixels, got {images.shape[2]} x {images.shape[3]}: the "
                f"branches round odd grids down, downsample={self.config.downsample!r} rounds them up; pad the images"
            )


def halve(x: Tensor) -> Tensor:
    """The largest of each 2 x 2 cells: (batch, height, width, channels) -> (batch, height // 2, width // 2, channels)."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


@lru_cache(maxsize=16)
def names(config: ResVMambaConfig) -> Names:
    """Published names of a Res-VMamba, and ours. The branches are in no published checkpoint; ``res_fuse.0`` is our
    name for them there."""
    own: list[Rule] = [("res_fuse.{}.*", "branches.{}.*")]
    return Names(own + vmamba.rules(config))


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """A published Res-VMamba's tensors under our names."""
    return names(config).from_published(tensors)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    return names(config).to_published(tensors)


VARIANTS: dict[str, dict[str, Any]] = {
    "res_vmamba_tiny": dict(dims=24, depths=(1, 1, 2, 1), state_dim=4, num_classes=10, image_size=64),
    "res_vmamba_t": dict(dims=96, depths=(2, 2, 9, 2), num_classes=241, drop_path_rate=0.2),
    "res_vmamba_s": dict(dims=96, depths=(2, 2, 27, 2), num_classes=241, drop_path_rate=0.3),
    "res_vmamba_b": dict(dims=128, depths=(2, 2, 27, 2), num_classes=241, drop_path_rate=0.6),
}

FAMILY = Family("res_vmamba", ResVMambaConfig, ResVMamba, VARIANTS, from_published, to_published, vmamba.upgrade)
