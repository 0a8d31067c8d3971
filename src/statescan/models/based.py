"""Based: a language model of short convolutions, linear attention and small windows. Arora et al. 2024, arXiv 2402.18668.

Most blocks are gated short convolutions; some are Taylor linear attention, which sees everything through a state of fixed
size, and some softmax attention to the last few positions. Every block has a gated MLP. There is no position embedding but
the rotary one of the windows. Peculiar: the published option ``window_size`` counts twice what a position sees behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from statescan._names import nearest
from statescan.layers import BaseConv, SlidingAttention, TaylorLinearAttention
from statescan.models._language_model import LanguageModel, LanguageModelConfig, build_attention, build_stack
from statescan.models._published import add_prefix
from statescan.models._registry import Family, Tensors


@dataclass(frozen=True)
class BasedConfig(LanguageModelConfig):
    """A Based language model.

    Arguments:
        layout: a name a block: ``conv``, ``linear``, ``window`` or ``attention``; a list shorter than `depth` is repeated.
        heads: of window attention, and of linear attention unless `linear_heads` says otherwise.
        feature_dim: channels of queries and keys of linear attention, a head.
        head_dim: channels of its values, a head; None: dim / heads.
        linear_eps: added to its sum of weights.
        linear_form: ``chunked`` or ``parallel``, see `ops.taylor_linear_attention`.
        window: earlier positions that window attention sees beside its own.
        kv_heads, rotary_dim, rotary_base, rotary_interleaved, qkv_bias, output_bias: of window attention.
        conv_kernel, conv_expand, conv_bias: of the convolution blocks, see `layers.BaseConv`; conv_bias is that of their
            projections.
    """

    vocab_size: int = 50257
    mlp_multiple_of: int = 256
    layout: tuple[str, ...] = ("conv", "linear", "window", "conv", "conv")
    heads: int = 16
    linear_heads: int | None = None
    feature_dim: int = 16
    head_dim: int | None = None
    linear_eps: float = 1e-12
    linear_form: Literal["chunked", "parallel"] = "chunked"
    window: int = 128
    kv_heads: int | None = None
    rotary_dim: int | None = None
    rotary_base: float = 10000.0
    rotary_interleaved: bool = False
    window_scale: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    conv_kernel: int = 3
    conv_expand: int = 4
    conv_bias: bool = True

    def __post_init__(self) -> None:
        layout = (self.layout,) if isinstance(self.layout, str) else tuple(self.layout)
        for name in layout:
            if name not in _MIXERS:
                hint = nearest(name, _MIXERS)
                raise ValueError(f"layout: unknown mixer {name!r}{hint}; known: {', '.join(_MIXERS)}")
        if not layout:
            raise ValueError("layout: name at least one mixer")
        if self.attention_layers:
            raise ValueError("attention_layers: Based names its mixers in layout; write 'attention' there")
        object.__setattr__(self, "layout", tuple(layout[i % len(layout)] for i in range(self.depth)))
        super().__post_init__()


def _linear(config: Any) -> nn.Module:
    return TaylorLinearAttention(
        config.dim,
        heads=config.linear_heads or config.heads,
        feature_dim=config.feature_dim,
        head_dim=config.head_dim,
        eps=config.linear_eps,
        form=config.linear_form,
    )


def _window(config: Any) -> nn.Module:
    return SlidingAttention(
        config.dim,
        heads=config.heads,
        window=config.window,
        kv_heads=config.kv_heads,
        rotary_dim=config.rotary_dim,
        rotary_base=config.rotary_base,
        rotary_interleaved=config.rotary_interleaved,
        scale=config.window_scale,
        qkv_bias=config.qkv_bias,
        output_bias=config.output_bias,
    )


def _conv(config: Any) -> nn.Module:
    return BaseConv(config.dim, conv_kernel=config.conv_kernel, expand=config.conv_expand, bias=config.conv_bias)


_MIXERS: dict[str, Callable[[Any], nn.Module]] = {
    "conv": _conv,
    "linear": _linear,
    "window": _window,
    "attention": build_attention,
}


class BasedLanguageModel(LanguageModel):
    """Blocks as the layout says, each with a gated MLP."""

    family = "based"

    def __init__(self, config: BasedConfig):
        super().__init__(config, build_stack(config, [_MIXERS[name](config) for name in config.layout]))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Projections N(0, 0.02), those that end a residual branch smaller by sqrt(2 depth): GPT-2's."""
        for name, module in self.stack.named_modules():
            if isinstance(module, nn.Linear):
                ends = name.endswith("output_projection")
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * self.config.depth) if ends else 0.02)


_OUTER = (
    ("transformer.embeddings.word_embeddings.", "embedding."),
    ("transformer.ln_f.", "norm."),
    ("lm_head.", "head."),
)
_BLOCK = (
    ("norm1.", "norm."),
    ("norm2.", "channel_norm."),
    ("mlp.fc1.", "channel_mixer.input_projection."),
    ("mlp.fc2.", "channel_mixer.output_projection."),
    ("mixer.in_proj.", "mixer.input_projection."),
    ("mixer.Wqkv.", "mixer.input_projection."),
    ("mixer.proj_q.", "mixer.query_projection."),
    ("mixer.proj_k.", "mixer.key_projection."),
    ("mixer.proj_v.", "mixer.value_projection."),
    ("mixer.out_proj.", "mixer.output_projection."),
    ("mixer.conv.conv.", "mixer.convolution."),
)


def block_from_published(tensors: Tensors) -> Tensors:
    """A block's tensors under our names."""
    ours = {}
    for name, tensor in tensors.items():
        name = next((mine + name.removeprefix(theirs) for theirs, mine in _BLOCK if name.startswith(theirs)), name)
        ours[name] = tensor.squeeze(1) if name == "mixer.convolution.weight" and tensor.ndim == 3 else tensor
    return ours


def block_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `block_from_published`."""
    attends = "mixer.input_projection.weight" in tensors and "mixer.convolution.weight" not in tensors
    published = {}
    for name, tensor in tensors.items():
        if name == "mixer.convolution.weight":
            tensor = tensor.unsqueeze(1)
        if attends and name.startswith("mixer.input_projection."):
            name = "mixer.Wqkv." + name.removeprefix("mixer.input_projection.")
        else:
            name = next((theirs + name.removeprefix(mine) for theirs, mine in _BLOCK if name.startswith(mine)), name)
        published[name] = tensor
    return published


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Published names to ours, in file order."""
    ours: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith("transformer.layers."):
            index, rest = name.removeprefix("transformer.layers.").split(".", 1)
            ours.update(add_prefix(block_from_published({rest: tensor}), f"stack.blocks.{index}."))
        else:
            found = (mine + name.removeprefix(theirs) for theirs, mine in _OUTER if name.startswith(theirs))
            ours[next(found, name)] = tensor
    return ours


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to the published ones; the head last."""
    published: Tensors = {}
    blocks: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        if name.startswith("stack.blocks."):
            index, rest = name.removeprefix("stack.blocks.").split(".", 1)
            blocks.setdefault(index, {})[rest] = tensor
        else:
            found = (theirs + name.removeprefix(mine) for theirs, mine in _OUTER if name.startswith(mine))
            published[next(found, name)] = tensor
    head = {name: published.pop(name) for name in list(published) if name.startswith("lm_head.")}
    for index, block in blocks.items():
        published.update(add_prefix(block_to_published(block), f"transformer.layers.{index}."))
    return published | head


def _layout(depth: int, linear: tuple[int, ...], window: tuple[int, ...]) -> tuple[str, ...]:
    return tuple("linear" if i in linear else "window" if i in window else "conv" for i in range(depth))


VARIANTS: dict[str, dict[str, Any]] = {
    "based_tiny": dict(
        dim=128,
        depth=5,
        vocab_size=256,
        heads=4,
        feature_dim=8,
        window=32,
        mlp_dim=128,
        mlp_multiple_of=8,
        conv_expand=2,
        layout=("conv", "linear", "window", "conv", "conv"),
    ),
    "based_360m": dict(
        dim=1024,
        depth=27,
        mlp_dim=2048,
        layout=_layout(27, (1, 6, 11, 16, 21), (2, 7, 12, 17, 22)),
    ),
    "based_1b": dict(
        dim=1792,
        depth=36,
        mlp_dim=3584,
        layout=_layout(36, (1, 6, 11, 16, 21, 27, 33), (2, 7, 12, 17, 22, 28, 34)),
    ),
}

FAMILY = Family("based", BasedConfig, BasedLanguageModel, VARIANTS, from_published, to_published)
