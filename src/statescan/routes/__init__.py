"""Orders in which a grid is walked, as values: walk a grid into sequences, and put sequences back.

route = routes.get("cross")
sequences = route.walk(grid)  # (batch, length, walks, channels)
grid = route.merge(sequences, height, width)  # the sum over walks at each cell
"""

from statescan.routes._merges import MERGES, route_attention
from statescan.routes._registry import atrous, get, names, nested_s, patterns, register, registers, shuffle, windows
from statescan.routes._route import Route

__all__ = [
    "MERGES",
    "Route",
    "atrous",
    "get",
    "names",
    "nested_s",
    "patterns",
    "register",
    "registers",
    "route_attention",
    "shuffle",
    "windows",
]
