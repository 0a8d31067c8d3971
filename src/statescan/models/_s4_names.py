"""Names of the published S4 code (github.com/state-spaces/s4) and ours: blocks, kernels, the minimal S4D layer."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.models._published import add_prefix, split_prefix
from statescan.models._registry import Tensors

_KERNEL = (("inv_dt", "inverse_dt"), ("l_kernel", "kernel_length"))
_PROJECTION = "output_projection."


def kernel_from_published(tensors: Tensors) -> Tensors:
    """The tensors of `SSMKernelDiag` or `SSMKernelDPLR` under the names of `layers.DiagonalKernel`, `DPLRKernel`."""
    names = dict(_KERNEL)
    return {names.get(name, name): t.squeeze(0) if name == "B" else t for name, t in tensors.items()}


def kernel_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `kernel_from_published`."""
    names = {ours: theirs for theirs, ours in _KERNEL}
    return {names.get(name, name): t.unsqueeze(0) if name == "B" else t for name, t in tensors.items()}


def block_from_published(tensors: Tensors) -> Tensors:
    """The tensors of `S4Block` under the names of `layers.S4`."""
    kernel, others = split_prefix(tensors, "layer.kernel.")
    ours = add_prefix(kernel_from_published(kernel), "kernel.")
    for name, tensor in others.items():
        for theirs, mine in (("layer.D", "D"), ("output_linear.0.", _PROJECTION), ("output_linear.", _PROJECTION)):
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
                break
        ours[name] = tensor
    return ours


def block_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `block_from_published`."""
    kernel, others = split_prefix(tensors, "kernel.")
    published = add_prefix(kernel_to_published(kernel), "layer.kernel.")
    for name, tensor in others.items():
        if name.startswith(_PROJECTION):
            name = "output_linear.0." + name.removeprefix(_PROJECTION)
        published["layer.D" if name == "D" else name] = tensor
    return published


def minimal_from_published(tensors: Tensors) -> Tensors:
    """The tensors of the minimal `S4D` layer under the names of `layers.S4D` with a fixed B.

    Its eigenvalues have the other sign of the imaginary part: with C conjugated the kernel is the same.
    """
    names = {
        "D": "D",
        "kernel.C": "kernel.C",
        "kernel.log_dt": "kernel.inverse_dt",
        "kernel.log_A_real": "kernel.A_real",
        "kernel.A_imag": "kernel.A_imag",
    }
    ours = {}
    for name, tensor in tensors.items():
        if name == "D":
            tensor = tensor.unsqueeze(0)
        elif name == "kernel.log_dt":
            tensor = tensor.unsqueeze(-1)
        elif name == "kernel.C":
            tensor = _conjugate(tensor).unsqueeze(0)
        elif name == "output_linear.0.weight":
            tensor = tensor.squeeze(-1)
        if name.startswith("output_linear.0."):
            name = _PROJECTION + name.removeprefix("output_linear.0.")
        ours[names.get(name, name)] = tensor
    return ours


def minimal_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `minimal_from_published`."""
    published = {}
    for name, tensor in tensors.items():
        if name == "D":
            published["D"] = tensor.squeeze(0)
        elif name == "kernel.inverse_dt":
            published["kernel.log_dt"] = tensor.squeeze(-1)
        elif name == "kernel.C":
            published[name] = _conjugate(tensor.squeeze(0))
        elif name == "kernel.A_real":
            published["kernel.log_A_real"] = tensor
        elif name == f"{_PROJECTION}weight":
            published["output_linear.0.weight"] = tensor.unsqueeze(-1)
        elif name == f"{_PROJECTION}bias":
            published["output_linear.0.bias"] = tensor
        else:
            published[name] = tensor
    return published


def _conjugate(pair: Tensor) -> Tensor:
    return torch.stack([pair[..., 0], -pair[..., 1]], dim=-1)


def s4nd_from_published(tensors: Tensors) -> Tensors:
    """The tensors of `S4ND` under the names of `layers.S4ND`."""
    ours: Tensors = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head == "kernel":
            axis, _, part = rest.partition(".")
            ours |= add_prefix(kernel_from_published({part: tensor}), f"kernels.{axis}.")
        else:
            for theirs in ("output_linear.0.", "output_linear."):
                if name.startswith(theirs):
                    name = _PROJECTION + name.removeprefix(theirs)
                    break
            ours[name] = tensor
    return ours


def s4nd_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `s4nd_from_published`."""
    published: Tensors = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head == "kernels":
            axis, _, part = rest.partition(".")
            published |= add_prefix(kernel_to_published({part: tensor}), f"kernel.{axis}.")
        else:
            name = name.replace(_PROJECTION, "output_linear.0.")
            published[name] = tensor
    return published
