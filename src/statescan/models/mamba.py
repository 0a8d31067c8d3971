"""Mamba: a language model of selective scans alone. Gu and Dao 2023, arXiv 2312.00752.

Figure 3: one homogeneous block (convolution, selective scan, gate) instead of attention and MLP. Peculiar: the residual
stream is float32; A_log, D and the step's bias take no weight decay; the vocabulary is padded to a multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from statescan.layers import Mamba
from statescan.models._language_model import LanguageModel, LanguageModelConfig, build_attention, build_stack
from statescan.models._registry import Family
from statescan.models._state_spaces import from_published, to_published


@dataclass(frozen=True)
class MambaConfig(LanguageModelConfig):
    """A Mamba language model; the mixer's fields are those of `layers.Mamba`."""

    state_dim: int = 16
    conv_kernel: int = 4
    expand: float = 2
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_init: Literal["random", "constant"] = "random"
    dt_scale: float = 1.0
    bias: bool = False
    conv_bias: bool = True
    inner_norm: Literal["weightless", "weighted"] | None = None
    inner_norm_eps: float = 1e-6
    selective: bool = True


def build_mixer(config: Any) -> Mamba:
    """The Mamba mixer of a config."""
    return Mamba(
        config.dim,
        state_dim=config.state_dim,
        conv_kernel=config.conv_kernel,
        expand=config.expand,
        dt_rank=config.dt_rank,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        dt_floor=config.dt_floor,
        dt_init=config.dt_init,
        dt_scale=config.dt_scale,
        bias=config.bias,
        conv_bias=config.conv_bias,
        inner_norm=config.inner_norm,
        inner_norm_eps=config.inner_norm_eps,
        selective=config.selective,
    )


class MambaLanguageModel(LanguageModel):
    """Depth blocks of `layers.Mamba` (attention at `attention_layers`)."""

    family = "mamba"

    def __init__(self, config: MambaConfig):
        mixers = [
            build_attention(config) if index in config.attention_layers else build_mixer(config)
            for index in range(config.depth)
        ]
        super().__init__(config, build_stack(config, mixers))


VARIANTS: dict[str, dict[str, Any]] = {
    "mamba_tiny": dict(dim=128, depth=4, vocab_size=256),
    "mamba_small": dict(dim=256, depth=8, vocab_size=256),
    "mamba_130m": dict(dim=768, depth=24),
    "mamba_370m": dict(dim=1024, depth=48),
    "mamba_790m": dict(dim=1536, depth=48),
    "mamba_1.4b": dict(dim=2048, depth=48),
    "mamba_2.8b": dict(dim=2560, depth=64),
}

FAMILY = Family("mamba", MambaConfig, MambaLanguageModel, VARIANTS, from_published, to_published)
