"""Companion matrices: what polynomials give is what powers of the matrix give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statescan import ssm


def _draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def _bounded(*shape, dtype=torch.float64):
    a = _draw(*shape, dtype=dtype, seed=1)
    return a / a.abs().sum(-1, keepdim=True)


def test_the_matrix_is_written_out():
    A = ssm.companion_matrix(torch.tensor([2.0, 3.0, 5.0]))
    assert A.tolist() == [[0, 0, 2], [1, 0, 3], [0, 1, 5]]


@given(size=st.integers(1, 40), length=st.integers(1, 90))
@settings(max_examples=30, deadline=None)
def test_the_fast_kernel_is_the_naive_one(size, length):
    a, b, c = _bounded(2, size), _draw(2, size, seed=2), _draw(2, size, seed=3)
    want = ssm.companion_kernel_naive(a, b, c, length)
    torch.testing.assert_close(ssm.companion_kernel(a, b, c, length), want, rtol=0, atol=1e-11)
    powers = [torch.linalg.matrix_power(ssm.companion_matrix(a), i) for i in range(length)]
    torch.testing.assert_close(want, torch.stack([(c[:, None] @ p @ b[..., None])[:, 0, 0] for p in powers], -1))


def test_an_eigenvalue_at_a_root_of_unity_is_no_trouble():
    a = torch.full((1, 4), 0.25, dtype=torch.float64)  # it sums to one: the eigenvalue 1
    b, c = _draw(1, 4, seed=2), _draw(1, 4, seed=3)
    want = ssm.companion_kernel_naive(a, b, c, 64)
    torch.testing.assert_close(ssm.companion_kernel(a, b, c, 64), want, rtol=0, atol=1e-12)


def test_gradients_agree():
    inputs = [_bounded(2, 9).requires_grad_(), *(_draw(2, 9, seed=s).requires_grad_() for s in (2, 3))]
    weight = _draw(2, 33, seed=4)
    got = torch.autograd.grad((ssm.companion_kernel(*inputs, 33) * weight).sum(), inputs)
    want = torch.autograd.grad((ssm.companion_kernel_naive(*inputs, 33) * weight).sum(), inputs)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    small = [value.detach()[:1, :3].clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(lambda a, b, c: ssm.companion_kernel(a, b, c, 7), small)


def test_rows_are_windows_of_the_recurrence():
    a, c = _bounded(3, 6), _draw(3, 6, seed=3)
    sequence = ssm.companion_rows(a, c, 12)
    A, row = ssm.companion_matrix(a), c
    for index in range(12):
        torch.testing.assert_close(sequence[:, index : index + 6], row)
        row = (row[:, None] @ A)[:, 0]


@given(size=st.integers(1, 12), length=st.integers(0, 30), warm=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_state_is_that_of_the_recurrence(size, length, warm):
    a, b, u = _bounded(3, size), _draw(3, size, seed=2), _draw(2, 3, length, seed=5)
    state = _draw(2, 3, size, seed=6) if warm else None
    A, x = ssm.companion_matrix(a), torch.zeros(2, 3, size, dtype=torch.float64) if state is None else state
    for index in range(length):
        x = (A @ x[..., None])[..., 0] + b * u[..., index, None]
    torch.testing.assert_close(ssm.companion_state(a, b, u, state), x, rtol=1e-9, atol=1e-11)


def test_the_fast_kernel_is_as_good_in_float32():
    a, b, c = (t.float() for t in (_bounded(2, 512), _draw(2, 512, seed=2), _draw(2, 512, seed=3)))
    fast, naive = ssm.companion_kernel(a, b, c, 1024), ssm.companion_kernel_naive(a, b, c, 1024)
    exact = ssm.companion_kernel_naive(a.double(), b.double(), c.double(), 1024)
    for found in (fast, naive):
        assert float((found - exact).abs().max() / exact.abs().max()) < 1e-5


@pytest.mark.parametrize("function", [ssm.companion_kernel, ssm.companion_kernel_naive])
def test_bad_lengths_are_named(function):
    with pytest.raises(ValueError, match="length: at least 1, got 0"):
        function(*(torch.ones(3),) * 3, 0)
