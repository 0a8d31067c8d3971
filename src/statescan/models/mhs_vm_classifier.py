"""The blocks of MHS-VM as a classifier: its encoder, a norm, the mean over the grid, a linear head.

No published system: the paper trains its blocks in a U-Net alone (see `models.mhs_vm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from statescan.layers.grid import HEADS, PatchEmbedding, PatchMerging, drop_path_rates
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, VisionConfig, initialise_vision
from statescan.models.mhs_vm import multi_head_blocks


@dataclass(frozen=True)
class MHSVMClassifierConfig(VisionConfig):
    """A classifier of multi-head scans.

    Arguments:
        patch_size: of the embedding.
        dims, depths: channels and blocks of the stages.
        state_dim: N.
        routes: of the heads, one a head; the number of heads divides dims, or `head_projection` is on.
        threshold: of the route attention.
        head_projection: a norm and a linear layer over the joined heads.
    """

    patch_size: int = 4
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    state_dim: int = 16
    routes: tuple[str, ...] = tuple(HEADS.values())
    threshold: float = 0.0
    head_projection: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dims) != len(self.depths):
            raise ValueError(f"dims, depths: as many of each, got {self.dims} and {self.depths}")


class MHSVMClassifier(HierarchicalModel):
    """Images to class scores, or with `features_only` to a map a stage.

    Arguments:
        config: an `MHSVMClassifierConfig`.
    """

    family = "mhs_vm_classifier"

    def __init__(self, config: MHSVMClassifierConfig):
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        last = len(config.dims) - 1
        super().__init__(
            config,
            PatchEmbedding(config.in_channels, config.dims[0], config.patch_size, norm=nn.LayerNorm),
            [
                Stage(
                    multi_head_blocks(config, dim, rates[index]),
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


VARIANTS: dict[str, dict[str, Any]] = {
    "mhs_vm_classifier_tiny": dict(dims=(32, 64), depths=(1, 2), state_dim=4, num_classes=10, image_size=32),
    "mhs_vm_classifier": dict(),
}

FAMILY = Family("mhs_vm_classifier", MHSVMClassifierConfig, MHSVMClassifier, VARIANTS, _same, _same)
