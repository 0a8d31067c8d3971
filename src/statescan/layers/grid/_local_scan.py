"""Scans along chosen walks, windows among them, each gated before the sum. Huang et al. 2024, "LocalMamba: Visual State
Space Model with Windowed Selective Scan", arXiv 2403.09338."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import routes
from statescan.layers.grid._channel_mixers import ChannelGate
from statescan.layers.grid._route_scan import RouteScan
from statescan.routes import Route

#: The walks among which the search chooses.
DIRECTIONS = ("h", "h_flip", "v", "v_flip", "w2", "w2_flip", "w7", "w7_flip")

_ROUTES = {"h": "raster", "h_flip": "raster_reversed", "v": "column", "v_flip": "column_reversed"}
#: What the published code puts columns back by: right for squares alone.
_SCRAMBLED = {"column": "column_of_transposed", "column_reversed": "column_of_transposed_reversed"}


def local_route(directions: Sequence[str]) -> Route:
    """The walks of LocalMamba's directions: h by rows, v by columns, wK by windows of K x K, each also backwards
    (``h_flip``)."""
    names = []
    for direction in directions:
        window = re.fullmatch(r"w(\d+)(_flip)?", direction)
        if direction not in _ROUTES and window is None:
            raise ValueError(f"directions: unknown {direction!r}; known: {', '.join(DIRECTIONS)}, and wK for any K")
        names.append(_ROUTES.get(direction) or f"window{window[1]}{window[2] or ''}")  # type: ignore[index]
    return routes.get("+".join(names))


def legacy_return(route: Route) -> Route:
    """The route by which the published code puts sequences back: it takes the grid's height for its width."""
    return routes.get("+".join(_SCRAMBLED.get(name, name) for name in route.name.split("+")))


class WalkMixer(nn.Module):
    """From what each walk left at each cell to one grid: a gate for each walk, then the sum.

    Arguments:
        channels: of the grid.
        walks: how many.
        search: instead of the plain sum, each walk is normed without parameters and weighted by a softmax of learned
            numbers: those of the walks that matter grow.
    """

    def __init__(self, channels: int, walks: int, *, search: bool = False):
        super().__init__()
        self.gate = ChannelGate(channels)
        self.choice = nn.Parameter(1e-3 * torch.randn(walks)) if search else None

    def forward(self, walked: Tensor) -> Tensor:
        """(batch, height, width, walks, channels) -> (batch, height, width, channels)."""
        walked = self.gate(walked)
        if self.choice is None:
            return walked.sum(-2)
        normed = F.layer_norm(walked, walked.shape[-1:])
        return torch.einsum("bhwke,k->bhwe", normed, self.choice.softmax(0).to(normed.dtype))


class LocalScan(RouteScan):
    """`RouteScan` with a `WalkMixer` in place of the sum.

    Arguments:
        channels: E, of the grid.
        directions: names of walks as LocalMamba calls them; None searches among all eight.
        legacy_unwalk: put walks by columns back as the published code does, which scrambles them on grids that are not
            square; for weights that were trained so.
        state_dim, dt_rank, initialisation: those of `RouteScan`.
    """

    def __init__(
        self,
        channels: int,
        directions: Sequence[str] | None,
        *,
        legacy_unwalk: bool = False,
        **options: object,
    ):
        chosen = DIRECTIONS if directions is None else tuple(directions)
        super().__init__(channels, len(chosen), **options)  # type: ignore[arg-type]
        self.mix = WalkMixer(channels, len(chosen), search=directions is None)
        self.legacy_unwalk = legacy_unwalk

    def forward(self, grid: Tensor, route: Route) -> Tensor:
        """Walk a grid (batch, height, width, channels), scan, put back, gate and sum: the same shape."""
        height, width = grid.shape[1:3]
        back = legacy_return(route) if self.legacy_unwalk else route
        return self.mix(back.unwalk(self.scan(route.walk(grid)), height, width))
