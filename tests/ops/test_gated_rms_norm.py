"""`gated_rms_norm`: RMSNorm with and without gate, in both orders and in groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ops
from tests.ops._cases import HALF, check_against_reference, random


def arguments(*shape, weight=True, gate=True, **options):
    made = {"x": random(*shape)}
    if weight:
        made["weight"] = 1 + 0.3 * random(shape[-1], seed=1)
    if gate:
        made["gate"] = random(*shape, seed=2)
    return made | options


CASES = {
    "plain": arguments(3, 7, 20, gate=False),
    "weightless": arguments(3, 7, 20, gate=False, weight=False, eps=1e-6),
    "gate first": arguments(3, 7, 20),
    "norm first": arguments(3, 7, 20, norm_before_gate=True),
    "groups": arguments(2, 5, 36, group_size=12),
    "groups, norm first": arguments(2, 5, 36, group_size=18, norm_before_gate=True),
    "one channel groups": arguments(2, 5, 4, group_size=1),
    "a vector": arguments(33),
    "wide": arguments(2, 131),
    "no rows": arguments(0, 5, 8),
    "no channels": arguments(2, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_formula(case):
    check_against_reference(ops.gated_rms_norm, ops.gated_rms_norm_reference, CASES[case])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", ["gate first", "norm first", "groups", "plain"])
def test_half_precision(case, dtype):
    check_against_reference(
        ops.gated_rms_norm,
        ops.gated_rms_norm_reference,
        CASES[case],
        dtype=dtype,
        narrow=("x", "gate"),
        tolerance=HALF[dtype],
    )


def test_strided_input_and_many_rows():
    joined = random(2000, 96).float()
    x, gate = joined[:, :48], joined[:, 48:]
    assert not x.is_contiguous()
    torch.testing.assert_close(
        ops.gated_rms_norm(x, None, gate), ops.gated_rms_norm_reference(x, None, gate), rtol=1e-5, atol=1e-5
    )


def test_gradcheck_of_the_reference():
    made = arguments(2, 6, group_size=3)
    names = ["x", "weight", "gate"]
    for norm_before_gate in (False, True):
        assert torch.autograd.gradcheck(
            lambda *v, order=norm_before_gate: ops.gated_rms_norm_reference(
                **dict(zip(names, v, strict=True)), group_size=3, norm_before_gate=order
            ),
            [made[n].requires_grad_() for n in names],
        )


@pytest.mark.parametrize("case", ["plain", "gate first", "norm first"])
def test_registration(case):
    args = ops._gated_rms_norm._bind(
        **{n: v.float() if isinstance(v, torch.Tensor) else v for n, v in CASES[case].items()}
    )
    args = tuple(a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(torch.ops.statescan.gated_rms_norm.default, args)


def test_compiles_as_one_graph():
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in CASES["groups"].items()}
    compiled = torch.compile(lambda **kwargs: ops.gated_rms_norm(**kwargs), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**made), ops.gated_rms_norm(**made))


@given(scale=st.floats(0.1, 100), rows=st.integers(1, 5))
def test_scale_does_not_matter_and_rows_are_independent(scale, rows):
    x = random(rows, 24).float()
    y = ops.gated_rms_norm(x, eps=0.0)
    torch.testing.assert_close(ops.gated_rms_norm(scale * x, eps=0.0), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ops.gated_rms_norm(x[:1], eps=0.0), y[:1])
    torch.testing.assert_close(y.square().mean(-1), torch.ones(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("change", "error", "message"), [
    (dict(weight=torch.ones(5)), ValueError, r"weight has shape \(5,\); expected \(20\)"),
    (dict(gate=torch.ones(3, 7, 19)), ValueError, "gate has shape"),
    (dict(group_size=7), ValueError, "group_size 7 does not divide 20 channels"),
    (dict(x=torch.ones(3, 7, 20).long()), TypeError, "x has dtype int64"),
])  # fmt: skip
def test_bad_input_is_named(change, error, message):
    made = {n: v.float() if isinstance(v, torch.Tensor) else v for n, v in CASES["gate first"].items()}
    with pytest.raises(error, match=message):
        ops.gated_rms_norm(**{**made, **change})
