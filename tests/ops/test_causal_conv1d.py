"""`causal_conv1d` and its step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops
from tests.ops._cases import HALF, check_against_reference, random


def arguments(batch=2, length=19, channels=5, width=4, *, state=None, bias=True, **options):
    sequences = len(options["offsets"]) - 1 if options.get("offsets") is not None else batch
    made = {"x": random(batch, length, channels), "weight": random(channels, width, seed=1), "return_last_state": True}
    if bias:
        made["bias"] = random(channels, seed=2)
    if state is not None:
        made["initial_state"] = random(sequences, state, channels, seed=3)
    return made | options


def marks(batch, length, *positions):
    resets = torch.zeros(batch, length, dtype=torch.bool)
    for row, position in positions:
        resets[row, position] = True
    return resets


CASES = {
    "plain": dict(bias=False),
    "silu": dict(activation="silu"),
    "state": dict(state=3, activation="silu"),
    "longer state": dict(state=6),
    "width 1": dict(width=1),
    "width 2": dict(width=2, state=1),
    "width 8": dict(width=8, state=7, activation="silu"),
    "wider than the sequence": dict(length=2, width=6, state=5),
    "wide": dict(channels=67, activation="silu"),
    "resets": dict(state=3, activation="silu", resets=marks(2, 19, (0, 0), (0, 2), (0, 3), (0, 17), (1, 18))),
    "packed": dict(batch=1, state=3, activation="silu", offsets=torch.tensor([0, 1, 1, 3, 19])),
    "packed without state": dict(batch=1, offsets=torch.tensor([0, 5, 19])),
    "length 1": dict(length=1, state=3),
    "length 0": dict(length=0, state=3),
    "batch 0": dict(batch=0),
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_sum_of_taps(case):
    check_against_reference(ops.causal_conv1d, ops.causal_conv1d_reference, arguments(**CASES[case]))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", ["silu", "state", "wide"])
def test_half_precision(case, dtype):
    made = arguments(**CASES[case])
    made.pop("return_last_state")
    check_against_reference(
        ops.causal_conv1d, ops.causal_conv1d_reference, made, dtype=dtype, narrow=("x",), tolerance=HALF[dtype]
    )


def test_more_than_one_thread_and_a_strided_half():
    both = random(1, 3000, 80).float()
    x = both[..., :40]
    weight, bias = random(40, 4, seed=1).float(), random(40, seed=2).float()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        check_against_reference(
            lambda x, weight, bias: ops.causal_conv1d(x[..., :40], weight, bias, activation="silu"),
            lambda x, weight, bias: ops.causal_conv1d_reference(x[..., :40], weight, bias, activation="silu"),
            {"x": both.double(), "weight": weight, "bias": bias},
        )
    finally:
        torch.set_num_threads(before)
    assert not x.is_contiguous()


def test_gradcheck_of_the_reference():
    made = arguments(1, 4, 2, 3, state=2)
    names = ["x", "weight", "bias", "initial_state"]
    assert torch.autograd.gradcheck(
        lambda *v: ops.causal_conv1d_reference(
            **dict(zip(names, v, strict=True)), activation="silu", return_last_state=True
        ),
        [made[n].requires_grad_() for n in names],
    )


@pytest.mark.parametrize("case", ["state", "resets", "packed"])
def test_registration(case):
    made = {
        n: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for n, v in arguments(**CASES[case]).items()
    }
    args = ops._causal_conv1d._bind(**made)
    args = tuple(a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
    torch.library.opcheck(torch.ops.statescan.causal_conv1d.default, args)


def test_compiles_as_one_graph():
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(**CASES["state"]).items()}
    compiled = torch.compile(lambda **kwargs: ops.causal_conv1d(**kwargs), fullgraph=True, backend="aot_eager")
    for have, want in zip(compiled(**made), ops.causal_conv1d(**made), strict=True):
        torch.testing.assert_close(have, want)


@given(length=st.integers(1, 20), cut=st.integers(0, 20), width=st.integers(1, 5), padding=st.integers(1, 4))
def test_chunks_steps_and_padding(length, cut, width, padding):
    cut = min(cut, length)
    made = {
        n: v.float() if isinstance(v, torch.Tensor) else v
        for n, v in arguments(2, length, 3, width, state=width - 1, activation="silu").items()
    }
    y, last = ops.causal_conv1d(**made)
    first, state = ops.causal_conv1d(**{**made, "x": made["x"][:, :cut]})
    second, state = ops.causal_conv1d(**{**made, "x": made["x"][:, cut:], "initial_state": state})
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(state, last)
    state, rows = made["initial_state"], []
    for t in range(length):
        row, state = ops.causal_conv1d_step(state, made["x"][:, t], made["weight"], made["bias"], activation="silu")
        rows.append(row)
    torch.testing.assert_close(torch.stack(rows, 1), y)
    torch.testing.assert_close(state, last)
    longer = torch.cat([made["x"], torch.ones(2, padding, 3)], 1)
    torch.testing.assert_close(ops.causal_conv1d(**{**made, "x": longer})[0][:, :length], y)


@given(length=st.integers(2, 20), at=st.integers(0, 19), permutation=st.permutations(range(3)))
def test_a_reset_is_two_calls_and_channels_are_independent(length, at, permutation):
    at = min(at, length - 1)
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments(1, length, 3, state=3).items()}
    y, last = ops.causal_conv1d(**made, resets=marks(1, length, (0, at)))
    later, last_later = ops.causal_conv1d(**{**made, "x": made["x"][:, at:], "initial_state": torch.zeros(1, 3, 3)})
    torch.testing.assert_close(y[:, at:], later)
    torch.testing.assert_close(last, last_later)
    order = list(permutation)
    turned = {"x": made["x"][..., order], "weight": made["weight"][order], "bias": made["bias"][order]}
    turned["initial_state"] = made["initial_state"][..., order]
    torch.testing.assert_close(ops.causal_conv1d(**{**made, **turned})[0], ops.causal_conv1d(**made)[0][..., order])


@pytest.mark.parametrize(("change", "error", "message"), [
    (dict(weight=torch.ones(6, 4)), ValueError, r"weight has shape \(6, 4\); expected \(5, any\)"),
    (dict(weight=torch.ones(5, 0)), ValueError, "at least one tap"),
    (dict(bias=torch.ones(4)), ValueError, "bias has shape"),
    (dict(activation="gelu"), ValueError, "activation must be None or 'silu', not 'gelu'"),
    (dict(initial_state=torch.ones(2, 2, 5)), ValueError, "initial_state holds 2 inputs; a width of 4 needs 3"),
    (dict(x=torch.ones(2, 19, 5).int()), TypeError, "x has dtype int32"),
    (dict(resets=torch.zeros(2, 19)), TypeError, "resets must be a bool tensor"),
    (dict(offsets=torch.tensor([0, 5])), ValueError, "batch of 1"),
])  # fmt: skip
def test_bad_input_is_named(change, error, message):
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in arguments().items()}
    with pytest.raises(error, match=message):
        ops.causal_conv1d(**{**made, **change})


def test_offsets_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="offsets must rise from 0 to the length 4"):
        ops.causal_conv1d(torch.ones(1, 4, 2), torch.ones(2, 3), offsets=torch.tensor([0, 3, 2, 4]))
