"""HazyResearch/safari: long convolutions, H3 with them, and the backbone around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import H3Conv, LongConv
from statescan.models import build_model
from statescan.models.h3 import mixer_from_published
from statescan.models.long_conv import from_published, layer_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.s4 import activation

KERNEL_NAMES = {"lam": "threshold", "kernel_dropout": "kernel_dropout"}
#: Rates of learning and bookkeeping; the class takes any further keyword and ignores it.
KERNEL_IGNORED = ("learning_rate", "verbose", "lr", "wd", "layer_idx", "device", "dtype")
KERNEL_ONLY = {"causal": (True,)}
INITIALISATIONS = {"random": "random", "double_exp": "geometric"}


def kernel_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Published arguments of `LongConvKernel` under our names, and the arguments that are not its own."""
    rest = {"lam": 0.1} | dict(given)
    options: dict[str, Any] = {"initialisation": INITIALISATIONS[rest.pop("weight_init", "random")]}
    frequency, options["window"] = rest.pop("smooth_freq", False), rest.pop("ma_window_len", 7)
    if rest.pop("use_ma_smoothing", False):
        options["smoothing"] = "frequency" if frequency else "mean"
    else:
        options["window"] = 7
    own = {name: rest.pop(name) for name in list(rest) if name in {*KERNEL_NAMES, *KERNEL_IGNORED, *KERNEL_ONLY}}
    return options | translate(own, KERNEL_NAMES, ignored=KERNEL_IGNORED, only=KERNEL_ONLY), rest


LAYER_NAMES = {
    "d_model": "dim",
    "l_max": "max_length",
    "channels": "channels",
    "bidirectional": "bidirectional",
    "dropout": "dropout",
    "tie_dropout": "tied_dropout",
}
LAYER_ONLY = {"weight_norm": (False,), "initializer": (None,), "block_fft_conv": (False,), "block_fft_conv_args": ({},)}


def layer_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Published arguments of `LongConv` under our names."""
    options, rest = kernel_options(given)
    rest.pop("transposed", None)
    options["activation"] = activation(rest.pop("activation", "gelu"))
    output = rest.pop("postact", "glu")
    options["output"] = None if output is None else activation(output)
    return options | translate(rest, LAYER_NAMES, only=LAYER_ONLY)


@torch.no_grad()
def layer(fixture: Fixture) -> dict[str, Any]:
    """`LongConv`: its output and its kernel after smoothing and squash."""
    transposed = fixture.kwargs.get("transposed", True)
    own = LongConv(**layer_options(fixture.kwargs)).eval()
    fixture.check_parameters(own)
    own.load_state_dict(layer_from_published(fixture.state_dict()), strict=True)
    x, *rest = fixture.inputs()
    lengths = rest[0] if rest else None
    y, _ = own(x.transpose(1, 2) if transposed else x, lengths=lengths)
    return {"y": y.transpose(1, 2) if transposed else y, "kernel": own.kernel()}


@torch.no_grad()
def h3_conv(fixture: Fixture) -> dict[str, Any]:
    """`H3Conv`, and both its kernels."""
    options, rest = kernel_options(fixture.kwargs)
    names = {"d_model": "dim", "l_max": "max_length"}
    # with heads of several channels the published kernels do not fit
    options |= translate(
        rest, names, ignored=("use_fast_fftconv", "dropout"), only={"head_dim": (1,), "channels": (1,)}
    )
    own = H3Conv(**options).eval()
    fixture.check_parameters(own)
    table = {"k_D": "shift_D", "k_kernel.kernel": "shift_kernel.taps", "kernel.kernel": "kernel.taps"}
    renamed = {table.get(name, name): tensor for name, tensor in fixture.state_dict().items()}
    own.load_state_dict(mixer_from_published(renamed), strict=True)
    (x,) = fixture.inputs()
    y, _ = own(x)
    return {"y": y, "kernel": own.kernel(), "k_kernel": own.shift_kernel()}


BACKBONE_NAMES = {
    "d_model": "dim",
    "n_layers": "depth",
    "prenorm": "prenorm",
    "norm": "norm",
    "dropout": "dropout",
    "tie_dropout": "tied_dropout",
}
BACKBONE_ONLY = {"residual": ("R",), "n_repeat": (1,), "pool": (None,)}


@torch.no_grad()
def backbone(fixture: Fixture) -> dict[str, Any]:
    """`SequenceModel` of long convolutions: the blocks alone, without encoder and head."""
    given = {"n_layers": 1, "norm": None} | fixture.kwargs
    inner = given.pop("layer")
    if isinstance(inner, list) and len(inner) == 1:
        inner = inner[0]
    if not isinstance(inner, dict) or inner.get("_name_") != "long-conv":
        raise ParityError(f"layer: {inner!r} is not supported; supported: one 'long-conv'")
    if isinstance(given["norm"], dict) and set(given["norm"]) == {"_name_"}:
        given["norm"] = given["norm"]["_name_"]
    transposed = given.pop("transposed", False)
    if transposed and given["norm"] == "layer":
        raise ParityError("transposed=True with norm='layer' is another norm, which is not supported")
    options = translate(given, BACKBONE_NAMES, ignored=("track_norms", "dropinp"), only=BACKBONE_ONLY)
    options |= layer_options({name: value for name, value in inner.items() if name not in ("_name_", "dropout")})
    model = build_model("long_conv", options | {"input_dim": options["dim"]}).eval()
    model.encoder = model.decoder = nn.Identity()
    fixture.check_parameters(model)
    tensors: dict[str, Tensor] = fixture.state_dict()
    model.load_state_dict(from_published(tensors, model.config), strict=True)
    return {"y": model.hidden(*fixture.inputs())}


ADAPTERS = {
    "src.models.sequence.long_conv.LongConv": layer,
    "src.models.sequence.h3_conv.H3Conv": h3_conv,
    "src.models.sequence.model.SequenceModel": backbone,
}
