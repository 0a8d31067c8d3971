"""Vision Mamba: a plain backbone of bidirectional Mamba blocks. Zhu et al. 2024, arXiv 2401.09417.

Peculiar: the class token stands in the middle of the patches, and there is no MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers import BidirectionalMamba, Mamba, build_norm, initialise_language_model, rotate
from statescan.layers.grid import ClassPlace, DropPath, PatchTokens, SimplePyramid, drop_path_rates, embed_patches
from statescan.models._names import CAUSAL, Names, Rule
from statescan.models._plain import PlainConfig, check_choice, linear_head
from statescan.models._registry import Family
from statescan.models._vision import FeatureInfo, VisionModel

_MIXERS = ("separate", "shared", "causal", "pairs")
_POOLS = ("last", "mean", "max", "all")


@dataclass(frozen=True)
class VimConfig(PlainConfig):
    """A Vim.

    Arguments:
        stride: distance of neighbouring patches; that of `patch` unless given.
        class_token: ``middle``, ``head``, ``double`` (at both ends, their mean is read), ``tail``, ``random``, ``spread``
            (`class_tokens` of them at equal distances, their mean is read), or None.
        class_tokens: how many there are, with ``spread``.
        pool: without a class token, what the head reads: the ``last`` token, their ``mean``, ``all`` of them, or ``max``:
            the greatest score of all tokens.
        mixer: ``separate`` (parameters of either way by themselves: "v2"), ``shared`` (all but A: "v1"), ``causal``, or
            ``pairs``: of two causal blocks one reads the sequence backwards, and the two are added.
        halve: whether the sum of both ways is halved; ``separate`` mixers only.
        layer_scale: first value of a learned factor a channel of each mixer's output; None for none.
        norm: ``rms`` or ``layer``.
        norm_eps: of all norms.
        residual_in_float32: keep the residual stream in float32 whatever the weights are.
        state_dim, conv_kernel, expand, dt_rank, bias, conv_bias: of the mixers.
        rotary: turn channels by the patch's row and column before every block.
        rotary_residual: turn the residual stream too.
        rotary_size: rows that the angles count; 14 in training at 224 pixels.
        rotary_spares: the token that is not turned if there is one class token: ``first``, as published, or ``class``.
        flip_probability: how often the sequence is read backwards, in evaluation too.
        shuffle: put the tokens into a random order, drawn at every call.
        feature_source: ``mixer``, the output of the block's mixer, or ``stream``, the residual stream after it.
        last_feature: with ``stream``, what the last block gives: its mixer's output (``mixer``), the ``stream``, or the
            stream after the last ``norm``.
        pyramid: whether maps are brought to strides 4, 8, 16 and 32.
    """

    stride: int | None = None
    class_token: ClassPlace | None = "middle"
    class_tokens: int = 1
    pool: Literal["last", "mean", "max", "all"] = "mean"
    mixer: Literal["separate", "shared", "causal", "pairs"] = "separate"
    halve: bool = True
    layer_scale: float | None = None
    norm: str = "rms"
    norm_eps: float = 1e-5
    residual_in_float32: bool = True
    state_dim: int = 16
    conv_kernel: int = 4
    expand: float = 2
    dt_rank: int | Literal["auto"] = "auto"
    bias: bool = False
    conv_bias: bool = True
    rotary: bool = False
    rotary_residual: bool = False
    rotary_size: int = 14
    rotary_spares: Literal["first", "class"] = "first"
    flip_probability: float = 0.0
    shuffle: bool = False
    feature_source: Literal["mixer", "stream"] = "mixer"
    last_feature: Literal["mixer", "stream", "norm"] = "mixer"
    pyramid: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.step <= self.patch:
            raise ValueError(f"stride: from 1 to patch={self.patch}, got {self.stride}")
        for name, known in (
            ("mixer", _MIXERS),
            ("pool", _POOLS),
            ("rotary_spares", ("first", "class")),
            ("feature_source", ("mixer", "stream")),
            ("last_feature", ("mixer", "stream", "norm")),
        ):
            check_choice(name, getattr(self, name), known)
        if self.mixer == "pairs" and self.depth % 2:
            raise ValueError(f"depth: even with mixer='pairs', got {self.depth}")
        if self.rotary and self.dim % 4:
            raise ValueError(f"dim: a multiple of 4 with rotary, got {self.dim}")
        if self.features_only and self.mixer == "pairs":
            raise ValueError("mixer: 'pairs' gives no feature maps; use 'separate', 'shared' or 'causal'")
        if self.features_only and self.shuffle:
            raise ValueError("shuffle: not with features_only; a map needs every patch in its place")

    @property
    def mixer_options(self) -> dict[str, Any]:
        """What all kinds of mixers take."""
        names = ("state_dim", "conv_kernel", "expand", "dt_rank", "bias", "conv_bias", "layer_scale")
        return {name: getattr(self, name) for name in names}

    @property
    def step(self) -> int:
        """Distance of neighbouring patches."""
        return self.patch if self.stride is None else self.stride


class TokenBlock(nn.Module):
    """residual += drop_path(hidden); hidden = mixer(norm(residual)): the sum comes first, so both are handed on.

    Arguments:
        mixer: a sequence mixer.
        norm: its norm.
        drop_path: probability that a sample skips what came in, in training.
        residual_in_float32: keep the residual in float32 whatever the weights are.
    """

    def __init__(self, mixer: nn.Module, norm: nn.Module, *, drop_path: float = 0.0, residual_in_float32: bool = True):
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)
        self.residual_in_float32 = residual_in_float32

    def forward(self, hidden: Tensor, residual: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
        """hidden, residual (batch, length, dim) -> the next two; no residual before the first block; options go to the
        mixer."""
        residual = hidden if residual is None else residual + self.drop_path(hidden)
        if self.residual_in_float32 and residual.dtype != torch.float64:
            residual = residual.float()
        weight: Any = self.norm.weight
        mixed = self.mixer(self.norm(residual.to(weight.dtype)), **options)
        return (mixed[0] if isinstance(mixed, tuple) else mixed), residual


class Vim(VisionModel):
    """Patches with positions, a class token in their middle, blocks of bidirectional Mamba, norm, linear head.

    Arguments:
        config: a `VimConfig`.
    """

    family = "vim"

    def __init__(self, config: VimConfig):
        super().__init__(config)
        self.tokens = PatchTokens(
            embed_patches(config.in_channels, config.dim, config.patch, config.step),
            config.dim,
            *config.grid,
            class_token=config.class_token,
            class_tokens=config.class_tokens,
            position=config.position,
            dropout=config.dropout,
            route=config.route,
        )
        # A block drops what the one before it gave; the last sum is dropped with the full rate.
        rates = [0.0, *drop_path_rates(config.drop_path_rate, [config.depth])[0]]
        self.blocks = nn.ModuleList(
            TokenBlock(
                self.build_mixer(config),
                build_norm(config.norm, config.dim, config.norm_eps),
                drop_path=rates[index],
                residual_in_float32=config.residual_in_float32,
            )
            for index in range(config.depth)
        )
        self.drop_path = DropPath(config.drop_path_rate)
        self.norm = build_norm(config.norm, config.dim, config.norm_eps)
        self.feature_info = [FeatureInfo(config.dim, config.step, f"blocks.{i}") for i in config.map_layers]
        self.least_size = config.patch
        initialise_language_model(self, depth=config.depth)
        self.pyramid = None
        if config.features_only:
            if config.pyramid:
                self.pyramid = SimplePyramid(config.dim, config.patch)
                self.feature_info = [FeatureInfo(config.dim, 4 * 2**i, f"pyramid.levels.{i}") for i in range(4)]
        else:
            self.head = self.build_head(config)

    def build_mixer(self, config: Any) -> nn.Module:
        """The mixer of one block."""
        if config.mixer in ("causal", "pairs"):
            return ScaledMamba(config.dim, **config.mixer_options)
        halve = config.halve and config.mixer == "separate"
        return BidirectionalMamba(config.dim, backward=config.mixer, halve=halve, **config.mixer_options)

    def build_head(self, config: Any) -> nn.Module:
        """The classifier."""
        return linear_head(config, 0.02)

    def forward_features(self, images: Tensor) -> Tensor:
        """images (batch, channels, height, width) -> tokens after the last norm (batch, length, dim).

        With a ``random`` class token it is moved to the head.
        """
        hidden, shape, indices = self.tokens(images.permute(0, 2, 3, 1))
        order = None
        if self.config.shuffle:
            order = torch.randperm(hidden.shape[1], device=hidden.device)
            hidden = hidden[:, order]
        flipped = self.config.flip_probability > 0 and float(torch.rand(())) < self.config.flip_probability
        hidden, residual, _ = self.run_blocks(hidden.flip(1) if flipped else hidden, shape, indices, flipped=flipped)
        out = self.norm_tokens(hidden, residual)
        if flipped:
            out = out.flip(1)
        if order is not None:
            out = out[:, order.argsort()]
        if self.config.class_token == "random":
            place = indices[0]
            out = torch.cat([out[:, place : place + 1], out[:, :place], out[:, place + 1 :]], 1)
        return out

    def run_blocks(
        self, hidden: Tensor, shape: tuple[int, int], indices: list[int], *, flipped: bool = False, keep: bool = False
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Tokens (batch, length, dim) through all blocks: the last mixer's output, the residual before it, and with
        `keep` both after every block."""
        residual: Tensor | None = None
        kept = []
        blocks = list(self.blocks)
        pairs = self.config.mixer == "pairs"
        for index in range(0, len(blocks), 2 if pairs else 1):
            if self.config.rotary:
                hidden = self.turn(hidden, shape, indices, flipped)
                if residual is not None and self.config.rotary_residual:
                    residual = self.turn(residual, shape, indices, flipped)
            if pairs:
                back, back_residual = self.run_block(
                    blocks[index + 1], hidden.flip(1), None if residual is None else residual.flip(1)
                )
                hidden, residual = self.run_block(blocks[index], hidden, residual)
                hidden, residual = hidden + back.flip(1), residual + back_residual.flip(1)
            else:
                hidden, residual = self.run_block(blocks[index], hidden, residual)
            reverse = self.alternates and index % 2 == 1  # how the tokens stood in this block
            if keep:
                kept.append((hidden.flip(1), residual.flip(1)) if reverse else (hidden, residual))
            if self.alternates:
                hidden, residual = hidden.flip(1), residual.flip(1)
        assert residual is not None
        if self.alternates and len(blocks) % 2:
            hidden, residual = hidden.flip(1), residual.flip(1)
        return hidden, residual, kept

    @property
    def alternates(self) -> bool:
        """Whether the order of the tokens is reversed after every block."""
        return False

    def run_block(
        self, block: nn.Module, hidden: Tensor, residual: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """One block, checkpointed if that is on; options go to its mixer."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, hidden, residual, use_reentrant=False, **options)  # type: ignore[return-value]
        return block(hidden, residual, **options)

    def norm_tokens(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """The last sum and its norm."""
        weight: Any = self.norm.weight
        return self.norm((residual + self.drop_path(hidden)).to(weight.dtype))

    def turn(self, x: Tensor, shape: tuple[int, int], indices: list[int], flipped: bool = False) -> Tensor:
        """Turn pairs of channels of x (batch, length, dim): the first half of them by the row, the others by the
        column."""
        rows, columns = shape
        if flipped:
            return self.turn(x.flip(1), shape, indices).flip(1)
        scale = self.config.rotary_size
        cells = torch.arange(rows * columns, device=x.device)
        if self.tokens.route.name != "raster":
            cells = self.tokens.route.table(rows, columns, x.device)[0]
        row, column = (cells // columns) * (scale / rows), (cells % columns) * (scale / columns)
        spared = [0] if len(indices) == 1 and self.config.rotary_spares == "first" else sorted(indices)
        for index in spared:
            row, column = (torch.cat([part[:index], part.new_zeros(1), part[index:]]) for part in (row, column))
        half = x.shape[-1] // 2
        parts = [
            rotate(part[:, None], position[None], half, interleaved=True)[:, 0]
            for part, position in ((x[..., :half], row), (x[..., half:], column))
        ]
        return torch.cat(parts, -1)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Tokens (batch, length, dim) -> scores (batch, num_classes), or with `pre_logits` what the head reads.

        With pool ``all`` and no class token: scores of every token (batch, length, num_classes).
        """
        pooled = self.pool(features)
        if pre_logits:
            return pooled
        scores = self.head(pooled)
        return scores.amax(1) if self.config.pool == "max" and self.config.class_token is None else scores

    def pool(self, features: Tensor) -> Tensor:
        """What the head reads of the tokens (batch, length, dim)."""
        indices = self.tokens.class_indices(features.shape[1] - self.tokens.extra)
        if indices:
            return features[:, indices].mean(1) if len(indices) > 1 else features[:, indices[0]]
        if self.config.pool == "last":
            return features[:, -1]
        return features.mean(1) if self.config.pool == "mean" else features

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Maps (batch, dim, rows, columns) of `feature_layers`, or the pyramid's."""
        config = self.config
        hidden, shape, indices = self.tokens(images.permute(0, 2, 3, 1))
        hidden, residual, kept = self.run_blocks(hidden, shape, indices, keep=True)
        maps = []
        for layer in config.map_layers:
            if config.feature_source == "mixer":
                chosen = kept[layer][0]
            elif layer + 1 < config.depth:
                chosen = kept[layer + 1][1]
            elif config.last_feature == "mixer":
                chosen = hidden
            else:
                chosen = self.norm_tokens(hidden, residual) if config.last_feature == "norm" else hidden + residual
            maps.append(self.tokens.grid(chosen, shape, sorted(indices)))
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        return [grid.permute(0, 3, 1, 2) for grid in maps]


class Scaled:
    """Mixed into a sequence mixer: its output is multiplied by a learned factor a channel.

    Arguments:
        dim: channels of input and output.
        layer_scale: first value of the factors; None for none.
        options: of the mixer.
    """

    layer_scale: nn.Parameter | None

    def __init__(self, dim: int, *, layer_scale: float | None = None, **options: Any):
        super().__init__(dim, **options)  # type: ignore[call-arg]
        self.layer_scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        """As the mixer's."""
        out, state = super().forward(x, state, **options)  # type: ignore[misc]
        return (out if self.layer_scale is None else out * self.layer_scale), state


class ScaledMamba(Scaled, Mamba):
    """`layers.Mamba` whose output is multiplied by a learned factor a channel."""


def _branch(published: str, ours: str) -> list[Rule]:
    """Names of one direction's parameters; `{}` at the suffix's place."""
    mixer = "layers.{}.mixer."
    inner = f"blocks.{{}}.mixer.{ours}"
    return [
        (f"{mixer}conv1d{published}.weight", f"{inner}convolution.weight", CAUSAL),
        (f"{mixer}conv1d{published}.bias", f"{inner}convolution.bias"),
        (f"{mixer}x_proj{published}.weight", f"{inner}selection_projection.weight"),
        (f"{mixer}dt_proj{published}.weight", f"{inner}delta_projection.weight"),
        (f"{mixer}dt_proj{published}.bias", f"{inner}delta_bias"),
        (f"{mixer}D{published}", f"{inner}D"),
    ]


#: Names that every mixer and backbone of this shape has.
_SHARED: list[Rule] = [
    ("layers.{}.mixer.in_proj.*", "blocks.{}.mixer.input_projection.*"),
    ("layers.{}.mixer.out_proj.*", "blocks.{}.mixer.output_projection.*"),
    ("layers.{}.mixer.gamma", "blocks.{}.mixer.layer_scale"),
    ("layers.{}.norm.*", "blocks.{}.norm.*"),
    ("norm_f.*", "norm.*"),
    ("patch_embed.proj.*", "tokens.embedding.projection.*"),
    ("pos_embed", "tokens.position"),
    ("cls_token_tail", "tokens.class_token_tail"),
]
_PYRAMID: list[Rule] = [(f"fpn{i + 1}.*", f"pyramid.levels.{i}.*") for i in range(4)]
#: Names of models with causal mixers, and of those with bidirectional ones.
CAUSAL_NAMES: list[Rule] = [*_SHARED, *_PYRAMID, *_branch("", ""), ("layers.{}.mixer.A_log", "blocks.{}.mixer.A_log")]
BIDIRECTIONAL_NAMES: list[Rule] = [
    *_SHARED,
    *_PYRAMID,
    *_branch("", "forwards."),
    *_branch("_b", "backwards."),
    ("layers.{}.mixer.A_log", "blocks.{}.mixer.forwards.A_log"),
]


def rules(config: Any) -> list[Rule]:
    """The table of names for a config."""
    table = list(CAUSAL_NAMES if config.mixer in ("causal", "pairs") else BIDIRECTIONAL_NAMES)
    back = "backwards.A_log" if config.mixer == "separate" else "backward_A_log"
    table.append(("layers.{}.mixer.A_b_log", f"blocks.{{}}.mixer.{back}"))
    table.append(("cls_token_head" if config.class_token == "double" else "cls_token", "tokens.class_token"))
    return table


def from_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Tensors under our names."""
    return Names(rules(config)).from_published(tensors, config)


def to_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The inverse."""
    return Names(rules(config)).to_published(tensors, config)


VARIANTS: dict[str, dict[str, Any]] = {
    "vim_micro": dict(dim=64, depth=4, patch=4, image_size=32, num_classes=10),
    "vim_tiny": dict(dim=192),
    "vim_small": dict(dim=384),
    "vim_base": dict(dim=768),
    "vim_tiny_stride8": dict(dim=192, stride=8),
    "vim_small_stride8": dict(dim=384, stride=8),
}

FAMILY = Family("vim", VimConfig, Vim, VARIANTS, from_published, to_published)
