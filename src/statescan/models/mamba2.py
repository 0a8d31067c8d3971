"""Mamba-2: structured state-space duality. Dao and Gu 2024, arXiv 2405.21060.

Figure 6: every head has one scalar decay, B and C come from the input projection beside x, and a gated RMSNorm stands
before the output projection. Peculiar: the vocabulary is padded to a multiple of 16; `mamba2attn_2.7b` has six
attention layers with a convolution on queries, keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from statescan.layers import Mamba2
from statescan.models._language_model import LanguageModel, LanguageModelConfig, build_attention, build_stack
from statescan.models._registry import Family
from statescan.models._state_spaces import from_published, to_published


@dataclass(frozen=True)
class Mamba2Config(LanguageModelConfig):
    """A Mamba-2 language model; the mixer's fields are those of `layers.Mamba2`.

    Arguments:
        gated_norm_eps: eps of the mixers' gated norm; None: norm_eps.
    """

    pad_vocab_size_multiple: int = 16
    state_dim: int = 128
    head_dim: int = 64
    conv_kernel: int = 4
    expand: float = 2
    ssm_dim: int | None = None
    groups: int = 1
    A_range: tuple[float, float] = (1.0, 16.0)
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    D_per_channel: bool = False
    gated_norm: bool = True
    norm_before_gate: bool = False
    norm_groups: int | None = None
    gated_norm_eps: float | None = None
    learned_initial_state: bool = False
    bias: bool = False
    conv_bias: bool = True
    conv_init: float | None = None
    chunk_size: int = 64


def build_mixer(config: Any, **options: Any) -> Mamba2:
    """The Mamba-2 mixer of a config; `options` are further ones of `layers.Mamba2`."""
    return Mamba2(
        config.dim,
        state_dim=config.state_dim,
        head_dim=config.head_dim,
        conv_kernel=config.conv_kernel,
        expand=config.expand,
        ssm_dim=config.ssm_dim,
        groups=config.groups,
        A_range=config.A_range,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        dt_floor=config.dt_floor,
        dt_limit=config.dt_limit,
        D_per_channel=config.D_per_channel,
        gated_norm=config.gated_norm,
        norm_before_gate=config.norm_before_gate,
        norm_groups=config.norm_groups,
        norm_eps=config.norm_eps if config.gated_norm_eps is None else config.gated_norm_eps,
        learned_initial_state=config.learned_initial_state,
        bias=config.bias,
        conv_bias=config.conv_bias,
        conv_init=config.conv_init,
        chunk_size=config.chunk_size,
        **options,
    )


class Mamba2LanguageModel(LanguageModel):
    """Depth blocks of `layers.Mamba2`, attention at `attention_layers`."""

    family = "mamba2"

    def __init__(self, config: Mamba2Config):
        mixers = [
            build_attention(config) if index in config.attention_layers else build_mixer(config)
            for index in range(config.depth)
        ]
        super().__init__(config, build_stack(config, mixers))


VARIANTS: dict[str, dict[str, Any]] = {
    "mamba2_tiny": dict(dim=128, depth=4, vocab_size=256, state_dim=64, head_dim=32),
    "mamba2_small": dict(dim=256, depth=8, vocab_size=256, state_dim=64),
    "mamba2_130m": dict(dim=768, depth=24),
    "mamba2_370m": dict(dim=1024, depth=48),
    "mamba2_780m": dict(dim=1536, depth=48),
    "mamba2_1.3b": dict(dim=2048, depth=48),
    "mamba2_2.7b": dict(dim=2560, depth=64),
    "mamba2attn_2.7b": dict(
        dim=2560,
        depth=64,
        attention_layers=(9, 18, 27, 36, 45, 56),
        attention=dict(heads=30, head_dim=128, conv_kernel=4, rotary_dim=64),
    ),
}

FAMILY = Family("mamba2", Mamba2Config, Mamba2LanguageModel, VARIANTS, from_published, to_published)
