"""Mamba-3: trapezoidal steps, a turning state, several inputs at a time. Lahoti et al. 2026, arXiv 2603.15569.

A language model in the shell of Mamba-2's, with a gated MLP after every mixer. Peculiar: no convolution; all rates of decay
come from the input; with `mimo_rank` the state is read and written R times a position, which costs arithmetic and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from statescan.layers import Mamba3
from statescan.models._language_model import LanguageModel, LanguageModelConfig, build_attention, build_stack
from statescan.models._model import Model
from statescan.models._registry import Family
from statescan.models._state_spaces import from_published, to_published


@dataclass(frozen=True)
class Mamba3Config(LanguageModelConfig):
    """A Mamba-3 language model; the mixer's fields are those of `layers.Mamba3`."""

    pad_vocab_size_multiple: int = 16
    state_dim: int = 128
    head_dim: int = 64
    expand: float = 2
    groups: int = 1
    rope_fraction: float = 0.5
    mimo_rank: int | None = None
    output_norm: bool = False
    A_floor: float = 1e-4
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    chunk_size: int = 64


def build_mixer(config: Any) -> Mamba3:
    """The Mamba-3 mixer of a config."""
    return Mamba3(
        config.dim,
        state_dim=config.state_dim,
        head_dim=config.head_dim,
        expand=config.expand,
        groups=config.groups,
        rope_fraction=config.rope_fraction,
        mimo_rank=config.mimo_rank,
        output_norm=config.output_norm,
        A_floor=config.A_floor,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        dt_floor=config.dt_floor,
        chunk_size=config.chunk_size,
    )


class Mamba3LanguageModel(LanguageModel):
    """Depth blocks of `layers.Mamba3`, attention at `attention_layers`, a gated MLP after each."""

    family = "mamba3"
    undecayed = (*Model.undecayed, "B_bias", "C_bias", "mimo_")

    def __init__(self, config: Mamba3Config):
        mixers = [
            build_attention(config) if index in config.attention_layers else build_mixer(config)
            for index in range(config.depth)
        ]
        super().__init__(config, build_stack(config, mixers))


_SMALL = dict(vocab_size=256, mlp_multiple_of=8)
_PAPER = dict(vocab_size=128256)

VARIANTS: dict[str, dict[str, Any]] = {
    "mamba3_tiny": dict(_SMALL, dim=128, depth=4, state_dim=64, head_dim=32, mlp_dim=256),
    "mamba3_mimo_tiny": dict(_SMALL, dim=128, depth=4, state_dim=32, head_dim=32, mlp_dim=256, mimo_rank=2),
    "mamba3_small": dict(_SMALL, dim=256, depth=8, state_dim=64, mlp_dim=512),
    # Depths and MLPs are inferred: GPT-3's shapes, with which the totals are what the paper's names say.
    "mamba3_180m": dict(_PAPER, dim=768, depth=12, mlp_dim=1536),
    "mamba3_440m": dict(_PAPER, dim=1024, depth=24, mlp_dim=2048),
    "mamba3_880m": dict(_PAPER, dim=1536, depth=24, mlp_dim=3072),
    "mamba3_1.5b": dict(_PAPER, dim=2048, depth=24, mlp_dim=4096),
    "mamba3_mimo_1.5b": dict(_PAPER, dim=2048, depth=24, mlp_dim=4096, mimo_rank=4),
}

FAMILY = Family("mamba3", Mamba3Config, Mamba3LanguageModel, VARIANTS, from_published, to_published)
