"""LocalVMamba: VMamba's first form along walks that a search chose for each layer, windows among them. Huang et al.
2024, "LocalMamba: Visual State Space Model with Windowed Selective Scan", arXiv 2403.09338.

stem -> [block x depth -> patch merging] x stages -> norm -> mean -> head
block: x += SS2D along four walks, each gated, summed (norm(x))

Peculiar: windows pad the grid, and padded cells are scanned as zeros; the published code puts walks by columns back
wrongly unless the grid is square (`legacy_unwalk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from statescan.layers import grid
from statescan.layers.grid import DIRECTIONS
from statescan.models._local_directions import LOCAL_VMAMBA_SMALL, LOCAL_VMAMBA_TINY
from statescan.models._names import Names, Reshape, Rule, prefixed
from statescan.models._pyramid import (
    NORMS,
    SS2D_RULES,
    PyramidConfig,
    build_downsample,
    build_stem,
    least_size,
    pyramid_rules,
    upgrade,
)
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, initialise_vision

Directions = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LocalVMambaConfig(PyramidConfig):
    """A LocalVMamba.

    Arguments:
        directions: the walks of each layer: ``h`` by rows, ``v`` by columns, ``wK`` by windows of K x K, each also
            backwards (``h_flip``); None is the search form, all eight with learned weights.
        legacy_unwalk: put columns back as the published code does, wrongly unless the grid is square.
        state_dim, expand, dt_rank, conv_kernel, conv_bias, activation, initialisation, dropout: of the SS2D.
    """

    directions: Directions | None = None
    legacy_unwalk: bool = False
    state_dim: int = 16
    expand: float = 2.0
    dt_rank: int | Literal["auto"] = "auto"
    conv_kernel: int = 3
    conv_bias: bool = True
    activation: str = "silu"
    initialisation: Literal["v0", "v1", "v2"] = "v0"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "directions", check_directions(self.directions, sum(self.depths)))


def check_directions(directions: Sequence[Sequence[str]] | None, layers: int) -> Directions | None:
    """Directions as tuples, a row a layer."""
    if directions is None:
        return None
    if len(directions) != layers:
        raise ValueError(f"directions: a row for each of the {layers} layers, got {len(directions)}")
    for row in directions:
        grid.local_route(row)
    return tuple(tuple(row) for row in directions)


def build_mixer(config: LocalVMambaConfig, dim: int, directions: Sequence[str] | None) -> grid.SS2D:
    """The SS2D of one layer."""
    rank = -(-dim // 16) if config.dt_rank == "auto" else config.dt_rank
    scan = grid.LocalScan(
        int(config.expand * dim),
        directions,
        legacy_unwalk=config.legacy_unwalk,
        state_dim=config.state_dim,
        dt_rank=rank,
        initialisation=config.initialisation,
    )
    return grid.SS2D(
        dim,
        expand=config.expand,
        conv_kernel=config.conv_kernel,
        conv_bias=config.conv_bias,
        activation=config.activation,
        gate=config.activation,
        route=grid.local_route(DIRECTIONS if directions is None else directions),
        dropout=config.dropout,
        scan=scan,
    )


class LocalVMamba(HierarchicalModel):
    """LocalVMamba; see `LocalVMambaConfig`.

    Arguments:
        config: a `LocalVMambaConfig`.
    """

    family = "local_vmamba"

    def __init__(self, config: LocalVMambaConfig):
        rows = iter(config.directions or [None] * sum(config.depths))
        rates = grid.drop_path_rates(config.drop_path_rate, config.depths)
        norm = NORMS[config.norm]
        stages = [
            Stage(
                [
                    grid.GridBlock(build_mixer(config, dim, next(rows)), norm(dim), drop_path=rate)
                    for rate in rates[stage]
                ],
                build_downsample(config, stage),
            )
            for stage, dim in enumerate(config.channels)
        ]
        super().__init__(config, build_stem(config), stages, config.channels, reduction=config.patch_size, norm=norm)
        self.least_size = least_size(config)
        initialise_vision(self)

    def scans(self) -> list[grid.LocalScan]:
        """The scans of all layers, in order."""
        return [module for module in self.modules() if isinstance(module, grid.LocalScan)]

    def found_directions(self, count: int = 4) -> Directions:
        """After a search: the `count` walks of each layer with the largest weights."""
        rows = []
        for scan in self.scans():
            if scan.mix.choice is None:
                raise ValueError("directions: this model searches none; build it with directions=None")
            rows.append(tuple(DIRECTIONS[index] for index in _largest(scan.mix.choice, count)))
        return tuple(rows)

    @torch.no_grad()
    def without_others(self, count: int = 4) -> LocalVMamba:
        """After a search: a model of the `count` best walks of each layer, with the weights that were searched."""
        model = type(self)(replace(self.config, directions=self.found_directions(count)))
        kept = {name: tensor for name, tensor in self.state_dict().items() if not name.endswith(".mix.choice")}
        for name, scan in self.named_modules():
            if isinstance(scan, grid.LocalScan):
                assert scan.mix.choice is not None
                which = torch.tensor(_largest(scan.mix.choice, count))
                for part in ("selection_weight", "delta_weight", "delta_bias", "A_log", "D"):
                    tensor = kept[f"{name}.{part}"]
                    by_walk = tensor.unflatten(0, (scan.walks, -1))[which.to(tensor.device)]
                    kept[f"{name}.{part}"] = by_walk.flatten(0, 1)
        model.load_state_dict(kept)
        return model


def _largest(choice: Tensor, count: int) -> list[int]:
    return sorted(choice.detach().topk(count).indices.tolist())


#: One number a walk, published with three more axes.
_CHOICE = Reshape(lambda weights: weights.flatten(), lambda weights: weights[:, None, None, None])
#: Published names of the gate and the choice of walks.
MIX_RULES: list[Rule] = [
    ("attn.norm.*", "mix.gate.norm.*"),
    ("attn.global_reduce.*", "mix.gate.reduce.*"),
    ("attn.channel_select.*", "mix.gate.expand.*"),
]
_MIXER_RULES: list[Rule] = [
    ("multi_scan.weights", "scan.mix.choice", _CHOICE),
    *prefixed(MIX_RULES, "multi_scan.", "scan."),
    *SS2D_RULES,
]


@lru_cache(maxsize=16)
def names(config: LocalVMambaConfig) -> Names:
    """Published names of a LocalVMamba, and ours."""
    return Names(pyramid_rules(config, _MIXER_RULES))


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """A published LocalVMamba's tensors under our names."""
    return names(config).from_published(tensors)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    return names(config).to_published(tensors)


VARIANTS: dict[str, dict[str, Any]] = {
    "local_vmamba_tiny": dict(
        dims=24,
        depths=(1, 1, 2, 1),
        directions=(("h", "v", "w2", "w7"), *LOCAL_VMAMBA_TINY[1:5]),
        num_classes=10,
        image_size=64,
    ),
    "local_vmamba_search": dict(dims=32, depths=(2, 2, 9, 2), drop_path_rate=0.1),
    "local_vmamba_t": dict(dims=96, depths=(2, 2, 9, 2), directions=LOCAL_VMAMBA_TINY, drop_path_rate=0.2),
    "local_vmamba_s": dict(dims=96, depths=(2, 2, 27, 2), directions=LOCAL_VMAMBA_SMALL, drop_path_rate=0.2),
}

FAMILY = Family("local_vmamba", LocalVMambaConfig, LocalVMamba, VARIANTS, from_published, to_published, upgrade)
