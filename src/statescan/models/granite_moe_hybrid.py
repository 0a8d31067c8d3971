"""Granite 4 hybrids: Mamba-2 layers, a few of attention, experts beside a shared MLP after each. IBM, 2025.

Peculiar: fixed factors of embeddings, of what is added to the residual stream, of attention scores and of logits; the
router's softmax is over the chosen experts alone; positions are rotary or absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from statescan.layers import Experts, GatedMLP, MixtureOfExperts, ResidualBlock, ResidualStack, RMSNorm, Router
from statescan.models._huggingface_parts import QKV, by_layer, fuse, qkv_rows, rename, split, swap_halves
from statescan.models._language_model import AttentionConfig, ScaledLanguageModel, build_attention
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Family, Tensors
from statescan.models.mamba2 import Mamba2Config, build_mixer


@dataclass(frozen=True)
class GraniteMoeHybridConfig(Mamba2Config):
    """A Granite 4 hybrid language model; the mixer's fields are those of `layers.Mamba2`.

    Arguments:
        mlp_dim: hidden channels of the shared MLP.
        experts: MLPs beside it, in every layer; 0: none.
        active_experts: how many of them a token passes.
        expert_dim: hidden channels of each.
        embedding_multiplier, residual_multiplier: fixed factors.
        logits_scaling: what logits are divided by.
    """

    dim: int = 4096
    depth: int = 40
    vocab_size: int = 100352
    pad_vocab_size_multiple: int = 1
    mlp_dim: int = 1536
    mlp_multiple_of: int = 1
    residual_in_float32: bool = False
    attention_layers: tuple[int, ...] = (5, 15, 25, 35)
    attention: AttentionConfig = field(default_factory=lambda: AttentionConfig(heads=32, kv_heads=8, scale=0.0078125))
    experts: int = 72
    active_experts: int = 10
    expert_dim: int = 768
    embedding_multiplier: float = 12.0
    residual_multiplier: float = 0.22
    logits_scaling: float = 16.0

    @property
    def logit_multiplier(self) -> float:
        """The factor that `ScaledLanguageModel` asks for."""
        return 1 / self.logits_scaling


class GraniteMoeHybridLanguageModel(ScaledLanguageModel):
    """Depth blocks of `layers.Mamba2` or attention, each with a shared MLP and, where there are some, experts."""

    family = "granitemoehybrid"

    def __init__(self, config: GraniteMoeHybridConfig):
        blocks = [
            ResidualBlock(
                build_attention(config) if index in config.attention_layers else build_mixer(config),
                RMSNorm(config.dim, config.norm_eps),
                _channel_mixer(config),
                RMSNorm(config.dim, config.norm_eps),
                scale=config.residual_multiplier,
            )
            for index in range(config.depth)
        ]
        super().__init__(config, ResidualStack(blocks, residual_in_float32=config.residual_in_float32))


def _channel_mixer(config: GraniteMoeHybridConfig) -> nn.Module:
    shared = GatedMLP(config.dim, config.mlp_dim, bias=config.mlp_bias)
    if not config.experts:
        return shared
    router = Router(config.dim, config.experts, config.active_experts, routing="softmax_of_chosen")
    return MixtureOfExperts(router, Experts(config.dim, config.expert_dim, config.experts), shared=shared)


# ---- published names -------------------------------------------------------------------------------------------------

_OUTER = (("model.embed_tokens.", "embedding."), ("model.norm.", "norm."), ("lm_head.", "head."))
_BLOCK = (
    ("input_layernorm.", "norm."),
    ("post_attention_layernorm.", "channel_norm."),
    ("self_attn.o_proj.", "mixer.output_projection."),
    ("block_sparse_moe.router.", "channel_mixer.router."),
    ("block_sparse_moe.experts.gate_up_proj", "channel_mixer.experts.input_weight"),
    ("block_sparse_moe.experts.down_proj", "channel_mixer.experts.output_weight"),
)
_OLDER = (
    ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
    ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
    ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),
)


def _names(config: Any) -> tuple[tuple[str, str], ...]:
    shared = "channel_mixer.shared." if config.experts else "channel_mixer."
    return (
        *_BLOCK,
        ("shared_mlp.input_linear.", f"{shared}input_projection."),
        ("shared_mlp.output_linear.", f"{shared}output_projection."),
    )


def _swap(tensors: Tensors) -> Tensors:
    swapped: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("experts.input_weight"):
            tensor = swap_halves(tensor, 1)
        elif name.startswith("channel_mixer.") and ".input_projection." in f".{name}":
            tensor = swap_halves(tensor)
        swapped[name] = tensor
    return swapped


def upgrade(tensors: Tensors) -> Tensors:
    """Names of experts in files of transformers 4, and on the hub, to those of transformers 5."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        for old, new in _OLDER:
            name = name.replace(old, new)
        found[name] = tensor
    return found


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Hugging Face names to ours."""
    layers, outer = by_layer(tensors, "model.layers.")
    ours: Tensors = {}
    for index, block in layers.items():
        block = _swap(rename(fuse(block, QKV, "mixer.input_projection"), _names(config)))
        mamba, others = split_prefix(block, "mamba.")
        mamba = add_prefix(mixer_from_published(mamba), "mixer.")
        ours.update(add_prefix(others | mamba, f"stack.blocks.{index}."))
    return ours | rename(outer, _OUTER)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to Hugging Face's, as transformers 5 has them."""
    layers, outer = by_layer(tensors, "stack.blocks.")
    published: Tensors = {}
    for index, block in layers.items():
        if index in config.attention_layers:
            block = split(block, "mixer.input_projection", QKV, qkv_rows(config))
        else:
            mixer, others = split_prefix(block, "mixer.")
            block = others | add_prefix(mixer_to_published(mixer), "mamba.")
        block = rename(_swap(block), _names(config), back=True)
        published.update(add_prefix(block, f"model.layers.{index}."))
    return published | rename(outer, _OUTER, back=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "granite_hybrid_tiny": dict(
        dim=128,
        depth=4,
        vocab_size=256,
        mlp_dim=128,
        state_dim=32,
        head_dim=32,
        attention_layers=(2,),
        attention=dict(heads=4, kv_heads=2, scale=0.1),
        experts=4,
        active_experts=2,
        expert_dim=64,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "granite_4.0_h_small": {},
    "granite_4.0_h_tiny": dict(
        dim=1536,
        mlp_dim=1024,
        attention=dict(heads=12, kv_heads=4, scale=0.0078125),
        experts=64,
        active_experts=6,
        expert_dim=512,
        logits_scaling=6.0,
    ),
}

FAMILY = Family(
    "granitemoehybrid",
    GraniteMoeHybridConfig,
    GraniteMoeHybridLanguageModel,
    VARIANTS,
    from_published,
    to_published,
    upgrade,
)
