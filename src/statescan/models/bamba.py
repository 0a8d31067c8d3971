"""Bamba: Mamba-2 layers, a few of attention, a gated MLP after each. IBM, Princeton, CMU, UIUC, 2024.

Peculiar: rotary positions on half of every attention head; the gated norm's statistics are over each group of heads;
the head is not tied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from statescan.models._huggingface_parts import fuse, rename, split
from statescan.models._language_model import AttentionConfig, LanguageModel, build_attention, build_stack
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Family, Tensors
from statescan.models.mamba2 import Mamba2Config, build_mixer


@dataclass(frozen=True)
class BambaConfig(Mamba2Config):
    """A Bamba language model."""

    dim: int = 4096
    depth: int = 32
    vocab_size: int = 128256
    pad_vocab_size_multiple: int = 1
    mlp_dim: int = 14336
    mlp_multiple_of: int = 1
    tie_embeddings: bool = False
    residual_in_float32: bool = False
    state_dim: int = 128
    attention_layers: tuple[int, ...] = (9, 18, 27)
    attention: AttentionConfig = field(default_factory=lambda: AttentionConfig(heads=32, kv_heads=8, rotary_dim=64))
    chunk_size: int = 64


class BambaLanguageModel(LanguageModel):
    """Depth blocks of `layers.Mamba2` or attention, each with a gated MLP."""

    family = "bamba"

    def __init__(self, config: BambaConfig):
        mixers = [
            build_attention(config) if index in config.attention_layers else build_mixer(config)
            for index in range(config.depth)
        ]
        super().__init__(config, build_stack(config, mixers))


_OUTER = (
    ("model.embed_tokens.", "embedding."),
    ("model.final_layernorm.", "norm."),
    ("lm_head.", "head."),
)
_BLOCK = (
    ("input_layernorm.", "norm."),
    ("pre_ff_layernorm.", "channel_norm."),
    ("feed_forward.down_proj.", "channel_mixer.output_projection."),
)
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GLU = ("feed_forward.up_proj", "feed_forward.gate_proj")


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Hugging Face names to ours."""
    blocks: dict[str, Tensors] = {}
    outer: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith("model.layers."):
            index, rest = name.removeprefix("model.layers.").split(".", 1)
            blocks.setdefault(index, {})[rest] = tensor
        else:
            outer[name] = tensor
    ours: Tensors = {}
    for index, block in blocks.items():
        block = fuse(block, _QKV, "mixer.input_projection")
        block = fuse(block, _GLU, "channel_mixer.input_projection")
        block = rename(block, (*_BLOCK, ("self_attn.o_proj.", "mixer.output_projection.")))
        mamba, others = split_prefix(block, "mamba.")
        ours.update(add_prefix(others | add_prefix(mixer_from_published(mamba), "mixer."), f"stack.blocks.{index}."))
    return ours | rename(outer, _OUTER)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to Hugging Face's."""
    published: Tensors = {}
    attention = config.attention
    head_dim = attention.head_dim or config.dim // attention.heads
    rows = tuple(head_dim * n for n in (attention.heads, *[attention.kv_heads or attention.heads] * 2))
    blocks: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        if name.startswith("stack.blocks."):
            index, rest = name.removeprefix("stack.blocks.").split(".", 1)
            blocks.setdefault(index, {})[rest] = tensor
        else:
            published.update(rename({name: tensor}, _OUTER, back=True))
    for index, block in blocks.items():
        half = block["channel_mixer.output_projection.weight"].shape[1]
        block = split(block, "channel_mixer.input_projection", _GLU, (half, half))
        if int(index) in config.attention_layers:
            block = split(block, "mixer.input_projection", _QKV, rows)
            block = rename(block, (("self_attn.o_proj.", "mixer.output_projection."),), back=True)
        mixer, others = split_prefix(block, "mixer.")
        block = rename(others, _BLOCK, back=True) | add_prefix(mixer_to_published(mixer), "mamba.")
        published.update(add_prefix(block, f"model.layers.{index}."))
    return published


VARIANTS: dict[str, dict[str, Any]] = {
    "bamba_tiny": dict(
        dim=128,
        depth=4,
        vocab_size=256,
        mlp_dim=256,
        state_dim=32,
        head_dim=32,
        attention_layers=(2,),
        attention=dict(heads=4, kv_heads=2, rotary_dim=16),
    ),
    "bamba_9b": {},
}

FAMILY = Family("bamba", BambaConfig, BambaLanguageModel, VARIANTS, from_published, to_published)
