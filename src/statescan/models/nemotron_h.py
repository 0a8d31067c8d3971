"""Nemotron-H: layers of one mixer each: Mamba-2, attention, MLP or experts. NVIDIA 2025, arXiv 2504.03624.

Peculiar: MLPs of relu(x)^2 without a gate; attention without positions whose heads need not fill the width; steps of at
least 0.001; experts (Nemotron 3) chosen by sigmoid scores and a correction that no gradient trains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from statescan.layers import MLP, Experts, MixtureOfExperts, ResidualBlock, ResidualStack, RMSNorm, Router
from statescan.models._huggingface_parts import (
    ACTIVATIONS,
    QKV,
    activation,
    by_layer,
    fuse,
    fuse_experts,
    qkv_rows,
    rename,
    split,
)
from statescan.models._language_model import AttentionConfig, LanguageModel, build_attention
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Family, Tensors
from statescan.models.mamba2 import Mamba2Config, build_mixer

#: Letters of published patterns and what they stand for.
LETTERS = {"M": "mamba2", "*": "attention", "-": "mlp", "E": "experts"}


@dataclass(frozen=True)
class NemotronHConfig(Mamba2Config):
    """A Nemotron-H language model; the SSM's fields are those of `layers.Mamba2`.

    Arguments:
        layout: a name a layer, ``mamba2``, ``attention``, ``mlp`` or ``experts``, or a published pattern of the letters
            M, *, - and E. Depth and attention_layers follow from it.
        inner_dim: channels of the SSM; None: expand * dim.
        mlp_dim, mlp_activation: of the ``mlp`` layers (experts have the same activation).
        experts, active_experts, expert_dim: of the ``experts`` layers.
        shared_expert_dim: hidden channels of the MLP that every token passes beside them.
        expert_latent_dim: channels in which experts work, between two projections; None: dim.
        expert_groups, open_expert_groups: experts are chosen from the best so many of so many groups.
        normalised_experts, expert_scale: the chosen weights are divided by their sum, and multiplied by the scale.
    """

    dim: int = 4096
    depth: int = 0
    vocab_size: int = 131072
    pad_vocab_size_multiple: int = 1
    tie_embeddings: bool = False
    residual_in_float32: bool = False
    layout: tuple[str, ...] | str = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
    mlp_dim: int = 21504
    mlp_multiple_of: int = 1
    mlp_activation: str = "relu2"
    state_dim: int = 128
    head_dim: int = 64
    groups: int = 8
    inner_dim: int | None = None
    dt_limit: tuple[float, float] = (1e-3, float("inf"))
    attention: AttentionConfig = field(default_factory=lambda: AttentionConfig(heads=32, kv_heads=8, head_dim=128))
    experts: int = 8
    active_experts: int = 2
    expert_dim: int = 7688
    shared_expert_dim: int = 7688
    expert_latent_dim: int | None = None
    expert_groups: int = 1
    open_expert_groups: int = 1
    normalised_experts: bool = True
    expert_scale: float = 1.0

    def __post_init__(self) -> None:
        known = (*LETTERS, *LETTERS.values())
        for name in self.layout:
            if name not in known:
                raise ValueError(f"layout: unknown layer {name!r}; known: {', '.join(known)}")
        layout = tuple(LETTERS.get(name, name) for name in self.layout)
        if self.mlp_activation not in ACTIVATIONS:
            raise ValueError(f"mlp_activation: unknown {self.mlp_activation!r}; known: {', '.join(ACTIVATIONS)}")
        if self.depth not in (0, len(layout)):
            raise ValueError(f"depth: it follows from layout, which names {len(layout)} layers, got {self.depth}")
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "depth", len(layout))
        object.__setattr__(self, "attention_layers", tuple(i for i, name in enumerate(layout) if name == "attention"))
        super().__post_init__()


class NemotronHLanguageModel(LanguageModel):
    """Depth blocks of one mixer each, as the layout says."""

    family = "nemotron_h"

    def __init__(self, config: NemotronHConfig):
        blocks = [_block(config, name) for name in config.layout]
        super().__init__(config, ResidualStack(blocks, residual_in_float32=config.residual_in_float32))


def _block(config: NemotronHConfig, name: str) -> ResidualBlock:
    norm = RMSNorm(config.dim, config.norm_eps)
    if name == "mamba2":
        return ResidualBlock(build_mixer(config, inner_dim=config.inner_dim), norm)
    if name == "attention":
        return ResidualBlock(build_attention(config), norm)
    return ResidualBlock(None, None, _mlp(config, config.mlp_dim) if name == "mlp" else _experts(config), norm)


def _mlp(config: NemotronHConfig, hidden_dim: int) -> MLP:
    return MLP(config.dim, hidden_dim, bias=config.mlp_bias, activation=activation(config.mlp_activation))


def _experts(config: NemotronHConfig) -> MixtureOfExperts:
    router = Router(
        config.dim,
        config.experts,
        config.active_experts,
        routing="sigmoid",
        normalised=config.normalised_experts,
        scale=config.expert_scale,
        groups=config.expert_groups,
        open_groups=config.open_expert_groups,
    )
    width, latent = config.dim, None
    if config.expert_latent_dim is not None:
        width, bias = config.expert_latent_dim, config.mlp_bias
        latent = nn.Linear(config.dim, width, bias=bias), nn.Linear(width, config.dim, bias=bias)
    experts = Experts(
        width, config.expert_dim, config.experts, gated=False, activation=activation(config.mlp_activation)
    )
    return MixtureOfExperts(router, experts, shared=_mlp(config, config.shared_expert_dim), latent=latent)


# ---- published names -------------------------------------------------------------------------------------------------

_OUTER = (("model.embeddings.", "embedding."), ("model.norm_f.", "norm."), ("lm_head.", "head."))
_MLP = (("mixer.up_proj.", "channel_mixer.input_projection."), ("mixer.down_proj.", "channel_mixer.output_projection."))
_MOE = (
    ("mixer.gate.weight", "channel_mixer.router.weight"),
    ("mixer.gate.e_score_correction_bias", "channel_mixer.router.correction"),
    ("mixer.experts.up_proj", "channel_mixer.experts.input_weight"),
    ("mixer.experts.down_proj", "channel_mixer.experts.output_weight"),
    ("mixer.shared_experts.up_proj.", "channel_mixer.shared.input_projection."),
    ("mixer.shared_experts.down_proj.", "channel_mixer.shared.output_projection."),
    ("mixer.fc1_latent_proj.", "channel_mixer.latent_down."),
    ("mixer.fc2_latent_proj.", "channel_mixer.latent_up."),
)
_CHANNELS = {"mlp": (*_MLP, ("norm.", "channel_norm.")), "experts": (*_MOE, ("norm.", "channel_norm."))}
_QKV = tuple(name.replace("self_attn.", "mixer.") for name in QKV)
_OUTPUT = (("mixer.o_proj.", "mixer.output_projection."),)


def upgrade(tensors: Tensors) -> Tensors:
    """The prefix ``backbone.`` of hub files, and experts kept one by one; heads for further tokens are left out."""
    named = {
        f"model.{name.removeprefix('backbone.')}" if name.startswith("backbone.") else name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("mtp.")
    }
    return fuse_experts(named, {"up_proj": ("up_proj",), "down_proj": ("down_proj",)})


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Hugging Face names to ours."""
    layers, outer = by_layer(tensors, "model.layers.")
    ours: Tensors = {}
    for index, block in layers.items():
        kind = config.layout[index] if index < config.depth else ""
        if kind in _CHANNELS:
            block = rename(block, _CHANNELS[kind])
        elif kind == "attention":
            block = rename(fuse(block, _QKV, "mixer.input_projection"), _OUTPUT)
        else:
            mixer, others = split_prefix(block, "mixer.")
            block = others | add_prefix(mixer_from_published(mixer), "mixer.")
        ours.update(add_prefix(block, f"stack.blocks.{index}."))
    return ours | rename(outer, _OUTER)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """Our names to Hugging Face's, as transformers 5 has them."""
    layers, outer = by_layer(tensors, "stack.blocks.")
    published: Tensors = {}
    for index, block in layers.items():
        kind = config.layout[index]
        if kind in _CHANNELS:
            block = rename(block, _CHANNELS[kind], back=True)
        elif kind == "attention":
            block = rename(split(block, "mixer.input_projection", _QKV, qkv_rows(config)), _OUTPUT, back=True)
        else:
            mixer, others = split_prefix(block, "mixer.")
            block = others | add_prefix(mixer_to_published(mixer), "mixer.")
        published.update(add_prefix(block, f"model.layers.{index}."))
    return published | rename(outer, _OUTER, back=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "nemotron_h_tiny": dict(
        dim=128,
        layout="M-M*-M",
        vocab_size=256,
        mlp_dim=256,
        state_dim=32,
        head_dim=32,
        groups=2,
        attention=dict(heads=4, kv_heads=2, head_dim=16),
    ),
    "nemotron_h_moe_tiny": dict(
        dim=128,
        layout="ME*E",
        vocab_size=256,
        state_dim=32,
        head_dim=32,
        groups=2,
        attention=dict(heads=4, kv_heads=2, head_dim=16),
        experts=4,
        expert_dim=64,
        shared_expert_dim=128,
    ),
    "nemotron_h_8b": {},
}

FAMILY = Family("nemotron_h", NemotronHConfig, NemotronHLanguageModel, VARIANTS, from_published, to_published, upgrade)
