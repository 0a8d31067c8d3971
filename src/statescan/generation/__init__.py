"""Continuing text: sampling, streaming, batches of unequal prompts, states that are stored and resumed."""

from statescan.generation import _token_filters as token_filters
from statescan.generation._drafts import Draft, DraftSession, ModelDraft, NGramDraft, TokenTree
from statescan.generation._early_exit import EXITS_FILE, EarlyExit, ExitCounts
from statescan.generation._engine import FinishReason, Generation, Piece, Stream, generate, stream
from statescan.generation._exit_calibration import ExitPoint, calibrate_exits, measure_exits
from statescan.generation._exit_heads import ExitConfig, ExitHead
from statescan.generation._long_context import (
    ChannelCalibration,
    LongContext,
    LongContextTable,
    align_thresholds,
    calibrate_long_context,
)
from statescan.generation._native import CompiledModel, Session, compile_for_generation, native_reason
from statescan.generation._prefill import Batching, prefill
from statescan.generation._progress import progress_bar
from statescan.generation._prompts import Prompts, Stop
from statescan.generation._sampling import (
    SamplingConfig,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_tokens,
    penalize_repetition,
    process_logits,
    sample,
    uniform,
)
from statescan.generation._session import GenerationState
from statescan.generation._speculative import SpeculationCounts, SpeculativeStream
from statescan.generation._static_step import StepGraph, graph_reason
from statescan.generation._text import TextStream, Tokenizer
from statescan.generation._verification import Verification, verify_greedy, verify_matching, verify_rounds

__all__ = [
    "EXITS_FILE",
    "Batching",
    "ChannelCalibration",
    "CompiledModel",
    "Draft",
    "DraftSession",
    "EarlyExit",
    "ExitConfig",
    "ExitCounts",
    "ExitHead",
    "ExitPoint",
    "FinishReason",
    "Generation",
    "GenerationState",
    "LongContext",
    "LongContextTable",
    "ModelDraft",
    "NGramDraft",
    "Piece",
    "Prompts",
    "SamplingConfig",
    "Session",
    "SpeculationCounts",
    "SpeculativeStream",
    "StepGraph",
    "Stop",
    "Stream",
    "TextStream",
    "TokenTree",
    "Tokenizer",
    "Verification",
    "align_thresholds",
    "calibrate_exits",
    "calibrate_long_context",
    "compile_for_generation",
    "generate",
    "graph_reason",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "measure_exits",
    "native_reason",
    "next_tokens",
    "penalize_repetition",
    "prefill",
    "process_logits",
    "progress_bar",
    "sample",
    "stream",
    "token_filters",
    "uniform",
    "verify_greedy",
    "verify_matching",
    "verify_rounds",
]
