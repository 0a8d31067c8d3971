"""Parts that models share: sequence mixers of one protocol, channel mixers, norms, the residual stack, State."""

from statescan.layers._attention import Attention, AttentionState
from statescan.layers._based import BaseConv, SlidingAttention, TaylorLinearAttention
from statescan.layers._bidirectional import BidirectionalMamba, ScanBranch
from statescan.layers._butterfly import ButterflyTransform, butterfly_transform
from statescan.layers._channel_mixers import MLP, GatedMLP
from statescan.layers._companion import ClosedLoopCompanionSSM, CompanionMixer, CompanionSSM, DifferencingFilters
from statescan.layers._convolution import CausalConv1d
from statescan.layers._dual_mixer import DualMixer, WeightedAverage
from statescan.layers._h3 import H3, ShiftKernel
from statescan.layers._initialisation import delta_bias, initialise_language_model, inverse_softplus
from statescan.layers._lbmamba import LBMamba
from statescan.layers._long_conv import H3Conv, LongConv, LongKernel
from statescan.layers._lssl import LSSL, LSSL_MEASURES, QuasiseparableSystem, tridiagonal_solve
from statescan.layers._mamba import Mamba
from statescan.layers._mamba2 import Mamba2
from statescan.layers._mamba3 import Mamba3
from statescan.layers._mixers import MIXERS, UNDECAYED, build_mixer, check_mixer
from statescan.layers._norms import GatedRMSNorm, RMSNorm, build_norm
from statescan.layers._recurrent import RecurrentCell
from statescan.layers._residual import ResidualBlock, ResidualStack
from statescan.layers._rotary import rotate
from statescan.layers._s4 import S4, S4D, SequenceDropout
from statescan.layers._s4nd import S4ND
from statescan.layers._s5 import S5, S5Block, SequenceBatchNorm
from statescan.layers._seqboat import MultiHeadEMA, SeqBoat, SequenceNorm
from statescan.layers._ssm_kernels import DiagonalKernel, DPLRKernel
from statescan.layers._state import State

__all__ = [
    "H3",
    "LSSL",
    "LSSL_MEASURES",
    "MIXERS",
    "MLP",
    "S4",
    "S4D",
    "S4ND",
    "S5",
    "UNDECAYED",
    "Attention",
    "AttentionState",
    "BaseConv",
    "BidirectionalMamba",
    "ButterflyTransform",
    "CausalConv1d",
    "ClosedLoopCompanionSSM",
    "CompanionMixer",
    "CompanionSSM",
    "DPLRKernel",
    "DiagonalKernel",
    "DifferencingFilters",
    "DualMixer",
    "GatedMLP",
    "GatedRMSNorm",
    "H3Conv",
    "LBMamba",
    "LongConv",
    "LongKernel",
    "Mamba",
    "Mamba2",
    "Mamba3",
    "MultiHeadEMA",
    "QuasiseparableSystem",
    "RMSNorm",
    "RecurrentCell",
    "ResidualBlock",
    "ResidualStack",
    "S5Block",
    "ScanBranch",
    "SeqBoat",
    "SequenceBatchNorm",
    "SequenceDropout",
    "SequenceNorm",
    "ShiftKernel",
    "SlidingAttention",
    "State",
    "TaylorLinearAttention",
    "WeightedAverage",
    "build_mixer",
    "build_norm",
    "butterfly_transform",
    "check_mixer",
    "delta_bias",
    "initialise_language_model",
    "inverse_softplus",
    "rotate",
    "tridiagonal_solve",
]
