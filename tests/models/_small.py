"""Language models of every family, small enough to test everything on all of them."""

from __future__ import annotations

from typing import Any

import torch

import statescan

VOCABULARY = 37

#: A name of the registry and what to make smaller. Widths are odd where they may be.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba_tiny", dict(dim=20, depth=2, state_dim=3)),
    "mamba-mlp-layer-norm": (
        "mamba_tiny",
        dict(dim=20, depth=2, mlp_dim=8, mlp_multiple_of=4, norm="layer", bias=True),
    ),
    "mamba-attention": (
        "mamba_tiny",
        dict(dim=20, depth=3, attention_layers=(1,), attention=dict(heads=2, conv_kernel=3, rotary_dim=4)),
    ),
    "mamba-untied": ("mamba_tiny", dict(dim=20, depth=1, tie_embeddings=False, residual_in_float32=False)),
    "mamba2": ("mamba2_tiny", dict(dim=20, depth=2, state_dim=5, head_dim=8)),
    "mamba2-groups": ("mamba2_tiny", dict(dim=20, depth=2, state_dim=5, head_dim=5, groups=4, mlp_dim=8)),
    "mamba3": ("mamba3_tiny", dict(dim=20, depth=2, state_dim=6, head_dim=8, mlp_dim=8)),
    "mamba3-mimo": (
        "mamba3_mimo_tiny",
        dict(dim=20, depth=3, state_dim=4, head_dim=5, groups=2, output_norm=True, mlp_dim=0)
        | dict(attention_layers=(1,), attention=dict(heads=2, rotary_dim=4)),
    ),
    "falcon_mamba": ("falcon_mamba_tiny", dict(dim=20, depth=2, state_dim=3)),
    "bamba": (
        "bamba_tiny",
        dict(dim=20, depth=3, state_dim=3, head_dim=10, mlp_dim=9, attention_layers=(1,))
        | dict(attention=dict(heads=2, kv_heads=1, rotary_dim=4)),
    ),
    "zamba2": (
        "zamba2_tiny",
        dict(dim=20, depth=5, state_dim=3, head_dim=10, hybrid_layers=(1, 2, 4), heads=2, shared_mlp_dim=12)
        | dict(adapter_rank=3, attention_adapters=True, rotary=True),
    ),
    "hybrid": (
        "hybrid_tiny",
        dict(dim=20, depth=4, layout=("mamba", "mlp", "mamba2", "attention"), mlp_layer_dim=8)
        | dict(mixers=dict(mamba2=dict(state_dim=3, head_dim=8)), attention=dict(heads=2)),
    ),
    "h3": (
        "h3_tiny",
        dict(dim=20, depth=3, state_dim=6, mlp_dim=24, attention_layers=(1,))
        | dict(attention=dict(heads=2, qkv_bias=True, output_bias=True)),
    ),
    "h3-heads": (
        "h3_tiny",
        dict(dim=20, depth=2, state_dim=4, head_dim=5, mlp_dim=0, discretization="zoh", chunk_length=3, copies=2)
        | dict(attention_layers=()),
    ),
    "based": (
        "based_tiny",
        dict(dim=20, depth=3, heads=2, feature_dim=3, window=3, mlp_dim=16, layout=("conv", "linear", "window")),
    ),
    "based-mixed": (
        "based_tiny",
        dict(dim=24, depth=4, heads=4, linear_heads=3, feature_dim=2, window=5, kv_heads=2, rotary_dim=4, mlp_dim=0)
        | dict(qkv_bias=True, layout=("attention", "window", "linear", "conv"), linear_form="parallel"),
    ),
    "gated_ssm": (
        "hybrid_tiny",
        dict(dim=20, depth=2, layout=("gated_ssm",), mixers=dict(gated_ssm=dict(state_dim=14, bidirectional=True))),
    ),
    "memmamba": (
        "memmamba_tiny",
        dict(dim=20, depth=3, state_dim=3, cross_layer_every=1, pool_size=3, note_threshold=0.3),
    ),
    "memmamba-chunks": (
        "memmamba_tiny",
        dict(dim=20, depth=3, state_dim=3, cross_layer_every=2, pool_size=4, chunk=3, overflow="oldest", mlp_dim=8)
        | dict(aggregation="mean", recall_threshold=0.2, mlp_multiple_of=4),
    ),
    "transformer": ("transformer_tiny", dict(dim=20, depth=2, mlp_dim=16, attention=dict(heads=2, rotary_dim=10))),
}


def build(key: str) -> Any:
    """A model with fresh weights, the same each time, its norms and biases away from one and zero."""
    torch.manual_seed(0)
    name, overrides = MODELS[key]
    model = statescan.create_model(name, vocab_size=VOCABULARY, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(sum(shape)))
