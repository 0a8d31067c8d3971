"""The theory under the layers: HiPPO measures and matrices, normal forms, discretisations, timescales."""

from statescan.ssm._companion import (
    companion_kernel,
    companion_kernel_naive,
    companion_matrix,
    companion_rows,
    companion_state,
    correlate,
    krylov,
)
from statescan.ssm._discretization import METHODS, discretize, discretize_diagonal
from statescan.ssm._hippo import (
    DIAGONAL_INITIALISATIONS,
    MEASURES,
    diagonal,
    low_rank_correction,
    nplr,
    transition,
)
from statescan.ssm._online import ScaledLegendreMemory, legendre, measure_weight, reconstruct
from statescan.ssm._timescales import log_uniform_timescales

__all__ = [
    "DIAGONAL_INITIALISATIONS",
    "MEASURES",
    "METHODS",
    "ScaledLegendreMemory",
    "companion_kernel",
    "companion_kernel_naive",
    "companion_matrix",
    "companion_rows",
    "companion_state",
    "correlate",
    "diagonal",
    "discretize",
    "discretize_diagonal",
    "krylov",
    "legendre",
    "log_uniform_timescales",
    "low_rank_correction",
    "measure_weight",
    "nplr",
    "reconstruct",
    "transition",
]
