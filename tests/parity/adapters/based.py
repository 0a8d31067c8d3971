"""HazyResearch/based: the language model and its three mixers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from statescan.layers import BaseConv, SlidingAttention, State, TaylorLinearAttention
from statescan.models import build_model, load_published
from statescan.models.based import block_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

BOOKKEEPING = ("layer_idx", "l_max", "device", "dtype")
FLA_EPS = 1e-6


def linear_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `LinearAttention`."""
    given = dict(given)
    width = given.get("feature_dim", 16)
    feature_map = given.pop("feature_map", "TaylorExp")
    if isinstance(feature_map, Mapping):
        if feature_map.get("input_dim", width) != width:
            raise ParityError(f"feature_map: input_dim {feature_map['input_dim']} beside feature_dim {width}")
        feature_map = feature_map.get("_target_", "")
    if str(feature_map).rsplit(".", 1)[-1] != "TaylorExp":
        raise ParityError(f"feature_map {feature_map!r} is not supported; supported: TaylorExp")
    form = given.pop("parallel_implementation", "quadratic")
    if form not in ("quadratic", "linear", "fla_parallel", "fla_chunk"):
        raise ParityError(f"parallel_implementation {form!r} has no denominator or does not exist")
    names = {name: name for name in ("feature_dim", "head_dim", "eps")}
    options = translate(given, names | {"d_model": "dim", "num_heads": "heads"}, ignored=BOOKKEEPING)
    if form.startswith("fla"):
        options["eps"] = FLA_EPS
    return {"feature_dim": width, **options}


def sliding_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `SlidingAttention`; causal and flash attention are forced there."""
    names = {
        "embed_dim": "dim",
        "num_heads": "heads",
        "num_heads_kv": "kv_heads",
        "softmax_scale": "scale",
        "rotary_emb_dim": "rotary_dim",
        "rotary_emb_base": "rotary_base",
        "rotary_emb_interleaved": "rotary_interleaved",
        "qkv_proj_bias": "qkv_bias",
        "out_proj_bias": "output_bias",
        "window_size": "window",
    }
    only = {"cross_attn": (False,), "return_residual": (False,), "rotary_emb_scale_base": (None,)}
    only |= {"dropout": (0, 0.0)}
    defaults = {"qkv_proj_bias": True, "out_proj_bias": True, "rotary_emb_dim": 0, "window_size": 128}
    options = translate(
        defaults | dict(given),
        names,
        ignored=(*BOOKKEEPING, "causal", "use_flash_attn", "fused_bias_fc", "checkpointing"),
        only=only,
    )
    return options | {"window": options["window"] // 2}


def conv_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `BaseConv`; it swallows what it does not know, such as ``kernel_sizes``."""
    names = {"d_model": "dim", "kernel_size": "conv_kernel", "expand_proj": "expand", "use_bias": "bias"}
    given = {"expand_proj": 2} | dict(given)
    return translate(given, names, ignored=(*BOOKKEEPING, "kernel_sizes"), only={"use_cuda": (False,)})


@torch.no_grad()
def run_mixer(fixture: Fixture, mixer: Any) -> tuple[dict[str, Any], State | None]:
    """Load a mixer strictly; its outputs, and its state after the prefill that the notes speak of."""
    mixer.eval()
    fixture.check_parameters(mixer)
    published = {f"mixer.{name}": tensor for name, tensor in fixture.state_dict().items()}
    ours = {name.removeprefix("mixer."): tensor for name, tensor in block_from_published(published).items()}
    mixer.load_state_dict(ours, strict=True)
    (x,) = fixture.inputs()
    full, _ = mixer(x)
    outputs = dict.fromkeys(("full", "y", "out"), full)
    length = fixture.note(r"(\d+) positions")
    if "prefill_then_step" not in fixture.outputs:
        return outputs, None
    if length is None or not 1 <= int(length) <= x.shape[1]:
        raise ParityError("the notes do not say how long the prefill is")
    y, prefill = mixer(x[:, : int(length)])
    parts, state = [y], prefill
    for t in range(int(length), x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        parts.append(y[:, None])
    return outputs | {"prefill_then_step": torch.cat(parts, dim=1)}, prefill


def full_features(reduced: Tensor, dim: int) -> Tensor:
    """Sums of the reduced features (..., 1 + d + d (d + 1) / 2) as the published ones (..., 1 + d + d^2)."""
    first, second = torch.triu_indices(dim, dim)
    products = reduced[..., 1 + dim :] * torch.where(first == second, 1.0, 0.5**0.5)
    square = reduced.new_zeros(*reduced.shape[:-1], dim, dim)
    square[..., first, second] = products
    square[..., second, first] = products
    return torch.cat([reduced[..., : 1 + dim], square.flatten(-2)], dim=-1)


def _agree(got: Tensor, want: Tensor) -> None:
    """Two of our own ways to the same numbers."""
    if not (got - want).abs().max() <= 1e-4 * max(1.0, float(want.abs().max())):
        raise ParityError(f"our own forms differ by {float((got - want).abs().max()):.2e}")


def linear_attention(fixture: Fixture) -> dict[str, Any]:
    """`LinearAttention`, in both of our forms."""
    options = linear_options(fixture.kwargs)
    parallel, _ = run_mixer(fixture, TaylorLinearAttention(**options, form="parallel"))
    outputs, state = run_mixer(fixture, TaylorLinearAttention(**options, chunk_size=4))
    _agree(parallel["full"], outputs["full"])
    if state is not None:
        memory = full_features(state["memory"], options["feature_dim"])[:, :, None]
        outputs |= {"kv_state_prefill": memory[..., :-1, :], "k_state_prefill": memory[..., -1:, :]}
    return outputs


def sliding_attention(fixture: Fixture) -> dict[str, Any]:
    """`SlidingAttention`."""
    return run_mixer(fixture, SlidingAttention(**sliding_options(fixture.kwargs)))[0]


def base_conv(fixture: Fixture) -> dict[str, Any]:
    """`BaseConv`."""
    return run_mixer(fixture, BaseConv(**conv_options(fixture.kwargs)))[0]


def _renamed(options: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in options.items()}


#: Mixers of a language model by the end of their published path: our name, options, and their names in the config.
_KINDS: dict[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]], dict[str, str]]] = {
    "BaseConv": (
        "conv",
        conv_options,
        {"expand": "conv_expand", "bias": "conv_bias"},
    ),
    "LinearAttention": ("linear", linear_options, {"eps": "linear_eps", "heads": "linear_heads"}),
    "SlidingAttention": ("window", sliding_options, {"scale": "window_scale"}),
}
#: GPT2Config's and the model's own defaults.
_DEFAULTS = {
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "vocab_size": 50257,
    "layer_norm_epsilon": 1e-5,
    "pad_vocab_size_multiple": 1,
    "n_inner": None,
    "rms_norm": False,
    "residual_in_fp32": False,
    "activation_function": "gelu_new",
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
}
_NAMES = {
    "n_embd": "dim",
    "n_layer": "depth",
    "vocab_size": "vocab_size",
    "layer_norm_epsilon": "norm_eps",
    "pad_vocab_size_multiple": "pad_vocab_size_multiple",
    "residual_in_fp32": "residual_in_float32",
    "n_inner": "mlp_dim",
    "mlp_fc1_bias": "mlp_bias",
    "tie_word_embeddings": "tie_embeddings",
}
#: How weights begin, dropout (none in evaluation), kernels, and numbers that other arguments repeat.
_IGNORED = (
    "special_initializer",
    "initializer_range",
    "use_weight_init",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "fused_mlp",
    "fused_dropout_add_ln",
    "fused_bias_fc",
    "use_flash_attn",
    "n_positions",
    "max_position_embeddings",
    "fixed_decay",
    "decay_const",
    "decay_denom",
    "mlp_fc2_bias",
    "ff_mult",
    "n_ctx",
    "reorder_and_upcast_attn",
    "scale_attn_by_inverse_layer_idx",
)
_ONLY = {
    "activation_function": ("swiglu",),
    "mlp_type": ("base",),
    "prenorm": (True,),
    "parallel_block": (False,),
    "word_embed_proj_dim": (None,),
    "attn_dwconv": (False,),
}


def language_model_config(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`GPT2MixerConfig` as ours."""
    given = _DEFAULTS | dict(kwargs)
    heads = given.pop("n_head")
    head_dim = given["n_embd"] // heads
    if given["n_embd"] % heads:
        raise ParityError(f"n_head {heads} does not divide n_embd {given['n_embd']}")
    if given["mlp_fc1_bias"] != given["mlp_fc2_bias"]:
        raise ParityError("mlp_fc1_bias and mlp_fc2_bias differ")
    if given.get("scale_attn_by_inverse_layer_idx"):
        raise ParityError("scale_attn_by_inverse_layer_idx is not supported")
    if given["n_inner"] is None:
        given["n_inner"] = int(8 * given["n_embd"] / 3)
    attention = {
        "num_heads": heads,
        "num_heads_kv": given.pop("n_head_kv", None),
        "softmax_scale": None if given.pop("scale_attn_weights", True) else 1.0,
        "rotary_emb_dim": int(given.pop("rotary_emb_fraction", 0.0) * head_dim),
        "rotary_emb_base": given.pop("rotary_emb_base", 10000.0),
        "rotary_emb_scale_base": given.pop("rotary_emb_scale_base", None),
        "rotary_emb_interleaved": given.pop("rotary_emb_interleaved", False),
        "qkv_proj_bias": given.pop("qkv_proj_bias", True),
        "out_proj_bias": given.pop("out_proj_bias", True),
    }
    config: dict[str, Any] = {}
    roles = {}
    for role in ("mixer", "alt_mixer", "alt_mixer_2"):
        roles[role], options = _mixer(given.pop(role, None), attention)
        for name, value in options.items():
            if config.setdefault(name, value) != value:
                raise ParityError(f"{role}: {name}={value!r}, another mixer has {config[name]!r}")
    second, first = (given.pop(name, None) or () for name in ("alt_mixer_2_layers", "alt_mixer_layers"))
    layout = [
        roles["alt_mixer_2" if i in second else "alt_mixer" if i in first else "mixer"] for i in range(given["n_layer"])
    ]
    if "attention" in layout:
        config["attention"] = {
            "heads": heads,
            "kv_heads": attention["num_heads_kv"],
            "scale": attention["softmax_scale"],
            "rotary_dim": attention["rotary_emb_dim"],
            "rotary_base": attention["rotary_emb_base"],
            "qkv_bias": attention["qkv_proj_bias"],
            "output_bias": attention["out_proj_bias"],
        }
        if attention["rotary_emb_interleaved"] or attention["rotary_emb_scale_base"]:
            raise ParityError("rotary_emb_interleaved and rotary_emb_scale_base are not supported beside attention")
    norm = "rms" if given.pop("rms_norm") else "layer"
    return config | translate(given, _NAMES, ignored=_IGNORED, only=_ONLY) | {"norm": norm, "layout": tuple(layout)}


def _mixer(value: Mapping[str, Any] | None, attention: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Our name of a published mixer, and its options as fields of the config."""
    if value is None:
        return "attention", {}
    options = dict(value)
    target = options.pop("_target_").rsplit(".", 1)[-1]
    if target not in _KINDS:
        raise ParityError(f"mixer {target!r} is not supported; supported: {', '.join(_KINDS)}")
    name, read, fields = _KINDS[target]
    if target == "SlidingAttention":
        options |= attention
    elif target == "LinearAttention":
        options.setdefault("num_heads", 16)
    return name, _renamed(read(options), fields)


@torch.no_grad()
def language_model(fixture: Fixture) -> dict[str, Any]:
    """`GPTLMHeadModel`: prefill at once, and once more in two parts and steps, which must agree."""
    model = build_model("based", language_model_config(fixture.kwargs)).eval()
    fixture.check_parameters(model)
    load_published(model, fixture.state_dict(), constants=fixture.data.get("constants", ()))
    (tokens,) = fixture.inputs()
    hidden, _ = model.hidden(tokens)
    logits, _ = model(tokens)
    half = tokens.shape[1] // 2
    state = model(tokens[:, :half])[1] if half else model.initial_state(tokens.shape[0])
    for t in range(half, tokens.shape[1]):
        stepped, state = model.step(tokens[:, t], state)
        _agree(stepped, logits[:, t])
    return {"hidden": hidden, "logits": logits}


ADAPTERS = {
    "based.models.gpt.GPTLMHeadModel": language_model,
    "based.models.mixers.linear_attention.LinearAttention": linear_attention,
    "based.models.mixers.slide_attention.SlidingAttention": sliding_attention,
    "based.models.mixers.convolution.BaseConv": base_conv,
}
