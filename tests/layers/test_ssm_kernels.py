"""Kernels of state-space systems against the systems themselves, walked step by step in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from statescan import ssm
from statescan.layers import DiagonalKernel, DPLRKernel, _ssm_kernels
from statescan.layers._ssm_kernels import initial_system

DIM, STATES = 4, 6


def drawn(kind: type[DiagonalKernel], **options: Any) -> Any:
    """A kernel whose every parameter is away from its first value."""
    torch.manual_seed(sum(map(ord, str(sorted(options.items())))))
    kernel = kind(DIM, 2 * STATES, **options)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return kernel.double()


def dense_response(kernel: Any, length: int, rate: float = 1.0) -> Tensor:
    """C dA^l dB (channels, H, length) of the dense system, conjugates included."""
    dt, A, B, C = kernel.system(rate)
    A, B, C = (torch.cat([t, t.conj()], -1) for t in (A, B, C))
    step = torch.cat([dt.expand(DIM, kernel.states)] * 2, -1)
    matrix = torch.diag_embed(A)
    if isinstance(kernel, DPLRKernel):
        P = torch.cat([p := kernel._P(), p.conj()], -1)
        matrix = matrix - torch.einsum("rhn,rhm->hnm", P, P.conj())
    method = kernel.discretization
    dA, dB = ssm.discretize(step[..., None] * matrix, step * B, 1.0, method)
    taps, column = [], dB[..., None]
    for _ in range(length):
        taps.append((C[:, :, None] @ column)[..., 0, 0].real)
        column = dA @ column
    return torch.stack(taps, -1)


SYSTEMS: dict[str, tuple[type[DiagonalKernel], dict[str, Any]]] = {
    "zoh": (DiagonalKernel, dict(discretization="zoh")),
    "bilinear": (DiagonalKernel, dict(discretization="bilinear", channels=2)),
    "copies": (DiagonalKernel, dict(copies=2, initialisation="diag")),
    "dt-a-state": (DiagonalKernel, dict(dt_tie=False, dt_transform="softplus", real_transform="softplus")),
    "sinh": (DiagonalKernel, dict(dt_sinh=True, real_transform="relu", imaginary_transform="softplus")),
    "fixed-B": (DiagonalKernel, dict(trainable_B=False, initialisation_options=dict(B_initialisation="unit-cw"))),
    "legs": (DPLRKernel, dict()),
    "legt": (DPLRKernel, dict(initialisation="legt", rank=2, copies=1)),
    "rank-3": (DPLRKernel, dict(initialisation="fout", rank=3, channels=2)),
    "hippo": (DPLRKernel, dict(initialisation="hippo", copies=2, dt_tie=False)),
    "diagonal-with-a-rank": (DPLRKernel, dict(initialisation="diag-inv", dt_transform="sigmoid")),
}
systems = pytest.mark.parametrize("name", SYSTEMS)


#: Truncated output weights belong to one rate; other rates of low-rank systems are compared in the parity fixtures.
RATED = [
    (name, rate)
    for name, (kind, _) in SYSTEMS.items()
    for rate in ((1.0, 2.0, 0.5) if kind is DiagonalKernel else (1.0,))
]


@pytest.mark.parametrize("length", [1, 20, 31])
@pytest.mark.parametrize(("name", "rate"), RATED)
def test_kernel_is_the_response_of_the_system(name: str, rate: float, length: int) -> None:
    kind, options = SYSTEMS[name]
    kernel = drawn(kind, **options)
    want = dense_response(kernel, length, rate)
    got, _ = kernel(length, rate=rate)
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-7)


@systems
@torch.no_grad()
def test_steps_are_the_kernel(name: str) -> None:
    kind, options = SYSTEMS[name]
    kernel = drawn(kind, **options)
    want, _ = kernel(12)
    state, outputs = kernel.initial_state(1), []
    for t in range(12):
        y, state = kernel.step(torch.full((1, DIM), float(t == 0)).double(), state)
        outputs.append(y[0])
    torch.testing.assert_close(torch.stack(outputs, -1), want, atol=1e-9, rtol=1e-7)


@systems
@pytest.mark.parametrize("length", [1, 5, 130, 300])
@torch.no_grad()
def test_advancing_is_stepping(name: str, length: int) -> None:
    kind, options = SYSTEMS[name]
    kernel = drawn(kind, **options)
    u = torch.randn(2, DIM, length, dtype=torch.float64)
    state = torch.randn(2, DIM, kernel.states, dtype=torch.complex128)
    got = kernel.advance(u, state)
    outputs = []
    before = state
    for t in range(length):
        y, state = kernel.step(u[..., t], state)
        outputs.append(y)
    torch.testing.assert_close(got, state, atol=1e-8, rtol=1e-7)
    kernel_, added = kernel(length, state=before)
    zero, _ = kernel(length)
    torch.testing.assert_close(kernel_, zero, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(outputs[0] - kernel_[..., 0] * u[:, None, :, 0], added[..., 0], atol=1e-8, rtol=1e-7)


@torch.no_grad()
def test_truncated_weights_grow_with_the_length_and_keep_the_kernel() -> None:
    kernel = drawn(DPLRKernel)
    first, original = kernel(8)[0], kernel.output_weights()
    assert int(kernel.kernel_length) == 8
    longer = kernel(30)[0]
    assert int(kernel.kernel_length) == 32
    torch.testing.assert_close(longer[..., :8], first)
    torch.testing.assert_close(kernel(8)[0], first)
    torch.testing.assert_close(kernel.output_weights(), original)
    bounded = drawn(DPLRKernel, max_length=50)
    bounded(8)
    assert int(bounded.kernel_length) == 50


@torch.no_grad()
def test_steps_follow_every_change_of_the_weights() -> None:
    for kind in (DiagonalKernel, DPLRKernel):
        kernel = drawn(kind)
        u, state = torch.randn(1, DIM).double(), kernel.initial_state(1)
        before = kernel.step(u, state)[0]
        torch.testing.assert_close(kernel.step(u, state)[0], before, atol=0, rtol=0)
        kernel.C.mul_(2)
        torch.testing.assert_close(kernel.step(u, state)[0], 2 * before)


def test_gradients_of_every_parameter() -> None:
    for kind, options in SYSTEMS.values():
        kernel = drawn(kind, **options)
        kernel(9)
        (kernel(9)[0] ** 2).sum().backward()
        for name, parameter in kernel.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_dss_keeps_growing_states_bounded() -> None:
    kernel = drawn(DiagonalKernel, discretization="dss", real_transform="none")
    with torch.no_grad():
        kernel.A_real.copy_(torch.linspace(-0.5, 0.5, STATES))  # half of them grow
        kernel.inverse_dt.zero_()
    taps = kernel(400)[0]
    assert torch.isfinite(taps).all()
    assert taps.abs().max() < 100
    with pytest.raises(ValueError, match="'dss' normalises by the length, so it has no recurrence"):
        kernel.step(torch.zeros(1, DIM), torch.zeros(1, DIM, STATES, dtype=torch.complex128))


@torch.no_grad()
def test_bandlimit_masks_the_same_states_at_every_rate() -> None:
    kernel = DiagonalKernel(2, 16, bandlimit=0.5, dt_min=0.11, dt_max=0.11)
    plain = DiagonalKernel(2, 16, dt_min=0.11, dt_max=0.11)
    plain.load_state_dict(kernel.state_dict())
    plain.C[:, :, 0.11 * torch.arange(8) / 2 >= 0.25] = 0
    for rate in (0.5, 1.0, 2.0):
        torch.testing.assert_close(kernel(20, rate=rate)[0], plain(20, rate=rate)[0])


def test_a_real_system_keeps_all_states() -> None:
    kernel = DiagonalKernel(3, 5, real=True, initialisation="diag-real")
    assert kernel.C.shape == (1, 3, 5)
    assert {name for name, _ in kernel.named_parameters()} == {"C", "B", "A_real", "inverse_dt"}
    y, state = kernel.step(torch.ones(1, 3), kernel.initial_state(1))
    torch.testing.assert_close(y[0], kernel(1)[0][..., 0])
    assert state.imag.abs().max() == 0


def test_frozen_parts_are_stored_but_not_learned() -> None:
    kernel = DPLRKernel(3, 4, frozen=("A", "dt"))
    assert {name for name, _ in kernel.named_parameters()} == {"B", "C"}
    assert set(kernel.state_dict()) == {"B", "C", "A_real", "A_imag", "P", "inverse_dt", "kernel_length"}


def test_mixtures_take_equal_shares_in_order() -> None:
    A, B, P = initial_system("hippo", 8, 1, 4)
    legs, fout = ssm.nplr("legs", 8), ssm.nplr("fout", 8)
    for copy, part in enumerate((legs, legs, fout, fout)):
        torch.testing.assert_close(A[copy], part[0])
        torch.testing.assert_close(P[:, copy], part[1])
        torch.testing.assert_close(B[copy], part[2])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DiagonalKernel(4, 8, copies=3), "copies: 3 does not divide 4 channels"),
        (lambda: DiagonalKernel(4, 7), "state_dim: states come in conjugate pairs, so even and at least 2, got 7"),
        (lambda: DiagonalKernel(4, 8, discretization="zho"), "discretization: unknown 'zho'; nearest: 'zoh'"),
        (
            lambda: DiagonalKernel(4, 8, initialisation="diag-line"),
            "initialisation: unknown 'diag-line'; nearest: 'diag-lin",
        ),
        (lambda: DiagonalKernel(4, 8, dt_transform="log"), "dt_transform: unknown 'log'"),
        (
            lambda: DiagonalKernel(3, 8, initialisation="diag"),
            "copies: 3 systems cannot be shared equally by diag-inv and",
        ),
        (lambda: DiagonalKernel(4, 8, frozen=("D",)), "frozen: unknown 'D'; known: dt, A, B, C"),
        (
            lambda: DPLRKernel(4, 8, discretization="zoh"),
            "discretization: a low-rank part needs complex states and the",
        ),
        (lambda: DPLRKernel(4, 8, initialisation="legt"), "rank: measure 'legt' needs at least 2, got 1"),
    ],
)
def test_wrong_options_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("rank", [1, 2])
def test_systems_taken_in_parts_give_what_they_give_together(rank, monkeypatch):
    torch.manual_seed(0)
    kernel = DPLRKernel(7, 8, channels=2, initialisation="legs" if rank == 1 else "legt", rank=rank)
    kernel(33)
    state = torch.randn(3, 7, 4, dtype=torch.complex64)

    def run():
        response, added = kernel(33, state=state)
        loss = (response * torch.arange(33)).sum() + added.square().sum()
        return response, added, *torch.autograd.grad(loss, list(kernel.parameters()))

    together = run()
    monkeypatch.setattr(_ssm_kernels, "_PART", 2 * 8 * 17 * (rank + 4) * (rank + 2))
    assert len(kernel._parts(torch.zeros(rank + 4, rank + 2, 7, 4), 17)) == 4
    for one, two in zip(together, run(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(one.detach().abs().max()))
