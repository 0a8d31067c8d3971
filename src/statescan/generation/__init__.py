"""Continuing text: sampling, streaming, batches of unequal prompts, states that are stored and resumed."""

from statescan.generation._engine import FinishReason, Generation, Piece, Stream, generate, stream
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
from statescan.generation._text import TextStream, Tokenizer

__all__ = [
    "Batching",
    "CompiledModel",
    "FinishReason",
    "Generation",
    "GenerationState",
    "Piece",
    "Prompts",
    "SamplingConfig",
    "Session",
    "Stop",
    "Stream",
    "TextStream",
    "Tokenizer",
    "compile_for_generation",
    "generate",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "native_reason",
    "next_tokens",
    "penalize_repetition",
    "prefill",
    "process_logits",
    "progress_bar",
    "sample",
    "stream",
    "uniform",
]
