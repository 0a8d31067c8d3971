"""Mamba for sequences of several modalities. Liang et al. 2025, "Mixture-of-Mamba", arXiv 2501.16295, section 3.

Every projection has a copy a modality and each token passes its own; the convolution and the scan, which mix tokens of
all modalities in time, are shared. A token costs what it costs in a dense Mamba.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan.layers._convolution import CausalConv1d
from statescan.layers._initialisation import delta_bias
from statescan.layers._precision import widen, widened
from statescan.layers._state import State

Projection = Literal["input", "selection", "delta", "output"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)


class ModalityGroups:
    """Which tokens are of which modality, sorted once for all layers.

    Arguments:
        modality: (batch, length) or (batch,), whole numbers from 0 to modalities - 1.
        modalities: how many there are.

    Raises:
        TypeError, ValueError: the numbers are not whole or beyond the modalities.
    """

    def __init__(self, modality: Tensor, modalities: int):
        if modality.dtype not in (torch.int64, torch.int32, torch.uint8, torch.bool):
            raise TypeError(f"modality: whole numbers, got {str(modality.dtype).removeprefix('torch.')}")
        flat = modality.flatten().long()
        self.shape = tuple(modality.shape)
        self.modality = modality.long()
        self.order = flat.argsort(stable=True)
        self.back = self.order.argsort()
        if modality.is_meta:  # shapes alone: as if every modality had the same share
            total = flat.numel()
            self.counts = [total // modalities + (m < total % modalities) for m in range(modalities)]
            return
        self.counts = torch.bincount(flat.clamp(min=0), minlength=modalities).tolist()
        if len(self.counts) > modalities or bool((flat < 0).any()):
            raise ValueError(
                f"modality: from {int(flat.min())} to {int(flat.max())}, but there are {modalities} modalities"
            )


class ModalityLinear(nn.Module):
    """W_m x + b_m, where m is the token's modality.

    Arguments:
        input_dim, output_dim: channels.
        modalities: copies.
        bias: whether there are biases.
    """

    def __init__(self, input_dim: int, output_dim: int, modalities: int, *, bias: bool = False):
        super().__init__()
        bound = 1 / math.sqrt(input_dim)
        self.weight = nn.Parameter(torch.empty(modalities, output_dim, input_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(modalities, output_dim)) if bias else None

    def extra_repr(self) -> str:
        modalities, output_dim, input_dim = self.weight.shape
        return f"{input_dim}, {output_dim}, modalities={modalities}, bias={self.bias is not None}"

    def forward(self, x: Tensor, groups: ModalityGroups) -> Tensor:
        """x (batch, length, input_dim) or (batch, input_dim) -> the same with output_dim channels."""
        parts = x.reshape(-1, x.shape[-1])[groups.order].split(groups.counts)
        biases = [None] * len(parts) if self.bias is None else self.bias
        mapped = [F.linear(part, weight, bias) for part, weight, bias in zip(parts, self.weight, biases, strict=True)]
        return torch.cat(mapped)[groups.back].view(*x.shape[:-1], -1)


class MixtureOfMamba(nn.Module):
    """`Mamba` whose projections are chosen by each token's modality.

    Arguments:
        dim: channels of input and output.
        modalities: how many there are.
        split: which projections have a copy a modality: ``input``, ``selection`` (to delta, B and C), ``delta`` (its bias
            with it) and ``output``; the others are shared.
        state_dim, conv_kernel, expand, dt_rank, dt_min, dt_max, dt_floor, dt_init, dt_scale, bias, conv_bias: as in
            `Mamba`.
        ignore_shared_delta_bias: with a shared delta projection, leave its bias out, as the published code does.
    """

    def __init__(
        self,
        dim: int,
        modalities: int,
        *,
        split: Sequence[str] = PROJECTIONS,
        state_dim: int = 16,
        conv_kernel: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        bias: bool = False,
        conv_bias: bool = True,
        ignore_shared_delta_bias: bool = False,
    ):
        super().__init__()
        unknown = [name for name in split if name not in PROJECTIONS]
        if unknown:
            raise ValueError(f"split: unknown projection {unknown[0]!r}; known: {', '.join(PROJECTIONS)}")
        if modalities < 1:
            raise ValueError(f"modalities: at least 1, got {modalities}")
        inner = int(expand * dim)
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.dim, self.inner_dim, self.state_dim, self.dt_rank = dim, inner, state_dim, rank
        self.modalities, self.split = modalities, tuple(name for name in PROJECTIONS if name in split)

        def linear(name: str, input_dim: int, output_dim: int, *, bias: bool = False) -> nn.Module:
            if name in self.split:
                return ModalityLinear(input_dim, output_dim, modalities, bias=bias)
            return nn.Linear(input_dim, output_dim, bias=bias)

        self.input_projection = linear("input", dim, 2 * inner, bias=bias)
        self.convolution = CausalConv1d(inner, conv_kernel, bias=conv_bias, activation="silu")
        self.selection_projection = linear("selection", inner, rank + 2 * state_dim)
        self.delta_projection = linear("delta", rank, inner)
        spread = rank**-0.5 * dt_scale
        weight = self.delta_projection.get_parameter("weight")
        if dt_init == "constant":
            nn.init.constant_(weight, spread)
        else:
            nn.init.uniform_(weight, -spread, spread)
        copies = modalities if "delta" in self.split else 1
        biases = [delta_bias(inner, minimum=dt_min, maximum=dt_max, floor=dt_floor) for _ in range(copies)]
        self.delta_bias = nn.Parameter(torch.stack(biases) if "delta" in self.split else biases[0])
        self.ignores_delta_bias = ignore_shared_delta_bias and "delta" not in self.split
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state_dim + 1).float()).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.output_projection = linear("output", inner, dim, bias=bias)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``conv`` (batch, conv_kernel - 1, inner), ``ssm`` (batch, inner, state_dim) in float32."""
        shape = (batch_size, self.inner_dim, self.state_dim)
        ssm = self.A_log.new_zeros(shape, dtype=widened(self.A_log.dtype), device=device)
        return State({"conv": self.convolution.initial_state(batch_size, dtype=dtype, device=device), "ssm": ssm})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        modality: Tensor | ModalityGroups,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim), modality (batch, length) -> output shaped as x, and the state after it.

        `resets` and `offsets` mark where sequences begin, as in `ops`.
        """
        groups = self._groups(modality, tuple(x.shape[:2]))
        hidden, gate = _apply(self.input_projection, x, groups).chunk(2, dim=-1)
        hidden, conv = self.convolution(hidden, state["conv"] if state else None, resets=resets, offsets=offsets)
        delta, B, C = self._select(hidden, groups)
        y, ssm = ops.selective_scan(
            hidden,
            delta,
            -torch.exp(widen(self.A_log)),
            B,
            C,
            widen(self.D),
            gate,
            delta_bias=self._shared_bias(),
            delta_softplus=True,
            initial_state=state["ssm"] if state else None,
            resets=resets,
            offsets=offsets,
            return_last_state=True,
        )
        return _apply(self.output_projection, y, groups), State({"conv": conv, "ssm": ssm})

    def step(self, x: Tensor, state: State, *, modality: Tensor | ModalityGroups) -> tuple[Tensor, State]:
        """One position: x (batch, dim), modality (batch,) -> output (batch, dim) and the next state."""
        groups = self._groups(modality, tuple(x.shape[:1]))
        hidden, gate = _apply(self.input_projection, x, groups).chunk(2, dim=-1)
        hidden, conv = self.convolution.step(hidden, state["conv"])
        delta, B, C = self._select(hidden, groups)
        y, ssm = ops.selective_state_step(
            state["ssm"],
            hidden,
            delta,
            -torch.exp(widen(self.A_log)),
            B,
            C,
            widen(self.D),
            gate,
            delta_bias=self._shared_bias(),
            delta_softplus=True,
        )
        return _apply(self.output_projection, y, groups), State({"conv": conv, "ssm": ssm})

    def _groups(self, modality: Tensor | ModalityGroups, shape: tuple[int, ...]) -> ModalityGroups:
        groups = modality if isinstance(modality, ModalityGroups) else ModalityGroups(modality, self.modalities)
        if groups.shape != shape:
            raise ValueError(f"modality: expected shape {shape}, one number a token, got {groups.shape}")
        return groups

    def _shared_bias(self) -> Tensor | None:
        return None if "delta" in self.split or self.ignores_delta_bias else widen(self.delta_bias)

    def _select(self, hidden: Tensor, groups: ModalityGroups) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes before softplus, with the token's own bias where it is split; B, C (..., state_dim)."""
        selected = _apply(self.selection_projection, hidden, groups)
        delta, B, C = selected.split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        delta = _apply(self.delta_projection, delta, groups)
        if "delta" in self.split:
            delta = delta + self.delta_bias[groups.modality].to(delta.dtype)
        return delta, B, C


def _apply(projection: nn.Module, x: Tensor, groups: ModalityGroups) -> Tensor:
    return projection(x, groups) if isinstance(projection, ModalityLinear) else projection(x)
