"""HiPPO matrices and memories: structure, discretisation, and that they remember."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statescan import ssm


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "fout", "fourier_decay", "fourier2", "foud", "legsd"])
@pytest.mark.parametrize("state_dim", [2, 8, 64, 256])
def test_correction_leaves_a_skew_matrix_plus_identity(measure, state_dim):
    A, _ = ssm.transition(measure, state_dim)
    P = ssm.low_rank_correction(measure, state_dim, 2)
    normal = A + P.T @ P
    shift = torch.diagonal(normal).mean()
    skew = normal - shift * torch.eye(state_dim, dtype=torch.float64)
    assert float((skew + skew.T).abs().max()) < 1e-9 * state_dim


@pytest.mark.parametrize(("measure", "rank"), [("legs", 1), ("legs", 3), ("legt", 2), ("fout", 1), ("lagt", 1)])
def test_normal_plus_low_rank_form_rebuilds_the_matrix(measure, rank):
    w, P, B, V = ssm.nplr(measure, 32, rank, clip=None)
    A, b = ssm.transition(measure, 32)
    correction = ssm.low_rank_correction(measure, 32, rank)
    rebuilt = 2 * (V @ torch.diag(w) @ V.conj().T).real - correction.T @ correction
    torch.testing.assert_close(rebuilt, A, rtol=0, atol=1e-9)
    torch.testing.assert_close(2 * (V @ B).real, b, rtol=0, atol=1e-9)
    torch.testing.assert_close(2 * (V @ P.T).real, correction.T, rtol=0, atol=1e-9)
    assert (w.imag <= 0).all()
    assert (w.imag.diff() >= 0).all()


@pytest.mark.parametrize("name", ssm.DIAGONAL_INITIALISATIONS)
def test_diagonal_initialisations_are_stable(name):
    eigenvalues, B = ssm.diagonal(name, 16, generator=torch.Generator().manual_seed(0))
    assert eigenvalues.shape == B.shape == (8,)
    assert (eigenvalues.real < 0).all()
    assert (eigenvalues.imag <= 0).all()


@given(
    alpha=st.floats(0, 1),
    dt=st.floats(1e-4, 0.5),
    measure=st.sampled_from(["legs", "legt", "fout", "lagt"]),
)
def test_dense_and_diagonal_discretisation_agree(alpha, dt, measure):
    w, _, B, _ = ssm.nplr(measure, 8, 2)
    dense = torch.diag(w)
    for method in ("bilinear", "zoh", "dirac"):
        dA, dB = ssm.discretize(dense, B, dt, method)
        da, db = ssm.discretize_diagonal(w, B, dt, method)
        torch.testing.assert_close(torch.diagonal(dA), da, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(dB, db, rtol=1e-9, atol=1e-12)
    dA, dB = ssm.discretize(dense, B, dt, "gbt", alpha=alpha)
    eye = torch.eye(4, dtype=w.dtype)
    torch.testing.assert_close((eye - alpha * dt * dense) @ dA, eye + (1 - alpha) * dt * dense)
    torch.testing.assert_close((eye - alpha * dt * dense) @ dB, dt * B)


def test_zero_order_hold_survives_a_zero_eigenvalue():
    dA, dB = ssm.discretize_diagonal(torch.zeros(1, dtype=torch.complex128), torch.ones(1).cdouble(), 0.1)
    torch.testing.assert_close(dA, torch.ones(1).cdouble())
    torch.testing.assert_close(dB, torch.full((1,), 0.1).cdouble())
    small = torch.tensor([1e-9 + 1e-9j])
    _, dB = ssm.discretize_diagonal(small, torch.ones(1, dtype=small.dtype), 1.0)
    torch.testing.assert_close(dB, torch.ones(1, dtype=small.dtype), rtol=1e-6, atol=0)


def _signal(length, speed=1.0):
    t = torch.arange(length, dtype=torch.float64) / length
    return torch.sin(2 * math.pi * 3 * t * speed) + 0.5 * torch.cos(2 * math.pi * 5 * t * speed + 1)


def test_scaled_legendre_memory_reconstructs_and_improves_with_its_size():
    signal = _signal(4000)
    errors = []
    for state_dim in (8, 16, 32, 64):
        memory = ssm.ScaledLegendreMemory(state_dim)
        rebuilt = memory.reconstruct(memory(signal)[-1], torch.linspace(0, 1, 4000))
        errors.append(float((rebuilt - signal).norm() / signal.norm()))
    # beyond 32 coefficients the discretisation's own error, 1/k at step k, is what is left
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] < 0.02


def test_scaled_legendre_memory_has_no_timescale():
    memory = ssm.ScaledLegendreMemory(16)
    slow, fast = memory(_signal(2000))[-1], memory(_signal(1000))[-1]
    assert float((slow - fast).norm() / slow.norm()) < 0.01


@pytest.mark.parametrize(
    ("measure", "window", "tolerance"), [("legs", 1.0, 0.05), ("legt", 2.0, 0.05), ("fout", 1.0, 0.2)]
)
def test_time_invariant_memories_remember_their_window(measure, window, tolerance):
    # 1,000 samples per unit of the memory's own time; Fourier pays for its jump at the window's end
    dt, steps = 1e-3, 4000
    t = dt * torch.arange(steps, dtype=torch.float64)
    signal = torch.sin(2 * math.pi * t) + 0.3 * torch.cos(4.2 * math.pi * t)
    A, B = ssm.transition(measure, 64)
    dA, dB = ssm.discretize(A, B, dt, "bilinear")
    state = torch.zeros(64, dtype=torch.float64)
    for value in signal:
        state = dA @ state + dB * value
    lags = torch.linspace(0.05 * window, 0.95 * window, 200, dtype=torch.float64)
    wanted = signal[(steps - 1 - lags / dt).round().long()]
    rebuilt = ssm.reconstruct(measure, state, lags)
    assert float((rebuilt - wanted).norm() / wanted.norm()) < tolerance


def test_measure_weights_are_densities():
    lags = torch.linspace(0, 40, 400001, dtype=torch.float64)
    for measure in ("legs", "legt", "fout"):
        assert float(torch.trapezoid(ssm.measure_weight(measure, lags), lags)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssm.transition("leggs", 4), "measure: unknown 'leggs'.*nearest: 'legs'"),
        (lambda: ssm.transition("legs", 0), "state_dim: at least 1, got 0"),
        (lambda: ssm.transition("legs", 4, beta=1.0), "options: measure 'legs' takes none, got beta"),
        (lambda: ssm.transition("fout", 5), "must be even, got 5"),
        (lambda: ssm.low_rank_correction("legt", 4, 1), "needs at least 2, got 1"),
        (lambda: ssm.nplr("legs", 5), "must be even, got 5"),
        (lambda: ssm.diagonal("diag-linn", 8), "nearest: 'diag-lin'"),
        (lambda: ssm.discretize(torch.eye(3), torch.ones(2), 0.1), r"expected \(..., N, N\) and \(..., N\)"),
        (lambda: ssm.discretize(torch.eye(2), torch.ones(2), 0.1, "bilinar"), "nearest: 'bilinear'"),
        (lambda: ssm.log_uniform_timescales((3,), 0.1, 0.01), "need 0 < minimum <= maximum"),
        (lambda: ssm.reconstruct("lagt", torch.ones(4), torch.ones(3)), "known for legs, legt and fout"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
