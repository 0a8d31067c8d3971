"""What a model costs and does: parameters, FLOPs, bytes of state and activations, speed; and what memories hold."""

from statescan.inspect._hippo import Recollection, draw_memory, recollect
from statescan.inspect._images import ImageCost, image_cost
from statescan.inspect._sizes import ModelCost, build_without_memory, count_parameters, measure_cost, reads_tokens
from statescan.inspect._speed import ModelSpeed, measure_speed

__all__ = [
    "ImageCost",
    "ModelCost",
    "ModelSpeed",
    "Recollection",
    "build_without_memory",
    "count_parameters",
    "draw_memory",
    "image_cost",
    "measure_cost",
    "measure_speed",
    "reads_tokens",
    "recollect",
]
