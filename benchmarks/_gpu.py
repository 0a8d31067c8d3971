"""Timing on a CUDA device, and the decoding of tokens there; on a CPU the same calls, to see that they work."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import statescan
from statescan import models
from statescan.checkpoints import _state_spaces
from statescan.generation import StepGraph

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
#: Logits of two decoders in bfloat16, in units of the largest.
TOLERANCE = 5e-2
#: How our states lie beside float32: as mamba-ssm keeps its own.
HALF_STATE = "statescan, bfloat16 state"


def milliseconds(
    candidates: Mapping[str, Callable[[], Any]], *, seconds: float, least: int = 10, cold: bool = True
) -> dict[str, float]:
    """The median time of a single call of each, in turns, where `cold` from an empty cache."""
    for call in candidates.values():
        for _ in range(3 if CUDA else 1):
            call()
    cache = torch.empty((256 << 20) if CUDA and cold else 0, dtype=torch.uint8, device=DEVICE)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, call in candidates.items():
            cache.zero_()
            times[name].append(_timed(call))
    return {name: statistics.median(taken) for name, taken in times.items()}


def _timed(call: Callable[[], Any]) -> float:
    if not CUDA:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def bandwidth() -> float:
    """Bytes a second read and written by a copy: of 1 GiB on a GPU."""
    source = torch.empty((1 << 30) if CUDA else (1 << 24), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (milliseconds({"copy": lambda: target.copy_(source)}, seconds=0.5)["copy"] / 1e3)


def problem_of(error: Exception) -> str:
    """What a table says of a peer that does not run here."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:60]


# ---- decoding ------------------------------------------------------------------------------------------------------


class MambaSSM:
    """mamba-ssm's decoder with its CUDA graph, of the weights of a model of ours."""

    def __init__(self, model: Any):
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

        weight = model.embedding.weight
        config = MambaConfig(**_state_spaces.write(model.config))
        self.model = MambaLMHeadModel(config, device=weight.device, dtype=weight.dtype).eval()
        self.model.load_state_dict(models.family(model.family).to_published(model.state_dict(), model.config))

    def decoder(self, batch: int) -> Callable[[Tensor], Tensor]:
        """tokens (batch,) -> logits (batch, vocabulary), from the beginning."""
        from mamba_ssm.utils.generation import update_graph_cache

        cache = update_graph_cache(self.model, None, batch, 1, 64)
        for tensors in cache.inference_params.key_value_memory_dict.values():
            for tensor in tensors:
                tensor.zero_()  # what recording has left
        positions = torch.ones(batch, 1, dtype=torch.int64, device=DEVICE)
        return lambda tokens: cache.run(tokens[:, None], positions, 1)[:, -1]


def logit_distance(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], batch: int) -> float:
    """The largest difference of a logit over the largest logit, after a few tokens."""
    for token in range(1, 5):
        tokens = torch.arange(batch, device=DEVICE) % 97 + token
        wanted, found = ours(tokens).float(), theirs(tokens).float()
    width = min(wanted.shape[1], found.shape[1])
    return float((found[:, :width] - wanted[:, :width]).abs().max() / wanted.abs().max())


@torch.inference_mode()
def decoding(
    name: str,
    batches: Sequence[int],
    bytes_a_second: float,
    *,
    seconds: float,
    make_peer: Callable[[Any], Any] = MambaSSM,
    **overrides: Any,
) -> list[dict[str, Any]]:
    """Tokens a second of a model of random bfloat16 weights at several batch sizes, a CUDA graph a token."""
    with torch.device(DEVICE):
        model = statescan.create_model(name, **overrides).eval().bfloat16()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    peer, why = None, ""
    try:
        peer = make_peer(model)
    except Exception as problem:  # whatever a peer does wrong on this machine is its row's text
        why = problem_of(problem)
    rows = []
    for batch in batches:
        tokens = torch.ones(batch, dtype=torch.int64, device=DEVICE)
        graphs = {
            "statescan": StepGraph(model, batch, record=CUDA),
            HALF_STATE: StepGraph(model, batch, record=CUDA, state_dtype=torch.bfloat16),
        }
        steps: dict[str, Callable[[Tensor], Tensor]] = {label: graph.step for label, graph in graphs.items()}
        note = why
        if peer is not None:
            try:
                theirs = peer.decoder(batch)
                error = logit_distance(StepGraph(model, batch, record=CUDA).step, theirs, batch)
                note = "" if error <= TOLERANCE else f"differs by {error:.1e} of the largest logit"
                if not note:
                    steps["mamba-ssm"] = theirs
            except Exception as problem:
                note = problem_of(problem)
        calls = {label: functools.partial(step, tokens) for label, step in steps.items()}
        times = milliseconds(calls, seconds=seconds, cold=False)
        for label, taken in times.items():
            # What is written counts as what is read: a copy does both.
            moved = weights + 2 * graphs[label if label in graphs else HALF_STATE].nbytes
            rows.append(
                {
                    "model": name,
                    "batch": batch,
                    "library": label,
                    "tokens a second": 1e3 * batch / taken,
                    "ms": taken,
                    "statescan is faster by": taken / times["statescan"],
                    "with the same state": taken / times[HALF_STATE],
                    "fraction of floor": 1e3 * moved / bytes_a_second / taken,
                    "note": "",
                }
            )
        if note:
            missing = {"model": name, "batch": batch, "library": "mamba-ssm", "note": note}
            rows.append(dict.fromkeys(rows[0], None) | missing)
        for row in rows[-len(times) - bool(note) :]:
            print(row, flush=True)
    return rows
