"""Language models of any layout: each block a mixer, attention or an MLP, as a list says.

For one's own experiments; published hybrids have families of their own. The transformer of this file's variants,
attention with rotary positions and gated MLPs, is the baseline of the library's comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from statescan._names import nearest
from statescan.layers import MIXERS, UNDECAYED, GatedMLP, ResidualBlock, build_mixer, build_norm, check_mixer
from statescan.models._language_model import LanguageModel, LanguageModelConfig, build_attention, build_stack
from statescan.models._registry import Family
from statescan.models._state_spaces import from_published, to_published

#: Mixers that read a prefix in both directions, if they are built to.
_OF_PREFIXES = ("gated_ssm",)


@dataclass(frozen=True)
class HybridConfig(LanguageModelConfig):
    """A language model of any layout.

    Arguments:
        layout: a name a block: a mixer (``mamba``, ``s4d``, …: `layers.MIXERS`), ``attention`` or ``mlp``. One name stands
            for `depth` blocks of it; a shorter list is repeated until there are `depth`.
        mixers: options of mixers where they differ from the defaults, by name: ``{"mamba2": {"state_dim": 64}}``.
        mlp_dim: of the MLP after every mixer (0: none).
        mlp_layer_dim: of the ``mlp`` blocks.
        bidirectional_prefix: read prefixes in both directions, by the mixers that can (``gated_ssm``); others read them
            forwards. `statescan train objectives` then marks what samples are to be read, and generation its prompts.
    """

    layout: tuple[str, ...] = ("mamba",)
    mixers: dict[str, dict[str, Any]] = field(default_factory=dict)
    mlp_layer_dim: int = 0
    bidirectional_prefix: bool = False

    def __post_init__(self) -> None:
        layout = (self.layout,) if isinstance(self.layout, str) else tuple(self.layout)
        if not layout:
            raise ValueError("layout: name at least one layer")
        known = (*(name for name in MIXERS if name != "attention"), "attention", "mlp")
        for name in layout:
            if name not in known:
                hint = nearest(name, known)
                raise ValueError(f"layout: unknown layer {name!r}{hint}; known: {', '.join(known)}")
        for name, options in self.mixers.items():
            check_mixer(name, options, label="mixers")
        object.__setattr__(self, "layout", tuple(layout[i % len(layout)] for i in range(self.depth)))
        if not isinstance(self.bidirectional_prefix, bool):
            raise ValueError(f"bidirectional_prefix: expected True or False, got {self.bidirectional_prefix!r}")
        if self.bidirectional_prefix and not set(_OF_PREFIXES) & set(self.layout):
            raise ValueError(
                f"bidirectional_prefix: no layer of {', '.join(sorted(set(self.layout)))} reads in both directions; "
                f"use {', '.join(_OF_PREFIXES)}"
            )
        super().__post_init__()


def _build(config: HybridConfig, name: str) -> nn.Module | None:
    if name == "mlp":
        return None
    if name == "attention":
        return build_attention(config)
    options = config.mixers.get(name, {})
    if config.bidirectional_prefix and name in _OF_PREFIXES:
        options = options | {"bidirectional": True}
    return build_mixer(name, config.dim, **options)


class HybridLanguageModel(LanguageModel):
    """Blocks as the layout says."""

    family = "hybrid"
    undecayed = UNDECAYED

    def __init__(self, config: HybridConfig):
        stack = build_stack(config, [_build(config, name) for name in config.layout])
        for index, name in enumerate(config.layout):
            if name == "mlp":
                hidden = config.mlp_layer_dim or 4 * config.dim
                stack.blocks[index] = ResidualBlock(
                    None,
                    None,
                    GatedMLP(config.dim, hidden, multiple_of=config.mlp_multiple_of),
                    build_norm(config.norm, config.dim, config.norm_eps),
                )
        super().__init__(config, stack)


_TRANSFORMER = dict(layout=("attention",), vocab_size=256, mlp_multiple_of=8)

VARIANTS: dict[str, dict[str, Any]] = {
    "transformer_tiny": dict(_TRANSFORMER, dim=128, depth=3, mlp_dim=232, attention=dict(heads=4, rotary_dim=32)),
    "transformer_small": dict(_TRANSFORMER, dim=256, depth=6, mlp_dim=416, attention=dict(heads=8, rotary_dim=32)),
    "hybrid_tiny": dict(
        dim=128,
        depth=6,
        vocab_size=256,
        layout=("mamba2", "mlp", "mamba", "mlp", "attention", "mlp"),
        mixers=dict(mamba2=dict(state_dim=64, head_dim=32)),
        mlp_layer_dim=256,
        attention=dict(heads=4, rotary_dim=32),
    ),
}

FAMILY = Family("hybrid", HybridConfig, HybridLanguageModel, VARIANTS, from_published, to_published)
