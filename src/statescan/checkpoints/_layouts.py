"""Configs of published layouts, both ways: state-spaces' own, and Hugging Face's model types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from statescan import models

Config = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """One spelling of config.json.

    Arguments:
        name: ``state-spaces`` or a Hugging Face model type.
        family: of our registry.
        read: its config -> fields of our config.
        write: our config object -> its config.
        embedding: its name of the embedding where it differs from the published one.
    """

    name: str
    family: Callable[[Config], str]
    read: Callable[[Config], Config]
    write: Callable[[Any], Config]


def _attention_from_ssm(config: Config) -> Config:
    given = config.get("attn_cfg") or {}
    names = {
        "num_heads": "heads",
        "num_heads_kv": "kv_heads",
        "head_dim": "head_dim",
        "d_conv": "conv_kernel",
        "mlp_dim": "mlp_dim",
        "qkv_proj_bias": "qkv_bias",
        "out_proj_bias": "output_bias",
        "rotary_emb_dim": "rotary_dim",
        "rotary_emb_base": "rotary_base",
        "softmax_scale": "scale",
    }
    ours = {names[key]: value for key, value in given.items() if key in names}
    if given:
        ours = {"qkv_bias": True, "output_bias": True} | ours  # the published class's defaults
    return ours


_SSM_FIELDS = {
    "d_state": "state_dim",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "dt_rank",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "dt_init": "dt_init",
    "dt_scale": "dt_scale",
    "dt_init_floor": "dt_floor",
    "conv_bias": "conv_bias",
    "bias": "bias",
    "headdim": "head_dim",
    "d_ssm": "ssm_dim",
    "ngroups": "groups",
    "A_init_range": "A_range",
    "D_has_hdim": "D_per_channel",
    "rmsnorm": "gated_norm",
    "norm_before_gate": "norm_before_gate",
    "dt_limit": "dt_limit",
    "conv_init": "conv_init",
    "chunk_size": "chunk_size",
}


def _read_state_spaces(config: Config) -> Config:
    ssm = dict(config.get("ssm_cfg") or {})
    ssm.pop("layer", None)
    ours: Config = {
        "dim": config["d_model"],
        "depth": config["n_layer"],
        "vocab_size": config["vocab_size"],
        "mlp_dim": config.get("d_intermediate", 0),
        "norm": "rms" if config.get("rms_norm", True) else "layer",
        "residual_in_float32": config.get("residual_in_fp32", True),
        "tie_embeddings": config.get("tie_embeddings", True),
        "pad_vocab_size_multiple": config.get("pad_vocab_size_multiple", 8),
        "attention_layers": tuple(config.get("attn_layer_idx") or ()),
    }
    if ours["attention_layers"]:
        ours["attention"] = _attention_from_ssm(config)
    for key, value in ssm.items():
        if key in _SSM_FIELDS:
            ours[_SSM_FIELDS[key]] = tuple(value) if isinstance(value, list) else value
    return ours


def _write_state_spaces(config: Any) -> Config:
    mamba2 = hasattr(config, "head_dim")
    ssm: Config = {"layer": "Mamba2" if mamba2 else "Mamba1"}
    default = type(config)()
    for theirs, ours in _SSM_FIELDS.items():
        if hasattr(config, ours) and getattr(config, ours) != getattr(default, ours):
            ssm[theirs] = _plain(getattr(config, ours))
    attention: Config = {}
    if config.attention_layers:
        a = config.attention
        attention = {
            "causal": True,
            "num_heads": a.heads,
            "num_heads_kv": a.kv_heads,
            "head_dim": a.head_dim,
            "d_conv": a.conv_kernel,
            "mlp_dim": a.mlp_dim,
            "qkv_proj_bias": a.qkv_bias,
            "out_proj_bias": a.output_bias,
            "rotary_emb_dim": a.rotary_dim,
            "rotary_emb_base": a.rotary_base,
        }
        if a.scale is not None:
            attention["softmax_scale"] = a.scale
    return {
        "d_model": config.dim,
        "d_intermediate": config.mlp_dim,
        "n_layer": config.depth,
        "vocab_size": config.vocab_size,
        "ssm_cfg": ssm if mamba2 or len(ssm) > 1 else {},
        "attn_layer_idx": list(config.attention_layers),
        "attn_cfg": attention,
        "rms_norm": config.norm == "rms",
        "residual_in_fp32": config.residual_in_float32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": config.pad_vocab_size_multiple,
        "tie_embeddings": config.tie_embeddings,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _family_of_ssm(config: Config) -> str:
    return "mamba2" if (config.get("ssm_cfg") or {}).get("layer") == "Mamba2" else "mamba"


# ---- Hugging Face -------------------------------------------------------------------------------------------------


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


def _read_hf_mamba(config: Config) -> Config:
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


def _write_hf_mamba(config: Any) -> Config:
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


def _read_hf_falcon_mamba(config: Config) -> Config:
    return _read_hf_mamba({"tie_word_embeddings": True, **config}) | {
        "inner_norm": "weightless",
        "inner_norm_eps": config.get("mixer_rms_eps", 1e-6),
    }


def _write_hf_falcon_mamba(config: Any) -> Config:
    return _write_hf_mamba(config) | {
        "model_type": "falcon_mamba",
        "architectures": ["FalconMambaForCausalLM"],
        "mixer_rms_eps": config.inner_norm_eps,
    }


def _read_hf_mamba2(config: Config) -> Config:
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


def _write_hf_mamba2(config: Any) -> Config:
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


def _rope_base(config: Config) -> float:
    rope = config.get("rope_parameters") or {}
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)


def _read_hf_bamba(config: Config) -> Config:
    hidden = config.get("hidden_size", 4096)
    heads = config.get("num_attention_heads", 32)
    inner = config.get("mamba_expand", 2) * hidden
    mamba_heads = config.get("mamba_n_heads", 128)
    head_dim = config.get("head_dim") or hidden // heads
    layers = config.get("attn_layer_indices")
    if layers is None:
        kinds = config.get("layers_block_type") or config.get("layer_types") or []
        layers = [index for index, kind in enumerate(kinds) if kind in ("attention", "full_attention")]
    rope = config.get("rope_parameters") or {}
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.5))
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
            "rotary_dim": int(head_dim * partial),
            "rotary_base": _rope_base(config),
            "qkv_bias": config.get("attention_bias", False),
            "output_bias": config.get("attention_bias", False),
        },
    }


def _write_hf_bamba(config: Any) -> Config:
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


def _read_hf_zamba2(config: Config) -> Config:
    hidden = config.get("hidden_size", 2560)
    kinds = config.get("layers_block_type") or config.get("layer_types")
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
        "rotary_base": _rope_base(config),
    }


def _write_hf_zamba2(config: Any) -> Config:
    kinds = ["hybrid" if i in config.hybrid_layers else "linear_attention" for i in range(config.depth)]
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
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "chunk_size": config.chunk_size,
        "hidden_act": "gelu",
    }


LAYOUTS = {
    "state-spaces": Layout("state-spaces", _family_of_ssm, _read_state_spaces, _write_state_spaces),
    "mamba": Layout("mamba", lambda c: "mamba", _read_hf_mamba, _write_hf_mamba),
    "mamba2": Layout("mamba2", lambda c: "mamba2", _read_hf_mamba2, _write_hf_mamba2),
    "falcon_mamba": Layout("falcon_mamba", lambda c: "falcon_mamba", _read_hf_falcon_mamba, _write_hf_falcon_mamba),
    "bamba": Layout("bamba", lambda c: "bamba", _read_hf_bamba, _write_hf_bamba),
    "zamba2": Layout("zamba2", lambda c: "zamba2", _read_hf_zamba2, _write_hf_zamba2),
}


def identify(config: Config, where: str) -> str:
    """Which layout a config.json is of: ``statescan``, ``state-spaces`` or a Hugging Face model type."""
    if "statescan" in config:
        return "statescan"
    kind = config.get("model_type")
    if kind in LAYOUTS:
        return str(kind)
    if "d_model" in config and "n_layer" in config:
        return "state-spaces"
    if kind is not None:
        raise ValueError(f"checkpoint: {where!r} is of model type {kind!r}; known: {', '.join(list(LAYOUTS)[1:])}")
    raise ValueError(
        f"checkpoint: config.json of {where!r} is of no known layout: it has neither model_type nor d_model"
    )


def build(config: Config, layout: str) -> Any:
    """A model with fresh weights from a published config."""
    found = LAYOUTS[layout]
    return models.build_model(found.family(config), found.read(config))
