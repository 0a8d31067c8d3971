"""The language models that the engine is tested with, each tiny, by name."""

from __future__ import annotations

from typing import Any

import torch

import statescan
from tests.generation._mock import MockModel

VOCABULARY = 256

SIZES: dict[str, dict[str, Any]] = {
    "mamba_tiny": dict(dim=32, depth=2, state_dim=4),
    "mamba2_tiny": dict(dim=32, depth=2, state_dim=8, head_dim=16),
    "mamba3_mimo_tiny": dict(dim=32, depth=2, state_dim=8, head_dim=16, mlp_dim=16),
    "transformer_tiny": dict(dim=32, depth=2, mlp_dim=32, attention=dict(heads=2, rotary_dim=8)),
    "hybrid_tiny": dict(
        dim=32,
        depth=4,
        layout=("mamba2", "attention", "mlp", "mamba"),
        mixers=dict(mamba2=dict(state_dim=8, head_dim=16)),
        mlp_layer_dim=32,
        attention=dict(heads=2, kv_heads=1, rotary_dim=8),
    ),
}
NAMES = ["mock", *SIZES]
#: Further ones whose state must not grow.
OTHER_CONSTANT = ["mamba2_tiny", "mamba3_mimo_tiny"]


def build(name: str, **overrides: Any) -> Any:
    """A model with weights that depend on its name alone, here and in another process."""
    if name == "mock":
        return MockModel(VOCABULARY).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = statescan.create_model(
            name, **{**SIZES[name], **overrides}, vocab_size=VOCABULARY, tie_embeddings=False
        )
        torch.nn.init.normal_(model.head.weight)  # fresh weights find all tokens alike; these have opinions
    return model.eval()
