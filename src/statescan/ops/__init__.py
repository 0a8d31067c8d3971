"""Operators: mathematics as functions on tensors, channels last, each with a reference and fast kernels."""

from statescan.ops._dispatch import backend, explain
from statescan.ops._selective_scan import selective_scan, selective_scan_reference
from statescan.ops._selective_state_step import selective_state_step, selective_state_step_reference

__all__ = [
    "backend",
    "explain",
    "selective_scan",
    "selective_scan_reference",
    "selective_state_step",
    "selective_state_step_reference",
]
