"""LocalVim: Vision Mamba along walks that a search chose for each layer, windows among them. Huang et al. 2024,
"LocalMamba: Visual State Space Model with Windowed Selective Scan", arXiv 2403.09338.

patches with positions -> [turn by row and column -> norm -> Mamba along four walks] x depth -> norm -> mean -> head

Peculiar: the residual stream is turned with the tokens before every layer; a class token, if there is one, is taken out
of the walks and put at the same place in each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import grid, initialise_language_model
from statescan.layers.grid import ClassPlace, LocalMamba
from statescan.models import vim
from statescan.models._local_directions import LOCAL_VIM
from statescan.models._names import CAUSAL, Names, Rule, prefixed
from statescan.models._registry import Family, Tensors
from statescan.models._vision import initialise_vision
from statescan.models.local_vmamba import CHOICE, MIX_RULES, Directions, check_directions


@dataclass(frozen=True)
class LocalVimConfig(vim.VimConfig):
    """A LocalVim; the fields of `vim.VimConfig`, of which mixer, halve, layer_scale, route, flip_probability and
    shuffle are not for it.

    Arguments:
        directions: the walks of each layer, as `local_vmamba.LocalVMambaConfig` takes them; None is the search form.
        legacy_unwalk: put columns back as the published code does, wrongly unless the grid is square.
    """

    depth: int = 20
    class_token: ClassPlace | None = None
    rotary: bool = True
    rotary_residual: bool = True
    directions: Directions | None = None
    legacy_unwalk: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "directions", check_directions(self.directions, self.depth))
        if self.class_token not in (None, "middle"):
            raise ValueError(f"class_token: 'middle' or None, got {self.class_token!r}: walks know no other place")
        if self.class_token is not None and (self.rotary or self.features_only):
            raise ValueError("class_token: not with rotary or features_only; set them to False")
        if self.mixer != "separate" or self.flip_probability or self.shuffle or self.route != "raster":
            raise ValueError("mixer, flip_probability, shuffle, route: not for LocalVim; directions say how it walks")
        if self.layer_scale is not None or self.pyramid or self.feature_source != "mixer":
            raise ValueError("layer_scale, pyramid, feature_source: not for LocalVim")


class LocalVim(vim.Vim):
    """LocalVim; see `LocalVimConfig`. Images whose sides the patch does not divide are padded with zeros.

    Arguments:
        config: a `LocalVimConfig`.
    """

    family = "local_vim"
    _rows: Iterator[tuple[str, ...] | None]

    def __init__(self, config: LocalVimConfig):
        self._rows = iter(config.directions or [None] * config.depth)
        super().__init__(config)
        del self._rows
        self.least_size = 1
        if config.features_only:
            del self.norm
            self.feature_norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in config.map_layers)
        self._initialise()

    def build_mixer(self, config: Any) -> nn.Module:
        """The mixer of the next block."""
        return LocalMamba(
            config.dim,
            next(self._rows),
            state_dim=config.state_dim,
            conv_kernel=config.conv_kernel,
            expand=config.expand,
            dt_rank=config.dt_rank,
            legacy_unwalk=config.legacy_unwalk,
        )

    @torch.no_grad()
    def _initialise(self) -> None:
        initialise_vision(self)
        initialise_language_model(self, depth=self.config.depth)
        projection: Any = self.tokens.embedding.projection
        projection.reset_parameters()
        if self.tokens.class_token is not None:
            nn.init.zeros_(self.tokens.class_token)
        for module in self.modules():
            if isinstance(module, grid.RouteScan):
                # The published code's general rule reaches the projections of the scans as well.
                nn.init.trunc_normal_(module.selection_weight, std=0.02)
                nn.init.trunc_normal_(module.delta_weight, std=0.02)
                nn.init.zeros_(module.delta_bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """images (batch, channels, height, width) -> tokens after the last norm (batch, length, dim)."""
        hidden, shape, indices = self.tokens(self._padded(images))
        hidden, residual, _ = self.run_blocks(hidden, shape, indices)
        return self.norm_tokens(hidden, residual)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """The mixers' outputs of `feature_layers`, each through its norm, (batch, dim, rows, columns)."""
        hidden, shape, indices = self.tokens(self._padded(images))
        _, _, kept = self.run_blocks(hidden, shape, indices, keep=True)
        maps = []
        for norm, layer in zip(self.feature_norms, self.config.map_layers, strict=True):
            maps.append(norm(kept[layer][0]).unflatten(1, shape).permute(0, 3, 1, 2))
        return maps

    def run_blocks(
        self, hidden: Tensor, shape: tuple[int, int], indices: list[int], *, flipped: bool = False, keep: bool = False
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Tokens (batch, length, dim) through all blocks; see `Vim.run_blocks`."""
        residual: Tensor | None = None
        kept = []
        place = indices[0] if indices else None
        for block in self.blocks:
            if self.config.rotary:
                hidden = self.turn(hidden, shape, indices)
                if residual is not None and self.config.rotary_residual:
                    residual = self.turn(residual, shape, indices)
            hidden, residual = self.run_block(block, hidden, residual, shape=shape, place=place)
            if keep:
                kept.append((hidden, residual))
        assert residual is not None
        return hidden, residual, kept

    def turn(self, x: Tensor, shape: tuple[int, int], indices: list[int], flipped: bool = False) -> Tensor:
        """Turn pairs of channels of x (batch, length, dim): the first half of them by the row, the others by the
        column. Cosines and sines of other grids than that of training are interpolated bicubically, as published."""
        rows, columns = self.config.grid
        half = x.shape[-1] // 2
        speeds = 10_000.0 ** -(torch.arange(0, half, 2, device=x.device).float() / half)
        # The published table counts rows and columns alike.
        steps = [torch.arange(size, device=x.device) * (self.config.rotary_size / rows) for size in (rows, columns)]
        by_row, by_column = ((step[:, None] * speeds).repeat_interleave(2, 1) for step in steps)
        angles = torch.cat([by_row[:, None].expand(-1, columns, -1), by_column[None].expand(rows, -1, -1)], -1)
        cos, sin = (grid.resize_grid(table[None], *shape).flatten(1, 2) for table in (angles.cos(), angles.sin()))
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        crossed = torch.stack([-second, first], -1).flatten(-2)
        return (x * cos + crossed * sin).to(x.dtype)

    def _padded(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        patch = self.config.patch
        return F.pad(images, (0, -width % patch, 0, -height % patch)).permute(0, 2, 3, 1)


#: One walk's published tensors, and ours, which hold all walks one after another: as rows, or on an axis of their own.
_JOINED = {
    "conv1d_{}.weight": ("convolution.weight", False),
    "conv1d_{}.bias": ("convolution.bias", False),
    "x_proj_{}.weight": ("scan.selection_weight", True),
    "dt_proj_{}.weight": ("scan.delta_weight", True),
    "dt_proj_{}.bias": ("scan.delta_bias", True),
    "A_log_{}": ("scan.A_log", False),
    "D_{}": ("scan.D", False),
}
_MIXER_RULES: list[Rule] = [
    ("in_proj.*", "input_projection.*"),
    ("out_proj.*", "output_projection.*"),
    ("multi_scan.weights", "mix.choice", CHOICE),
    *MIX_RULES,
]


@cache
def _names() -> Names:
    return Names(
        [
            *prefixed(_MIXER_RULES, "layers.{}.mixer.", "blocks.{}.mixer."),
            ("layers.{}.norm.*", "blocks.{}.norm.*"),
            ("norm_f.*", "norm.*"),
            ("outnorm_{}.*", "feature_norms.{}.*"),
            ("patch_embed.proj.*", "tokens.embedding.projection.*"),
            ("pos_embed", "tokens.position"),
            ("cls_token", "tokens.class_token"),
        ]
    )


def _walks(config: LocalVimConfig, layer: int) -> int:
    return len(grid.DIRECTIONS) if config.directions is None else len(config.directions[layer])


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """A published LocalVim's tensors under our names."""
    rest = dict(tensors)
    joined = {}
    for layer in range(config.depth):
        for theirs, (ours, own_axis) in _JOINED.items():
            sources = [f"layers.{layer}.mixer.{theirs.format(walk)}" for walk in range(_walks(config, layer))]
            if not all(source in rest for source in sources):
                continue  # what is missing is reported when the tensors are loaded
            parts = [rest.pop(source) for source in sources]
            if ours == "convolution.weight":
                parts = [CAUSAL.from_published(part) for part in parts]
            joined[f"blocks.{layer}.mixer.{ours}"] = torch.stack(parts) if own_axis else torch.cat(parts)
    return _names().from_published(rest) | joined


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    rest, apart = {}, {}
    back = {ours: (theirs, own_axis) for theirs, (ours, own_axis) in _JOINED.items()}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"blocks\.(\d+)\.mixer\.(.+)", name)
        if found is None or found[2] not in back:
            rest[name] = tensor
            continue
        theirs, own_axis = back[found[2]]
        parts = tensor.unbind(0) if own_axis else tensor.chunk(_walks(config, int(found[1])))
        for walk, part in enumerate(parts):
            part = CAUSAL.to_published(part) if found[2] == "convolution.weight" else part
            apart[f"layers.{found[1]}.mixer.{theirs.format(walk)}"] = part
    return _names().to_published(rest) | apart


def upgrade(tensors: Tensors) -> Tensors:
    """Published files hold the tables of the rotary embedding, which a formula gives."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("rope.")}


_UNSEARCHED = (("h", "h_flip", "w2", "w2_flip"),) * 20
VARIANTS: dict[str, dict[str, Any]] = {
    "local_vim_tiny": dict(dim=64, depth=4, patch=8, image_size=64, num_classes=10, directions=LOCAL_VIM[:4]),
    "local_vim_t": dict(dim=192, directions=LOCAL_VIM, drop_path_rate=0.1),
    "local_vim_t_class_token": dict(
        dim=192, directions=LOCAL_VIM, drop_path_rate=0.1, class_token="middle", rotary=False, rotary_residual=False
    ),
    "local_vim_t_unsearched": dict(dim=192, directions=_UNSEARCHED, drop_path_rate=0.1),
    "local_vim_s": dict(dim=384, directions=LOCAL_VIM, drop_path_rate=0.1),
    "local_vim_s_unsearched": dict(dim=384, directions=_UNSEARCHED, drop_path_rate=0.1),
    "local_vim_search": dict(dim=128, drop_path_rate=0.1),
}

FAMILY = Family("local_vim", LocalVimConfig, LocalVim, VARIANTS, from_published, to_published, upgrade)
