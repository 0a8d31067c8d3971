"""Plain backbones that drop unimportant tokens on the way. Zhan et al. 2024, "Exploring Token Pruning in Vision State Space
Models", arXiv 2409.18962.

Peculiar: a token's importance is what a block's scan gives at it, clipped at zero; the tokens that are left keep in mind
where they stood, so that a state can age over the gaps between them. Everything after runs on the shorter sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from statescan.layers import (
    ImportanceRule,
    KeptTokens,
    LBMamba,
    Mamba2,
    kept_patches,
    select_tokens,
    token_importance,
)
from statescan.layers.grid import place_cells, take_cells
from statescan.models._model import build_config
from statescan.models._plain import TokenClassifier, check_choice, plain_blocks
from statescan.models._registry import Family, build_model, family
from statescan.models._vision import VisionConfig, VisionModel
from statescan.models.patch_scaling import HeadingAverage
from statescan.models.plainmamba import PlainMamba
from statescan.models.vim import Vim
from statescan.models.vit import FullAttention

#: What becomes of a state over the tokens that are gone.
Alignment = Literal["hold", "decay"]


@dataclass(frozen=True)
class TokenPruningConfig(VisionConfig):
    """A pruned backbone.

    Arguments:
        backbone: its family: vim, shuffle_mamba, lbmamba, plainmamba, patch_scaling or vit.
        options: further fields of the backbone's config.
        prune_after: blocks after which tokens are dropped, counted from 1.
        keep_ratios: part of the patches still there that is kept, one a place.
        alignment: ``decay``: states age over gaps; ``hold``: they do not, which is the scan of the shorter sequence.
        importance: ``clip``, or its ablations ``sum``, ``l1``, ``l2``; see `layers.token_importance`.
        middle: put a class token that stood in the middle into the middle of those kept, as released; with ``hold``
            alone. Else it keeps its place among its neighbours.
    """

    backbone: str = "vim"
    options: dict[str, Any] = field(default_factory=dict)
    prune_after: tuple[int, ...] = (5, 10, 15)
    keep_ratios: tuple[float, ...] = (0.8, 0.8, 0.8)
    alignment: Alignment = "decay"
    importance: ImportanceRule = "clip"
    middle: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.prune_after) != len(self.keep_ratios):
            raise ValueError(
                f"keep_ratios: one for each of prune_after, {len(self.prune_after)}, got {len(self.keep_ratios)}"
            )
        if list(self.prune_after) != sorted(set(self.prune_after)) or any(place < 1 for place in self.prune_after):
            raise ValueError(f"prune_after: rising numbers of blocks, from 1 on, got {self.prune_after}")
        for ratio in self.keep_ratios:
            kept_patches(1, ratio)
        check_choice("alignment", self.alignment, ("hold", "decay"))
        token_importance(torch.zeros(1, 1, 1), self.importance)
        if self.middle and self.alignment != "hold":
            raise ValueError("middle: with alignment='hold' alone; a token that moves has no gaps about it")

    @property
    def backbone_options(self) -> dict[str, Any]:
        """All fields of the backbone's config that are not its defaults."""
        shared = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(VisionConfig)}
        return self.options | shared

    @property
    def dim(self) -> int:
        """Channels of the backbone."""
        return _own(self)[1].dim

    @property
    def depth(self) -> int:
        """Blocks of the backbone."""
        return _own(self)[1].depth

    def token_counts(self, patches: int, depth: int) -> list[int]:
        """Of so many patches, how many each of so many blocks reads."""
        counts = []
        for index in range(depth):
            counts.append(patches)
            if index + 1 in self.prune_after:
                ratio = self.keep_ratios[self.prune_after.index(index + 1)]
                patches = kept_patches(patches, ratio, middle=self.middle)
        return counts


class TokenPruning(VisionModel):
    """A backbone of one resolution whose later blocks read fewer tokens. It has the backbone's parameters and no more.

    Arguments:
        config: a `TokenPruningConfig`.
        backbone: the model to prune, made from the config unless given.
    """

    family = "token_pruning"
    undecayed: ClassVar[tuple[str, ...]] = (*VisionModel.undecayed, *PlainMamba.undecayed)

    def __init__(self, config: TokenPruningConfig, backbone: VisionModel | None = None):
        super().__init__(config)
        self.backbone: Any = build_model(config.backbone, config.backbone_options) if backbone is None else backbone
        blocks = _check_backbone(self.backbone, config)
        self.least_size = self.backbone.least_size
        self.feature_info = self.backbone.feature_info
        self._scores = _Scores(config.importance)
        for place in config.prune_after:
            self._scores.listen(place, blocks[place - 1])

    @property
    def blocks(self) -> Any:
        """The backbone's."""
        return plain_blocks(self.backbone)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The backbone's."""
        return self.backbone.parameter_groups(weight_decay)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Whether the backbone's blocks are computed again in the backward pass."""
        super().set_gradient_checkpointing(enabled)
        self.backbone.set_gradient_checkpointing(enabled)

    def forward_features(self, images: Tensor) -> Tensor:
        """images (batch, channels, height, width) -> tokens that are left, after the last norm (batch, kept, dim)."""
        return self.run_kept(images)[0]

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Tokens (batch, kept, dim) -> scores (batch, num_classes), or with `pre_logits` what the head reads."""
        if isinstance(self.backbone, PlainMamba):
            features = features[:, :, None]
        return self.backbone.forward_head(features, pre_logits=pre_logits)

    def kept_positions(self, images: Tensor) -> list[Tensor]:
        """Where the tokens that are left after each pruning stood, (batch, kept) int64 each, in their present order."""
        self.check_images(images)
        return self.run_kept(images)[1]

    def run_kept(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """images (batch, channels, height, width) -> tokens that are left, and what `kept_positions` gives."""
        self._scores.listening = True
        try:
            if isinstance(self.backbone, PlainMamba):
                return self._run_grid(images)
            if isinstance(self.backbone, Vim):
                return self._run_pairs(images)
            return self._run_tokens(images)
        finally:
            self._scores.listening = False

    def _run_pairs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Blocks that hand on a mixer's output and the residual stream."""
        model = self.backbone
        hidden, shape, indices = model.tokens(images.permute(0, 2, 3, 1))
        kept = KeptTokens.whole(len(hidden), hidden.shape[1], sorted(indices), hidden.device)
        residual: Tensor | None = None
        log: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if model.config.rotary:
                hidden = self._turned(hidden, shape, indices, kept)
                if residual is not None and model.config.rotary_residual:
                    residual = self._turned(residual, shape, indices, kept)
            hidden, residual = model.run_block(block, hidden, residual, **self._options(kept, log))
            chosen = self._choose(index, kept)
            if chosen is not None:
                hidden, residual, kept = _take(hidden, chosen), _take(residual, chosen), kept.take(chosen)
                log.append(kept.positions)
            if model.alternates:
                hidden, residual, kept = hidden.flip(1), residual.flip(1), kept.flip()
        assert residual is not None
        if model.alternates and len(self.blocks) % 2:
            hidden, residual, kept = hidden.flip(1), residual.flip(1), kept.flip()
        return self._arranged(model.norm_tokens(hidden, residual), kept), log

    def _run_tokens(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Blocks on one stream of tokens."""
        model = self.backbone
        x, _, indices = model.tokens(images.permute(0, 2, 3, 1))
        kept = KeptTokens.whole(len(x), x.shape[1], sorted(indices), x.device)
        log: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = model.run([block], x, **self._options(kept, log))
            chosen = self._choose(index, kept)
            if chosen is not None:
                x, kept = _take(x, chosen), kept.take(chosen)
                log.append(kept.positions)
        return self._arranged(model.norm(x), kept), log

    def _run_grid(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Blocks on a grid, and on its cells that are left."""
        model = self.backbone
        x = model.stem(images.permute(0, 2, 3, 1))
        x = model.dropout(x if model.position is None else model.position(x))
        shape = (x.shape[1], x.shape[2])
        kept = KeptTokens.whole(len(x), shape[0] * shape[1], [], x.device)
        log: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            options: dict[str, Any] = {}
            if log:
                options = dict(cells=kept.positions, shape=shape, ages=self.config.alignment == "decay")
            x = model.run([block], x, **options)
            if str(index) in model.convolutions:
                convolution = model.convolutions[str(index)]
                if log:
                    x = take_cells(convolution(place_cells(x, kept.positions, shape)), kept.positions)
                else:
                    x = convolution(x)
            chosen = self._choose(index, kept)
            if chosen is not None:
                x, kept = _take(x if log else x.flatten(1, 2), chosen), kept.take(chosen)
                log.append(kept.positions)
        return model.norm(x if log else x.flatten(1, 2)), log

    def _options(self, kept: KeptTokens, log: list[Tensor]) -> dict[str, Any]:
        return {"positions": kept.positions} if log and self.config.alignment == "decay" else {}

    def _choose(self, block: int, kept: KeptTokens) -> Tensor | None:
        """Indices (batch, fewer) of the tokens that stay after a block; None where all do."""
        place = block + 1
        if place not in self.config.prune_after:
            return None
        ratio = self.config.keep_ratios[self.config.prune_after.index(place)]
        if ratio == 1.0:
            return None
        return select_tokens(self.scores(block), ratio, kept.classes, middle=self.config.middle)

    def scores(self, block: int) -> Tensor:
        """Importance (batch, length) of the tokens that a block has just read; another rule may stand in its place."""
        score = self._scores.found.pop(block + 1)
        mixer = self.blocks[block].mixer
        # Adventurer's mixer scored its mean too, and read a turned row.
        return mixer.turned(score[:, 1:]) if isinstance(mixer, HeadingAverage) else score

    def _arranged(self, tokens: Tensor, kept: KeptTokens) -> Tensor:
        """Class tokens where the backbone's head looks for them."""
        embedding = self.backbone.tokens
        places = embedding.class_indices(kept.length - embedding.extra)
        return _take(tokens, kept.arranged(places)) if places else tokens

    def _turned(self, x: Tensor, shape: tuple[int, int], indices: list[int], kept: KeptTokens) -> Tensor:
        """Rotary positions of the tokens that are left."""
        whole = x.new_zeros(x.shape[0], shape[0] * shape[1] + len(indices), x.shape[2])
        index = kept.positions[..., None].expand_as(x)
        return self.backbone.turn(whole.scatter(1, index, x), shape, indices).gather(1, index)


def prune_tokens(
    model: VisionModel,
    prune_after: Sequence[int] | None = None,
    keep_ratios: Sequence[float] | float = 0.8,
    *,
    alignment: Alignment = "decay",
    importance: ImportanceRule = "clip",
    middle: bool = False,
) -> TokenPruning:
    """A backbone of one resolution, pruned: it shares the model's parameters, ready to be used or fine-tuned.

    Arguments:
        model: Vim, ShuffleMamba, LBVim, PlainMamba, Adventurer or ViT.
        prune_after: blocks after which tokens are dropped, counted from 1; a quarter, a half and three quarters of the
            depth unless given.
        keep_ratios: part of the patches still there that is kept, one a place, or one for all.
        alignment, importance, middle: see `TokenPruningConfig`.

    Raises:
        ValueError: a hierarchical model, or one whose tokens cannot be dropped; ratios outside (0, 1]; blocks that are
            not there.
    """
    depth = len(plain_blocks(model))
    if prune_after is None:
        prune_after = sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3)})
    ratios = [keep_ratios] * len(prune_after) if isinstance(keep_ratios, (int, float)) else list(keep_ratios)
    shared = {entry.name: getattr(model.config, entry.name) for entry in dataclasses.fields(VisionConfig)}
    own = {entry.name: getattr(model.config, entry.name) for entry in dataclasses.fields(model.config)}
    config = TokenPruningConfig(
        **shared,
        backbone=model.family,
        options={name: value for name, value in own.items() if name not in shared},
        prune_after=tuple(prune_after),
        keep_ratios=tuple(float(ratio) for ratio in ratios),
        alignment=alignment,
        importance=importance,
        middle=middle,
    )
    return TokenPruning(config, model)


def _check_backbone(model: VisionModel, config: TokenPruningConfig) -> nn.ModuleList:
    """The backbone's blocks, if its tokens can be dropped as the config has it."""
    blocks = plain_blocks(model)
    name = type(model).__name__
    # A Vim of another way through its blocks, such as LocalVim, whose walks need the whole grid, is none of these.
    known = isinstance(model, (Vim, TokenClassifier, PlainMamba))
    if not known or getattr(type(model), "run_blocks", None) not in (None, Vim.run_blocks, PlainMamba.run_blocks):
        raise ValueError(f"model: Vim, ShuffleMamba, LBVim, PlainMamba, Adventurer or ViT, got {name}")
    if config.features_only:
        raise ValueError("features_only: a map needs every patch, and pruned ones are gone; use the backbone itself")
    for place in config.prune_after:
        if place > len(blocks):
            raise ValueError(f"prune_after: from 1 to the backbone's {len(blocks)} blocks, got {place}")
    if isinstance(model, Vim):
        for name, plain in (("mixer='pairs'", model.config.mixer == "pairs"), ("shuffle", model.config.shuffle)):
            if plain:
                raise ValueError(f"model: tokens of a Vim with {name} cannot be dropped")
        if model.config.flip_probability:
            raise ValueError("model: tokens of a Vim with flip_probability cannot be dropped; set it to 0")
    mixer = blocks[0].mixer
    windowed = isinstance(mixer, LBMamba) or getattr(getattr(mixer, "forwards", None), "window", None) is not None
    if config.alignment == "decay" and (windowed or isinstance(mixer, FullAttention)):
        raise ValueError(f"alignment: 'hold' for {type(model).__name__}: it has no plain scan whose state could age")
    if config.middle and getattr(model.config, "class_token", None) != "middle":
        raise ValueError("middle: for a backbone with class_token='middle'")
    return blocks


class _Scores:
    """The importance of tokens, heard where blocks are asked for it while a pruned model runs.

    It stays silent while the backbone runs by itself, and is copied with the model.
    """

    def __init__(self, rule: ImportanceRule):
        self.rule = rule
        self.listening = False
        self.found: dict[int, Tensor] = {}

    def listen(self, place: int, block: Any) -> None:
        """Hear what the block's scan gives at each token, gated, before its last projection."""
        mixer = block.mixer.mixer if isinstance(block.mixer, HeadingAverage) else block.mixer
        gated = isinstance(mixer, Mamba2) and mixer.norm is not None  # heard before the norm, which makes tokens alike
        heard: Any = mixer.norm if gated else mixer.output_projection
        heard.register_forward_pre_hook(partial(self._hear, place))

    @torch.no_grad()
    def _hear(self, place: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.listening:
            y = args[0] * nn.functional.silu(args[1]) if len(args) > 1 else args[0]
            self.found[place] = token_importance(y.flatten(1, -2), self.rule)


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def _own(config: Any) -> tuple[Family, Any]:
    """The backbone's family and config."""
    found = family(config.backbone)
    return found, build_config(found.config, config.backbone_options, name=config.backbone)


def from_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Tensors under our names: the backbone's published ones, for pruning has none."""
    found, own = _own(config)
    return {f"backbone.{name}": tensor for name, tensor in found.from_published(tensors, own).items()}


def to_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The inverse."""
    found, own = _own(config)
    return found.to_published({name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}, own)


def _variant(backbone: str, variant: str, prune_after: Sequence[int], ratio: float) -> dict[str, Any]:
    shared = {entry.name for entry in dataclasses.fields(VisionConfig)}
    fields = family(backbone).variants[variant]
    return dict(
        **{name: value for name, value in fields.items() if name in shared},
        backbone=backbone,
        options={name: value for name, value in fields.items() if name not in shared},
        prune_after=tuple(prune_after),
        keep_ratios=(ratio,) * len(prune_after),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "pruned_vim_micro": _variant("vim", "vim_micro", (1, 2), 0.8),
    "pruned_vim_tiny": _variant("vim", "vim_tiny", (10, 20), 0.8),
    "pruned_vim_small": _variant("vim", "vim_small", (5, 10, 15), 0.8),
    "pruned_plainmamba_tiny": _variant("plainmamba", "plainmamba_tiny", (1, 2), 0.7),
    "pruned_plainmamba_l1": _variant("plainmamba", "plainmamba_l1", (3, 9, 15), 0.7),
    "pruned_plainmamba_l2": _variant("plainmamba", "plainmamba_l2", (3, 9, 15), 0.7),
    "pruned_plainmamba_l3": _variant("plainmamba", "plainmamba_l3", (3, 12, 21), 0.7),
}

FAMILY = Family("token_pruning", TokenPruningConfig, TokenPruning, VARIANTS, from_published, to_published)
