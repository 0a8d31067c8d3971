"""VMamba: a pyramid of selective scans along four walks of the grid. Liu et al. 2024, arXiv 2401.10166.

stem -> [block x depth -> downsampling] x stages -> norm -> mean -> head
block: x += SS2D(norm(x)); x += MLP(norm(x))
SS2D: projection -> depthwise convolution -> scans along the walks, summed -> norm -> (gate) -> projection

Peculiar: the sum over walks is not averaged; the cascade adds the backward scans of rows unturned (``cascade_aligned``
turns them); the first release (`vanilla`) gates and has no MLP, later ones have an MLP and no gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from torch import Tensor, nn

from statescan import routes
from statescan.layers import MLP, GatedMLP, grid
from statescan.models._names import Names, Rule
from statescan.models._pyramid import (
    NORMS,
    SS2D_RULES,
    PyramidConfig,
    build_downsample,
    build_position,
    build_stem,
    choose,
    least_size,
    pyramid_rules,
    upgrade,
)
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, initialise_vision

SCANS = ("selective", "cascade", "cascade_aligned", "ssd")
OUTPUT_NORMS = ("layer_norm", "none", "depthwise", "layer_norm_depthwise", "softmax", "sigmoid")


@dataclass(frozen=True)
class VMambaConfig(PyramidConfig):
    """A VMamba.

    Arguments:
        route: the walks, by name.
        scan: ``selective``; ``ssd``: one decay a head, Mamba-2's, with dt_rank heads a walk; ``cascade``: rows, then
            columns; ``cascade_aligned``: the same with backward scans turned round.
        state_dim: states of each inner channel.
        expand: inner channels over dim.
        dt_rank: rank of the step sizes; ``auto`` is dim / 16, rounded up.
        conv_kernel: side of the depthwise convolution; 1 for none.
        conv_bias: whether it has a bias.
        activation: after it.
        gate: activation of the gate (``identity`` for a bare one); None for no gate.
        output_norm: after the scans: ``layer_norm``, ``none``, ``depthwise`` (a 3 x 3 convolution),
            ``layer_norm_depthwise``, ``softmax`` over the grid, ``sigmoid``.
        output_activation: after that.
        initialisation: ``v0``, ``v1`` or ``v2``, of the scans.
        dropout: of each mixer's output.
        mlp_ratio: hidden channels of the MLP over dim; 0 for no MLP.
        mlp_activation, mlp_gated, mlp_dropout: of the MLP.
    """

    depths: tuple[int, ...] = (2, 2, 8, 2)
    stem: str = "overlapping"
    downsample: str = "convolution3"
    route: str = "cross"
    scan: str = "selective"
    state_dim: int = 1
    expand: float = 1.0
    dt_rank: int | Literal["auto"] = "auto"
    conv_kernel: int = 3
    conv_bias: bool = False
    activation: str = "silu"
    gate: str | None = None
    output_norm: str = "layer_norm"
    output_activation: str = "identity"
    initialisation: Literal["v0", "v1", "v2"] = "v0"
    dropout: float = 0.0
    mlp_ratio: float = 4.0
    mlp_activation: str = "gelu"
    mlp_gated: bool = False
    mlp_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        routes.get(self.route)
        choose("scan", self.scan, SCANS)
        if self.expand <= 0:
            raise ValueError(f"expand: positive, got {self.expand}")
        choose("output_norm", self.output_norm, OUTPUT_NORMS)


class SpatialSoftmax(nn.Module):
    """Each channel becomes a distribution over the grid."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same shape."""
        return x.flatten(1, 2).softmax(1).view_as(x)


def output_norm(name: str, channels: int) -> nn.Module:
    """What stands after the scans."""
    made: dict[str, Any] = {
        "layer_norm": lambda: nn.LayerNorm(channels),
        "none": nn.Identity,
        "depthwise": lambda: grid.depthwise(channels, 3, bias=False),
        "layer_norm_depthwise": lambda: nn.Sequential(nn.LayerNorm(channels), grid.depthwise(channels, 3, bias=False)),
        "softmax": SpatialSoftmax,
        "sigmoid": nn.Sigmoid,
    }
    return made[name]()


def build_mixer(config: VMambaConfig, dim: int) -> grid.SS2D:
    """The SS2D of a stage of `dim` channels."""
    inner = int(config.expand * dim)
    rank = math.ceil(dim / 16) if config.dt_rank == "auto" else config.dt_rank
    scan: nn.Module | None = None
    if config.scan.startswith("cascade"):
        scan = grid.CascadeScan(
            inner,
            aligned=config.scan == "cascade_aligned",
            state_dim=config.state_dim,
            dt_rank=rank,
            initialisation=config.initialisation,
        )
    elif config.scan == "ssd":
        walks = routes.get(config.route).walks
        scan = grid.RouteSSD(
            inner,
            walks,
            state_dim=config.state_dim,
            heads=rank,
            initialisation=config.initialisation,  # type: ignore[arg-type]
        )
    return grid.SS2D(
        dim,
        state_dim=config.state_dim,
        expand=config.expand,
        dt_rank=rank,
        conv_kernel=config.conv_kernel,
        conv_bias=config.conv_bias,
        activation=config.activation,
        gate=config.gate,
        route=config.route,
        output_norm=output_norm(config.output_norm, inner),
        output_activation=config.output_activation,
        initialisation=config.initialisation,
        dropout=config.dropout,
        scan=scan,
    )


def build_mlp(config: VMambaConfig, dim: int) -> nn.Module | None:
    """The MLP of a block, if the config has one."""
    if config.mlp_ratio <= 0:
        return None
    mixer = GatedMLP if config.mlp_gated else MLP
    activation = grid.grid_activation(config.mlp_activation)
    return mixer(dim, int(config.mlp_ratio * dim), bias=True, activation=activation, dropout=config.mlp_dropout)


def build_block(config: VMambaConfig, dim: int, drop_path: float, mixer: nn.Module) -> grid.GridBlock:
    """A block around a mixer."""
    norm = NORMS[config.norm]
    mlp = build_mlp(config, dim)
    return grid.GridBlock(mixer, norm(dim), mlp, norm(dim) if mlp is not None else None, drop_path=drop_path)


class VMamba(HierarchicalModel):
    """VMamba; see `VMambaConfig`.

    Arguments:
        config: a `VMambaConfig`.
    """

    family = "vmamba"

    def __init__(self, config: VMambaConfig):
        rates = grid.drop_path_rates(config.drop_path_rate, config.depths)
        stages = [
            Stage(
                [
                    build_block(config, dim, rate, self.mixer(config, dim, stage, index))
                    for index, rate in enumerate(rates[stage])
                ],
                build_downsample(config, stage),
            )
            for stage, dim in enumerate(config.channels)
        ]
        super().__init__(
            config,
            build_stem(config),
            stages,
            config.channels,
            reduction=config.patch_size,
            norm=NORMS[config.norm],
            position=build_position(config),
        )
        self.least_size = least_size(config)
        initialise_vision(self)

    @staticmethod
    def mixer(config: Any, dim: int, stage: int, index: int) -> nn.Module:
        """The mixer of block `index` of a stage."""
        return build_mixer(config, dim)


def rules(config: VMambaConfig) -> list[Rule]:
    """Published names of a VMamba, and ours, as patterns."""
    forms: list[Rule] = []
    if config.scan == "ssd":
        forms.append(("conv2d.1.*", "convolution.*"))
    if config.output_norm == "depthwise":
        forms.append(("out_norm.1.*", "output_norm.*"))
    if config.output_norm == "layer_norm_depthwise":
        forms += [("out_norm.0.*", "output_norm.0.*"), ("out_norm.2.*", "output_norm.1.*")]
    return pyramid_rules(config, forms + SS2D_RULES)


@lru_cache(maxsize=16)
def names(config: VMambaConfig) -> Names:
    """Published names of a VMamba, and ours."""
    return Names(rules(config))


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """A published VMamba's tensors under our names."""
    return names(config).from_published(tensors)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    return names(config).to_published(tensors)


def _variant(dim: int, depth: int, expand: float, drop_path: float) -> dict[str, Any]:
    return dict(dims=dim, depths=(2, 2, depth, 2), expand=expand, drop_path_rate=drop_path)


#: The first release.
VANILLA: dict[str, Any] = dict(
    stem="patches",
    downsample="merging",
    state_dim=16,
    expand=2.0,
    conv_bias=True,
    gate="silu",
    mlp_ratio=0.0,
)
#: The Mamba-2 form.
_SSD: dict[str, Any] = dict(scan="ssd", state_dim=64, activation="gelu", initialisation="v2")

VARIANTS: dict[str, dict[str, Any]] = {
    "vmamba_tiny": dict(dims=(24, 48, 96, 144), depths=(1, 1, 2, 1), num_classes=10, image_size=64),
    "vmamba_tiny_s1l8": _variant(96, 8, 1.0, 0.2),
    "vmamba_small_s1l20": _variant(96, 20, 1.0, 0.3),
    "vmamba_base_s1l20": _variant(128, 20, 1.0, 0.5),
    "vmamba_tiny_s2l5": _variant(96, 5, 2.0, 0.2),
    "vmamba_small_s2l15": _variant(96, 15, 2.0, 0.3),
    "vmamba_base_s2l15": _variant(128, 15, 2.0, 0.6),
    "vanilla_vmamba_tiny": _variant(96, 9, 2.0, 0.2) | VANILLA,
    "vanilla_vmamba_small": _variant(96, 27, 2.0, 0.3) | VANILLA,
    "vanilla_vmamba_base": _variant(128, 27, 2.0, 0.6) | VANILLA,
    "vmamba_tiny_m2": _variant(96, 4, 1.0, 0.2) | _SSD,
    "vmamba_small_m2": _variant(96, 12, 1.0, 0.3) | _SSD,
    "vmamba_base_m2": _variant(128, 12, 1.0, 0.3) | _SSD,
}

FAMILY = Family("vmamba", VMambaConfig, VMamba, VARIANTS, from_published, to_published, upgrade)
