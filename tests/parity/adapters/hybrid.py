"""Language models as Hugging Face transformers publishes them: Mamba, Mamba-2, Falcon Mamba, Bamba, Zamba2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from statescan.models import build_model
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.mamba import run_language_model

#: What changes initialisation, training, generation or speed, but no output.
BOOKKEEPING = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "use_cache",
    "initializer_range",
    "rescale_prenorm_residual",
    "use_mambapy",
    "use_falcon_mambapy",
    "use_associative_scan",
    "use_mamba_kernels",
    "use_mem_eff_path",
    "num_logits_to_keep",
    "max_position_embeddings",
    "attention_dropout",
    "z_loss_coefficient",
    "time_step_init_scheme",
    "torch_dtype",
    "dtype",
)
NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "residual_in_fp32": "residual_in_float32",
    "tie_word_embeddings": "tie_embeddings",
}
SSM_NAMES = {
    **NAMES,
    "state_size": "state_dim",
    "conv_kernel": "conv_kernel",
    "expand": "expand",
    "layer_norm_epsilon": "norm_eps",
    "use_bias": "bias",
    "use_conv_bias": "conv_bias",
    "time_step_min": "dt_min",
    "time_step_max": "dt_max",
    "time_step_floor": "dt_floor",
}
MAMBA_NAMES = SSM_NAMES | {
    "time_step_rank": "dt_rank",
    "time_step_scale": "dt_scale",
    "mixer_rms_eps": "inner_norm_eps",
}
MAMBA2_NAMES = SSM_NAMES | {
    "head_dim": "head_dim",
    "n_groups": "groups",
    "chunk_size": "chunk_size",
    "time_step_limit": "dt_limit",
}
MAMBA_DEFAULTS = {
    "vocab_size": 50280,
    "hidden_size": 768,
    "num_hidden_layers": 32,
    "tie_word_embeddings": True,
}
MAMBA2_DEFAULTS = {
    "vocab_size": 32768,
    "hidden_size": 4096,
    "num_hidden_layers": 64,
    "n_groups": 8,
    "tie_word_embeddings": False,
}
BAMBA_NAMES = NAMES | {
    "intermediate_size": "mlp_dim",
    "rms_norm_eps": "norm_eps",
    "mlp_bias": "mlp_bias",
    "mamba_n_groups": "groups",
    "mamba_d_state": "state_dim",
    "mamba_d_conv": "conv_kernel",
    "mamba_expand": "expand",
    "mamba_chunk_size": "chunk_size",
    "mamba_conv_bias": "conv_bias",
    "mamba_proj_bias": "bias",
    "time_step_limit": "dt_limit",
}
BAMBA_DEFAULTS = {
    "vocab_size": 128000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "mamba_d_state": 256,
    "tie_word_embeddings": False,
}
ZAMBA2_NAMES = NAMES | {
    "intermediate_size": "shared_mlp_dim",
    "rms_norm_eps": "norm_eps",
    "mamba_d_state": "state_dim",
    "mamba_d_conv": "conv_kernel",
    "mamba_expand": "expand",
    "mamba_ngroups": "groups",
    "chunk_size": "chunk_size",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "num_mem_blocks": "shared_blocks",
    "use_shared_attention_adapter": "attention_adapters",
    "adapter_rank": "adapter_rank",
    "use_mem_rope": "rotary",
    "time_step_max": "dt_max",
    "time_step_floor": "dt_floor",
}
ZAMBA2_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 2560,
    "num_hidden_layers": 54,
    "num_mem_blocks": 1,
    "tie_word_embeddings": True,
}
SILU = {"hidden_act": ("silu", "swish")}


def run(fixture: Fixture, family: str, config: dict[str, Any]) -> dict[str, Any]:
    """Build a model of a family, whose vocabulary these classes do not pad, and run it."""
    return run_language_model(fixture, build_model(family, {"pad_vocab_size_multiple": 1} | config).eval())


def mamba(fixture: Fixture, family: str = "mamba") -> dict[str, Any]:
    """`MambaForCausalLM`."""
    given = MAMBA_DEFAULTS | fixture.kwargs
    return run(fixture, family, translate(given, MAMBA_NAMES, ignored=BOOKKEEPING, only=SILU))


def falcon_mamba(fixture: Fixture) -> dict[str, Any]:
    """`FalconMambaForCausalLM`."""
    return mamba(fixture, "falcon_mamba")


def mamba2(fixture: Fixture) -> dict[str, Any]:
    """`Mamba2ForCausalLM`."""
    given = MAMBA2_DEFAULTS | fixture.kwargs
    heads = given.pop("num_heads", 128)
    config = translate(given, MAMBA2_NAMES, ignored=(*BOOKKEEPING, "time_step_rank"), only=SILU)
    check_heads(heads, config.get("head_dim", 64), int(config.get("expand", 2) * config["dim"]))
    return run(fixture, "mamba2", config)


def bamba(fixture: Fixture) -> dict[str, Any]:
    """`BambaForCausalLM`."""
    given = BAMBA_DEFAULTS | fixture.kwargs
    heads, kv_heads = given.pop("num_attention_heads", 32), given.pop("num_key_value_heads", 8)
    bias = given.pop("attention_bias", False)
    head_dim = given.pop("head_dim", given["hidden_size"] // heads)
    scan_heads, scan_head_dim = given.pop("mamba_n_heads", 128), given.pop("mamba_d_head", "auto")
    attention = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "rotary_dim": head_dim // 2,
        "rotary_base": rotary_base(given),
        "qkv_bias": bias,
        "output_bias": bias,
    }
    layers = tuple(given.pop("attn_layer_indices", None) or ())
    given.pop("partial_rotary_factor", None)  # the class fixes it at a half
    config = translate(given, BAMBA_NAMES, ignored=BOOKKEEPING, only=SILU)
    inner = int(config.get("expand", 2) * config["dim"])
    config["head_dim"] = inner // scan_heads if scan_head_dim == "auto" else scan_head_dim
    check_heads(scan_heads, config["head_dim"], inner)
    return run(fixture, "bamba", config | {"attention": attention, "attention_layers": layers})


def zamba2(fixture: Fixture) -> dict[str, Any]:
    """`Zamba2ForCausalLM`."""
    given = ZAMBA2_DEFAULTS | fixture.kwargs
    kinds = given.pop("layers_block_type", None) or given.pop("layer_types", None)
    known = {"mamba": False, "linear_attention": False, "hybrid": True}
    if kinds is not None:
        unknown = sorted(set(kinds) - known.keys())
        if unknown:
            raise ParityError(f"layers_block_type: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        given["hybrid_layers"] = tuple(i for i, kind in enumerate(kinds) if known[kind])
        given["num_hidden_layers"] = len(kinds)
    given["intermediate_size"] = given.get("intermediate_size") or 4 * given["hidden_size"]
    given["rotary_base"] = rotary_base(given)
    scan_heads = given.pop("n_mamba_heads", 8)
    bias = given.pop("add_bias_linear", False)
    least = given.pop("time_step_min", 1e-3)
    names = ZAMBA2_NAMES | {"hybrid_layers": "hybrid_layers", "rotary_base": "rotary_base"}
    config = translate(
        given,
        names,
        # The class computes mamba_headdim itself, and its convolution always has a bias.
        ignored=(*BOOKKEEPING, "mamba_headdim", "use_conv_bias", "use_long_context"),
        only={"hidden_act": ("gelu",)},
    )
    config |= {
        "head_dim": int(config.get("expand", 2) * config["dim"]) // scan_heads,
        "bias": bias,
        "shared_bias": bias,
        "dt_min": least,
        "dt_limit": (least, float("inf")),
    }
    return run(fixture, "zamba2", config)


def rotary_base(given: dict[str, Any]) -> float:
    """The base of the angles, taken out of the arguments."""
    parameters: Mapping[str, Any] = given.pop("rope_parameters", None) or {}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise ParityError(f"rope_parameters: type {kind!r} is not supported; supported: 'default'")
    return given.pop("rope_theta", None) or parameters.get("rope_theta", 10000.0)


def check_heads(heads: int, head_dim: int, inner: int) -> None:
    """The number of heads follows from the widths here; published configs state it too."""
    if heads * head_dim != inner:
        raise ParityError(f"{heads} heads of {head_dim} channels are not the {inner} inner channels")


ADAPTERS = {
    "MambaForCausalLM": mamba,
    "Mamba2ForCausalLM": mamba2,
    "FalconMambaForCausalLM": falcon_mamba,
    "BambaForCausalLM": bamba,
    "Zamba2ForCausalLM": zamba2,
}
