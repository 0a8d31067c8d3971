"""The catalogue of walks, as the published codes of several systems give them."""

from __future__ import annotations

from typing import Any

import numpy as np

from statescan import routes
from tests.parity._fixture import Fixture

#: Published tables that are tables of a route: the table's name and the route's.
_ROUTES = {
    "cross_raster_column_and_reverses": "cross",
    "cross_scans1_raster_x4": "cross_unidirectional",
    "cross_scans2_raster_x2_reverse_x2": "cross_bidirectional",
    "snake_plain": "snake",
    "multiscale_low_branch": "multiscale_low",
    "eight_with_wrapped_diagonals": "eight",
    "hilbert_cropped": "hilbert",
    "middle_class_token": "middle_token",
    "continuous_lamamba": "continuous",
}
_MHS = ["snake_pair", "zigzag", "zigzag_mirrored", "spiral", "spiral_mirrored", "raster", "column"]


def tables(fixture: Fixture) -> dict[str, Any]:
    """All tables the fixture names, for its grid."""
    height, width = fixture.kwargs["height"], fixture.kwargs["width"]
    mhs = sum(map(routes.get, _MHS[1:]), routes.get(_MHS[0]))
    sequence = np.arange(height * width)

    def table(name: str) -> np.ndarray:
        if name == "mhs_C0_C1_X0_X1_S0_S1_Z0_Z1":
            return mhs.table(height, width).numpy()
        if name == "mhs_inverse":
            return mhs.inverse(height, width).numpy()
        if name.endswith("_positions"):
            return routes.get(name.removesuffix("_positions")).positions(height, width)[0].numpy()
        if name == "multiscale_low_branch":  # walks the grid after a convolution of stride 2
            return routes.get("multiscale_low").table(-(-height // 2), -(-width // 2))[0].numpy()
        if name.startswith("local_unwalk_v"):  # gathers by the walk itself where it should by the inverse
            name = "column_reversed" if "flip" in name else "column"
            return sequence[routes.get(name).table(height, width)[0].numpy()]
        for suffix, kind in (("_inverse", "inverse"), ("_directions", "directions")):
            if name.endswith(suffix):
                route = routes.get(_ROUTES.get(name.removesuffix(suffix), name.removesuffix(suffix)))
                return getattr(route, kind)(height, width).numpy()
        return routes.get(_ROUTES.get(name, name.removesuffix("_sequence"))).table(height, width).numpy()

    return {name: table(name).reshape(shape) for name, shape in fixture.outputs.items()}


ADAPTERS = {"routes: several": tables}
