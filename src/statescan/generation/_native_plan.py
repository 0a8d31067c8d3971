"""A language model as the native decode engine reads it: packed weights and the structures of `csrc/decode_plan.h`."""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.generation._arena import Arena
from statescan.kernels import cpu
from statescan.layers import Attention, GatedMLP, Mamba, Mamba2, ResidualBlock, ResidualStack, RMSNorm

WeightType = Literal["float32", "bfloat16", "int8", "int4"]
WEIGHT_TYPES: tuple[WeightType, ...] = ("float32", "bfloat16", "int8", "int4")
GROUP_SIZES = (32, 64)

_BLOCK = 16  # output rows that lie interleaved
_ROWS = 128  # packed at a time, whole blocks
_INTEGER, _POINTER, _REAL = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("data", "scales", "bias")),
        *((name, _INTEGER) for name in ("rows", "columns", "format", "group")),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", _POINTER), ("bias", _POINTER), ("eps", _REAL), ("layer", _INTEGER)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("kind", _INTEGER),
        ("norm", _Norm),
        *((name, _Matrix) for name in ("in_", "gate", "select", "delta", "out")),
        *((name, _POINTER) for name in ("conv_weight", "conv_bias", "A", "D", "delta_bias", "norm_weight")),
        ("inner", _Norm * 3),
        *(
            (name, _INTEGER)
            for name in (
                *("inner_norms", "inner_dim", "state_dim", "taps", "rank", "heads", "head_dim", "groups", "mlp_dim"),
                *("gated_norm", "norm_before_gate", "norm_group", "kv_heads", "rotary_dim"),
            )
        ),
        *((name, _REAL) for name in ("norm_eps", "delta_minimum", "delta_maximum", "scale")),
        ("rotary", _POINTER),
    ]


class LayerState(ctypes.Structure):
    """Where the engine finds what a layer remembers."""

    _fields_ = [
        *((name, _POINTER) for name in ("conv", "ssm", "keys", "values", "start")),
        *((name, _INTEGER) for name in ("cached", "capacity")),
    ]


class _Plan(ctypes.Structure):
    _fields_ = [
        ("embedding", _POINTER),
        *((name, _INTEGER) for name in ("embedding_type", "dim", "depth")),
        ("layers", _POINTER),
        ("norm", _Norm),
        ("head", _Matrix),
        ("dot_bfloat16", _INTEGER),
    ]


# ---- packing -------------------------------------------------------------------------------------------------------


def _padded(weight: Tensor, step: int) -> Tensor:
    """Zeros below and to the right, up to whole blocks of rows and steps of columns."""
    rows, columns = weight.shape
    return F.pad(weight, (0, -columns % step, 0, -rows % _BLOCK))


def _interleave(weight: Tensor, step: int) -> Tensor:
    """(rows, columns) -> [rows / 16][columns / step][16][step]."""
    rows, columns = weight.shape
    return weight.view(rows // _BLOCK, _BLOCK, columns // step, step).transpose(1, 2).contiguous()


def int4_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes from -8 to 7 (rows, groups, group) and scales (rows, groups), bfloat16: weight is about code x scale.

    Of several scales around largest / 8, with the largest weight's sign, each group takes the one of least square error.
    """
    parts = weight.float().unflatten(1, (-1, group))
    place = parts.abs().argmax(-1, keepdim=True)
    largest = parts.gather(-1, place)
    best_error = torch.full_like(largest, float("inf"))
    best_scale, best_codes = torch.zeros_like(largest), torch.zeros_like(parts, dtype=torch.int8)
    for steps in (-8.0, -7.3, 7.6, -8.8):
        scale = (largest / steps).bfloat16().float()
        codes = (parts / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-8, 7)
        error = (codes * scale - parts).square_().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_codes = torch.where(better, codes.to(torch.int8), best_codes)
    return best_codes, best_scale.squeeze(-1).bfloat16()


def int8_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes from -127 to 127 (rows, columns) and a scale a row, float32."""
    weight = weight.float()
    scale = weight.abs().amax(1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (weight / scale[:, None]).round().to(torch.int8), scale


def pack(weight: Tensor, kind: WeightType, group: int, arena: Arena) -> tuple[Tensor, Tensor | None]:
    """A matrix (rows, columns) as the engine reads it, as bytes of the arena, and int8's scales."""
    scales = []
    packed, place = torch.empty(0), 0
    # A few rows at a time: what is made on the way then stays in the cache.
    for rows in weight.split(_ROWS):
        part, scale = _pack_rows(rows, kind, group)
        flat = part.view(-1).view(torch.uint8)
        if place == 0:
            blocks = -(-rows.shape[0] // _BLOCK)
            packed = arena.take(flat.numel() // blocks * -(-weight.shape[0] // _BLOCK))
        packed[place : place + flat.numel()] = flat
        place += flat.numel()
        if scale is not None:
            scales.append(scale)
    return packed, torch.cat(scales) if scales else None


def _pack_rows(weight: Tensor, kind: WeightType, group: int) -> tuple[Tensor, Tensor | None]:
    if kind == "float32":
        return _interleave(_padded(weight.float(), 1), 1), None
    if kind == "bfloat16":
        return _interleave(_padded(weight.bfloat16(), 2), 2), None
    if kind == "int8":
        codes, scale = int8_channels(_padded(weight, 4))
        return _interleave((codes.to(torch.int16) + 128).to(torch.uint8), 4), scale
    codes, scale = int4_groups(_padded(weight, group), group)
    rows, groups = scale.shape
    nibbles = (codes + 8).to(torch.uint8).view(rows, groups * group // 8, 2, 4)
    pairs = nibbles[:, :, 0] | nibbles[:, :, 1] << 4  # four low nibbles, four high ones
    blocks = _interleave(pairs.view(rows, -1), 4).view(rows // _BLOCK, groups, -1)
    scales = scale.view(rows // _BLOCK, _BLOCK, groups).transpose(1, 2).contiguous().view(torch.uint8)
    return torch.cat([scales, blocks], dim=-1), None


# ---- the plan ------------------------------------------------------------------------------------------------------


def unsupported(model: Any) -> str:
    """Why the engine cannot run a model; empty where it can."""
    if not cpu.available():
        return cpu.why_not()
    stack = getattr(model, "stack", None)
    outer = all(isinstance(getattr(model, name, None), nn.Module) for name in ("embedding", "norm", "head"))
    if not outer or type(stack) is not ResidualStack:
        return f"{type(model).__name__} is no stack of residual blocks between embedding and head"
    if model.device.type != "cpu":
        return f"the model is on {model.device}; the engine runs on the CPU"
    if model.embedding.weight.dtype not in cpu.DTYPES:
        return f"the weights are {str(model.embedding.weight.dtype).removeprefix('torch.')}"
    if type(model.head) is not nn.Linear:
        return f"the head is {type(model.head).__name__}"
    if any(getattr(model.config, name, 1.0) != 1.0 for name in ("embedding_multiplier", "logit_multiplier")):
        return "embeddings or logits are scaled"
    for index, block in enumerate(stack.blocks):
        if type(block) is not ResidualBlock:
            return f"block {index} is {type(block).__name__}"
        if block.scale != 1:
            return f"block {index} scales what it adds"
        reason = _mixer_unsupported(block.mixer) or _channels_unsupported(block.channel_mixer)
        if reason:
            return f"block {index}: {reason}"
    return ""


def _mixer_unsupported(mixer: Any) -> str:
    if getattr(mixer, "token_filter", None) is not None:
        return "tokens are filtered"
    if mixer is None:
        return ""
    if type(mixer) is Mamba2:
        return "" if mixer.multipliers is None else "a Mamba2 mixer with multipliers"
    if type(mixer) is Mamba:
        return "" if mixer.selective else "a Mamba mixer that is not selective"
    if type(mixer) is Attention:
        if not mixer.causal or mixer.rotary_interleaved:
            return "attention that is not causal, or pairs neighbouring channels"
        same = mixer.input_projection.in_features == mixer.output_projection.out_features
        return "" if same else "attention with an input of another width"
    return f"its mixer is {type(mixer).__name__}; known: Mamba, Mamba2, Attention"


def _channels_unsupported(channel_mixer: Any) -> str:
    if channel_mixer is None:
        return ""
    if type(channel_mixer) is not GatedMLP or channel_mixer.activation is not F.silu:
        return f"its channel mixer is {type(channel_mixer).__name__}; known: GatedMLP with SiLU"
    return ""


class Plan:
    """A model's packed weights. `address` is what the engine is given; `nbytes` is what every token reads of it."""

    def __init__(self, model: Any, kind: WeightType, group: int, *, release: bool):
        self.kind, self.group, self._release = kind, group, release
        self.nbytes, self._arena = 0, Arena()
        self._kept: list[Any] = []
        self.layers: list[tuple[int, Any]] = []  # number of the block, its mixer or None for an MLP
        layers = []
        for index, block in enumerate(model.stack.blocks):
            if block.mixer is not None:
                layers.append(self._mixer(block.mixer, block.norm))
                self.layers.append((index, block.mixer))
            if block.channel_mixer is not None:
                layers.append(self._mlp(block.channel_mixer, block.channel_norm))
                self.layers.append((index, None))
        array = (_Layer * max(1, len(layers)))(*layers)
        embedding = model.embedding.weight.detach().contiguous()  # of which a token reads one row
        head = self._matrix(model.head.weight, model.head.bias)
        if release and model.head.weight is not model.embedding.weight:
            model.head.weight.data = torch.empty(0, dtype=embedding.dtype)
        self._kept += [array, embedding]
        self._plan = _Plan(
            embedding.data_ptr(),
            cpu.DTYPES[embedding.dtype],
            embedding.shape[1],
            len(layers),
            ctypes.addressof(array),
            self._norm(model.norm),
            head,
            1,
        )
        self.address = ctypes.addressof(self._plan)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        self.nbytes += tensor.nbytes
        return tensor.data_ptr()

    def _floats(self, tensor: Tensor | None, multiple: int = 1) -> int | None:
        """A vector or (channels, …) in float32, its last axis filled up with zeros."""
        if tensor is None:
            return None
        wide = tensor.detach().float()
        return self._keep(F.pad(wide, (0, -wide.shape[-1] % multiple)).contiguous())

    def _matrix(self, weight: Tensor, bias: Tensor | None = None, *, kind: WeightType | None = None) -> _Matrix:
        kind = kind or self.kind
        packed, scales = pack(weight.detach(), kind, self.group, self._arena)
        rows, columns = weight.shape
        return _Matrix(
            self._keep(packed),
            self._floats(scales),
            self._floats(bias, _BLOCK),
            rows,
            columns,
            WEIGHT_TYPES.index(kind),
            self.group,
        )

    def _linear(self, layer: nn.Linear, **options: Any) -> _Matrix:
        matrix = self._matrix(layer.weight, layer.bias, **options)
        self._drop(layer)
        return matrix

    def _halves(self, layer: nn.Linear) -> tuple[_Matrix, _Matrix]:
        """The first and the second half of the outputs."""
        weights = layer.weight.chunk(2)
        biases = (None, None) if layer.bias is None else layer.bias.chunk(2)
        first, second = (self._matrix(w, b) for w, b in zip(weights, biases, strict=True))
        self._drop(layer)
        return first, second

    def _drop(self, layer: nn.Linear) -> None:
        if self._release:
            layer.weight.data = torch.empty(0, dtype=layer.weight.dtype)

    def _norm(self, norm: Any) -> _Norm:
        plain = isinstance(norm, RMSNorm)
        return _Norm(self._floats(norm.weight), None if plain else self._floats(norm.bias), norm.eps, int(not plain))

    def _mixer(self, mixer: Any, norm: Any) -> _Layer:
        layer = _Layer(norm=self._norm(norm))
        if isinstance(mixer, Mamba):
            self._mamba(layer, mixer)
        elif isinstance(mixer, Mamba2):
            self._mamba2(layer, mixer)
        else:
            self._attention(layer, mixer)
        return layer

    def _convolution(self, layer: _Layer, convolution: Any) -> None:
        layer.conv_weight = self._floats(convolution.weight.detach().t())
        layer.conv_bias = self._floats(convolution.bias)
        layer.taps = convolution.width

    def _mamba(self, layer: _Layer, mixer: Mamba) -> None:
        # The small projections decide the timescales and weigh little: they keep eight bits where others have four.
        small: WeightType = "int8" if self.kind == "int4" else self.kind
        layer.kind = 0
        layer.in_, layer.gate = self._halves(mixer.input_projection)
        layer.select = self._linear(mixer.selection_projection, kind=small)
        layer.delta = self._linear(mixer.delta_projection, kind=small)
        layer.out = self._linear(mixer.output_projection)
        self._convolution(layer, mixer.convolution)
        rates = -torch.exp(mixer.A_log.detach().float()) * 1.4426950408889634  # the engine takes powers of two
        layer.A = self._keep(interleave_states(rates[None])[0])
        layer.D = self._floats(mixer.D, _BLOCK)
        layer.delta_bias = self._floats(mixer.delta_bias, _BLOCK)
        layer.inner_dim, layer.state_dim, layer.rank = mixer.inner_dim, mixer.state_dim, mixer.dt_rank
        if mixer.inner_norms is not None:
            layer.inner_norms = 1
            layer.inner = (_Norm * 3)(*(self._norm(norm) for norm in mixer.inner_norms))

    def _mamba2(self, layer: _Layer, mixer: Mamba2) -> None:
        layer.kind = 1
        layer.in_ = self._linear(mixer.input_projection)
        layer.out = self._linear(mixer.output_projection)
        self._convolution(layer, mixer.convolution)
        layer.A = self._floats(-torch.exp(mixer.A_log.detach().float()))
        repeats = 1 if mixer.D.shape[0] == mixer.ssm_dim else mixer.head_dim
        layer.D = self._floats(mixer.D.detach().repeat_interleave(repeats))
        layer.delta_bias = self._floats(mixer.delta_bias)
        layer.delta_minimum, layer.delta_maximum = mixer.dt_limit
        layer.inner_dim, layer.state_dim, layer.mlp_dim = mixer.ssm_dim, mixer.state_dim, mixer.widths[0]
        layer.heads, layer.head_dim, layer.groups = mixer.heads, mixer.head_dim, mixer.groups
        if mixer.norm is not None:
            layer.gated_norm, layer.norm_group = 1, mixer.norm.group_size
            layer.norm_before_gate = int(mixer.norm.norm_before_gate)
            layer.norm_weight, layer.norm_eps = self._floats(mixer.norm.weight), mixer.norm.eps

    def _attention(self, layer: _Layer, mixer: Attention) -> None:
        layer.kind = 2
        layer.in_ = self._linear(mixer.input_projection)
        layer.out = self._linear(mixer.output_projection)
        if mixer.convolution is not None:
            self._convolution(layer, mixer.convolution)
        layer.heads, layer.kv_heads, layer.head_dim = mixer.heads, mixer.kv_heads, mixer.head_dim
        layer.mlp_dim, layer.rotary_dim = mixer.mlp_dim // 2, mixer.rotary_dim
        layer.scale = mixer.head_dim**-0.5 if mixer.scale is None else mixer.scale
        if mixer.rotary_dim:
            exponent = torch.arange(0, mixer.rotary_dim, 2, dtype=torch.float32) / mixer.rotary_dim
            layer.rotary = self._floats(mixer.rotary_base**-exponent)

    def _mlp(self, mlp: GatedMLP, norm: Any) -> _Layer:
        layer = _Layer(kind=3, norm=self._norm(norm))
        layer.mlp_dim = mlp.output_projection.in_features
        layer.in_, layer.gate = self._halves(mlp.input_projection)
        layer.out = self._linear(mlp.output_projection)
        return layer


def interleave_states(states: Tensor) -> Tensor:
    """(batch, channels, state_dim) -> (batch, channels / 16, state_dim, 16), rounded up, float32: Mamba's in the engine."""
    wide = F.pad(states.float(), (0, 0, 0, -states.shape[1] % _BLOCK))
    return wide.unflatten(1, (-1, _BLOCK)).transpose(2, 3).contiguous()


def restore_states(blocks: Tensor, channels: int) -> Tensor:
    """The inverse of `interleave_states`, a copy."""
    return blocks.transpose(2, 3).flatten(1, 2)[:, :channels].clone(memory_format=torch.contiguous_format)
