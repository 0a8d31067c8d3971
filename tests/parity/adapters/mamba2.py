"""state-spaces/mamba: the Mamba-2 blocks, the attention block beside them, and state space duality."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan import ops
from statescan.layers import Attention, Mamba2
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture
from tests.parity._operators import with_gradients
from tests.parity.adapters.mamba import (
    ALONE,
    ATTENTION_DEFAULTS,
    ATTENTION_NAMES,
    BOOKKEEPING,
    MAMBA2_NAMES,
    run_mixer,
)


def mamba2_block(fixture: Fixture) -> dict[str, Any]:
    """`Mamba2` alone."""
    options = translate(fixture.kwargs, MAMBA2_NAMES, ignored=BOOKKEEPING, only=ALONE)
    return run_mixer(fixture, lambda: Mamba2(**options))


def mamba2_simple(fixture: Fixture) -> dict[str, Any]:
    """`Mamba2Simple`: other defaults, one norm over all channels whatever the groups, a learned first state."""
    given = {"headdim": 128, "d_state": 64} | fixture.kwargs
    names = MAMBA2_NAMES | {"learnable_init_states": "learned_initial_state"}
    options = translate(given, names, ignored=BOOKKEEPING, only={"activation": ("swish", "silu")})
    return run_mixer(fixture, lambda: Mamba2(**options, norm_groups=1))


def attention_block(fixture: Fixture) -> dict[str, Any]:
    """`MHA` alone."""
    options = translate(ATTENTION_DEFAULTS | fixture.kwargs, ATTENTION_NAMES, ignored=BOOKKEEPING)
    return run_mixer(fixture, lambda: Attention(**options))


def ssd(fixture: Fixture) -> dict[str, Any]:
    """`ssd_selective_scan` and its like."""
    options = translate(
        fixture.kwargs,
        {"chunk_size": "chunk_size", "dt_softplus": "delta_softplus", "dt_limit": "delta_limit"},
        ignored=("return_final_states",),
    )

    def call(given: dict[str, Tensor], **more: Any) -> tuple[Tensor, Tensor]:
        return ops.ssd(
            given["x"],
            given["dt"],
            given["A"],
            given["B"],
            given["C"],
            given.get("D"),
            given.get("z"),
            delta_bias=given.get("dt_bias"),
            initial_state=given.get("initial_states"),
            return_last_state=True,
            **(options | more),
        )

    named = fixture.named_inputs()
    out, gradients = with_gradients(fixture, named, lambda given: call(given)[0])
    outputs = {"out": out, "final_state": call(named)[1], **gradients}
    if "out_dt_limit" in fixture.outputs:
        limit = tuple(float(end) for end in (fixture.note(r"clamped to \[([^\]]+)\]") or "0, inf").split(","))
        outputs["out_dt_limit"] = call(named, delta_limit=limit)[0]
    return outputs


def ssd_minimal(fixture: Fixture) -> dict[str, Any]:
    """`ssd_minimal_discrete`: X is already delta x, and A already delta A, which varies with time."""
    options = translate(fixture.kwargs, {"block_len": "chunk_size"})

    def call(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        # With A = -1 everywhere, delta = -A (given) gives its decay, and x = X / delta its input.
        delta = -given["A"]
        initial = given.get("initial_states")
        return ops.ssd(
            given["X"] / delta[..., None],
            delta,
            -delta.new_ones(delta.shape[2]),
            given["B"],
            given["C"],
            initial_state=None if initial is None else initial[:, 0],
            return_last_state=True,
            **options,
        )

    named = fixture.named_inputs()
    y, gradients = with_gradients(fixture, named, lambda given: call(given)[0])
    with torch.no_grad():
        outputs = {"Y": y, "final_state": call(named)[1], **gradients}
        named.pop("initial_states", None)
        outputs["Y_zero_init"], outputs["final_state_zero_init"] = call(named)
    return outputs


ADAPTERS = {
    "mamba_ssm.modules.mamba2.Mamba2": mamba2_block,
    "mamba_ssm.modules.mamba2_simple.Mamba2Simple": mamba2_simple,
    "mamba_ssm.modules.mha.MHA": attention_block,
    "mamba_ssm.ops.triton.ssd_combined.ssd_selective_scan": ssd,
    "mamba_ssm.ops.triton.ssd_combined.ssd_chunk_scan_combined_ref": ssd,
    "mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined": ssd,
    "mamba_ssm.modules.ssd_minimal.ssd_minimal_discrete": ssd_minimal,
}
