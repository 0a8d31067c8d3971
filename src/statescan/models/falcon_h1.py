"""Falcon-H1: attention and Mamba-2 side by side in every layer. Zuo et al. 2025, arXiv 2507.22448.

Peculiar: fixed factors all over (embeddings, logits, keys, both mixers' inputs and outputs, each part of the SSM's
projection, the MLP's gate and output); rotary positions of a very large base; the SSM's norm is left out in most sizes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from statescan.layers import Attention, GatedMLP, ParallelMixer, ResidualBlock, ResidualStack, RMSNorm
from statescan.models._huggingface_parts import BLOCK, GLU, OUTER, QKV, by_layer, fuse, qkv_rows, rename, split
from statescan.models._language_model import AttentionConfig, ScaledLanguageModel
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Family, Tensors
from statescan.models.mamba2 import Mamba2Config, build_mixer


@dataclass(frozen=True)
class FalconH1Config(Mamba2Config):
    """A Falcon-H1 language model; the SSM's fields are those of `layers.Mamba2`.

    Arguments:
        inner_dim: channels of the SSM; None: expand * dim.
        output_bias: bias of the SSM's output projection.
        attention: every layer has it.
        embedding_multiplier, logit_multiplier: of the embeddings and of the logits.
        key_multiplier, attention_in_multiplier, attention_out_multiplier: of attention's keys, input and output.
        ssm_in_multiplier, ssm_out_multiplier: of the SSM's input and output.
        ssm_multipliers: of its projected z, x, B, C and delta.
        mlp_multipliers: of the MLP's gate and of its output.
    """

    dim: int = 1024
    depth: int = 36
    vocab_size: int = 32784
    pad_vocab_size_multiple: int = 1
    mlp_dim: int = 2048
    mlp_multiple_of: int = 1
    tie_embeddings: bool = False
    residual_in_float32: bool = False
    inner_dim: int | None = 1536
    state_dim: int = 128
    gated_norm: bool = False
    norm_before_gate: bool = True
    output_bias: bool = False
    attention: AttentionConfig = field(
        default_factory=lambda: AttentionConfig(heads=8, kv_heads=2, head_dim=64, rotary_dim=64, rotary_base=1e11)
    )
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    key_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0
    ssm_multipliers: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    mlp_multipliers: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, count in (("ssm_multipliers", 5), ("mlp_multipliers", 2)):
            value = tuple(getattr(self, name))
            if len(value) != count:
                raise ValueError(f"{name}: {count} numbers, got {len(value)}")
            object.__setattr__(self, name, value)
        if self.attention_layers:
            raise ValueError("attention_layers: every layer of a Falcon-H1 has attention; leave it out")


def _scaled_silu(x: Tensor, scale: float) -> Tensor:
    return F.silu(x * scale)


class ScaledGatedMLP(GatedMLP):
    """down_scale W_out (value(x) silu(gate_scale gate(x)))."""

    def __init__(self, dim: int, hidden_dim: int, *, gate_scale: float, down_scale: float, bias: bool):
        super().__init__(dim, hidden_dim, bias=bias, activation=functools.partial(_scaled_silu, scale=gate_scale))
        self.down_scale = down_scale

    def forward(self, x: Tensor, *, correction: Tensor | None = None) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return super().forward(x, correction=correction) * self.down_scale


class FalconH1LanguageModel(ScaledLanguageModel):
    """Depth blocks of attention beside `layers.Mamba2`, each with a gated MLP."""

    family = "falcon_h1"

    def __init__(self, config: FalconH1Config):
        super().__init__(
            config,
            ResidualStack(
                [_block(config) for _ in range(config.depth)], residual_in_float32=config.residual_in_float32
            ),
        )


def _block(config: FalconH1Config) -> ResidualBlock:
    options = config.attention
    head_dim = options.head_dim or config.dim // options.heads
    attention = Attention(
        config.dim,
        options.heads,
        kv_heads=options.kv_heads,
        head_dim=head_dim,
        rotary_dim=options.rotary_dim,
        rotary_base=options.rotary_base,
        scale=config.key_multiplier * (options.scale or head_dim**-0.5),  # a factor of keys is one of the scores
        qkv_bias=options.qkv_bias,
        output_bias=options.output_bias,
    )
    mamba = build_mixer(
        config, inner_dim=config.inner_dim, output_bias=config.output_bias, multipliers=config.ssm_multipliers
    )
    mixer = ParallelMixer(
        {"mamba": mamba, "attention": attention},
        input_scales={"mamba": config.ssm_in_multiplier, "attention": config.attention_in_multiplier},
        output_scales={"mamba": config.ssm_out_multiplier, "attention": config.attention_out_multiplier},
    )
    gate_scale, down_scale = config.mlp_multipliers
    mlp = ScaledGatedMLP(config.dim, config.mlp_dim, gate_scale=gate_scale, down_scale=down_scale, bias=config.mlp_bias)
    return ResidualBlock(mixer, RMSNorm(config.dim, config.norm_eps), mlp, RMSNorm(config.dim, config.norm_eps))


# ---- published names -------------------------------------------------------------------------------------------------

_NAMES = (*BLOCK, ("self_attn.o_proj.", "mixer.mixers.attention.output_projection."))
_ATTENTION = "mixer.mixers.attention.input_projection"
_MAMBA = "mixer.mixers.mamba."
_FIXED = ".mamba.mup_vector"


def upgrade(tensors: Tensors) -> Tensors:
    """Some files store the vector of the SSM's multipliers, which the config gives."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_FIXED)}


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Hugging Face names to ours."""
    layers, outer = by_layer(tensors, "model.layers.")
    ours: Tensors = {}
    for index, block in layers.items():
        block = fuse(fuse(block, QKV, _ATTENTION), GLU, "channel_mixer.input_projection")
        mamba, others = split_prefix(rename(block, _NAMES), "mamba.")
        mamba = add_prefix(mixer_from_published(mamba), _MAMBA)
        ours.update(add_prefix(others | mamba, f"stack.blocks.{index}."))
    return ours | rename(outer, OUTER)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to Hugging Face's."""
    layers, outer = by_layer(tensors, "stack.blocks.")
    published: Tensors = {}
    for index, block in layers.items():
        mamba, block = split_prefix(block, _MAMBA)
        block = split(block, _ATTENTION, QKV, qkv_rows(config))
        block = split(block, "channel_mixer.input_projection", GLU, (config.mlp_dim, config.mlp_dim))
        block = rename(block, _NAMES, back=True) | add_prefix(mixer_to_published(mamba), "mamba.")
        published.update(add_prefix(block, f"model.layers.{index}."))
    return published | rename(outer, OUTER, back=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "falcon_h1_tiny": dict(
        dim=128,
        depth=4,
        vocab_size=256,
        mlp_dim=256,
        inner_dim=192,
        state_dim=32,
        head_dim=32,
        attention=dict(heads=4, kv_heads=2, rotary_dim=32, rotary_base=1e11),
    ),
    "falcon_h1_0.5b": {},
}

FAMILY = Family("falcon_h1", FalconH1Config, FalconH1LanguageModel, VARIANTS, from_published, to_published, upgrade)
