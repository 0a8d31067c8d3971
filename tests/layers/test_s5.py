"""The S5 system: every way of evaluating it agrees, and its first values are the published ones' in law."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from statescan import ops
from statescan.layers import S5, S5Block, State
from statescan.ssm import discretize_diagonal, nplr

FORMS: dict[str, dict[str, Any]] = {
    "zoh": dict(),
    "bilinear": dict(discretization="bilinear"),
    "blocks": dict(blocks=3, clip_eigenvalues=True),
    "unpaired": dict(conjugate_symmetry=False, output_init="complex_normal"),
    "rescaled": dict(step_rescale=2.0, output_init="trunc_standard_normal"),
}
forms = pytest.mark.parametrize("form", FORMS)


def build(form: str, dim: int = 5, state_dim: int = 12, **more: Any) -> S5:
    torch.manual_seed(sum(map(ord, form)))
    return S5(dim, state_dim=state_dim, **(FORMS[form] | more))


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def by_definition(system: S5, x: torch.Tensor, intervals: torch.Tensor | None = None) -> torch.Tensor:
    """A step at a time in complex128, with one matrix exponential each: zero-order hold or the bilinear transform."""
    real = system.Lambda_re.double()
    if system.clip_eigenvalues:
        real = real.clamp(max=-1e-4)
    Lambda = torch.complex(real, system.Lambda_im.double())
    B, C = (torch.view_as_complex(p.double()) for p in (system.B, system.C))
    eye = torch.eye(len(Lambda), dtype=Lambda.dtype)
    state = torch.zeros(x.shape[0], len(Lambda), dtype=Lambda.dtype)
    rows = []
    for t in range(x.shape[1]):
        each = []
        for row in range(x.shape[0]):
            step = system.step_rescale * torch.exp(system.log_step.double())
            if intervals is not None:
                step = step * intervals[row, t]
            A = torch.diag(step * Lambda)
            if system.discretization == "zoh":
                decay = torch.matrix_exp(A)
                drive = torch.linalg.solve(torch.diag(Lambda), decay - eye) @ B
            else:
                inverse = torch.linalg.inv(eye - A / 2)
                decay, drive = inverse @ (eye + A / 2), inverse @ (step[:, None] * B)
            each.append(decay @ state[row] + drive @ x[row, t].to(B.dtype))
        state = torch.stack(each)
        read = (state @ C.T).real * (2 if system.conjugate_symmetry else 1)
        rows.append(read + system.D.double() * x[:, t])
    return torch.stack(rows, dim=1)


@forms
@pytest.mark.parametrize("irregular", [False, True])
@torch.no_grad()
def test_definition(form: str, irregular: bool) -> None:
    system, x = build(form).double(), noise(2, 9, 5, dtype=torch.float64)
    intervals = noise(2, 9, dtype=torch.float64).abs() + 0.1 if irregular else None
    y, state = system(x, intervals=intervals)
    torch.testing.assert_close(y, by_definition(system, x, intervals), atol=1e-12, rtol=1e-10)
    carried: State = system.initial_state(2)
    for t in range(9):
        given = None if intervals is None else intervals[:, t]
        stepped, carried = system.step(x[:, t], carried, intervals=given)
        torch.testing.assert_close(stepped, y[:, t], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(carried["ssm"], state["ssm"], atol=1e-12, rtol=1e-10)


@torch.no_grad()
def test_intervals_of_one_change_nothing() -> None:
    system, x = build("zoh"), noise(2, 9, 5)
    torch.testing.assert_close(system(x, intervals=torch.ones(2, 9))[0], system(x)[0], atol=1e-5, rtol=1e-4)


@forms
@torch.no_grad()
def test_convolution(form: str) -> None:
    """A time-invariant system is a convolution with K_k = 2 Re(C Lambda_bar^k B_bar), of every input to every output."""
    system, x = build(form).double(), noise(2, 40, 5, dtype=torch.float64)
    real = system.Lambda_re.clamp(max=-1e-4) if system.clip_eigenvalues else system.Lambda_re
    Lambda = torch.complex(real, system.Lambda_im)
    step = system.step_rescale * torch.exp(system.log_step)
    B, C = torch.view_as_complex(system.B), torch.view_as_complex(system.C)
    decay, B_bar = discretize_diagonal(Lambda[:, None], B, step[:, None], system.discretization)
    powers = decay ** torch.arange(40)
    kernel = torch.einsum("hp,pk,pi->hik", C, powers, B_bar).real * (2 if system.conjugate_symmetry else 1)
    spectrum = torch.einsum("hif,bfi->bfh", torch.fft.rfft(kernel, n=80), torch.fft.rfft(x, n=80, dim=1))
    want = torch.fft.irfft(spectrum, n=80, dim=1)[:, :40] + system.D * x
    torch.testing.assert_close(system(x)[0], want, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("form", ["zoh", "bilinear", "blocks"])
@torch.no_grad()
def test_whole_is_chunks_is_steps_at_length_4096(form: str, dtype: torch.dtype, tolerance: float) -> None:
    system, x = build(form).to(dtype), noise(1, 4096, 5, dtype=dtype)
    want, last = system(x)
    parts, state = [], None
    for start, end in itertools.pairwise([0, 1, 700, 701, 2048, 4000, 4096]):
        y, state = system(x[:, start:end], state)
        parts.append(y)
    scale = want.abs().max()
    assert (torch.cat(parts, 1) - want).abs().max() < tolerance * scale
    carried, steps = system.initial_state(1), []
    for t in range(4096):
        y, carried = system.step(x[:, t], carried)
        steps.append(y)
    assert (torch.stack(steps, 1) - want).abs().max() < tolerance * scale
    assert (carried["ssm"] - last["ssm"]).abs().max() < tolerance * last["ssm"].abs().max()


@pytest.mark.parametrize("marked", [None, "resets", "offsets"])
@torch.no_grad()
def test_bidirectional_is_two_systems(marked: str | None) -> None:
    """Read forwards and backwards, sequence by sequence: nothing crosses a boundary either way."""
    system = build("zoh", bidirectional=True).double()
    one, two = build("zoh").double(), build("zoh").double()
    C1, C2 = system.C.chunk(2, dim=1)
    for half, C in ((one, C1), (two, C2)):
        half.load_state_dict(system.state_dict() | {"C": C})
    two.D.zero_()
    x = noise(1, 11, 5, dtype=torch.float64)
    bounds = [0, 11] if marked is None else [0, 3, 4, 9, 11]
    want = torch.cat(
        [
            one(x[:, start:end])[0] + two(x[:, start:end].flip(1))[0].flip(1)
            for start, end in itertools.pairwise(bounds)
        ],
        dim=1,
    )
    marks: dict[str, Any] = {}
    if marked == "resets":
        marks["resets"] = torch.tensor([[t in bounds[1:-1] for t in range(11)]])
    elif marked == "offsets":
        marks["offsets"] = torch.tensor(bounds)
    y, state = system(x, **marks)
    torch.testing.assert_close(y, want, atol=1e-12, rtol=1e-10)
    assert len(state) == 0


@torch.no_grad()
def test_step_rescale_makes_up_for_a_lower_rate() -> None:
    """A slow signal at half the rate, with doubled steps, gives the same output at the shared times."""
    system = build("zoh", dim=1, state_dim=16, dt_min=1e-3, dt_max=1e-2).double()
    time = torch.arange(800, dtype=torch.float64)
    signal = torch.sin(time / 60)[None, :, None]
    full = system(signal)[0][:, 1::2]
    system.step_rescale = 2.0
    half = system(signal[:, 1::2])[0]
    assert (half - full).abs().max() < 0.03 * full.abs().max()


@torch.no_grad()
def test_a_block_structured_system_is_many_single_ones() -> None:
    """Proposition 1 turned around: with B and C that keep channels apart, S5 is one S4D of shared A a channel."""
    system = S5(3, state_dim=12, blocks=3).double()
    own = torch.block_diag(*[torch.ones(2, 1)] * 3).double()[..., None]
    system.B.mul_(own)
    system.C.mul_(own.transpose(0, 1))
    x = noise(2, 20, 3, dtype=torch.float64)
    Lambda = torch.complex(system.Lambda_re, system.Lambda_im).view(3, 2)
    assert torch.allclose(Lambda[0], Lambda[1])
    step = torch.exp(system.log_step).view(3, 2)
    for channel in range(3):
        rows = slice(2 * channel, 2 * channel + 2)
        B = torch.view_as_complex(system.B)[rows, channel]
        C = torch.view_as_complex(system.C)[channel, rows]
        decay, weight = discretize_diagonal(Lambda[channel], B, step[channel])
        kernel = ops.vandermonde((C * weight)[None, None], decay.log()[None], 20)[0]
        want = ops.fft_conv(x[..., channel : channel + 1], kernel)[..., 0]
        got = system(x)[0][..., channel] - system.D[channel] * x[..., channel]
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-8)


def test_gradients() -> None:
    system = S5(2, state_dim=4, clip_eigenvalues=True).double()
    x = noise(2, 5, 2, dtype=torch.float64).requires_grad_()
    before = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    resets = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    names = [name for name, _ in system.named_parameters()]

    def run(x: torch.Tensor, before: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, weights, strict=True))
        y, state = torch.func.functional_call(system, parameters, (x, State({"ssm": before})), {"resets": resets})
        return torch.cat([y.flatten(), state["ssm"].flatten()])

    assert torch.autograd.gradcheck(run, (x, before, *system.parameters()))


@torch.no_grad()
def test_first_values() -> None:
    system = S5(40, state_dim=64, blocks=4)
    eigenvalues = nplr("legs", 16)[0]
    Lambda = torch.complex(system.Lambda_re, system.Lambda_im).view(4, 8)
    torch.testing.assert_close(Lambda, eigenvalues.to(torch.complex64).expand(4, 8), atol=1e-4, rtol=1e-4)
    # V is unitary: B keeps the law of the real matrix it comes from, half of it for half of the rows.
    assert float(system.B.square().sum()) == pytest.approx(64 * 40 / 64 / 2, rel=0.15)
    assert float(system.C.square().sum()) == pytest.approx(2 * 40 * 32 / (40 * 64), rel=0.15)
    wide = S5(40, state_dim=64, output_init="trunc_standard_normal")
    assert float(wide.C.square().sum()) == pytest.approx(2 * 40 * 32 / 64, rel=0.15)
    assert system.log_step.exp().min() > 0.999e-3
    assert system.log_step.exp().max() < 0.1001


def test_clipped_eigenvalues_stay_stable() -> None:
    system = S5(3, state_dim=8, clip_eigenvalues=True, dt_min=0.1, dt_max=0.1)
    free = S5(3, state_dim=8, dt_min=0.1, dt_max=0.1)
    with torch.no_grad():
        for each in (system, free):
            each.Lambda_re.fill_(0.5)
        x = noise(1, 2000, 3)
        assert system(x)[0].abs().max() < 1e3
        assert not free(x)[0].isfinite().all()


def test_dropout_is_the_same_at_all_times() -> None:
    block = S5Block(S5(16, state_dim=4), activation="gelu", norm_at=(), dropout=0.5).train()
    x = noise(3, 6, 16)
    kept = (block(x)[0] - x) != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert not kept.all()
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: S5(4, state_dim=10, blocks=3), ValueError, "blocks: 3 does not divide 10 states"),
        (lambda: S5(4, state_dim=9, blocks=3), ValueError, "an even block, got 9 states / 3 blocks"),
        (lambda: S5(4, discretization="euler"), ValueError, "discretization: unknown 'euler'; known: zoh, bilinear"),
        (lambda: S5(4, output_init="normal"), ValueError, "output_init: unknown 'normal'; known: lecun_normal"),
        (lambda: S5Block(S5(4), activation="glu"), ValueError, "activation: unknown 'glu'; known: full_glu"),
        (lambda: S5Block(S5(4), norm="rms"), ValueError, "norm: unknown 'rms'; known: layer, batch"),
        (lambda: S5Block(S5(4), norm_at=("behind",)), ValueError, "norm_at: unknown 'behind'; known: before"),
        (
            lambda: S5(4, bidirectional=True).step(noise(1, 4), State()),
            NotImplementedError,
            "bidirectional system has no step; call it on the whole sequence",
        ),
        (
            lambda: S5(4, bidirectional=True)(noise(1, 3, 4), S5(4).initial_state(1)),
            ValueError,
            "needs the whole sequence at once and takes no state",
        ),
        (
            lambda: S5(4)(noise(1, 3, 4), intervals=noise(3)),
            ValueError,
            r"intervals: expected \(batch, length\) \(1, 3\), got \(3,\)",
        ),
    ],
)
def test_mistakes_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
