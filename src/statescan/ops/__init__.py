"""Operators: mathematics as functions on tensors, channels last, each with a reference and fast kernels."""

from statescan.ops._cauchy import cauchy, cauchy_reference
from statescan.ops._dispatch import backend, explain
from statescan.ops._fft_conv import fft_conv, fft_conv_reference
from statescan.ops._provisional import causal_conv1d, causal_conv1d_step, gated_rms_norm, ssd, ssd_step
from statescan.ops._selective_scan import selective_scan, selective_scan_reference
from statescan.ops._selective_state_step import selective_state_step, selective_state_step_reference
from statescan.ops._vandermonde import vandermonde, vandermonde_reference

__all__ = [
    "backend",
    "cauchy",
    "cauchy_reference",
    "causal_conv1d",
    "causal_conv1d_step",
    "gated_rms_norm",
    "ssd",
    "ssd_step",
    "explain",
    "fft_conv",
    "fft_conv_reference",
    "selective_scan",
    "selective_scan_reference",
    "selective_state_step",
    "selective_state_step_reference",
    "vandermonde",
    "vandermonde_reference",
]
