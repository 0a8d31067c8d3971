"""The further hybrids of Hugging Face transformers: Jamba, Granite, Falcon-H1, Nemotron-H, Zamba."""

from __future__ import annotations

from typing import Any

from statescan.models._huggingface_parts import ACTIVATIONS
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.hybrid import BAMBA_NAMES, BOOKKEEPING, NAMES, SILU, check_heads, rotary_base, run

#: Of mixtures of experts: what changes training alone.
BALANCE = (*BOOKKEEPING, "output_router_logits", "router_aux_loss_coef", "hidden_dropout")


def attention(given: dict[str, Any], *, kv_heads: int | None, head_dim: int | None = None) -> dict[str, Any]:
    """What published classes say of attention, taken out of the arguments."""
    heads = given.pop("num_attention_heads", 32)
    return {
        "heads": heads,
        "kv_heads": given.pop("num_key_value_heads", kv_heads) or heads,
        "head_dim": given.pop("head_dim", head_dim) or given["hidden_size"] // heads,
    }


def linear_layers(kinds: list[str], known: dict[str, str]) -> list[str]:
    """Layer kinds under our names."""
    unknown = sorted(set(kinds) - known.keys())
    if unknown:
        raise ParityError(f"layer types: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[kind] for kind in kinds]


def jamba(fixture: Fixture) -> dict[str, Any]:
    """`JambaForCausalLM`."""
    defaults = {"vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    given = defaults | fixture.kwargs
    depth = given["num_hidden_layers"]
    attends = attention(given, kv_heads=8)
    period, offset = given.pop("attn_layer_period", 8), given.pop("attn_layer_offset", 4)
    every, first = given.pop("expert_layer_period", 2), given.pop("expert_layer_offset", 1)
    experts = given.pop("num_experts", given.pop("num_local_experts", 16))
    names = NAMES | {
        "intermediate_size": "mlp_dim",
        "rms_norm_eps": "norm_eps",
        "num_experts_per_tok": "active_experts",
        "mamba_d_state": "state_dim",
        "mamba_d_conv": "conv_kernel",
        "mamba_expand": "expand",
        "mamba_dt_rank": "dt_rank",
        "mamba_conv_bias": "conv_bias",
        "mamba_proj_bias": "bias",
    }
    config = translate(given, names, ignored=BALANCE, only=SILU)
    config |= {
        "inner_norm_eps": config.get("norm_eps", 1e-6),
        "attention": attends,
        "attention_layers": tuple(i for i in range(depth) if i % period == offset),
        "expert_layers": tuple(i for i in range(depth) if experts > 1 and i % every == first),
        "experts": experts,
    }
    return run(fixture, "jamba", config)


def granite_moe_hybrid(fixture: Fixture) -> dict[str, Any]:
    """`GraniteMoeHybridForCausalLM`."""
    defaults = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "shared_intermediate_size": 1024,
        "num_hidden_layers": 32,
        "mamba_d_state": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
    }
    given = defaults | fixture.kwargs
    bias = given.pop("attention_bias", False)
    attends = attention(given, kv_heads=None) | {
        "scale": given.pop("attention_multiplier"),
        "qkv_bias": bias,
        "output_bias": bias,
        "rotary_base": rotary_base(given),
    }
    positions = given.pop("position_embedding_type", None)
    if positions not in (None, "rope", "nope"):
        raise ParityError(f"position_embedding_type={positions!r} is not supported; supported: None, 'rope'")
    attends["rotary_dim"] = attends["head_dim"] if positions == "rope" else 0
    kinds = given.pop("layer_types", None) or given.pop("layers_block_type", None)
    kinds = kinds or ["linear_attention"] * given["num_hidden_layers"]
    known = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention"}
    layers = tuple(i for i, kind in enumerate(linear_layers(kinds, known)) if kind == "attention")
    heads, head_dim = given.pop("mamba_n_heads", 128), given.pop("mamba_d_head", "auto")
    names = {name: ours for name, ours in BAMBA_NAMES.items() if name not in ("intermediate_size", "mlp_bias")} | {
        "shared_intermediate_size": "mlp_dim",
        "intermediate_size": "expert_dim",
        "num_local_experts": "experts",
        "num_experts_per_tok": "active_experts",
        "embedding_multiplier": "embedding_multiplier",
        "residual_multiplier": "residual_multiplier",
        "logits_scaling": "logits_scaling",
    }
    config = translate(given, names, ignored=BALANCE, only=SILU)
    inner = int(config.get("expand", 2) * config["dim"])
    config["head_dim"] = inner // heads if head_dim == "auto" else head_dim
    check_heads(heads, config["head_dim"], inner)
    return run(fixture, "granitemoehybrid", config | {"attention": attends, "attention_layers": layers})


def falcon_h1(fixture: Fixture) -> dict[str, Any]:
    """`FalconH1ForCausalLM`."""
    defaults = {
        "vocab_size": 128000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "mamba_d_ssm": 1024,
        "mamba_d_state": 256,
        "mamba_norm_before_gate": True,
        "mamba_rms_norm": False,
        "projectors_bias": False,
    }
    given = defaults | fixture.kwargs
    bias = given.pop("attention_bias", False)
    attends = attention(given, kv_heads=8) | {"qkv_bias": bias, "output_bias": bias, "rotary_base": rotary_base(given)}
    attends["rotary_dim"] = attends["head_dim"]
    heads, head_dim = given.pop("mamba_n_heads", 128), given.pop("mamba_d_head", "auto")
    names = BAMBA_NAMES | {
        "mamba_d_ssm": "inner_dim",
        "mamba_norm_before_gate": "norm_before_gate",
        "mamba_rms_norm": "gated_norm",
        "projectors_bias": "output_bias",
        "lm_head_multiplier": "logit_multiplier",
        **{name: name for name in ("embedding_multiplier", "key_multiplier", "ssm_multipliers", "mlp_multipliers")},
        **{
            f"{part}_{way}_multiplier": f"{part}_{way}_multiplier"
            for part in ("attention", "ssm")
            for way in ("in", "out")
        },
    }
    given = {name: value for name, value in given.items() if value is not None or name == "mamba_d_ssm"}
    config = translate(given, names, ignored=BALANCE, only=SILU)
    inner = config["inner_dim"] or int(config.get("expand", 2) * config["dim"])
    config["head_dim"] = inner // heads if head_dim == "auto" else head_dim
    check_heads(heads, config["head_dim"], inner)
    return run(fixture, "falcon_h1", config | {"attention": attends})


def nemotron_h(fixture: Fixture) -> dict[str, Any]:
    """`NemotronHForCausalLM`."""
    defaults = {
        "vocab_size": 131072,
        "hidden_size": 4096,
        "intermediate_size": 21504,
        "n_routed_experts": 8,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
    }
    older = {
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_expand": "expand",
        "mamba_dt_min": "time_step_min",
        "mamba_dt_max": "time_step_max",
        "mamba_dt_init_floor": "time_step_floor",
        "mamba_conv_bias": "use_conv_bias",
        "mamba_chunk_size": "chunk_size",
        "layer_types": "layers_block_type",
        "num_local_experts": "n_routed_experts",
    }
    given = defaults | {older.get(name, name): value for name, value in fixture.kwargs.items()}
    attends = attention(given, kv_heads=8, head_dim=128)
    pattern, kinds = given.pop("hybrid_override_pattern", None), given.pop("layers_block_type", None)
    if kinds is None:
        letters = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
        kinds = (
            [letters[letter] for letter in pattern] if pattern else ["linear_attention", "moe", "full_attention", "mlp"]
        )
    known = {"linear_attention": "mamba2", "mamba": "mamba2", "full_attention": "attention", "attention": "attention"}
    layout = tuple(linear_layers(kinds, known | {"mlp": "mlp", "moe": "experts"}))
    heads, head_dim = given.pop("mamba_num_heads", 128), given.pop("mamba_head_dim", 64)
    least = given.pop("time_step_min", 1e-3)
    given.pop("num_hidden_layers", None)
    names = {name: ours for name, ours in NAMES.items() if name not in ("num_hidden_layers", "residual_in_fp32")} | {
        "intermediate_size": "mlp_dim",
        "mlp_hidden_act": "mlp_activation",
        "mlp_bias": "mlp_bias",
        "layer_norm_epsilon": "norm_eps",
        "ssm_state_size": "state_dim",
        "n_groups": "groups",
        "conv_kernel": "conv_kernel",
        "time_step_max": "dt_max",
        "time_step_floor": "dt_floor",
        "use_conv_bias": "conv_bias",
        "use_bias": "bias",
        "chunk_size": "chunk_size",
        "n_routed_experts": "experts",
        "num_experts_per_tok": "active_experts",
        "moe_intermediate_size": "expert_dim",
        "moe_shared_expert_intermediate_size": "shared_expert_dim",
        "moe_latent_size": "expert_latent_dim",
        "n_group": "expert_groups",
        "topk_group": "open_expert_groups",
        "norm_topk_prob": "normalised_experts",
        "routed_scaling_factor": "expert_scale",
    }
    # The class computes with neither of these: steps have no upper limit, one shared expert has a width of its own,
    # attention has no bias, and the residual stream keeps the weights' precision.
    ignored = (
        *BALANCE,
        *("time_step_limit", "mamba_dt_limit", "expand", "n_shared_experts", "attention_bias", "mamba_proj_bias"),
        *("residual_in_fp32", "sliding_window", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap"),
        *("num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern"),
    )
    config = translate(given, names, ignored=ignored, only={"mamba_hidden_act": ("silu", "swish")})
    config |= {
        "layout": layout,
        "inner_dim": heads * head_dim,
        "head_dim": head_dim,
        "dt_min": least,
        "dt_limit": (least, float("inf")),
        "attention": attends,
    }
    return run(fixture, "nemotron_h", config)


def zamba(fixture: Fixture) -> dict[str, Any]:
    """`ZambaForCausalLM`."""
    defaults = {
        "vocab_size": 32000,
        "hidden_size": 3712,
        "intermediate_size": 14848,
        "num_hidden_layers": 76,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
    }
    given = defaults | fixture.kwargs
    wide = given.pop("attention_hidden_size", None) or 2 * given["hidden_size"]
    if wide != 2 * given["hidden_size"]:
        raise ParityError(f"attention_hidden_size={wide}: the block reads two streams of hidden_size channels")
    period, offset = given.pop("attn_layer_period", 6), given.pop("attn_layer_offset", 4)
    kinds = given.pop("layers_block_type", None) or given.pop("layer_types", None)
    if kinds is None:
        rest = given["num_hidden_layers"] - 3
        kinds = ["mamba", "mamba", "hybrid"] + ["hybrid" if i % period == offset else "mamba" for i in range(rest)]
    known = {"mamba": "mamba", "linear_attention": "mamba", "hybrid": "hybrid"}
    layers = linear_layers(list(kinds), known)
    given["num_hidden_layers"] = len(layers)
    names = NAMES | {
        "intermediate_size": "shared_mlp_dim",
        "hidden_act": "shared_activation",
        "rms_norm_eps": "norm_eps",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "attention_head_dim": "attention_head_dim",
        "head_dim": "attention_head_dim",
        "n_mamba_heads": "mamba_heads",
        "mamba_d_state": "state_dim",
        "mamba_d_conv": "conv_kernel",
        "mamba_expand": "expand",
        "mamba_dt_rank": "dt_rank",
        "time_step_min": "dt_min",
        "time_step_max": "dt_max",
        "time_step_floor": "dt_floor",
        "mamba_conv_bias": "conv_bias",
        "mamba_proj_bias": "bias",
    }
    config = translate(given, names, ignored=BALANCE, only={"hidden_mamba_act": ("silu", "swish")})
    if config.get("shared_activation", "gelu") not in ACTIVATIONS:
        raise ParityError(
            f"hidden_act={config['shared_activation']!r} is not supported; supported: {tuple(ACTIVATIONS)}"
        )
    config["hybrid_layers"] = tuple(i for i, kind in enumerate(layers) if kind == "hybrid")
    if not config["tie_embeddings"]:  # the class ties the blocks of several calls only where it ties the head
        config["shared_blocks"] = max(1, len(config["hybrid_layers"]))
    return run(fixture, "zamba", config)


ADAPTERS = {
    "JambaForCausalLM": jamba,
    "GraniteMoeHybridForCausalLM": granite_moe_hybrid,
    "FalconH1ForCausalLM": falcon_h1,
    "NemotronHForCausalLM": nemotron_h,
    "ZambaForCausalLM": zamba,
}
