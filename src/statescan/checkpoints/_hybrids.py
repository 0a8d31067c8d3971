"""config.json of Hugging Face's further hybrids, both ways: Jamba, Granite, Falcon-H1, Nemotron-H, Zamba."""

from __future__ import annotations

from typing import Any

from statescan.checkpoints._huggingface import Config, _block_types, _limit, _rope, _write_limit


def _common(config: Config, *, vocabulary: int, hidden: int, layers: int, tied: bool = False) -> Config:
    return {
        "dim": config.get("hidden_size", hidden),
        "depth": config.get("num_hidden_layers", layers),
        "vocab_size": config.get("vocab_size", vocabulary),
        "tie_embeddings": config.get("tie_word_embeddings", tied),
    }


def _write_common(config: Any, model_type: str, architecture: str) -> Config:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _attention(config: Config, *, heads: int, kv_heads: int | None, head_dim: int | None = None) -> Config:
    heads = config.get("num_attention_heads", heads)
    return {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads", kv_heads) or heads,
        "head_dim": config.get("head_dim") or head_dim or config.get("hidden_size", 4096) // heads,
    }


def _write_attention(config: Any) -> Config:
    attention = config.attention
    written = {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
    }
    if attention.head_dim not in (None, config.dim // attention.heads):
        written["head_dim"] = attention.head_dim
    return written


def _places(depth: int, period: int, offset: int) -> tuple[int, ...]:
    return tuple(layer for layer in range(depth) if layer % period == offset)


def _period(layers: tuple[int, ...], depth: int) -> tuple[int, int]:
    """The shortest period, and the offset, that give these layers; where none does, some that give none of them."""
    for period in range(1, depth + 1):
        for offset in range(period):
            if _places(depth, period, offset) == tuple(sorted(layers)):
                return period, offset
    return depth + 1, depth


def read_jamba(config: Config) -> Config:
    """`JambaConfig` to fields of ours."""
    ours = _common(config, vocabulary=65536, hidden=4096, layers=32)
    depth, experts = ours["depth"], config.get("num_experts", config.get("num_local_experts", 16))
    attends = _places(depth, config.get("attn_layer_period", 8), config.get("attn_layer_offset", 4))
    spread = _places(depth, config.get("expert_layer_period", 2), config.get("expert_layer_offset", 1))
    eps = config.get("rms_norm_eps", 1e-6)
    return ours | {
        "mlp_dim": config.get("intermediate_size", 14336),
        "norm_eps": eps,
        "inner_norm_eps": eps,
        "attention": _attention(config, heads=32, kv_heads=8),
        "attention_layers": attends,
        "expert_layers": spread if experts > 1 else (),
        "experts": experts,
        "active_experts": config.get("num_experts_per_tok", 2),
        "state_dim": config.get("mamba_d_state", 16),
        "conv_kernel": config.get("mamba_d_conv", 4),
        "expand": config.get("mamba_expand", 2),
        "dt_rank": config.get("mamba_dt_rank", "auto"),
        "conv_bias": config.get("mamba_conv_bias", True),
        "bias": config.get("mamba_proj_bias", False),
    }


def write_jamba(config: Any) -> Config:
    """Ours to `JambaConfig`."""
    period, offset = _period(config.attention_layers, config.depth)
    every, first = _period(config.expert_layers, config.depth) if config.expert_layers else (2, 1)
    return _write_common(config, "jamba", "JambaForCausalLM") | {
        **_write_attention(config),
        "intermediate_size": config.mlp_dim,
        "rms_norm_eps": config.norm_eps,
        "attn_layer_period": period,
        "attn_layer_offset": offset,
        "expert_layer_period": every,
        "expert_layer_offset": first,
        "num_experts": config.experts if config.expert_layers else 1,
        "num_experts_per_tok": config.active_experts,
        "mamba_d_state": config.state_dim,
        "mamba_d_conv": config.conv_kernel,
        "mamba_expand": config.expand,
        "mamba_dt_rank": -(-config.dim // 16) if config.dt_rank == "auto" else config.dt_rank,
        "mamba_conv_bias": config.conv_bias,
        "mamba_proj_bias": config.bias,
        "hidden_act": "silu",
    }


def read_granite_moe_hybrid(config: Config) -> Config:
    """`GraniteMoeHybridConfig` to fields of ours."""
    ours = _common(config, vocabulary=32000, hidden=4096, layers=32)
    attends = _attention(config, heads=32, kv_heads=None)
    bias = config.get("attention_bias", False)
    positions = config.get("position_embedding_type")
    if positions not in (None, "nope", "rope"):
        raise ValueError(f"position_embedding_type is {positions!r}; known: null, nope, rope")
    attends |= {
        "scale": config.get("attention_multiplier", 1.0),
        "rotary_dim": attends["head_dim"] if positions == "rope" else 0,
        "rotary_base": _rope(config)["base"],
        "qkv_bias": bias,
        "output_bias": bias,
    }
    kinds = _block_types(config) or ["mamba"] * ours["depth"]
    expand = config.get("mamba_expand", 2)
    return ours | {
        "mlp_dim": config.get("shared_intermediate_size", 1024),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "attention": attends,
        "attention_layers": tuple(index for index, kind in enumerate(kinds) if kind == "attention"),
        "experts": config.get("num_local_experts", 8),
        "active_experts": config.get("num_experts_per_tok", 2),
        "expert_dim": config.get("intermediate_size", 11008),
        "embedding_multiplier": config.get("embedding_multiplier", 1.0),
        "residual_multiplier": config.get("residual_multiplier", 1.0),
        "logits_scaling": config.get("logits_scaling", 1.0),
        "state_dim": config.get("mamba_d_state", 256),
        "head_dim": expand * ours["dim"] // config.get("mamba_n_heads", 128),
        "conv_kernel": config.get("mamba_d_conv", 4),
        "expand": expand,
        "groups": config.get("mamba_n_groups", 1),
        "bias": config.get("mamba_proj_bias", False),
        "conv_bias": config.get("mamba_conv_bias", True),
        "dt_limit": _limit(config.get("time_step_limit")),
    }


def write_granite_moe_hybrid(config: Any) -> Config:
    """Ours to `GraniteMoeHybridConfig`."""
    attention = config.attention
    kinds = ["attention" if i in config.attention_layers else "mamba" for i in range(config.depth)]
    head_dim = attention.head_dim or config.dim // attention.heads
    return _write_common(config, "granitemoehybrid", "GraniteMoeHybridForCausalLM") | {
        **_write_attention(config),
        "attention_multiplier": attention.scale or head_dim**-0.5,
        "attention_bias": attention.qkv_bias,
        "position_embedding_type": "rope" if attention.rotary_dim else None,
        "rope_theta": attention.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rotary_base},
        "layer_types": kinds,
        "shared_intermediate_size": config.mlp_dim,
        "intermediate_size": config.expert_dim,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.active_experts,
        "rms_norm_eps": config.norm_eps,
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": config.logits_scaling,
        "mamba_d_state": config.state_dim,
        "mamba_d_head": config.head_dim,
        "mamba_n_heads": int(config.expand * config.dim) // config.head_dim,
        "mamba_d_conv": config.conv_kernel,
        "mamba_expand": config.expand,
        "mamba_n_groups": config.groups,
        "mamba_proj_bias": config.bias,
        "mamba_conv_bias": config.conv_bias,
        "mamba_chunk_size": config.chunk_size,
        "hidden_act": "silu",
        **_write_limit(config.dt_limit),
    }


_FALCON_SCALES = {
    "embedding_multiplier": "embedding_multiplier",
    "lm_head_multiplier": "logit_multiplier",
    "key_multiplier": "key_multiplier",
    "attention_in_multiplier": "attention_in_multiplier",
    "attention_out_multiplier": "attention_out_multiplier",
    "ssm_in_multiplier": "ssm_in_multiplier",
    "ssm_out_multiplier": "ssm_out_multiplier",
}


def read_falcon_h1(config: Config) -> Config:
    """`FalconH1Config` to fields of ours."""
    ours = _common(config, vocabulary=128000, hidden=4096, layers=32)
    attends = _attention(config, heads=32, kv_heads=8)
    bias = config.get("attention_bias", False)
    attends |= {
        "rotary_dim": attends["head_dim"],
        "rotary_base": _rope(config)["base"],
        "qkv_bias": bias,
        "output_bias": bias,
    }
    expand = config.get("mamba_expand", 2)
    scanned = config.get("mamba_d_ssm", 1024)
    inner = int(expand * ours["dim"]) if scanned is None else scanned
    scales = {mine: config[theirs] for theirs, mine in _FALCON_SCALES.items() if config.get(theirs) is not None}
    return (
        ours
        | scales
        | {
            "mlp_dim": config.get("intermediate_size", 14336),
            "mlp_bias": config.get("mlp_bias", False),
            "norm_eps": config.get("rms_norm_eps", 1e-5),
            "attention": attends,
            "inner_dim": inner,
            "expand": expand,
            "state_dim": config.get("mamba_d_state", 256),
            "head_dim": inner // config.get("mamba_n_heads", 128),
            "conv_kernel": config.get("mamba_d_conv", 4),
            "groups": config.get("mamba_n_groups", 1),
            "bias": config.get("mamba_proj_bias", False),
            "output_bias": config.get("projectors_bias", False),
            "conv_bias": config.get("mamba_conv_bias", True),
            "gated_norm": config.get("mamba_rms_norm", False),
            "norm_before_gate": config.get("mamba_norm_before_gate", True),
            "dt_limit": _limit(config.get("time_step_limit")),
            "ssm_multipliers": tuple(config.get("ssm_multipliers") or (1.0,) * 5),
            "mlp_multipliers": tuple(config.get("mlp_multipliers") or (1.0, 1.0)),
        }
    )


def write_falcon_h1(config: Any) -> Config:
    """Ours to `FalconH1Config`."""
    attention = config.attention
    inner = int(config.expand * config.dim) if config.inner_dim is None else config.inner_dim
    return _write_common(config, "falcon_h1", "FalconH1ForCausalLM") | {
        **_write_attention(config),
        "attention_bias": attention.qkv_bias,
        "rope_theta": attention.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rotary_base},
        "intermediate_size": config.mlp_dim,
        "mlp_bias": config.mlp_bias,
        "rms_norm_eps": config.norm_eps,
        "mamba_d_ssm": inner,
        "mamba_expand": config.expand,
        "mamba_d_state": config.state_dim,
        "mamba_d_head": config.head_dim,
        "mamba_n_heads": inner // config.head_dim,
        "mamba_d_conv": config.conv_kernel,
        "mamba_n_groups": config.groups,
        "mamba_proj_bias": config.bias,
        "projectors_bias": config.output_bias,
        "mamba_conv_bias": config.conv_bias,
        "mamba_rms_norm": config.gated_norm,
        "mamba_norm_before_gate": config.norm_before_gate,
        "mamba_chunk_size": config.chunk_size,
        "ssm_multipliers": list(config.ssm_multipliers),
        "mlp_multipliers": list(config.mlp_multipliers),
        "hidden_act": "silu",
        **{theirs: getattr(config, mine) for theirs, mine in _FALCON_SCALES.items()},
        **_write_limit(config.dt_limit),
    }


_NEMOTRON_KINDS = {
    "linear_attention": "mamba2",
    "mamba": "mamba2",
    "full_attention": "attention",
    "attention": "attention",
    "mlp": "mlp",
    "moe": "experts",
}
#: Spellings of transformers 4, and those of transformers 5.
_NEMOTRON_OLDER = {
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_min": "time_step_min",
    "mamba_dt_max": "time_step_max",
    "mamba_dt_init_floor": "time_step_floor",
    "mamba_conv_bias": "use_conv_bias",
    "num_local_experts": "n_routed_experts",
    "rms_norm_eps": "layer_norm_epsilon",
}


def read_nemotron_h(config: Config) -> Config:
    """`NemotronHConfig` to fields of ours."""
    config = {_NEMOTRON_OLDER.get(name, name): value for name, value in config.items()} | {
        name: config[name] for name in _NEMOTRON_OLDER.values() if config.get(name) is not None
    }
    kinds = config.get("layers_block_type") or config.get("layer_types")
    layout = config.get("hybrid_override_pattern") or ("linear_attention", "moe", "full_attention", "mlp")
    if kinds:
        layout = kinds
    unknown = [kind for kind in layout if not isinstance(layout, str) and kind not in _NEMOTRON_KINDS]
    if unknown:
        raise ValueError(f"layers_block_type has {unknown[0]!r}; known: {', '.join(_NEMOTRON_KINDS)}")
    layout = layout if isinstance(layout, str) else tuple(_NEMOTRON_KINDS[kind] for kind in layout)
    ours = _common(config, vocabulary=131072, hidden=4096, layers=len(layout))
    head_dim, least = config.get("mamba_head_dim", 64), config.get("time_step_min", 1e-3)
    return ours | {
        "depth": len(layout),
        "layout": layout,
        "mlp_dim": config.get("intermediate_size", 21504),
        "mlp_activation": config.get("mlp_hidden_act", "relu2"),
        "mlp_bias": config.get("mlp_bias", False),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "attention": _attention(config, heads=32, kv_heads=8, head_dim=config.get("attention_head_dim", 128)),
        "inner_dim": config.get("mamba_num_heads", 128) * head_dim,
        "state_dim": config.get("ssm_state_size", 128),
        "head_dim": head_dim,
        "conv_kernel": config.get("conv_kernel", 4),
        "groups": config.get("n_groups", 8),
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
        "dt_min": least,
        "dt_max": config.get("time_step_max", 0.1),
        "dt_floor": config.get("time_step_floor", 1e-4),
        "dt_limit": (least, float("inf")),
        "experts": config.get("n_routed_experts", 8),
        "active_experts": config.get("num_experts_per_tok", 2),
        "expert_dim": config.get("moe_intermediate_size", 7688),
        "shared_expert_dim": config.get("moe_shared_expert_intermediate_size", 7688),
        "expert_latent_dim": config.get("moe_latent_size"),
        "expert_groups": config.get("n_group", 1),
        "open_expert_groups": config.get("topk_group", 1),
        "normalised_experts": config.get("norm_topk_prob", True),
        "expert_scale": config.get("routed_scaling_factor", 1.0),
    }


def write_nemotron_h(config: Any) -> Config:
    """Ours to `NemotronHConfig`."""
    attention = config.attention
    inner = int(config.expand * config.dim) if config.inner_dim is None else config.inner_dim
    newer = {"mamba2": "linear_attention", "attention": "full_attention", "mlp": "mlp", "experts": "moe"}
    letters = {"mamba2": "M", "attention": "*", "mlp": "-", "experts": "E"}
    return _write_common(config, "nemotron_h", "NemotronHForCausalLM") | {
        "layers_block_type": [newer[kind] for kind in config.layout],
        "hybrid_override_pattern": "".join(letters[kind] for kind in config.layout),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or config.dim // attention.heads,
        "intermediate_size": config.mlp_dim,
        "mlp_hidden_act": config.mlp_activation,
        "mlp_bias": config.mlp_bias,
        "layer_norm_epsilon": config.norm_eps,
        "mamba_num_heads": inner // config.head_dim,
        "mamba_head_dim": config.head_dim,
        "mamba_hidden_act": "silu",
        "ssm_state_size": config.state_dim,
        "conv_kernel": config.conv_kernel,
        "n_groups": config.groups,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "chunk_size": config.chunk_size,
        "time_step_min": config.dt_limit[0],
        "time_step_max": config.dt_max,
        "time_step_floor": config.dt_floor,
        "n_routed_experts": config.experts,
        "num_experts_per_tok": config.active_experts,
        "moe_intermediate_size": config.expert_dim,
        "moe_shared_expert_intermediate_size": config.shared_expert_dim,
        "moe_latent_size": config.expert_latent_dim,
        "n_group": config.expert_groups,
        "topk_group": config.open_expert_groups,
        "norm_topk_prob": config.normalised_experts,
        "routed_scaling_factor": config.expert_scale,
    }


def read_zamba(config: Config) -> Config:
    """`ZambaConfig` to fields of ours."""
    ours = _common(config, vocabulary=32000, hidden=3712, layers=76, tied=True)
    wide = config.get("attention_hidden_size") or 2 * ours["dim"]
    if wide != 2 * ours["dim"]:
        raise ValueError(f"attention_hidden_size is {wide}; the shared block reads two streams of hidden_size channels")
    kinds = _block_types(config)
    if kinds is None:
        later = _places(ours["depth"] - 3, config.get("attn_layer_period", 6), config.get("attn_layer_offset", 4))
        hybrid = (2, *(3 + layer for layer in later))
    else:
        hybrid = tuple(index for index, kind in enumerate(kinds) if kind == "hybrid")
    heads = config.get("num_attention_heads", 16)
    # transformers shares the block only where it ties the head; the tensors know better, where there are some
    blocks = 1 if ours["tie_embeddings"] else max(1, len(hybrid))
    return ours | {
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "hybrid_layers": hybrid,
        "shared_blocks": config.get("num_mem_blocks", blocks),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "attention_head_dim": config.get("attention_head_dim") or 2 * ours["dim"] // heads,
        "shared_mlp_dim": config.get("intermediate_size", 14848),
        "shared_activation": config.get("hidden_act", "gelu"),
        "mamba_heads": config.get("n_mamba_heads", 2),
        "state_dim": config.get("mamba_d_state", 16),
        "conv_kernel": config.get("mamba_d_conv", 4),
        "expand": config.get("mamba_expand", 2),
        "dt_rank": config.get("mamba_dt_rank", "auto"),
        "dt_min": config.get("time_step_min", 0.001),
        "dt_max": config.get("time_step_max", 0.1),
        "dt_floor": config.get("time_step_floor", 1e-4),
        "bias": config.get("mamba_proj_bias", False),
        "conv_bias": config.get("mamba_conv_bias", True),
    }


def write_zamba(config: Any) -> Config:
    """Ours to `ZambaConfig`."""
    kinds = ["hybrid" if i in config.hybrid_layers else "mamba" for i in range(config.depth)]  # every version reads it
    return _write_common(config, "zamba", "ZambaForCausalLM") | {
        "layers_block_type": kinds,
        "rms_norm_eps": config.norm_eps,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "attention_head_dim": config.shared_head_dim,
        "attention_hidden_size": 2 * config.dim,
        "intermediate_size": config.shared_mlp_dim,
        "hidden_act": config.shared_activation,
        "hidden_mamba_act": "silu",
        "n_mamba_heads": config.mamba_heads,
        "mamba_d_state": config.state_dim,
        "mamba_d_conv": config.conv_kernel,
        "mamba_expand": config.expand,
        "mamba_dt_rank": -(-config.dim // 16) if config.dt_rank == "auto" else config.dt_rank,
        "time_step_min": config.dt_min,
        "time_step_max": config.dt_max,
        "time_step_floor": config.dt_floor,
        "mamba_proj_bias": config.bias,
        "mamba_conv_bias": config.conv_bias,
    }
