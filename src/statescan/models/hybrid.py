"""Language models of any layout: each block a Mamba, Mamba-2, attention or MLP layer, as a list says.

For one's own experiments; published hybrids have families of their own. The transformer of this file's variants,
attention with rotary positions and gated MLPs, is the baseline of the library's comparisons.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import nn

from statescan.layers import GatedMLP, Mamba, Mamba2, ResidualBlock, build_norm
from statescan.models._language_model import LanguageModel, LanguageModelConfig, build_attention, build_stack
from statescan.models._registry import Family
from statescan.models._state_spaces import from_published, to_published


@dataclass(frozen=True)
class HybridConfig(LanguageModelConfig):
    """A language model of any layout.

    Arguments:
        layout: a name a block: ``mamba``, ``mamba2``, ``attention`` or ``mlp``. One name stands for `depth` blocks of
            it; a shorter list is repeated until there are `depth`.
        mamba, mamba2: options of `layers.Mamba` and `layers.Mamba2` where they differ from the defaults.
        mlp_dim: of the MLP after every mixer (0: none).
        mlp_layer_dim: of the ``mlp`` blocks.
    """

    layout: tuple[str, ...] = ("mamba",)
    mamba: dict[str, Any] = field(default_factory=dict)
    mamba2: dict[str, Any] = field(default_factory=dict)
    mlp_layer_dim: int = 0

    def __post_init__(self) -> None:
        layout = (self.layout,) if isinstance(self.layout, str) else tuple(self.layout)
        for name in layout:
            if name not in _LAYERS:
                near = get_close_matches(name, _LAYERS, n=1)
                hint = f"; nearest: {near[0]!r}" if near else ""
                raise ValueError(f"layout: unknown layer {name!r}{hint}; known: {', '.join(_LAYERS)}")
        if not layout:
            raise ValueError("layout: name at least one layer")
        _check_options("mamba", self.mamba, Mamba)
        _check_options("mamba2", self.mamba2, Mamba2)
        object.__setattr__(self, "layout", tuple(layout[i % len(layout)] for i in range(self.depth)))
        super().__post_init__()


def _check_options(label: str, options: dict[str, Any], layer: type) -> None:
    known = [name for name in inspect.signature(layer).parameters if name != "dim"]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise ValueError(f"{label}: unknown option {name!r}{hint}; known: {', '.join(known)}")


_LAYERS: dict[str, Callable[[Any], nn.Module | None]] = {
    "mamba": lambda config: Mamba(config.dim, **config.mamba),
    "mamba2": lambda config: Mamba2(config.dim, **config.mamba2),
    "attention": build_attention,
    "mlp": lambda config: None,
}


class HybridLanguageModel(LanguageModel):
    """Blocks as the layout says."""

    family = "hybrid"

    def __init__(self, config: HybridConfig):
        stack = build_stack(config, [_LAYERS[name](config) for name in config.layout])
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
        mamba2=dict(state_dim=64, head_dim=32),
        mlp_layer_dim=256,
        attention=dict(heads=4, rotary_dim=32),
    ),
}

FAMILY = Family("hybrid", HybridConfig, HybridLanguageModel, VARIANTS, from_published, to_published)
