"""Operators: mathematics as functions on tensors, channels last, each with a reference and fast kernels."""

from statescan.ops._aligned_scan import aligned_scan, aligned_ssd, token_gaps
from statescan.ops._cauchy import cauchy, cauchy_reference
from statescan.ops._causal_conv1d import causal_conv1d, causal_conv1d_reference, causal_conv1d_step
from statescan.ops._dispatch import backend, explain
from statescan.ops._fft_conv import fft_conv, fft_conv_reference
from statescan.ops._gated_rms_norm import gated_rms_norm, gated_rms_norm_reference
from statescan.ops._in_place import add_rms_norm_, causal_conv1d_step_, selective_state_step_, ssd_step_
from statescan.ops._linear_attention import (
    taylor_feature_count,
    taylor_features,
    taylor_linear_attention,
    taylor_linear_attention_reference,
    taylor_linear_attention_step,
)
from statescan.ops._linear_scan import linear_scan, linear_scan_reference
from statescan.ops._local_scan import local_scan, local_scan_reference, local_window
from statescan.ops._merged_scan import merged_scan, merged_scan_reference
from statescan.ops._resets import resets_from_sequence_index
from statescan.ops._route_scan import route_scan, route_scan_reference
from statescan.ops._selective_scan import selective_scan, selective_scan_reference
from statescan.ops._selective_state_step import selective_state_step, selective_state_step_reference
from statescan.ops._selective_tree_scan import selective_tree_scan, selective_tree_scan_reference
from statescan.ops._ssd import ssd, ssd_reference
from statescan.ops._ssd_step import ssd_step, ssd_step_reference
from statescan.ops._state_fusion import merged_kernel, selective_states, state_fusion
from statescan.ops._tree_conv1d import tree_causal_conv1d
from statescan.ops._tree_scan import tree_scan, tree_scan_reference
from statescan.ops._trees import (
    branching_tree,
    check_parents,
    complete_tree,
    tree_cumulative_sum,
    tree_depths,
    tree_mask,
    tree_path_indices,
    unroll_tree,
)
from statescan.ops._vandermonde import (
    vandermonde,
    vandermonde_reference,
    vandermonde_transpose,
    vandermonde_transpose_reference,
)

__all__ = [
    "add_rms_norm_",
    "aligned_scan",
    "aligned_ssd",
    "backend",
    "branching_tree",
    "cauchy",
    "cauchy_reference",
    "causal_conv1d",
    "causal_conv1d_reference",
    "causal_conv1d_step",
    "causal_conv1d_step_",
    "check_parents",
    "complete_tree",
    "explain",
    "fft_conv",
    "fft_conv_reference",
    "gated_rms_norm",
    "gated_rms_norm_reference",
    "linear_scan",
    "linear_scan_reference",
    "local_scan",
    "local_scan_reference",
    "local_window",
    "merged_kernel",
    "merged_scan",
    "merged_scan_reference",
    "resets_from_sequence_index",
    "route_scan",
    "route_scan_reference",
    "selective_scan",
    "selective_scan_reference",
    "selective_state_step",
    "selective_state_step_",
    "selective_state_step_reference",
    "selective_states",
    "selective_tree_scan",
    "selective_tree_scan_reference",
    "ssd",
    "ssd_reference",
    "ssd_step",
    "ssd_step_",
    "ssd_step_reference",
    "state_fusion",
    "taylor_feature_count",
    "taylor_features",
    "taylor_linear_attention",
    "taylor_linear_attention_reference",
    "taylor_linear_attention_step",
    "token_gaps",
    "tree_causal_conv1d",
    "tree_cumulative_sum",
    "tree_depths",
    "tree_mask",
    "tree_path_indices",
    "tree_scan",
    "tree_scan_reference",
    "unroll_tree",
    "vandermonde",
    "vandermonde_reference",
    "vandermonde_transpose",
    "vandermonde_transpose_reference",
]
