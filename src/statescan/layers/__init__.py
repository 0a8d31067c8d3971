"""Parts that models share: sequence mixers of one protocol, channel mixers, norms, the residual stack, State."""

from statescan.layers._attention import Attention, AttentionState
from statescan.layers._channel_mixers import GatedMLP
from statescan.layers._companion import ClosedLoopCompanionSSM, CompanionSSM, DifferencingFilters
from statescan.layers._convolution import CausalConv1d
from statescan.layers._initialisation import delta_bias, initialise_language_model, inverse_softplus
from statescan.layers._lssl import LSSL, LSSL_MEASURES, QuasiseparableSystem, tridiagonal_solve
from statescan.layers._mamba import Mamba
from statescan.layers._mamba2 import Mamba2
from statescan.layers._norms import GatedRMSNorm, RMSNorm, build_norm
from statescan.layers._residual import ResidualBlock, ResidualStack
from statescan.layers._rotary import rotate
from statescan.layers._state import State

__all__ = [
    "LSSL",
    "LSSL_MEASURES",
    "Attention",
    "AttentionState",
    "CausalConv1d",
    "ClosedLoopCompanionSSM",
    "CompanionSSM",
    "DifferencingFilters",
    "GatedMLP",
    "GatedRMSNorm",
    "Mamba",
    "Mamba2",
    "QuasiseparableSystem",
    "RMSNorm",
    "ResidualBlock",
    "ResidualStack",
    "State",
    "build_norm",
    "delta_bias",
    "initialise_language_model",
    "inverse_softplus",
    "rotate",
    "tridiagonal_solve",
]
