"""Orders in which a grid is walked, as values: walk a grid into sequences, and put sequences back.

route = routes.get("cross")
sequences = route.walk(grid)  # (batch, length, walks, channels)
grid = route.merge(sequences, height, width)  # the sum over walks at each cell
"""

from statescan.routes._registry import get, names, register
from statescan.routes._route import Route

__all__ = ["Route", "get", "names", "register"]
