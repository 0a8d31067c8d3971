"""What a model costs and does: parameters, FLOPs, bytes of state and of activations."""

from statescan.inspect._sizes import ModelCost, build_without_memory, count_parameters, measure_cost

__all__ = ["ModelCost", "build_without_memory", "count_parameters", "measure_cost"]
