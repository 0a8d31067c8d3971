"""HazyResearch/H3: the mixer, the language model, and the fused convolution's references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan import ops
from statescan.layers import H3
from statescan.layers._h3 import HeadProducts
from statescan.models import build_model
from statescan.models.h3 import mixer_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity._operators import with_gradients
from tests.parity.adapters.mamba import run_language_model

MIXER_NAMES = {
    "d_model": "dim",
    "d_state": "state_dim",
    "l_max": "max_length",
    "head_dim": "head_dim",
    "measure": "initialisation",
    "disc": "discretization",
    "n_ssm": "copies",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "real_type": "real_transform",
    "bandlimit": "bandlimit",
}
#: Bookkeeping and first values.
IGNORED = ("layer_idx", "use_fast_fftconv", "dropout", "device", "dtype", "verbose", "rank", "measure_args")
ONLY = {"mode": ("diag",), "force_real": (False,), "deterministic": (False,), "channels": (1,)}


def mixer_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Published arguments of `H3` under our names."""
    rest = dict(given)
    rates = rest.pop("lr", None)
    options = translate(rest, MIXER_NAMES, ignored=IGNORED, only=ONLY)
    # A rate of learning of 0 makes a buffer of a parameter.
    rates = rates if isinstance(rates, dict) else dict.fromkeys(("dt", "A", "B"), rates)
    frozen = tuple(part for part, rate in rates.items() if rate == 0.0 and rate is not None)
    return options | ({"frozen": frozen} if frozen else {})


def fused_order(weight: Tensor, head_dim: int) -> Tensor:
    """An output projection of the unfused path, which reads heads fastest, for the order of the fused one."""
    return weight.unflatten(1, (head_dim, -1)).transpose(1, 2).flatten(1)


@torch.no_grad()
def mixer(fixture: Fixture) -> dict[str, Any]:
    """`H3`: the forward pass, both kernels, and a prefill with steps after it."""
    given = fixture.kwargs
    layer = H3(**mixer_options(given)).eval()
    fixture.check_parameters(layer)
    tensors = fixture.state_dict()
    if layer.head_dim > 1 and not given.get("use_fast_fftconv", False):
        tensors["output_linear.weight"] = fused_order(tensors["output_linear.weight"], layer.head_dim)
    layer.load_state_dict(mixer_from_published(tensors), strict=True)
    (x,) = fixture.inputs()
    length = x.shape[1]
    full, _ = layer(x, return_state=False)
    taps = min(length, layer.max_length or length)
    shift = layer.shift_kernel(taps)
    outputs: dict[str, Any] = dict.fromkeys(("full", "y", "out"), full)
    outputs["ssm_kernel"] = layer.kernel(taps)[0]
    outputs["shift_kernel"] = F.pad(shift, (0, taps - shift.shape[1]))[None]
    if "prefill_then_step" not in fixture.outputs:
        return outputs
    prefill = int(fixture.note(r"first (\d+) positions") or 0)
    if not 1 <= prefill < length:
        raise ParityError("the notes do not say how long the prefill is")
    y, state = layer(x[:, :prefill])
    outputs["shift_state_prefill"] = state["shift"]
    # eigenvalues have the other sign of the imaginary part there, and so have the states
    outputs["ssm_state_prefill"] = state["ssm"].flatten(0, 1) * torch.tensor([1.0, -1.0])
    parts = [y]
    for t in range(prefill, length):
        y, state = layer.step(x[:, t], state)
        parts.append(y[:, None])
    outputs["prefill_then_step"] = torch.cat(parts, dim=1)
    return outputs


LANGUAGE_MODEL_NAMES = {
    "d_model": "dim",
    "n_layer": "depth",
    "d_inner": "mlp_dim",
    "vocab_size": "vocab_size",
    "attn_layer_idx": "attention_layers",
    "layer_norm_epsilon": "norm_eps",
    "residual_in_fp32": "residual_in_float32",
    "pad_vocab_size_multiple": "pad_vocab_size_multiple",
}
LANGUAGE_MODEL_IGNORED = (
    *("resid_dropout", "embed_dropout", "dropout_cls", "initializer_cfg", "fused_mlp", "fused_dropout_add_ln"),
)
ATTENTION_NAMES = {
    "num_heads": "heads",
    "bias": "qkv_bias",
    "rotary_emb_dim": "rotary_dim",
    "softmax_scale": "scale",
}
ATTENTION_IGNORED = ("dropout", "fused_bias_fc", "use_flash_attn", "checkpointing", "layer_idx", "device", "dtype")
ATTENTION_ONLY = {
    "causal": (True,),
    "cross_attn": (False,),
    "dwconv": (False,),
    "rotary_emb_scale_base": (0, None),
    "return_residual": (False,),
}


def language_model(fixture: Fixture) -> dict[str, Any]:
    """`SSMLMHeadModel`: H3 mixers, attention layers, MLPs."""
    given = {"pad_vocab_size_multiple": 1} | fixture.kwargs
    mixers, attention = (given.pop(name, None) or {} for name in ("ssm_cfg", "attn_cfg"))
    given = {name: value for name, value in given.items() if value is not None}
    options = translate(
        given, LANGUAGE_MODEL_NAMES, ignored=LANGUAGE_MODEL_IGNORED, only={"max_position_embeddings": (0, -1)}
    )
    options |= mixer_options(mixers)
    if "frozen" in options:
        raise ParityError("ssm_cfg: a rate of learning of 0 is not supported in a model")
    if options.get("attention_layers"):
        names = translate(attention, ATTENTION_NAMES, ignored=ATTENTION_IGNORED, only=ATTENTION_ONLY)
        options["attention"] = {"qkv_bias": True, "output_bias": True} | names
    options.setdefault("mlp_dim", 4 * options["dim"])
    model = build_model("h3", options).eval()
    head_dim = model.config.head_dim
    if head_dim == 1 or mixers.get("use_fast_fftconv", False):
        return run_language_model(fixture, model)
    tensors = fixture.state_dict()
    for name in tensors:
        if name.endswith("mixer.output_linear.weight"):
            tensors[name] = fused_order(tensors[name], head_dim)
    return run_language_model(fixture, model, tensors)


def convolutions(fixture: Fixture) -> dict[str, Any]:
    """`fftconv_h3_ref` with its gradients, and `fftconv_ref` with a GELU after it; the time axis is the last."""
    head_dim = translate(fixture.kwargs, {"head_dim": "head_dim"}).get("head_dim", 1)
    named = fixture.named_inputs()
    products = HeadProducts(named["k"].shape[1], head_dim)

    def call(given: dict[str, Tensor]) -> Tensor:
        q, k, v = (given[name].mT for name in ("q", "k", "v"))
        return products.convolve(q, k, v, given["ssm_kernel"], given["D"]).mT

    out, gradients = with_gradients(fixture, named, call)
    first = named["k"][:, : products.heads].mT
    return {"out": out, "plain_gelu": F.gelu(ops.fft_conv(first, named["ssm_kernel"], named["D"])).mT, **gradients}


ADAPTERS = {
    "src.models.ssm.h3.H3": mixer,
    "src.models.sequence.h3.H3": mixer,
    "src.models.ssm_seq.SSMLMHeadModel": language_model,
    "src.ops.fftconv.fftconv_h3_ref / fftconv_ref": convolutions,
}
