"""Zamba: Mamba layers in heads, and one transformer block called before some of them. Glorioso et al. 2024, 2405.16712.

The block reads the residual stream beside the word embeddings, twice as wide; every call has an output projection of its
own. Peculiar: no positions and no residual inside the shared block; attention scores are scaled by (head_dim / 2)^-1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from statescan.layers import MultiHeadMamba, RMSNorm
from statescan.models._huggingface_parts import ACTIVATIONS, GLU, OUTER, QKV, activation, by_layer, fuse, rename, split
from statescan.models._language_model import LanguageModel, LanguageModelConfig
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Family, Tensors
from statescan.models._shared_blocks import SHARED_NAMES, SharedBlock, SharedCall, SharedLayer, SharedStack


@dataclass(frozen=True)
class ZambaConfig(LanguageModelConfig):
    """A Zamba language model; the mixer's fields are those of `layers.MultiHeadMamba`.

    Arguments:
        mamba_heads: heads of the mixers.
        hybrid_layers: numbers of the layers before whose mixer the shared block is called.
        shared_blocks: how many blocks there are, called in turn; 1 as published.
        heads, kv_heads, attention_head_dim: of the shared attention; head_dim None: 2 dim / heads.
        shared_mlp_dim, shared_activation: of the shared gated MLP.
    """

    dim: int = 3712
    depth: int = 76
    vocab_size: int = 32000
    pad_vocab_size_multiple: int = 1
    residual_in_float32: bool = False
    mamba_heads: int = 2
    state_dim: int = 16
    conv_kernel: int = 4
    expand: float = 2
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    bias: bool = False
    conv_bias: bool = True
    hybrid_layers: tuple[int, ...] = (2, *range(7, 76, 6))
    shared_blocks: int = 1
    heads: int = 16
    kv_heads: int | None = None
    attention_head_dim: int | None = None
    shared_mlp_dim: int = 14848
    shared_activation: str = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hybrid_layers", tuple(self.hybrid_layers))
        beyond = [i for i in self.hybrid_layers if not 0 <= i < self.depth]
        if beyond:
            raise ValueError(f"hybrid_layers: {beyond} are not layers of a model of depth {self.depth}")
        if self.shared_blocks < 1:
            raise ValueError(f"shared_blocks: at least 1, got {self.shared_blocks}")
        if self.shared_activation not in ACTIVATIONS:
            raise ValueError(f"shared_activation: unknown {self.shared_activation!r}; known: {', '.join(ACTIVATIONS)}")

    @property
    def shared_head_dim(self) -> int:
        """Channels of a head of the shared attention."""
        return self.attention_head_dim or 2 * self.dim // self.heads


def _mixer(config: ZambaConfig) -> MultiHeadMamba:
    return MultiHeadMamba(
        config.dim,
        heads=config.mamba_heads,
        state_dim=config.state_dim,
        conv_kernel=config.conv_kernel,
        expand=config.expand,
        dt_rank=config.dt_rank,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        dt_floor=config.dt_floor,
        bias=config.bias,
        conv_bias=config.conv_bias,
    )


class ZambaLanguageModel(LanguageModel):
    """embedding -> Mamba layers and the block that they share -> norm -> head."""

    family = "zamba"

    def __init__(self, config: ZambaConfig):
        shared = [
            SharedBlock(
                config.dim,
                config.heads,
                kv_heads=config.kv_heads,
                head_dim=config.shared_head_dim,
                mlp_dim=config.shared_mlp_dim,
                norm_eps=config.norm_eps,
                activation=activation(config.shared_activation),
            )
            for _ in range(min(config.shared_blocks, len(config.hybrid_layers)))
        ]
        layers = [
            SharedLayer(
                RMSNorm(config.dim, config.norm_eps),
                _mixer(config),
                SharedCall(config.dim) if index in config.hybrid_layers else None,
            )
            for index in range(config.depth)
        ]
        super().__init__(config, SharedStack(shared, layers))


# ---- published names -------------------------------------------------------------------------------------------------


def _apart(tensor: Tensor) -> Tensor:
    """Rows x_0, z_0, x_1, z_1, … to x_0, x_1, …, z_0, z_1, …."""
    return torch.cat([tensor[0::2], tensor[1::2]])


def _interleaved(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.stack([first, second], dim=1).flatten(0, 1)


def _mixer_from_published(mixer: Tensors) -> Tensors:
    ours: Tensors = {}
    for name, tensor in mixer.items():
        if name.startswith("in_proj."):
            tensor = _apart(tensor)
        elif name in ("A_log", "D", "dt_proj_bias"):
            tensor = tensor.flatten(0, 1)
        elif name not in ("x_proj_weight", "dt_proj_weight"):
            ours.update(mixer_from_published({name: tensor}))
            continue
        ours[_MIXER.get(name, name.replace("in_proj.", "input_projection."))] = tensor
    return ours


_MIXER = {"x_proj_weight": "selection_weight", "dt_proj_weight": "delta_weight", "dt_proj_bias": "delta_bias"}
_MIXER_BACK = {ours: theirs for theirs, ours in _MIXER.items()}


def _mixer_to_published(mixer: Tensors, config: Any) -> Tensors:
    published: Tensors = {}
    for name, tensor in mixer.items():
        if name.startswith("input_projection."):
            published[name.replace("input_projection.", "in_proj.")] = _interleaved(tensor)
        elif name in ("A_log", "D", "delta_bias"):
            published[_MIXER_BACK.get(name, name)] = tensor.unflatten(0, (config.mamba_heads, -1))
        elif name in _MIXER_BACK:
            published[_MIXER_BACK[name]] = tensor
        else:
            published.update(mixer_to_published({name: tensor}))
    return published


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Hugging Face names to ours. A shared block is listed under every layer that calls it: the last is in force."""
    layers, outer = by_layer(tensors, "model.layers.")
    calls = sorted(config.hybrid_layers)
    ours: Tensors = {}
    blocks: dict[int, Tensors] = {}
    for index, block in layers.items():
        prefix = f"stack.blocks.{index}."
        called, block = split_prefix(block, "shared_transf.")
        if called:
            blocks.setdefault(calls.index(index) % config.shared_blocks, {}).update(called)
        block = rename(block, (("mamba_decoder.", ""),))
        mixer, others = split_prefix(block, "mamba.")
        ours.update(add_prefix(_mixer_from_published(mixer), f"{prefix}mixer."))
        others = rename(others, (("linear.", "call.projection."), ("input_layernorm.", "norm.")))
        ours.update(add_prefix(others, prefix))
    for number, shared in blocks.items():
        shared = fuse(fuse(shared, QKV, "mixer.input_projection"), GLU, "channel_mixer.input_projection")
        ours.update(add_prefix(rename(shared, SHARED_NAMES), f"stack.shared.{number}."))
    return ours | rename(outer, OUTER)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to Hugging Face's, a shared block repeated under every layer that calls it."""
    blocks, tensors = by_layer(tensors, "stack.shared.")
    head_dim, hidden = config.shared_head_dim, config.shared_mlp_dim
    keys = head_dim * (config.kv_heads or config.heads)
    for number, shared in blocks.items():
        shared = split(shared, "mixer.input_projection", QKV, (head_dim * config.heads, keys, keys))
        shared = split(shared, "channel_mixer.input_projection", GLU, (hidden, hidden))
        blocks[number] = rename(shared, SHARED_NAMES, back=True)
    calls = sorted(config.hybrid_layers)
    layers, outer = by_layer(tensors, "stack.blocks.")
    published: Tensors = {}
    for index, block in layers.items():
        mixer, others = split_prefix(block, "mixer.")
        called = index in calls
        prefix = f"model.layers.{index}."
        inner = prefix + ("mamba_decoder." if called else "")
        published.update(add_prefix(_mixer_to_published(mixer, config), f"{inner}mamba."))
        published.update(add_prefix(split_prefix(others, "norm.")[0], f"{inner}input_layernorm."))
        if called:
            published.update(add_prefix(split_prefix(others, "call.projection.")[0], f"{prefix}linear."))
            shared = blocks.get(calls.index(index) % config.shared_blocks, {})
            published.update(add_prefix(shared, f"{prefix}shared_transf."))
    return published | rename(outer, OUTER, back=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "zamba_tiny": dict(dim=128, depth=4, vocab_size=256, hybrid_layers=(1, 3), heads=4, shared_mlp_dim=256),
    "zamba_7b": {},
}

FAMILY = Family("zamba", ZambaConfig, ZambaLanguageModel, VARIANTS, from_published, to_published)
