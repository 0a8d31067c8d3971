"""Layers: sequence mixers, channel mixers, norms, and the state that mixers pass on."""

from statescan.layers._state import State

__all__ = ["State"]
