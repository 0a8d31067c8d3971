"""Jamba: Mamba layers, one of attention in eight, experts in every second MLP. Lieber et al. 2024, arXiv 2403.19887.

Peculiar: RMSNorm with weights on delta, B and C; no positions, in attention neither; the router's softmax is over all
experts and the chosen weights are not made to sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from statescan.layers import Experts, MixtureOfExperts, Router
from statescan.models._huggingface_parts import (
    BLOCK,
    GLU,
    OUTER,
    QKV,
    by_layer,
    fuse,
    fuse_experts,
    qkv_rows,
    rename,
    split,
    swap_halves,
)
from statescan.models._language_model import AttentionConfig, LanguageModel, build_attention, build_stack
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Family, Tensors
from statescan.models.mamba import MambaConfig, build_mixer


@dataclass(frozen=True)
class JambaConfig(MambaConfig):
    """A Jamba language model; the mixer's fields are those of `layers.Mamba`.

    Arguments:
        expert_layers: numbers of the layers whose MLP is a mixture of experts.
        experts: how many MLPs, of mlp_dim hidden channels each, such a layer has.
        active_experts: how many of them a token passes.
    """

    dim: int = 4096
    depth: int = 32
    vocab_size: int = 65536
    pad_vocab_size_multiple: int = 1
    mlp_dim: int = 14336
    mlp_multiple_of: int = 1
    norm_eps: float = 1e-6
    inner_norm: Any = "weighted"
    inner_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    residual_in_float32: bool = False
    attention_layers: tuple[int, ...] = (4, 12, 20, 28)
    attention: AttentionConfig = field(default_factory=lambda: AttentionConfig(heads=32, kv_heads=8))
    expert_layers: tuple[int, ...] = tuple(range(1, 32, 2))
    experts: int = 16
    active_experts: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "expert_layers", tuple(self.expert_layers))
        beyond = [i for i in self.expert_layers if not 0 <= i < self.depth]
        if beyond:
            raise ValueError(f"expert_layers: {beyond} are not layers of a model of depth {self.depth}")
        if self.inner_norm != "weighted":
            raise ValueError(f"inner_norm: Jamba's are weighted, got {self.inner_norm!r}")


class JambaLanguageModel(LanguageModel):
    """Depth blocks of `layers.Mamba` or attention, each with a gated MLP or a mixture of them."""

    family = "jamba"

    def __init__(self, config: JambaConfig):
        mixers: list[nn.Module] = [
            build_attention(config) if index in config.attention_layers else build_mixer(config)
            for index in range(config.depth)
        ]
        stack = build_stack(config, mixers)
        for index in config.expert_layers:
            block: Any = stack.blocks[index]
            block.channel_mixer = MixtureOfExperts(
                Router(config.dim, config.experts, config.active_experts),
                Experts(config.dim, config.mlp_dim, config.experts),
            )
        super().__init__(config, stack)


# ---- published names -------------------------------------------------------------------------------------------------

_INNER = ("dt_layernorm.", "b_layernorm.", "c_layernorm.")
_EXPERTS = (
    ("feed_forward.router.", "channel_mixer.router."),
    ("feed_forward.experts.gate_up_proj", "channel_mixer.experts.input_weight"),
    ("feed_forward.experts.down_proj", "channel_mixer.experts.output_weight"),
)
_NAMES = (*BLOCK, *_EXPERTS, ("self_attn.o_proj.", "mixer.output_projection."))


def _swap_experts(tensors: Tensors) -> Tensors:
    return {n: swap_halves(t, 1) if n.endswith("experts.input_weight") else t for n, t in tensors.items()}


def upgrade(tensors: Tensors) -> Tensors:
    """Experts kept one by one, as files of transformers 4 have them, joined."""
    return fuse_experts(tensors, {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)})


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Hugging Face names to ours."""
    layers, outer = by_layer(tensors, "model.layers.")
    ours: Tensors = {}
    for index, block in layers.items():
        block = fuse(block, QKV, "mixer.input_projection")
        block = fuse(block, GLU, "channel_mixer.input_projection")
        mamba, others = split_prefix(_swap_experts(rename(block, _NAMES)), "mamba.")
        inner = tuple((theirs, f"inner_norms.{number}.") for number, theirs in enumerate(_INNER))
        mamba = add_prefix(mixer_from_published(rename(mamba, inner)), "mixer.")
        ours.update(add_prefix(others | mamba, f"stack.blocks.{index}."))
    return ours | rename(outer, OUTER)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to Hugging Face's, experts joined as transformers 5 has them."""
    layers, outer = by_layer(tensors, "stack.blocks.")
    published: Tensors = {}
    for index, block in layers.items():
        hidden = config.mlp_dim
        block = split(block, "channel_mixer.input_projection", GLU, (hidden, hidden))
        if index in config.attention_layers:
            block = split(block, "mixer.input_projection", QKV, qkv_rows(config))
        else:
            mixer, others = split_prefix(block, "mixer.")
            inner = tuple((theirs, f"inner_norms.{number}.") for number, theirs in enumerate(_INNER))
            block = others | add_prefix(mixer_to_published(rename(mixer, inner, back=True)), "mamba.")
        block = rename(_swap_experts(block), _NAMES, back=True)
        published.update(add_prefix(block, f"model.layers.{index}."))
    return published | rename(outer, OUTER, back=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "jamba_tiny": dict(
        dim=128,
        depth=4,
        vocab_size=256,
        mlp_dim=192,
        attention_layers=(2,),
        attention=dict(heads=4, kv_heads=2),
        expert_layers=(1, 3),
        experts=4,
    ),
    "jamba_v0.1": {},
}

FAMILY = Family("jamba", JambaConfig, JambaLanguageModel, VARIANTS, from_published, to_published, upgrade)
