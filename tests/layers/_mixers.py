"""The sequence mixers that keep the protocol, each with its options, for tests of what all promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from statescan.layers import (
    H3,
    LSSL,
    S4,
    S4D,
    S5,
    Attention,
    BaseConv,
    CompanionMixer,
    CompanionSSM,
    DifferencingFilters,
    GatedSSM,
    GatedSSMBlock,
    H3Conv,
    LongConv,
    Mamba,
    Mamba2,
    Mamba3,
    MultiHeadMamba,
    ParallelMixer,
    RecurrentCell,
    S5Block,
    SeqBoat,
    SlidingAttention,
    State,
    TaylorLinearAttention,
)

DIM = 12

#: Widths are odd on purpose: no layer may ask for multiples of 8.
MIXERS: dict[str, Callable[[], nn.Module]] = {
    "mamba": lambda: Mamba(DIM, state_dim=3),
    "mamba-narrow": lambda: Mamba(DIM, state_dim=1, conv_kernel=1, expand=1.25, dt_rank=5, bias=True, conv_bias=False),
    "mamba-norms": lambda: Mamba(DIM, state_dim=5, conv_kernel=2, inner_norm="weightless"),
    "mamba-weighted-norms": lambda: Mamba(DIM, state_dim=5, inner_norm="weighted"),
    "mamba-constant": lambda: Mamba(DIM, state_dim=3, selective=False),
    "mamba2": lambda: Mamba2(DIM, state_dim=5, head_dim=4),
    "mamba2-groups": lambda: Mamba2(DIM, state_dim=3, head_dim=6, groups=2, D_per_channel=True, chunk_size=4),
    "mamba2-partial": lambda: Mamba2(DIM, state_dim=5, head_dim=3, ssm_dim=9, gated_norm=False, bias=True),
    "mamba2-limits": lambda: Mamba2(DIM, state_dim=5, head_dim=8, dt_limit=(0.01, 0.05), norm_before_gate=True),
    "mamba2-multipliers": lambda: Mamba2(
        DIM, state_dim=5, head_dim=5, inner_dim=10, multipliers=(1.1, 0.9, 0.8, 1.2, 0.7), output_bias=True
    ),
    "multi-head-mamba": lambda: MultiHeadMamba(DIM, heads=3, state_dim=5),
    "multi-head-mamba-one": lambda: MultiHeadMamba(DIM, heads=1, state_dim=2, conv_kernel=2, dt_rank=3, bias=True),
    "parallel": lambda: ParallelMixer(
        {"mamba": Mamba2(DIM, state_dim=5, head_dim=4), "attention": Attention(DIM, 2, rotary_dim=6)},
        input_scales={"mamba": 1.2},
        output_scales={"attention": 0.7},
    ),
    "mamba3": lambda: Mamba3(DIM, state_dim=6, head_dim=4),
    "mamba3-groups": lambda: Mamba3(
        DIM, state_dim=10, head_dim=3, groups=4, rope_fraction=1.0, output_norm=True, chunk_size=4
    ),
    "mamba3-mimo": lambda: Mamba3(DIM, state_dim=6, head_dim=8, mimo_rank=3, rope_fraction=1.0, chunk_size=5),
    "mamba3-mimo-norm": lambda: Mamba3(
        DIM, state_dim=8, head_dim=4, groups=3, mimo_rank=2, rope_fraction=0.6, output_norm=True, A_floor=0.1
    ),
    "mamba3-mimo-one": lambda: Mamba3(DIM, state_dim=4, head_dim=4, mimo_rank=1),
    "attention": lambda: Attention(DIM, 3),
    "attention-rotary": lambda: Attention(DIM, 4, kv_heads=2, head_dim=6, rotary_dim=4),
    "attention-interleaved": lambda: Attention(DIM, 2, rotary_dim=6, rotary_interleaved=True, qkv_bias=True),
    "attention-convolved": lambda: Attention(DIM, 2, kv_heads=1, conv_kernel=3, mlp_dim=8, rotary_dim=2, scale=0.3),
    "s5": lambda: S5(DIM, state_dim=10),
    "s5-bilinear": lambda: S5(DIM, state_dim=12, blocks=3, discretization="bilinear", clip_eigenvalues=True),
    "s5-unpaired": lambda: S5(DIM, state_dim=5, conjugate_symmetry=False, output_init="complex_normal"),
    "s5-block": lambda: S5Block(S5(DIM, state_dim=4), activation="full_glu", norm_at=("before", "inside")),
    "s5-block-batch-norm": lambda: S5Block(S5(DIM, state_dim=4), activation="half_glu2", norm="batch"),
    "s4": lambda: S4(DIM, state_dim=6),
    "s4d": lambda: S4D(DIM, state_dim=6),
    "h3": lambda: H3(DIM, state_dim=6),
    "h3-heads": lambda: H3(DIM, state_dim=4, head_dim=3, discretization="zoh", chunk_length=4),
    "h3-conv": lambda: H3Conv(DIM, max_length=5, threshold=0.0005),
    "h3-conv-heads": lambda: H3Conv(DIM, max_length=20, head_dim=2, initialisation="geometric"),
    "long-conv": lambda: LongConv(DIM, max_length=5, channels=2, threshold=0.0),
    "long-conv-longer": lambda: LongConv(DIM, max_length=30, output=None, initialisation="geometric"),
    "lssl": lambda: LSSL(DIM, state_dim=5),
    "lssl-separate": lambda: LSSL(DIM, state_dim=4, learn="separate", outputs=2, bias=True, measure="legt"),
    "lssl-fixed": lambda: LSSL(DIM, state_dim=3, learn="fixed", activation=None, measure="lagt"),
    "companion": lambda: CompanionSSM(DIM, state_dim=5, kernels=4),
    "companion-naive": lambda: CompanionSSM(DIM, state_dim=3, norm_order=2),
    "companion-shift": lambda: CompanionSSM(DIM, state_dim=4, shift=True),
    "companion-mixer": lambda: CompanionMixer(DIM, state_dim=5, skip=False),
    "differencing-filters": lambda: DifferencingFilters(DIM, kernels=6, difference_order=3, windows=(2, 5)),
    "gated-ssm": lambda: GatedSSM(DIM),
    "gated-ssm-previous": lambda: GatedSSM(DIM, state_dim=7, gate="previous"),
    "gated-ssm-prefix": lambda: GatedSSM(DIM, state_dim=10, bidirectional=True),
    "gated-ssm-decays": lambda: GatedSSM(DIM, state_dim=6, bidirectional=True, initial_decay=(0.5, 0.99)),
    "gated-ssm-block": lambda: GatedSSMBlock(DIM, state_dim=5),
    "gru": lambda: RecurrentCell(DIM),
    "lstm": lambda: RecurrentCell(DIM, kind="lstm"),
    "base-conv": lambda: BaseConv(DIM),
    "base-conv-narrow": lambda: BaseConv(DIM, conv_kernel=1, expand=1, bias=False, conv_bias=True),
    "taylor": lambda: TaylorLinearAttention(DIM, heads=3, feature_dim=3, chunk_size=4),
    "taylor-parallel": lambda: TaylorLinearAttention(DIM, heads=2, feature_dim=2, head_dim=5, form="parallel"),
    "sliding": lambda: SlidingAttention(DIM, heads=3, window=3),
    "sliding-itself": lambda: SlidingAttention(DIM, heads=2, window=0, rotary_dim=0, output_bias=True),
    "sliding-grouped": lambda: SlidingAttention(
        DIM, heads=2, window=5, kv_heads=1, rotary_dim=2, rotary_interleaved=True, qkv_bias=True, scale=0.3
    ),
    "seqboat": lambda: SeqBoat(DIM, qk_dim=5, hidden_dim=7, ema_dim=3, window=3, max_length=4),
    "seqboat-softmax": lambda: SeqBoat(
        DIM, qk_dim=6, ema_dim=1, window=2, attention="softmax", position="rotary", prenorm=False
    ),
    "seqboat-dense": lambda: SeqBoat(
        DIM, qk_dim=5, ema_dim=2, window=3, position="local", norm="batch", compression="never"
    ),
}

#: Those whose initial state is learned take no resets; they are listed apart.
WITHOUT_RESETS: dict[str, Callable[[], nn.Module]] = {
    "mamba2-learned-state": lambda: Mamba2(DIM, state_dim=3, head_dim=4, learned_initial_state=True),
}


def build(name: str) -> Any:
    """A mixer whose every parameter is drawn, so that none is at a value that hides a mistake."""
    torch.manual_seed(sum(map(ord, name)))
    mixer = (MIXERS | WITHOUT_RESETS)[name]()
    with torch.no_grad():
        for key, parameter in mixer.named_parameters():
            if key.endswith(("norm.weight", "D")) or "bias" in key or "learned" in key or "mimo" in key:
                parameter += 0.3 * torch.randn_like(parameter)
    return mixer.eval()


def assert_same_state(got: Any, want: Any, tolerance: float = 2e-5) -> None:
    """Equal tensors, but for how much of a cache is dead: what matters stands at its end."""
    assert list(got) == list(want)
    for name, tensor in want.items():
        mine = got[name]
        if isinstance(tensor, State):
            assert_same_state(mine, tensor, tolerance)
        elif name in ("keys", "values") and "start" in want:
            for row in range(tensor.shape[0]):
                first, theirs = int(got["start"][row]), int(want["start"][row])
                torch.testing.assert_close(mine[row, :, first:], tensor[row, :, theirs:], atol=tolerance, rtol=1e-4)
        elif name != "start":
            torch.testing.assert_close(mine, tensor, atol=tolerance, rtol=1e-4)
