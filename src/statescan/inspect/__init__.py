"""What a model costs and does: parameters, FLOPs, bytes, speed; what memories hold; in which order routes walk;
how alike two encoders see the same samples."""

from statescan.inspect._alignment import (
    METRICS,
    Alignment,
    align,
    chance,
    cka,
    cknna,
    clamp_outliers,
    cycle_knn,
    layers_of,
    mutual_knn,
    nearest_neighbours,
)
from statescan.inspect._hippo import Recollection, draw_memory, recollect
from statescan.inspect._images import ImageCost, image_cost, reads_images
from statescan.inspect._routes import draw_route, parse_size, route_text
from statescan.inspect._scaling_law import ScalingLaw, fit_scaling_law
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
    "METRICS",
    "Alignment",
    "ImageCost",
    "ModelCost",
    "ModelSpeed",
    "Recollection",
    "ScalingLaw",
    "align",
    "build_without_memory",
    "chance",
    "cka",
    "cknna",
    "clamp_outliers",
    "count_parameters",
    "cycle_knn",
    "draw_memory",
    "draw_route",
    "fit_scaling_law",
    "image_cost",
    "layers_of",
    "measure_cost",
    "measure_speed",
    "mutual_knn",
    "nearest_neighbours",
    "parse_size",
    "reads_images",
    "reads_tokens",
    "recollect",
    "route_text",
    "width_and_depth",
]
