"""Mamba along several walks over a grid of tokens. Huang et al. 2024, "LocalMamba", arXiv 2403.09338."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers._convolution import CausalConv1d
from statescan.layers.grid._local_scan import DIRECTIONS, WalkMixer, legacy_return, local_route
from statescan.layers.grid._route_scan import RouteScan


class LocalMamba(nn.Module):
    """x, z = W_in u; along each walk its own x' = silu(conv(x)), selective scan of x', times silu(z); put back, gated,
    summed; out = W_out y.

    A class token is taken out, stands at one place in every walk, and is put back. It reads a whole grid at once and has
    no step.

    Arguments:
        dim: channels of input and output.
        directions: the walks, as `local_route` takes them; None searches among all eight.
        state_dim: N, states of each inner channel.
        conv_kernel: taps of the causal convolutions.
        expand: inner channels over dim.
        dt_rank: rank of the step sizes; ``auto`` is dim / 16, rounded up.
        legacy_unwalk: put walks by columns back as the published code does, wrongly unless the grid is square.
    """

    def __init__(
        self,
        dim: int,
        directions: Sequence[str] | None,
        *,
        state_dim: int = 16,
        conv_kernel: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        legacy_unwalk: bool = False,
    ):
        super().__init__()
        chosen = DIRECTIONS if directions is None else tuple(directions)
        inner, walks = int(expand * dim), len(chosen)
        self.dim, self.inner_dim, self.walks = dim, inner, walks
        self.route = local_route(chosen)
        self.back = legacy_return(self.route) if legacy_unwalk else self.route
        self.input_projection = nn.Linear(dim, 2 * inner, bias=False)
        self.convolution = CausalConv1d(walks * inner, conv_kernel, activation="silu")
        rank = math.ceil(dim / 16) if dt_rank == "auto" else dt_rank
        self.scan = RouteScan(inner, walks, state_dim=state_dim, dt_rank=rank)
        self.mix = WalkMixer(inner, walks, search=directions is None)
        self.output_projection = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Tensor, *, shape: tuple[int, int], place: int | None = None) -> Tensor:
        """tokens (batch, length, dim) -> the same shape.

        Arguments:
            tokens: the cells of a grid row by row, and perhaps a class token.
            shape: rows and columns of the grid.
            place: index of the class token; None if there is none.
        """
        cells, token = _take(self.input_projection(tokens), place)
        walked = self.route.walk(cells.unflatten(1, shape))  # (batch, length, walks, both halves)
        if token is not None:
            walked = _put(walked, token.unsqueeze(2).expand(-1, -1, self.walks, -1), place)
        hidden, z = walked.chunk(2, dim=-1)
        hidden, _ = self.convolution(hidden.flatten(2))
        y = self.scan.scan(hidden.unflatten(2, (self.walks, self.inner_dim))) * F.silu(z)
        y, token = _take(y, place)
        y = self.back.unwalk(y, *shape).flatten(1, 2)
        if token is not None:
            y = _put(y, token, place)
        return self.output_projection(self.mix(y.unsqueeze(1)).squeeze(1))

    def extra_repr(self) -> str:
        """The walks."""
        return f"route={self.route.name!r}"


def _take(sequence: Tensor, place: int | None) -> tuple[Tensor, Tensor | None]:
    """(batch, length, …) without what stands at a place, and that."""
    if place is None:
        return sequence, None
    return torch.cat([sequence[:, :place], sequence[:, place + 1 :]], 1), sequence[:, place : place + 1]


def _put(sequence: Tensor, token: Tensor, place: int | None) -> Tensor:
    """The inverse."""
    return torch.cat([sequence[:, :place], token, sequence[:, place:]], 1)
