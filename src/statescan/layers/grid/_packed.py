"""Linear layers and convolutions whose weights lie as oneDNN multiplies by them, for inference on a CPU.

PyTorch hands its matrix library plain weights, which that library arranges anew at every call; for the small batches of
inference this takes as long as half of the product. `torch.compile` avoids it by operators that take weights arranged
beforehand and apply an activation on the way out. These layers call the same operators.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.kernels import cpu, cpu_merged_scan
from statescan.layers.grid._parts import GridConvolution
from statescan.layers.grid._route_scan import RouteScan
from statescan.ops._dispatch import unheard
from statescan.routes import Route

#: oneDNN's names of activations, with what tells variants of one apart.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, str]] = {
    nn.Identity: ("none", ""),
    nn.ReLU: ("relu", ""),
    nn.SiLU: ("swish", ""),
    nn.Sigmoid: ("sigmoid", ""),
}


_FEW_CHANNELS = 8


def packs() -> bool:
    """Whether this PyTorch has the operators, and a CPU that they run on."""
    operators = torch.ops.mkldnn
    names = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_reorder_convolution_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(operators, name) for name in names)


def fused_activation(activation: nn.Module) -> tuple[str, str] | None:
    """oneDNN's words for an activation; None where it has none."""
    if isinstance(activation, nn.GELU):
        return "gelu", activation.approximate
    return _ACTIVATIONS.get(type(activation))


class _Packed(nn.Module):
    """What both share: weights that are arranged when they are first needed, and never copied or saved so."""

    activation: nn.Module
    fused: tuple[str, str]
    arranged: dict[Any, Any]

    def _begin(self, activation: nn.Module) -> None:
        fused = fused_activation(activation)
        assert fused is not None, f"no fused form of {activation}"
        self.activation, self.fused, self.arranged = activation, fused, {}

    @staticmethod
    def _takes(x: Tensor, weight: Tensor) -> bool:
        """Whether the operators run; else the plain layer does, with gradients."""
        return (
            type(x) in (Tensor, nn.Parameter)
            and x.dtype == weight.dtype == torch.float32
            and x.is_cpu
            and weight.is_cpu
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
            and not torch.compiler.is_compiling()
            and x.numel() > 0
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"arranged": {}}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.arranged = {}  # weights may move or change their type
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.arranged = {}
        super()._load_from_state_dict(*args, **kwargs)


class PackedLinear(_Packed, nn.Linear):
    """A linear layer and the activation after it. It keeps the layer's parameters under their names.

    Arguments:
        weight: (out_features, in_features), or that of a convolution of single cells.
        bias: (out_features,), or None.
        activation: one that `fused_activation` knows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.flatten(1).shape
        self.register_parameter("weight", nn.Parameter(weight, requires_grad=weight.requires_grad))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=bias.requires_grad))
        self._begin(activation or nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if not self._takes(x, self.weight):
            return self.activation(F.linear(x, self.weight.flatten(1), self.bias))
        if not self.arranged:
            self.arranged[None] = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().flatten(1).contiguous())
        name, variant = self.fused
        return torch.ops.mkldnn._linear_pointwise(x, self.arranged[None], self.bias, name, [], variant)


class PackedConvolution(_Packed, nn.Conv2d):
    """A convolution of channels-last grids and the activation after it. It keeps the layer's parameters.

    The best arrangement depends on the grid's size: it is made for each size that comes, the last few of which are kept.

    Arguments:
        convolution: what it takes the place of; padded by zeros, by numbers.
        activation: one that `fused_activation` knows.
    """

    _kept = 4

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None = None):
        nn.Module.__init__(self)
        assert not isinstance(convolution.padding, str) and convolution.padding_mode == "zeros"
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed")
        for name in (*names, "output_padding", "groups", "padding_mode", "weight", "bias"):
            setattr(self, name, getattr(convolution, name))
        self._begin(activation or nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels in) -> (batch, new height, new width, channels out)."""
        x = x.permute(0, 3, 1, 2)
        geometry = self.stride, self.dilation, self.groups
        if not self._takes(x, self.weight):
            return self.activation(
                F.conv2d(x, self.weight, self.bias, geometry[0], self.padding, *geometry[1:])
            ).permute(0, 2, 3, 1)
        weight = self.arranged.get(x.shape)
        if weight is None:
            while len(self.arranged) >= self._kept:
                self.arranged.pop(next(iter(self.arranged)))
            plain = self.weight.detach().contiguous()
            weight = torch.ops.mkldnn._reorder_convolution_weight(plain, self.padding, *geometry, list(x.shape))
            self.arranged[x.shape] = weight
        name, variant = self.fused
        y = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, self.padding, *geometry, name, [], variant)
        return y.permute(0, 2, 3, 1)


class PackedRouteScan(_Packed, RouteScan):
    """Scans along a route whose weights are arranged once, for the projection of the cells and for the scans.

    Arguments:
        scan: what it takes the place of; it keeps its parameters.
    """

    def __init__(self, scan: RouteScan):
        nn.Module.__init__(self)
        self.channels, self.walks = scan.channels, scan.walks
        self.state_dim, self.dt_rank = scan.state_dim, scan.dt_rank
        for name, parameter in scan.named_parameters():
            self.register_parameter(name, parameter)
        self.arranged = {}

    def forward(self, grid: Tensor, route: Route) -> Tensor:
        """Scan a grid (batch, height, width, channels) along a route: the sum over walks, of the same shape."""
        batch, height, width, channels = grid.shape
        if (
            channels != self.channels
            or route.walks != self.walks
            or route.misses(height, width)
            or not route.adds
            or not (cpu.available() and unheard("cpu", grid) and self._takes(grid, self.selection_weight))
        ):
            return super().forward(grid, route)
        if "scan" not in self.arranged:
            rates = -torch.exp(self.A_log.detach())
            weights = self.delta_weight.detach(), rates, self.D.detach(), self.delta_bias.detach().flatten()
            plain = self.selection_weight.detach().flatten(0, 1).contiguous()
            self.arranged["scan"] = cpu_merged_scan.arrange(*weights)
            self.arranged["selection"] = torch.ops.mkldnn._reorder_linear_weight(plain)
        table = route.table(height, width, grid.device)
        if self.arranged.get("table") is not table:  # the last grid's walks are likely the next one's
            self.arranged["table"], self.arranged["order"] = table, table.to(torch.int32).contiguous()
        cells = grid.reshape(batch, height * width, channels)
        selected = torch.ops.mkldnn._linear_pointwise(cells, self.arranged["selection"], None, "none", [], "")
        selected = selected.view(batch, height * width, self.walks, -1)
        y = cpu_merged_scan.forward(cells, selected, self.arranged["scan"], self.arranged["order"])
        return y.view(grid.shape)


def pack(module: nn.Module) -> nn.Module:
    """Replace the linear layers, convolutions and scans along routes inside a module by packed ones, in place.

    A module whose class has `activated`, names of layers after each of which its ``activation`` comes at once, gets them
    in one, and so does an `nn.Sequential` that holds them one after the other.
    """
    names: tuple[str, ...] = getattr(type(module), "activated", ())
    activation = getattr(module, "activation", None)
    activated = dict.fromkeys(names, activation) if _fuses(module, names, activation) else {}
    children = list(module.named_children())
    if type(module).forward is nn.Sequential.forward:
        for (name, layer), (after, following) in zip(children, children[1:], strict=False):
            if _packable(layer) and fused_activation(following) is not None:
                activated[name] = following
                setattr(module, after, nn.Identity())
    for name, child in children:
        if _packable(child):
            setattr(module, name, _packed(child, activated.get(name)))
        elif child is getattr(module, name):  # else it was an activation, and is gone
            setattr(module, name, _alone(pack(child)))
    if names and activated:
        module.activation = nn.Identity()
    return module


def _alone(module: nn.Module) -> nn.Module:
    """What is left of a sequence in which one layer alone does something: it."""
    if type(module) is not nn.Sequential:
        return module
    left = [layer for layer in module if not isinstance(layer, nn.Identity)]
    return left[0] if len(left) == 1 and isinstance(left[0], _Packed) else module


def _fuses(module: nn.Module, names: tuple[str, ...], activation: Any) -> bool:
    fits = isinstance(activation, nn.Module) and fused_activation(activation) is not None
    return fits and all(_packable(getattr(module, name)) for name in names)


def _packable(layer: nn.Module) -> bool:
    if isinstance(layer, _Packed):
        return False
    if type(layer) is RouteScan:
        return layer.state_dim in cpu_merged_scan.STATES
    if isinstance(layer, nn.Conv2d):
        if not isinstance(layer, GridConvolution) or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return False
        if layer.pointwise:
            return layer.groups == 1
        # Of an image's few channels oneDNN makes more by itself than from weights arranged beforehand.
        return layer.groups > 1 or layer.in_channels >= _FEW_CHANNELS
    return type(layer) is nn.Linear


def _packed(layer: nn.Module, activation: nn.Module | None) -> nn.Module:
    if isinstance(layer, RouteScan):
        return PackedRouteScan(layer)
    if isinstance(layer, GridConvolution) and not layer.pointwise:
        return PackedConvolution(layer, activation)
    assert isinstance(layer, (nn.Linear, GridConvolution))
    return PackedLinear(layer.weight, layer.bias, activation)
