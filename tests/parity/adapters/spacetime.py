"""HazyResearch/spacetime: the network, and the powers of companion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from statescan import ssm
from statescan.layers import DifferencingFilters
from statescan.models import build_model
from statescan.models._published import load_published
from statescan.models.spacetime import SpaceTime
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

_SYSTEM = dict(kernel_repeat=(1,), kernel_weights=(None,), kernel_init=("normal", "xavier"), kernel_train=(True,))
_PERCEPTRON = dict(
    activation=("gelu",),
    layernorm=(False,),
    n_layers=(1,),
    n_activations=(1,),
    pre_activation=(True,),
    input_shape=("bld",),
    average_pool=(None,),
    hidden_dim=(None,),
)


def _same(name: str, values: Sequence[Any]) -> Any:
    """What all blocks have; ours have it in common."""
    if any(value != values[0] for value in values):
        raise ParityError(f"{name}: blocks differ ({values}); ours have one value in common")
    return values[0]


def _require(name: str, value: Any, *accepted: Any) -> None:
    if value not in accepted:
        raise ParityError(f"argument {name}={value!r} is not supported; supported: {accepted}")


def _system(given: Mapping[str, Any], dim: int, *, closed: bool) -> dict[str, Any]:
    method = given["method"].removeprefix("closed_loop_")
    _require("method", given["method"], *([f"closed_loop_{m}" if closed else m for m in ("companion", "shift")]))
    ignored = ("seed", "n_heads", "head_dim", *(("lag", "horizon", "skip_connection") if closed else ()))
    names = {"model_dim": "dim", "n_kernels": "kernels", "kernel_dim": "state_dim", "norm_order": "norm_order"}
    only = _SYSTEM | ({"use_initial": (False,)} if closed else {})
    values = {"skip_connection": False} | given["kwargs"]
    options = translate(values, names | ({} if closed else {"skip_connection": "skip"}), ignored=ignored, only=only)
    _require("model_dim", options.pop("dim"), dim)
    return options | {"shift": method == "shift"}


def _perceptron(given: Mapping[str, Any]) -> dict[str, Any]:
    _require("mlp method", given["method"], "mlp")
    defaults = dict(activation=None, n_activations=0, pre_activation=False, dropout=0.0, skip_connection=False)
    return translate(
        defaults | given["kwargs"],
        {"input_dim": "input_dim", "output_dim": "output_dim", "dropout": "dropout", "skip_connection": "skip"},
        only=_PERCEPTRON,
    )


def config_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Our config from the published one."""
    translate(
        kwargs,
        {f"{part}_config": part for part in ("embedding", "encoder", "decoder", "output")},
        ignored=("lag", "horizon", "inference_only"),
    )
    embedding, head = kwargs["embedding_config"], _perceptron(kwargs["output_config"])
    _require("embedding method", embedding["method"], "repeat", "linear")
    blocks, (decoder,) = kwargs["encoder_config"]["blocks"], kwargs["decoder_config"]["blocks"]
    inner = embedding["kwargs"]
    dim = inner.get("embedding_dim") or inner["input_dim"] * inner["n_heads"] * inner["n_kernels"]
    systems = [_system(block["ssm_config"], dim, closed=False) for block in blocks]
    mixers = [_perceptron(block["mlp_config"]) for block in blocks]
    closed = _system(decoder["ssm_config"], dim, closed=True)
    if closed["norm_order"] == 0:
        raise ParityError("norm_order=0 of the published closed loop puts b in place of k; ours does not")
    for block in (*blocks[1:], decoder):
        _require("pre_config method", block["pre_config"]["method"], "identity", None)
    _require("decoder mlp", decoder["mlp_config"]["method"], "identity", None)
    _require("head skip", head["skip"], False)
    filters = blocks[0]["pre_config"]
    options: dict[str, Any] = dict(filters=0)
    if filters["method"] == "residual":
        _require("skip_preprocess", blocks[0].get("skip_preprocess", False), False)
        options = translate(
            dict(max_diff_order=4, min_avg_window=4, max_avg_window=720, n_kernels=8) | filters["kwargs"],
            {"max_diff_order": "difference_order", "n_kernels": "filters", "head_dim": "filter_head_dim",
             "min_avg_window": "low", "max_avg_window": "high", "model_dim": "dim"},
            ignored=("kernel_dim", "kernel_repeat", "n_heads", "seed", "kernel_weights", "kernel_init", "kernel_train",
                     "skip_connection"),
        )  # fmt: skip
        _require("pre model_dim", options.pop("dim"), dim)
        options["windows"] = (options.pop("low"), options.pop("high"))
    else:
        _require("pre_config method", filters["method"], "identity", None)
    return dict(
        input_dim=inner["input_dim"],
        output_dim=head["output_dim"],
        dim=dim,
        depth=len(blocks),
        kernels=tuple(system["kernels"] for system in systems),
        state_dim=_same("kernel_dim", [system["state_dim"] for system in (*systems, closed)]),
        norm_order=_same("norm_order", [s["norm_order"] for s in (*systems, closed) if not s["shift"]]),
        decoder_kernels=closed["kernels"],
        shift=_same("method", [system["shift"] for system in systems]),
        decoder_shift=closed["shift"],
        embedding=embedding["method"],
        dropout=_same("dropout", [mixer["dropout"] for mixer in mixers]),
        skip=_same("skip_connection", [block.get("skip_connection", False) for block in blocks]),
        mlp_skip=_same("mlp skip_connection", [mixer["skip"] for mixer in mixers]),
        ssm_skip=_same("ssm skip_connection", [system["skip"] for system in systems]),
        centred=False,
        **options,
    )


def network(fixture: Fixture) -> dict[str, Any]:
    """`SpaceTime`: the windows that it drew, and kept in a buffer, are told beside the weights."""
    model: SpaceTime = build_model("spacetime", config_of(fixture.kwargs)).eval()
    fixture.check_parameters(model)
    tensors = fixture.state_dict()
    first: Any = model.blocks[0]
    if isinstance(first.filters, DifferencingFilters):
        first.filters.set_windows(torch.tensor(fixture.data["ours"]["kwargs"]["ma_windows"]))
        tensors |= {
            "encoder.blocks.0.pre.ma_r_kernel": first.filters.average_kernel,
            "encoder.blocks.0.pre.diff_kernel": first.filters.difference_kernel,
        }
    for name, buffer in model.named_buffers():
        if name.endswith((".a", ".b")):  # of systems that are fixed shifts
            tensors[name.replace("blocks.", "encoder.blocks.").replace("decoder.", "decoder.blocks.ssm.")] = buffer
    load_published(model, tensors)
    (x,) = fixture.inputs()
    with torch.no_grad():
        found = model(x, fixture.kwargs.get("horizon", 1))
        embedded = model.embedding(x) if model.embedding else x.repeat(1, 1, model.config.dim // x.shape[2])
        return {
            "y_closed": found.forecast,
            "y_open": found.one_step,
            "z_next_pred": found.next_inputs,
            "z_next_true": found.inputs,
            "pre": first.filters(embedded)[0] if first.filters is not None else embedded,
            "krylov": first.ssm.kernel(x.shape[1]),
        }


def powers(fixture: Fixture) -> dict[str, Any]:
    """`krylov` and `companion_krylov`."""
    translate(fixture.kwargs, {})
    p, b, c = fixture.inputs()
    a = p / p.abs().sum(-1, keepdim=True)
    length = fixture.outputs["krylov"][-1]
    A = ssm.companion_matrix(a)
    fast, naive = ssm.companion_kernel(a, b, c, length), ssm.companion_kernel_naive(a, b, c, length)
    if not torch.allclose(fast, naive, atol=1e-5):
        raise ParityError("the fast and the naive kernel differ")
    return {"companion": A, "krylov": fast, "krylov_states": ssm.krylov(A, b, length)}


ADAPTERS = {
    "model.network.SpaceTime": network,
    "model.functional.krylov.krylov; model.functional.companion_krylov.companion_krylov": powers,
}
