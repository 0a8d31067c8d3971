"""state-spaces/s4: the layer over several axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.layers import S4ND
from statescan.models._s4_names import s4nd_from_published
from tests.parity._fixture import Fixture, ParityError
from tests.parity.adapters.s4 import KERNELS, activation, kernel_options, load

_NAMES = {
    "d_model": "dim",
    "d_state": "state_dim",
    "channels": "channels",
    "bidirectional": "bidirectional",
    "trank": "tensor_rank",
    "linear": "linear",
    "dropout": "dropout",
    "tie_dropout": "tied_dropout",
}
#: Options that change the function and that we lack, with their defaults.
_ABSENT = {"out_channels": None, "initializer": None, "weight_norm": False}
_IGNORED = ("transposed", "return_state", "verbose", "ln", "hyper_act")


def options(fixture: Fixture) -> dict[str, Any]:
    """Published arguments of `S4ND` under our names."""
    given = {"init": "legs", "mode": "dplr", "l_max": None, "dim": 2, "final_act": None} | fixture.kwargs
    for name, default in _ABSENT.items():
        if given.pop(name, default) != default:
            raise ParityError(f"argument {name} is not supported")
    for name in _IGNORED:
        given.pop(name, None)
    mode = given.pop("kernel", None) or given["mode"]
    given.pop("mode")
    if mode not in KERNELS:
        raise ParityError(f"kernel {mode!r} is not supported; supported: {', '.join(KERNELS)}")
    lengths, axes = given.pop("l_max"), given.pop("dim")
    axes = len(lengths) if isinstance(lengths, list) else axes
    version, rank = given.pop("contract_version", 0), given.get("trank", 1)
    if version == 0 and axes != 2:
        raise ParityError(f"contract_version 0 is defined for 2 axes, got {axes}")
    if version != 0 and rank != 1:
        raise ParityError(f"trank={rank} with contract_version {version}: the published sum over ranks is not used")
    own = {_NAMES[name]: given.pop(name) for name in list(given) if name in _NAMES}
    return (
        own
        | {"axes": axes, "max_length": lengths, "kernel": KERNELS[mode]}
        | {"output": activation(given.pop("final_act")), "activation": activation(given.pop("activation", "gelu"))}
        | kernel_options(given, KERNELS[mode])
    )


@torch.no_grad()
def layer(fixture: Fixture) -> dict[str, Any]:
    """`S4ND`: the output, the kernel of each axis, and half the sampling rate on half the positions."""
    transposed = fixture.kwargs.get("transposed", True)
    ours = S4ND(**options(fixture)).eval()
    fixture.check_parameters(ours)
    load(ours, s4nd_from_published(fixture.state_dict()))
    (x,) = fixture.inputs()

    def out(y: Tensor) -> Tensor:
        return y.movedim(-1, 1) if transposed else y

    x = x.movedim(1, -1) if transposed else x
    outputs = {"y": out(ours(x))}
    lengths = [
        size if most is None else min(size, most) for size, most in zip(x.shape[1:-1], ours.max_length, strict=True)
    ]
    outputs |= {f"kernel_{axis}": kernel for axis, kernel in enumerate(ours.axis_kernels(lengths))}
    if "y_rate" in fixture.outputs:
        coarse = x[(slice(None), *[slice(None, None, 2)] * ours.axes)]
        outputs["y_rate"] = out(ours(coarse, rate=2.0))
    return outputs


ADAPTERS = {"src.models.sequence.modules.s4nd.S4ND": layer}
