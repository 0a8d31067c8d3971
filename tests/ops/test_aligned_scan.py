"""Scans whose states age over gaps, against the recurrence written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statescan import ops
from tests.ops._cases import random

BATCH, LENGTH, CHANNELS, STATES = 2, 9, 3, 4
#: Rising, with gaps, none, and a wide one.
POSITIONS = torch.tensor([[0, 1, 4, 5, 6, 10, 11, 30, 31], [2, 3, 4, 5, 6, 7, 8, 9, 10]])


def arguments() -> dict[str, Tensor]:
    return {
        "x": random(BATCH, LENGTH, CHANNELS, seed=1),
        "delta": 0.5 * random(BATCH, LENGTH, CHANNELS, seed=2),
        "A": -torch.exp(0.3 * random(CHANNELS, STATES, seed=3)),
        "B": random(BATCH, LENGTH, STATES, seed=4),
        "C": random(BATCH, LENGTH, STATES, seed=5),
        "D": random(CHANNELS, seed=6),
        "z": random(BATCH, LENGTH, CHANNELS, seed=7),
        "delta_bias": 0.5 * random(CHANNELS, seed=8),
    }


def written_out(x, delta, A, B, C, D, z, delta_bias, positions):
    """The recurrence over every original position."""
    step = F.softplus(delta + delta_bias)
    rows = []
    for row in range(len(x)):
        h = torch.zeros(CHANNELS, STATES, dtype=x.dtype)
        outputs = []
        for t in range(LENGTH):
            missing = int(positions[row, t] - positions[row, t - 1]) if t else 1
            for _ in range(abs(missing) - 1):
                h = torch.exp(step[row, t - 1, :, None] * A) * h
            h = torch.exp(step[row, t, :, None] * A) * h + (step[row, t] * x[row, t])[:, None] * B[row, t]
            outputs.append((h * C[row, t]).sum(-1) + D * x[row, t])
        rows.append(torch.stack(outputs))
    return torch.stack(rows) * F.silu(z)


@pytest.mark.parametrize("flipped", [False, True])
def test_values_and_gradients_are_those_of_the_definition(flipped: bool) -> None:
    positions = POSITIONS.flip(1) if flipped else POSITIONS
    found = []
    for ours in (True, False):
        leaves = {name: value.clone().requires_grad_() for name, value in arguments().items()}
        if ours:
            y = ops.aligned_scan(**leaves, positions=positions, delta_softplus=True)
        else:
            y = written_out(**leaves, positions=positions)
        weight = torch.cos(torch.arange(y.numel()).double()).view(y.shape)
        found.append([y, *torch.autograd.grad((y * weight).sum(), list(leaves.values()))])
    for have, wanted in zip(*found, strict=True):
        assert torch.allclose(have, wanted, atol=1e-10, rtol=1e-8)


def test_without_positions_or_gaps_it_is_the_plain_scan() -> None:
    given = arguments()
    plain = ops.selective_scan(**given, delta_softplus=True)
    assert torch.equal(ops.aligned_scan(**given, delta_softplus=True), plain)
    whole = torch.arange(LENGTH).expand(BATCH, -1)
    for positions in (whole, whole.flip(1), whole + 7):
        assert torch.allclose(ops.aligned_scan(**given, positions=positions, delta_softplus=True), plain, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_stay_near_the_definition(dtype: torch.dtype) -> None:
    narrow = {name: value.to(dtype) for name, value in arguments().items()}
    wanted = ops.aligned_scan(**{k: v.double() for k, v in narrow.items()}, positions=POSITIONS, delta_softplus=True)
    y = ops.aligned_scan(**narrow, positions=POSITIONS, delta_softplus=True)
    assert y.dtype == dtype
    assert float((y.double() - wanted).abs().max() / wanted.abs().max()) < (1e-5 if dtype == torch.float32 else 3e-2)


def test_steps_of_zero_give_zeros_and_no_nan() -> None:
    given = arguments() | {"delta": torch.full((BATCH, LENGTH, CHANNELS), -1e4).double()}
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    y = ops.aligned_scan(**leaves, positions=POSITIONS, delta_softplus=True)
    assert torch.allclose(y, leaves["D"] * leaves["x"] * F.silu(leaves["z"]))
    y.sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves.values() if leaf.grad is not None)


@pytest.mark.parametrize("per_channel", [False, True])
def test_one_decay_a_head_is_the_same_with_that_decay_in_every_state(per_channel: bool) -> None:
    heads, width = 2, 3
    x = random(BATCH, LENGTH, heads, width, seed=1)
    delta, A, bias = random(BATCH, LENGTH, heads, seed=2), -torch.exp(random(heads, seed=3)), random(heads, seed=4)
    B, C = random(BATCH, LENGTH, 1, STATES, seed=5), random(BATCH, LENGTH, 1, STATES, seed=6)
    D, z = random(*((heads, width) if per_channel else (heads,)), seed=7), random(*x.shape, seed=8)
    options = dict(positions=POSITIONS, delta_softplus=True)
    y = ops.aligned_ssd(x, delta, A, B, C, D, z, delta_bias=bias, **options)
    spread = [value.repeat_interleave(width, -1) for value in (delta, A, bias)]
    wanted = ops.aligned_scan(
        x.flatten(2),
        spread[0],
        spread[1][:, None].expand(-1, STATES),
        B[:, :, 0],
        C[:, :, 0],
        (D if per_channel else D[:, None].expand(-1, width)).flatten(),
        z.flatten(2),
        delta_bias=spread[2],
        **options,
    )
    assert torch.allclose(y.flatten(2), wanted, atol=1e-10)


def test_gaps_count_what_is_missing() -> None:
    assert ops.token_gaps(POSITIONS)[0].tolist() == [0, 0, 2, 0, 0, 3, 0, 18, 0]
    assert ops.token_gaps(POSITIONS.flip(1))[0].tolist() == [0, 0, 18, 0, 3, 0, 0, 2, 0]


def test_positions_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions: \(batch, length\) = \(2, 9\), got \(2, 8\)"):
        ops.aligned_scan(**arguments(), positions=POSITIONS[:, 1:])
