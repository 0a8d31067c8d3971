"""config.json of the state-spaces project (`MambaConfig` of mamba_ssm), both ways."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


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
    fixed = {"causal": True, "rotary_emb_interleaved": False}
    _refuse_unknown("attn_cfg", given, {*names, *fixed})
    for key, value in fixed.items():
        if given.get(key, False) != value:
            raise ValueError(f"attn_cfg.{key} must be {value} in a language model of ours")
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
    "rope_fraction": "rope_fraction",
    "A_floor": "A_floor",
    "is_outproj_norm": "output_norm",
    "mimo_rank": "mimo_rank",
}


#: Options of the published classes that choose a kernel, not a result.
_WITHOUT_EFFECT = {
    *("layer", "use_fast_path", "use_mem_eff_path", "sequence_parallel", "layer_idx", "activation"),
    *("dropout", "n_layer", "fuse_pregate_headwise_norm"),
}


def _refuse_unknown(part: str, given: Config, known: set[str]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(f"{part} has options that are not known here: {', '.join(unknown)}")


def read(config: Config) -> Config:
    """Its fields to ours."""
    ssm = dict(config.get("ssm_cfg") or {})
    if ssm.get("layer") == "Mamba3":
        several = ssm.pop("is_mimo", False)
        ssm["mimo_rank"] = ssm.get("mimo_rank", 4) if several else None
    _refuse_unknown("ssm_cfg", ssm, {*_SSM_FIELDS, *_WITHOUT_EFFECT})
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


def write(config: Any) -> Config:
    """Ours to its fields."""
    headed, mamba3 = hasattr(config, "head_dim"), hasattr(config, "mimo_rank")
    ssm: Config = {"layer": "Mamba3" if mamba3 else "Mamba2" if headed else "Mamba1"}
    if mamba3 and config.mimo_rank is not None:
        ssm["is_mimo"] = True
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
        "ssm_cfg": ssm if headed or len(ssm) > 1 else {},
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


def family(config: Config) -> str:
    """Which family it describes."""
    layer = (config.get("ssm_cfg") or {}).get("layer", "Mamba1")
    families = {"Mamba1": "mamba", "Mamba2": "mamba2", "Mamba3": "mamba3"}
    if layer not in families:
        raise ValueError(f"ssm_cfg.layer is {layer!r}; known: {', '.join(families)}")
    return families[layer]
