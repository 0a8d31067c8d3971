"""What a model costs and does: parameters, FLOPs, bytes of state and of activations, tokens a second."""

from statescan.inspect._sizes import ModelCost, build_without_memory, count_parameters, measure_cost
from statescan.inspect._speed import ModelSpeed, measure_speed

__all__ = ["ModelCost", "ModelSpeed", "build_without_memory", "count_parameters", "measure_cost", "measure_speed"]
