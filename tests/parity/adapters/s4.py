"""state-spaces/s4: the blocks and kernels of S4 and S4D, and the example classifier."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from statescan import ssm
from statescan.layers import S4, S4D, DiagonalKernel, DPLRKernel
from statescan.models import build_model, load_published
from statescan.models._s4_names import block_from_published, minimal_from_published
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError

#: Kernels by their published names.
KERNELS = dict.fromkeys(("diag", "s4d"), "diagonal") | dict.fromkeys(("dplr", "nplr", "s4"), "dplr")
#: Published defaults that are not ours.
KERNEL_DEFAULTS = {"init": "legs"}
#: Of kernels of either kind.
KERNEL_NAMES = {
    "n_ssm": "copies",
    "init": "initialisation",
    "measure": "initialisation",
    "disc": "discretization",
    "rank": "rank",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "dt_tie": "dt_tie",
    "dt_transform": "dt_transform",
    "dt_fast": "dt_sinh",
    "real_transform": "real_transform",
    "imag_transform": "imaginary_transform",
    "bandlimit": "bandlimit",
    "is_real": "real",
}
#: Speed, bookkeeping, rates of learning, and first values, which the fixture's weights replace.
KERNEL_IGNORED = (
    *("backend", "verbose", "wd", "deterministic", "B_clip", "B_init", "real_scale", "imag_scale", "scaling"),
    *("real_random", "imag_random", "normalize", "diagonal", "random_real", "real_init", "block_diag"),
)
ACTIVATIONS = {None: "identity", "id": "identity", "linear": "identity", "swish": "silu"}


def activation(name: str | None) -> str:
    """Our name of a published activation."""
    return ACTIVATIONS.get(name, name)  # type: ignore[return-value]


def kernel_options(given: Mapping[str, Any], kernel: str) -> dict[str, Any]:
    """Published arguments of a kernel under our names."""
    rest = dict(given)
    rates = rest.pop("lr", None)
    options = translate(rest, KERNEL_NAMES, ignored=KERNEL_IGNORED)
    # A rate of learning of 0 makes a buffer of a parameter.
    rates = rates if isinstance(rates, dict) else dict.fromkeys(("dt", "A", "B", "C"), rates)
    options["frozen"] = tuple(part for part, rate in rates.items() if rate == 0.0 and rate is not None)
    if kernel == "dplr":
        options.pop("discretization", None)  # the published class reads it and then is bilinear anyway
    return {name: value for name, value in options.items() if value is not None or name in ("copies", "bandlimit")}


def s4_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Published arguments of `S4Block` under the names of `layers.S4`."""
    rest = {"init": "legs", "mode": "dplr", "final_act": "glu", "activation": "gelu", "mult_act": None} | dict(given)
    for broken in ("gate", "bottleneck", "postact", "initializer", "gate_act"):
        if rest.pop(broken, None) is not None:
            raise ParityError(f"argument {broken}={given[broken]!r} is not supported")
    if rest.pop("weight_norm", False):
        raise ParityError("argument weight_norm=True is not supported")
    rest.pop("transposed", None)
    mode = rest.pop("kernel", None) or rest.pop("mode")
    rest.pop("mode", None)
    if mode not in KERNELS:
        raise ParityError(f"kernel {mode!r} is not supported; supported: {', '.join(KERNELS)}")
    output = rest.pop("final_act")
    if rest.get("is_real") and "d_state" not in rest:
        rest["d_state"] = 32  # only a width that is given counts real states
    names = {
        "d_model": "dim",
        "d_state": "state_dim",
        "l_max": "max_length",
        "channels": "channels",
        "swap_channels": "swap_channels",
        "bidirectional": "bidirectional",
        "dropout": "dropout",
        "tie_dropout": "tied_dropout",
        "drop_kernel": "kernel_dropout",
    }
    own = {names[name]: rest.pop(name) for name in list(rest) if name in names}
    own |= {
        "kernel": KERNELS[mode],
        "output": None if output is None else activation(output),
        "activation": activation(rest.pop("activation")),
        "middle_activation": activation(rest.pop("mult_act")),
    }
    return own | kernel_options(rest, KERNELS[mode])


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load strictly, where the published file leaves lengths of kernels at zero."""
    lengths = {n: t for n, t in module.state_dict().items() if n.endswith("kernel_length")}
    module.load_state_dict(lengths | dict(tensors), strict=True)


@torch.no_grad()
def block(fixture: Fixture) -> dict[str, Any]:
    """`S4Block`: forward, kernel, half the sampling rate, steps, two chunks, in this order on one module."""
    transposed = fixture.kwargs.get("transposed", True)
    layer = S4(**s4_options(fixture.kwargs)).eval()
    fixture.check_parameters(layer)
    load(layer, block_from_published(fixture.state_dict()))
    (x,) = fixture.inputs()

    def out(y: Tensor) -> Tensor:
        return y.transpose(1, 2) if transposed else y

    x = out(x)
    length = x.shape[1]
    outputs = {"y": out(layer(x, return_state=False)[0]), "kernel": layer.convolution_kernel(length)}
    if "y_rate" in fixture.outputs:
        outputs["y_rate"] = out(layer(x[:, ::2], rate=2.0, return_state=False)[0])
    if "y_step" in fixture.outputs:
        state, steps = layer.initial_state(x.shape[0]), []
        for t in range(length):
            y, state = layer.step(x[:, t], state)
            steps.append(y)
        outputs["y_step"] = out(torch.stack(steps, 1))
    if "y_chunked" in fixture.outputs:
        first, state = layer(x[:, : length // 2], layer.initial_state(x.shape[0]))
        second, _ = layer(x[:, length // 2 :], state)
        outputs["y_chunked"] = out(torch.cat([first, second], 1))
    return outputs


@torch.no_grad()
def minimal(fixture: Fixture) -> dict[str, Any]:
    """The minimal `S4D`: B is fixed, the imaginary part has the other sign."""
    given = fixture.kwargs
    transposed = given.pop("transposed", True)
    names = {"d_model": "dim", "d_state": "state_dim", "dropout": "dropout", "dt_min": "dt_min", "dt_max": "dt_max"}
    options = translate(given, names, ignored=("lr",) if given.get("lr") != 0 else ())
    layer = S4D(**options, trainable_B=False).eval()
    fixture.check_parameters(layer)
    load(layer, minimal_from_published(fixture.state_dict()))
    (x,) = fixture.inputs()
    x = x.transpose(1, 2) if transposed else x
    y, _ = layer(x)
    kernel = layer.convolution_kernel(x.shape[1])[0]
    return {"y": y.transpose(1, 2) if transposed else y, "kernel": kernel}


def _listed(fixture: Fixture, name: str, default: Any = None) -> Any:
    """An argument that a fixture of kernels gives beside the published ones."""
    return fixture.data["ours"]["kwargs"].get(name, default)


def _set(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(torch.view_as_real(value) if value.is_complex() else value)


@torch.no_grad()
def dplr_kernel(fixture: Fixture) -> dict[str, Any]:
    """`SSMKernelDPLR` on a HiPPO matrix, C given in its original basis, at several sampling rates."""
    given = fixture.kwargs
    dim, state_dim, length = given.pop("d_model"), given.pop("d_state", 64), given.pop("l_max")
    options = kernel_options(KERNEL_DEFAULTS | given, "dplr")
    clip = _listed(fixture, "b_clip", 2.0)
    kernel = DPLRKernel(dim, state_dim, **options, max_length=length, initialisation_options={"clip": clip})
    _, _, _, basis = ssm.nplr(options["initialisation"], state_dim, kernel.rank, clip=clip)
    (C,) = fixture.inputs()
    _set(kernel.C, (C.to(basis.dtype) @ basis).to(torch.complex64)[None])
    _set(kernel.inverse_dt, torch.tensor(_listed(fixture, "dt")).log()[:, None])
    exact = DPLRKernel(dim, state_dim, **options, initialisation_options={"clip": clip})
    exact.load_state_dict(kernel.state_dict())
    dA, dB = exact.dense()
    weights = torch.cat([t := exact.system()[3], t.conj()], -1).to(dA.dtype)[0]
    taps, column = [], dB
    for _ in range(length):
        taps.append(torch.einsum("hn,hn->h", weights, column).real)
        column = (dA @ column[..., None])[..., 0]
    outputs = {"kernel_dense_float64": torch.stack(taps, -1)}
    for name in fixture.outputs:
        if name.startswith("kernel_rate_"):
            rate = float(name.removeprefix("kernel_rate_"))
            outputs[name] = kernel(round(length / rate), rate=rate)[0][0]
    return outputs


@torch.no_grad()
def diagonal_kernels(fixture: Fixture) -> dict[str, Any]:
    """`SSMKernelDiag`: the eigenvalues of every initialisation, and kernels by every discretisation."""
    given = fixture.kwargs
    dim, state_dim = given.pop("d_model"), given.pop("d_state", 64)
    options = kernel_options(given, "diagonal")
    (C,) = fixture.inputs()

    def kernel(initialisation: str, **more: Any) -> Tensor:
        own = DiagonalKernel(dim, state_dim, **(options | {"initialisation": initialisation} | more))
        _set(own.C, C[None])
        _set(own.inverse_dt, torch.tensor(_listed(fixture, "dt")).log()[:, None])
        return own(_listed(fixture, "length"))[0][0]

    outputs: dict[str, Any] = {}
    for name in fixture.outputs:
        kind, _, rest = name.partition("_")
        if kind == "A":
            A, _ = ssm.diagonal(rest, state_dim)
            outputs[name] = torch.stack([A.real, A.imag])
        elif rest == "bandlimit":
            outputs[name] = kernel("diag-lin", bandlimit=_listed(fixture, "bandlimit"))
        else:
            initialisation, discretization = rest.rsplit("_", 1)
            transform = {"real_transform": "none"} if discretization == "dss" else {}
            outputs[name] = kernel(initialisation, discretization=discretization, **transform)
    return outputs


def _layer_of_example(fixture: Fixture) -> dict[str, Any]:
    """The example's layer, which its class does not take as an argument: the notes name it, shapes tell the rest."""
    shapes = {
        name.removeprefix("s4_layers.0."): shape
        for name, shape, _ in fixture.data["state_dict"]
        if name.startswith("s4_layers.0.")
    }
    written = fixture.note(r"layer:? S4(?:Block|D)[ (]([^;,)]*)") or ""
    given = {name: ast.literal_eval(value) for name, value in re.findall(r"(\w+)=([\w.'\"]+)", written)}
    if "kernel.log_A_real" in shapes:
        names = {"d_state": "state_dim", "dt_min": "dt_min", "dt_max": "dt_max"}
        derived = {"d_state": 2 * shapes["kernel.log_A_real"][1]}
        options = translate(derived | given, names, ignored=("lr", "dropout", "transposed"))
        return options | {"kernel": "diagonal", "discretization": "zoh", "trainable_B": False}
    outputs, copies = shapes["layer.D"][0], shapes["layer.kernel.A_real"][0]
    derived = {
        "d_state": 2 * shapes["layer.kernel.A_real"][1],
        "n_ssm": copies,
        "channels": outputs,
        "bidirectional": shapes["layer.kernel.C"][0] == 2 * outputs,
        "dt_tie": shapes["layer.kernel.inv_dt"][1] == 1,
        "mode": "dplr" if "layer.kernel.P" in shapes else "diag",
        "rank": shapes.get("layer.kernel.P", [1])[0],
    }
    options = s4_options(derived | given | {"d_model": shapes["layer.D"][1]})
    for name in ("dim", "middle_activation", "frozen"):
        options.pop(name)
    return options


def classifier(fixture: Fixture) -> dict[str, Any]:
    """The example's `S4Model`: linear encoder, residual blocks, mean, linear decoder."""
    given = {"d_output": 10, "d_model": 256, "n_layers": 4, "dropout": 0.2, "prenorm": False} | fixture.kwargs
    names = {
        "d_input": "input_dim",
        "d_output": "classes",
        "d_model": "dim",
        "n_layers": "depth",
        "dropout": "dropout",
        "prenorm": "prenorm",
    }
    config = translate(given, names) | {"layout": "example"}
    layer = _layer_of_example(fixture)
    family = "s4" if layer["kernel"] == "dplr" else "s4d"
    layer = {"discretization": "zoh" if family == "s4d" else "bilinear"} | layer
    model = build_model(family, config | layer).eval()
    fixture.check_parameters(model)
    constants = {name: torch.zeros(shape, dtype=torch.int64) for name, shape, _ in fixture.data.get("constants", [])}
    load_published(model, fixture.state_dict() | constants)
    with torch.no_grad():
        return {"logits": model(*fixture.inputs())}


ADAPTERS = {
    "example.S4Model": classifier,
    "models.s4.s4.S4Block": block,
    "models.s4.s4.SSMKernelDPLR": dplr_kernel,
    "models.s4.s4.SSMKernelDiag": diagonal_kernels,
    "models.s4.s4d.S4D": minimal,
}
