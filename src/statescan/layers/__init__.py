"""Parts that models share: sequence mixers of one protocol, channel mixers, norms, the residual stack, State."""

from statescan.layers._attention import Attention, AttentionState
from statescan.layers._based import BaseConv, SlidingAttention, TaylorLinearAttention
from statescan.layers._bidirectional import BidirectionalMamba, ScanBranch
from statescan.layers._butterfly import ButterflyTransform, butterfly_transform
from statescan.layers._channel_mixers import MLP, GatedMLP
from statescan.layers._companion import ClosedLoopCompanionSSM, CompanionMixer, CompanionSSM, DifferencingFilters
from statescan.layers._convolution import CausalConv1d
from statescan.layers._diffusion import TimeEmbedding, add_noise, denoise, signal_fraction
from statescan.layers._dual_mixer import DualMixer, WeightedAverage
from statescan.layers._experts import Experts, MixtureOfExperts, Router, squared_relu
from statescan.layers._gated_ssm import GatedSSM, GatedSSMBlock, SplitRMSNorm
from statescan.layers._h3 import H3, ShiftKernel
from statescan.layers._initialisation import delta_bias, initialise_language_model, inverse_softplus
from statescan.layers._layer_shuffle import LayerShuffle, ShuffleSchedule, shuffle_rates
from statescan.layers._lbmamba import LBMamba
from statescan.layers._long_conv import H3Conv, LongConv, LongKernel
from statescan.layers._lssl import LSSL, LSSL_MEASURES, QuasiseparableSystem, tridiagonal_solve
from statescan.layers._mamba import Mamba
from statescan.layers._mamba2 import Mamba2
from statescan.layers._mamba3 import Mamba3
from statescan.layers._memory_notes import MemoryNotes, NotePool
from statescan.layers._mixers import MIXERS, UNDECAYED, build_mixer, check_mixer
from statescan.layers._mixture_of_mamba import PROJECTIONS, MixtureOfMamba, ModalityGroups, ModalityLinear
from statescan.layers._multihead_mamba import MultiHeadMamba
from statescan.layers._norms import GatedRMSNorm, RMSNorm, build_norm
from statescan.layers._parallel import ParallelMixer
from statescan.layers._recurrent import RecurrentCell
from statescan.layers._residual import ResidualBlock, ResidualStack
from statescan.layers._rotary import rotate
from statescan.layers._s4 import S4, S4D, SequenceDropout
from statescan.layers._s4nd import S4ND
from statescan.layers._s5 import S5, S5Block, SequenceBatchNorm
from statescan.layers._seqboat import MultiHeadEMA, SeqBoat, SequenceNorm
from statescan.layers._ssm_kernels import DiagonalKernel, DPLRKernel
from statescan.layers._state import State
from statescan.layers._token_pruning import ImportanceRule, KeptTokens, kept_patches, select_tokens, token_importance

__all__ = [
    "H3",
    "LSSL",
    "LSSL_MEASURES",
    "MIXERS",
    "MLP",
    "PROJECTIONS",
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
    "Experts",
    "GatedMLP",
    "GatedRMSNorm",
    "GatedSSM",
    "GatedSSMBlock",
    "H3Conv",
    "ImportanceRule",
    "KeptTokens",
    "LBMamba",
    "LayerShuffle",
    "LongConv",
    "LongKernel",
    "Mamba",
    "Mamba2",
    "Mamba3",
    "MemoryNotes",
    "MixtureOfExperts",
    "MixtureOfMamba",
    "ModalityGroups",
    "ModalityLinear",
    "MultiHeadEMA",
    "MultiHeadMamba",
    "NotePool",
    "ParallelMixer",
    "QuasiseparableSystem",
    "RMSNorm",
    "RecurrentCell",
    "ResidualBlock",
    "ResidualStack",
    "Router",
    "S5Block",
    "ScanBranch",
    "SeqBoat",
    "SequenceBatchNorm",
    "SequenceDropout",
    "SequenceNorm",
    "ShiftKernel",
    "ShuffleSchedule",
    "SlidingAttention",
    "SplitRMSNorm",
    "State",
    "TaylorLinearAttention",
    "TimeEmbedding",
    "WeightedAverage",
    "add_noise",
    "build_mixer",
    "build_norm",
    "butterfly_transform",
    "check_mixer",
    "delta_bias",
    "denoise",
    "initialise_language_model",
    "inverse_softplus",
    "kept_patches",
    "rotate",
    "select_tokens",
    "shuffle_rates",
    "signal_fraction",
    "squared_relu",
    "token_importance",
    "tridiagonal_solve",
]
