"""config.json of Hugging Face's model types, both ways, in older spellings and those of transformers 5.

Defaults are those of the configuration classes: fields that have their default are left out of files.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _limit(value: Any) -> tuple[float, float]:
    low, high = (0.0, float("inf")) if value is None else value
    return _number(low), _number(high)


def _number(value: Any) -> float:
    # JSON has no infinity; transformers writes {"__float__": "Infinity"}
    return float(value["__float__"] if isinstance(value, dict) else value)


def _write_limit(limit: tuple[float, float]) -> Config:
    return {} if limit == (0.0, float("inf")) else {"time_step_limit": list(limit)}


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value


def read_mamba(config: Config) -> Config:
    """`MambaConfig` to fields of ours."""
    hidden = config.get("hidden_size", config.get("d_model", 768))
    return {
        "dim": hidden,
        "depth": config.get("num_hidden_layers", config.get("n_layer", 32)),
        "vocab_size": config.get("vocab_size", 50280),
        "pad_vocab_size_multiple": 1,
        "state_dim": config.get("state_size", 16),
        "conv_kernel": config.get("conv_kernel", 4),
        "expand": _whole(config["intermediate_size"] / hidden)
        if config.get("intermediate_size")
        else config.get("expand", 2),
        "dt_rank": config.get("time_step_rank", "auto"),
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "residual_in_float32": config.get("residual_in_fp32", True),
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }


def write_mamba(config: Any) -> Config:
    """Ours to `MambaConfig`."""
    return {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "state_size": config.state_dim,
        "conv_kernel": config.conv_kernel,
        "expand": config.expand,
        "intermediate_size": int(config.expand * config.dim),
        "time_step_rank": -(-config.dim // 16) if config.dt_rank == "auto" else config.dt_rank,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "layer_norm_epsilon": config.norm_eps,
        "residual_in_fp32": config.residual_in_float32,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
    }


def read_falcon_mamba(config: Config) -> Config:
    """`FalconMambaConfig` to fields of ours."""
    return read_mamba({"tie_word_embeddings": True, **config}) | {
        "inner_norm": "weightless",
        "inner_norm_eps": config.get("mixer_rms_eps", 1e-6),
    }


def write_falcon_mamba(config: Any) -> Config:
    """Ours to `FalconMambaConfig`."""
    return write_mamba(config) | {
        "model_type": "falcon_mamba",
        "architectures": ["FalconMambaForCausalLM"],
        "mixer_rms_eps": config.inner_norm_eps,
    }


def read_mamba2(config: Config) -> Config:
    """`Mamba2Config` to fields of ours."""
    hidden, head_dim = config.get("hidden_size", 4096), config.get("head_dim", 64)
    return {
        "dim": hidden,
        "depth": config.get("num_hidden_layers", 64),
        "vocab_size": config.get("vocab_size", 32768),
        "pad_vocab_size_multiple": 1,
        "state_dim": config.get("state_size", 128),
        "head_dim": head_dim,
        "conv_kernel": config.get("conv_kernel", 4),
        "expand": config.get("expand", 2),
        "groups": config.get("n_groups", 8),
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "dt_limit": _limit(config.get("time_step_limit")),
        "residual_in_float32": config.get("residual_in_fp32", True),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "norm_groups": config.get("n_groups", 8),
    }


def write_mamba2(config: Any) -> Config:
    """Ours to `Mamba2Config`."""
    return {
        "model_type": "mamba2",
        "architectures": ["Mamba2ForCausalLM"],
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "state_size": config.state_dim,
        "head_dim": config.head_dim,
        "num_heads": int(config.expand * config.dim) // config.head_dim,
        "conv_kernel": config.conv_kernel,
        "expand": config.expand,
        "n_groups": config.groups,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "layer_norm_epsilon": config.norm_eps,
        "residual_in_fp32": config.residual_in_float32,
        "tie_word_embeddings": config.tie_embeddings,
        "chunk_size": config.chunk_size,
        "rms_norm": True,
        "hidden_act": "silu",
        **_write_limit(config.dt_limit),
    }


def _rope(config: Config) -> Config:
    """Rotary positions: ``rope_parameters`` since transformers 5, ``rope_scaling`` and fields beside it before."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type is {kind!r}; known: default")
    return {
        "base": float(given.get("rope_theta") or config.get("rope_theta") or 10000.0),
        "partial": given.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.5)),
    }


def _block_types(config: Config) -> list[str] | None:
    """Names of the layers' kinds; transformers 5 gives some new names."""
    kinds = config.get("layers_block_type") or config.get("layer_types")
    newer = {"linear_attention": "mamba", "full_attention": "attention"}
    return None if kinds is None else [newer.get(kind, kind) for kind in kinds]


def read_bamba(config: Config) -> Config:
    """`BambaConfig` to fields of ours."""
    hidden = config.get("hidden_size", 4096)
    heads = config.get("num_attention_heads", 32)
    inner = config.get("mamba_expand", 2) * hidden
    mamba_heads = config.get("mamba_n_heads", 128)
    head_dim = config.get("head_dim") or hidden // heads
    layers = config.get("attn_layer_indices")
    if layers is None:
        layers = [index for index, kind in enumerate(_block_types(config) or []) if kind == "attention"]
    rope = _rope(config)
    return {
        "dim": hidden,
        "depth": config.get("num_hidden_layers", 32),
        "vocab_size": config.get("vocab_size", 128000),
        "mlp_dim": config.get("intermediate_size", 14336),
        "mlp_bias": config.get("mlp_bias", False),
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "state_dim": config.get("mamba_d_state", 256),
        "head_dim": inner // mamba_heads,
        "conv_kernel": config.get("mamba_d_conv", 4),
        "expand": config.get("mamba_expand", 2),
        "groups": config.get("mamba_n_groups", 1),
        "bias": config.get("mamba_proj_bias", False),
        "conv_bias": config.get("mamba_conv_bias", True),
        "dt_limit": _limit(config.get("time_step_limit")),
        "attention_layers": tuple(layers),
        "attention": {
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": head_dim,
            "rotary_dim": int(head_dim * rope["partial"]),
            "rotary_base": rope["base"],
            "qkv_bias": config.get("attention_bias", False),
            "output_bias": config.get("attention_bias", False),
        },
    }


def write_bamba(config: Any) -> Config:
    """Ours to `BambaConfig`."""
    attention = config.attention
    inner = int(config.expand * config.dim)
    head_dim = attention.head_dim or config.dim // attention.heads
    return {
        "model_type": "bamba",
        "architectures": ["BambaForCausalLM"],
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "intermediate_size": config.mlp_dim,
        "mlp_bias": config.mlp_bias,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "attention_bias": attention.qkv_bias,
        "attn_layer_indices": list(config.attention_layers),
        "rope_theta": attention.rotary_base,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": attention.rotary_base,
            "partial_rotary_factor": attention.rotary_dim / head_dim,
        },
        "mamba_d_state": config.state_dim,
        "mamba_d_head": config.head_dim,
        "mamba_n_heads": inner // config.head_dim,
        "mamba_d_conv": config.conv_kernel,
        "mamba_expand": config.expand,
        "mamba_n_groups": config.groups,
        "mamba_proj_bias": config.bias,
        "mamba_conv_bias": config.conv_bias,
        "mamba_chunk_size": config.chunk_size,
        "hidden_act": "silu",
        **_write_limit(config.dt_limit),
    }


_ZAMBA2_DEFAULT_HYBRID = (6, 12, 18, 24, 30, 36, 42, 47, 51)


def read_zamba2(config: Config) -> Config:
    """`Zamba2Config` to fields of ours."""
    hidden = config.get("hidden_size", 2560)
    if config.get("use_long_context"):
        raise ValueError("use_long_context is true, which is not known here")
    kinds = _block_types(config)
    hybrid: tuple[int, ...] = _ZAMBA2_DEFAULT_HYBRID
    if kinds is not None:
        hybrid = tuple(index for index, kind in enumerate(kinds) if kind == "hybrid")
    heads = config.get("num_attention_heads", 32)
    inner = config.get("mamba_expand", 2) * hidden
    return {
        "dim": hidden,
        "depth": config.get("num_hidden_layers", 54),
        "vocab_size": config.get("vocab_size", 32000),
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "state_dim": config.get("mamba_d_state", 64),
        "head_dim": inner // config.get("n_mamba_heads", 8),
        "conv_kernel": config.get("mamba_d_conv", 4),
        "expand": config.get("mamba_expand", 2),
        "groups": config.get("mamba_ngroups", 1),
        "bias": config.get("add_bias_linear", False),
        "conv_bias": config.get("use_conv_bias", True),
        "shared_bias": config.get("add_bias_linear", False),
        "dt_min": config.get("time_step_min", 0.001),
        "dt_max": config.get("time_step_max", 0.1),
        "dt_floor": config.get("time_step_floor", 1e-4),
        "dt_limit": (config.get("time_step_min", 0.001), float("inf")),
        "hybrid_layers": hybrid,
        "shared_blocks": config.get("num_mem_blocks", 1),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "shared_mlp_dim": config.get("intermediate_size") or 4 * hidden,
        "adapter_rank": config.get("adapter_rank", 128),
        "attention_adapters": config.get("use_shared_attention_adapter", False),
        "rotary": config.get("use_mem_rope", False),
        "rotary_base": _rope(config)["base"],
    }


def write_zamba2(config: Any) -> Config:
    """Ours to `Zamba2Config`."""
    kinds = ["hybrid" if i in config.hybrid_layers else "mamba" for i in range(config.depth)]  # every version reads it
    return {
        "model_type": "zamba2",
        "architectures": ["Zamba2ForCausalLM"],
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "layers_block_type": kinds,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "mamba_d_state": config.state_dim,
        "mamba_headdim": config.head_dim,
        "n_mamba_heads": int(config.expand * config.dim) // config.head_dim,
        "mamba_d_conv": config.conv_kernel,
        "mamba_expand": config.expand,
        "mamba_ngroups": config.groups,
        "add_bias_linear": config.bias,
        "use_conv_bias": config.conv_bias,
        "time_step_min": config.dt_limit[0],
        "time_step_max": config.dt_max,
        "time_step_floor": config.dt_floor,
        "num_mem_blocks": config.shared_blocks,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "intermediate_size": config.shared_mlp_dim,
        "adapter_rank": config.adapter_rank,
        "use_shared_attention_adapter": config.attention_adapters,
        "use_mem_rope": config.rotary,
        "rope_theta": config.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "chunk_size": config.chunk_size,
        "hidden_act": "gelu",
    }
