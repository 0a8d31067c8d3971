"""`selective_state_step`: one position, against the reference and against the scan."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops
from tests.ops._cases import HALF, check_against_reference, random


def arguments(batch=2, channels=6, states=5, *, groups=None, constant=False, complex_valued=False, extras=True):
    rows = (channels, states) if constant else (batch, states) if groups is None else (batch, groups, states)
    A = -0.1 - 2 * random(channels, states, seed=1).abs()
    made = {
        "state": random(batch, channels, states, complex_valued=complex_valued),
        "x": random(batch, channels, seed=2),
        "delta": 0.5 * random(batch, channels, seed=3),
        "A": torch.complex(A, 3 * random(channels, states, seed=9)) if complex_valued else A,
        "B": random(*rows, seed=4, complex_valued=complex_valued),
        "C": random(*rows, seed=5, complex_valued=complex_valued),
        "delta_softplus": True,
    }
    if extras:
        made["D"], made["z"] = random(channels, seed=6), random(batch, channels, seed=7)
        made["delta_bias"] = -2 + random(channels, seed=8)
    return made


CASES = {
    "plain": dict(extras=False),
    "every option": dict(),
    "groups": dict(groups=3),
    "constant B and C": dict(constant=True, batch=3),
    "wide": dict(channels=70, states=16),
    "one": dict(batch=1, channels=1, states=1),
    "batch 0": dict(batch=0),
}


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_recurrence(case, complex_valued):
    made = arguments(**CASES[case], complex_valued=complex_valued)
    check_against_reference(ops.selective_state_step, ops.selective_state_step_reference, made)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(dtype):
    check_against_reference(
        ops.selective_state_step,
        ops.selective_state_step_reference,
        arguments(),
        dtype=dtype,
        narrow=("x", "delta", "z"),
        tolerance=HALF[dtype],
    )


@given(length=st.integers(1, 8), groups=st.sampled_from([1, 2, 3]))
def test_steps_equal_the_scan(length, groups):
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(groups=groups).items()}
    timed = {
        n: random(2, length, *made[n].shape[1:], seed=20 + i).float()
        for i, n in enumerate(("x", "delta", "B", "C", "z"))
    }
    shared = {n: made[n] for n in ("A", "D", "delta_bias", "delta_softplus")}
    y, last = ops.selective_scan(**timed, **shared, initial_state=made["state"], return_last_state=True)
    state, rows = made["state"], []
    for t in range(length):
        row, state = ops.selective_state_step(state, **{n: v[:, t] for n, v in timed.items()}, **shared)
        rows.append(row)
    torch.testing.assert_close(torch.stack(rows, 1), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_the_given_state_is_left_as_it_is():
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments().items()}
    before = made["state"].clone()
    ops.selective_state_step(**made)
    assert torch.equal(made["state"], before)


def test_registration_and_compilation():
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(groups=2).items()}
    args = ops._selective_state_step._bind(**made)
    args = tuple(a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(torch.ops.statescan.selective_state_step.default, args)
    compiled = torch.compile(lambda **kwargs: ops.selective_state_step(**kwargs), fullgraph=True, backend="aot_eager")
    for have, want in zip(compiled(**made), ops.selective_state_step(**made), strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize(("change", "error", "message"), [
    (dict(x=torch.ones(2, 3, 6)), ValueError, "x has shape"),
    (dict(state=torch.ones(2, 6, 4)), ValueError, "state has shape"),
    (dict(B=torch.ones(2, 4, 5)), ValueError, "4 groups, which do not divide 6 channels"),
    (dict(C=torch.ones(2, 5, 2, 2)), ValueError, "C has shape"),
    (dict(delta=torch.ones(2, 6).long()), TypeError, "delta has dtype int64"),
])  # fmt: skip
def test_bad_input_is_named(change, error, message):
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments().items()}
    with pytest.raises(error, match=message):
        ops.selective_state_step(**{**made, **change})
