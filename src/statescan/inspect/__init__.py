"""What a model costs and does: parameters, FLOPs, bytes, speed; what memories hold; in which order routes walk."""

from statescan.inspect._hippo import Recollection, draw_memory, recollect
from statescan.inspect._images import ImageCost, image_cost, reads_images
from statescan.inspect._pruning import PrunedCost, pruning_costs
from statescan.inspect._routes import draw_route, parse_size, route_text
from statescan.inspect._sizes import (
    ModelCost,
    build_without_memory,
    count_parameters,
    measure_cost,
    reads_tokens,
    width_and_depth,
)
from statescan.inspect._speed import ModelSpeed, measure_speed

__all__ = [
    "ImageCost",
    "ModelCost",
    "ModelSpeed",
    "PrunedCost",
    "Recollection",
    "build_without_memory",
    "count_parameters",
    "draw_memory",
    "draw_route",
    "image_cost",
    "measure_cost",
    "measure_speed",
    "parse_size",
    "pruning_costs",
    "reads_images",
    "reads_tokens",
    "recollect",
    "route_text",
    "width_and_depth",
]
