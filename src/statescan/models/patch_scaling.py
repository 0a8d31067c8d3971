"""Adventurer: images read causally, down to one token a pixel. Wang et al. 2024, arXiv 2410.07599, and 2025, arXiv
2502.03738.

Peculiar: the mean of all tokens goes before them, so that the first one knows of the last; the class token comes last.
Published code turns the order of the patches in blocks 2 and 3 alone, the paper in every second pair of blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan.layers import GatedMLP, Mamba2, build_norm
from statescan.layers.grid import GridBlock, drop_path_rates
from statescan.models._names import CAUSAL, Names, Rule
from statescan.models._plain import PlainConfig, TokenClassifier, check_choice
from statescan.models._registry import Family, Tensors


@dataclass(frozen=True)
class AdventurerConfig(PlainConfig):
    """An Adventurer.

    Arguments:
        flip: which blocks read the patches backwards: ``published`` (2 and 3), ``alternate`` (2, 3, 6, 7, 10, 11, …) or
            ``never``.
        norm: ``rms`` or ``layer``.
        norm_eps: of all norms.
        state_dim, head_dim, conv_kernel, expand, groups, bias, conv_bias: of the Mamba-2 mixers.
        mlp_ratio: channels within a gated MLP over dim.
    """

    dim: int = 256
    depth: int = 12
    flip: Literal["published", "alternate", "never"] = "published"
    norm: str = "rms"
    norm_eps: float = 1e-5
    state_dim: int = 64
    head_dim: int = 64
    conv_kernel: int = 4
    expand: float = 2
    groups: int = 1
    bias: bool = False
    conv_bias: bool = True
    mlp_ratio: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("flip", self.flip, ("published", "alternate", "never"))

    def flips(self, block: int) -> bool:
        """Whether a block reads the patches backwards."""
        pair = block // 2
        return {"published": pair == 1, "alternate": pair % 2 == 1, "never": False}[self.flip]


class HeadingAverage(nn.Module):
    """A causal mixer that reads the mean of all tokens before them; the last token keeps its place if the order turns.

    Arguments:
        mixer: a sequence mixer.
        flip: read all tokens but the last backwards.
    """

    def __init__(self, mixer: nn.Module, *, flip: bool = False):
        super().__init__()
        self.mixer = mixer
        self.flip = flip

    def forward(self, x: Tensor, *, positions: Tensor | None = None) -> Tensor:
        """(batch, length, dim) to the same shape; positions as in `layers.Mamba2`."""
        x = self.turned(x)
        options = {}
        if positions is not None:  # as steps of the walk that starts with the mean and ends with the last token
            last = positions[:, -1:]
            steps = last - 1 - positions[:, :-1].flip(1) if self.flip else positions[:, :-1]
            options["positions"] = torch.cat([torch.full_like(last, -1), steps, last], 1)
        out, _ = self.mixer(torch.cat([x.mean(1, keepdim=True), x], 1), **options)
        return self.turned(out[:, 1:])

    def turned(self, x: Tensor) -> Tensor:
        """x (batch, length, …) in the order that the mixer reads, and back."""
        return torch.cat([x[:, :-1].flip(1), x[:, -1:]], 1) if self.flip else x


def build_block(config: Any, *, flip: bool = False, drop_path: float = 0.0) -> GridBlock:
    """x += mixer(norm(x)); x += mlp(norm(x)), of sequences (batch, length, dim)."""
    mixer = Mamba2(
        config.dim,
        state_dim=config.state_dim,
        head_dim=config.head_dim,
        conv_kernel=config.conv_kernel,
        expand=config.expand,
        groups=config.groups,
        bias=config.bias,
        conv_bias=config.conv_bias,
    )
    with torch.no_grad():
        mixer.output_projection.weight /= math.sqrt(config.depth)
    mlp = GatedMLP(config.dim, int(config.dim * config.mlp_ratio), bias=True)
    for part in (mixer, mlp):
        for projection in (part.input_projection, part.output_projection):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
    norms = [build_norm(config.norm, config.dim, config.norm_eps) for _ in range(2)]
    return GridBlock(HeadingAverage(mixer, flip=flip), norms[0], mlp, norms[1], drop_path=drop_path)


class Adventurer(TokenClassifier):
    """Patches and a class token at their end, blocks of Mamba-2 and gated MLPs, norm, linear head on the class token.

    Arguments:
        config: an `AdventurerConfig`.
    """

    family = "patch_scaling"

    def __init__(self, config: AdventurerConfig):
        rates = [0.0, *drop_path_rates(config.drop_path_rate, [config.depth])[0]]
        blocks = [build_block(config, flip=config.flips(i), drop_path=rates[i]) for i in range(config.depth)]
        super().__init__(config, blocks, lambda dim: build_norm(config.norm, dim, config.norm_eps), "tail")


_BLOCK: list[Rule] = [
    ("layers.{}.norm.*", "blocks.{}.norm.*"),
    ("layers.{}.norm_mlp.*", "blocks.{}.channel_norm.*"),
    ("layers.{}.mlp.w3.*", "blocks.{}.channel_mixer.output_projection.*"),
    ("layers.{}.mixer.dt_bias", "blocks.{}.mixer.mixer.delta_bias"),
    ("layers.{}.mixer.in_proj.*", "blocks.{}.mixer.mixer.input_projection.*"),
    ("layers.{}.mixer.out_proj.*", "blocks.{}.mixer.mixer.output_projection.*"),
    ("layers.{}.mixer.conv1d.weight", "blocks.{}.mixer.mixer.convolution.weight", CAUSAL),
    ("layers.{}.mixer.conv1d.bias", "blocks.{}.mixer.mixer.convolution.bias"),
    ("layers.{}.mixer.*", "blocks.{}.mixer.mixer.*"),
]
_NAMES = Names(
    [
        *_BLOCK,
        ("norm_f.*", "norm.*"),
        ("patch_embed.proj.*", "tokens.embedding.projection.*"),
        ("pos_embed", "tokens.position"),
        ("cls_token", "tokens.class_token"),
    ]
)


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Tensors under our names; the two halves of a gated MLP's first projection, value before gate, become one."""
    joined = {}
    for name, tensor in tensors.items():
        if ".mlp.w2." in name and name.replace(".w2.", ".w1.") in tensors:
            ours = name.replace("layers.", "blocks.").replace("mlp.w2", "channel_mixer.input_projection")
            joined[ours] = torch.cat([tensor, tensors[name.replace(".w2.", ".w1.")]])
        elif not (".mlp.w1." in name and name.replace(".w1.", ".w2.") in tensors):
            joined[name] = tensor
    return _NAMES.from_published(joined)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse."""
    split = {}
    for name, tensor in tensors.items():
        if ".channel_mixer.input_projection." in name:
            value = name.replace("blocks.", "layers.").replace("channel_mixer.input_projection", "mlp.w2")
            split[value], split[value.replace(".w2.", ".w1.")] = tensor.chunk(2)
        else:
            split[name] = tensor
    return _NAMES.to_published(split)


_WIDTHS: dict[str, dict[str, Any]] = {
    "tiny": dict(dim=256, depth=12),
    "small": dict(dim=512, depth=12),
    "base": dict(dim=768, depth=12),
    "large": dict(dim=1024, depth=24),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "adventurer_micro": dict(dim=64, depth=4, head_dim=32, state_dim=16, patch=4, image_size=32, num_classes=10),
    **{f"adventurer_{name}": options for name, options in _WIDTHS.items()},
    **{f"adventurer_{name}_patch1": dict(**options, patch=1) for name, options in _WIDTHS.items()},
}

FAMILY = Family("patch_scaling", AdventurerConfig, Adventurer, VARIANTS, from_published, to_published)
