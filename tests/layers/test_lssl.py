"""The linear state-space layer: three views of one system, and its structured matrices."""

import itertools

import pytest
import torch

from statescan import ssm
from statescan.layers import LSSL, LSSL_MEASURES, QuasiseparableSystem, tridiagonal_solve

DIM = 3
LAYERS = {
    "legs": lambda: LSSL(DIM, state_dim=8),
    "legs-linear": lambda: LSSL(DIM, state_dim=8, solver="linear"),
    "fixed": lambda: LSSL(DIM, state_dim=6, learn="fixed", learn_dt=False, dt_init="uniform"),
    "separate": lambda: LSSL(DIM, state_dim=5, learn="separate", outputs=2, bias=True),
    "separate-linear": lambda: LSSL(DIM, state_dim=5, learn="separate", solver="linear"),
    "legt": lambda: LSSL(DIM, state_dim=6, measure="legt", activation=None),
    "bare": lambda: LSSL(DIM, measure="lagt", outputs=2, output_projection=False),
}


def _build(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def _noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_convolution_recurrence_and_integration_are_one(name):
    layer, x = _build(name), _noise(2, 256, DIM)
    want, last = layer(x)
    state, outputs = layer.initial_state(2), []
    for index in range(256):
        y, state = layer.step(x[:, index], state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state["ssm"], last["ssm"], rtol=1e-9, atol=1e-9)
    y, state = layer.integrate(x[:, :40], torch.ones(2, 40))
    torch.testing.assert_close(y, want[:, :40], rtol=1e-9, atol=1e-9)
    y, _ = layer.integrate(x[:, 40:60], torch.ones(2, 20), state)
    torch.testing.assert_close(y, want[:, 40:60], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("cuts", [(9,), (1, 3, 17), (0, 8, 8)])
@torch.no_grad()
def test_chunks_are_the_whole(name, cuts):
    layer, x = _build(name), _noise(2, 20, DIM)
    want, last = layer(x)
    parts, state = [], None
    for start, end in itertools.pairwise((0, *cuts, 20)):
        y, state = layer(x[:, start:end], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state["ssm"], last["ssm"], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_float32_at_length_4096():
    torch.manual_seed(0)
    layer, x = LSSL(2, state_dim=16, activation=None), torch.randn(1, 4096, 2)
    want, _ = layer(x)
    first, state = layer(x[:, :1000])
    second, _ = layer(x[:, 1000:], state)
    scale = float(want.abs().max())
    assert float((torch.cat([first, second], 1) - want).abs().max()) < 1e-4 * scale
    exact, _ = layer.double()(x.double())
    assert float((exact - want).abs().max()) < 1e-4 * scale


@torch.no_grad()
def test_the_rate_is_a_longer_step_and_irregular_intervals_are_steps():
    layer, x = _build("legs"), _noise(1, 12, DIM)
    twice, _ = layer(x, rate=2.0)
    irregular, _ = layer.integrate(x, torch.full((1, 12), 2.0))
    torch.testing.assert_close(twice, irregular, rtol=1e-9, atol=1e-9)
    # A system that holds still between samples: one long interval is near many short ones with the same input.
    smooth = torch.sin(torch.arange(400).double() / 60)[None, :, None].expand(1, 400, DIM)
    dense, _ = layer(smooth)
    kept = torch.cat([torch.arange(1, 200, 2), torch.arange(200, 400)])
    intervals = torch.cat([torch.full((1, 100), 2.0), torch.ones(1, 200)], 1)
    sparse, _ = layer.integrate(smooth[:, kept], intervals)
    assert float((sparse[:, -50:] - dense[:, -50:]).norm() / dense[:, -50:].norm()) < 0.02


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0), (1, 1)])
def test_empty_and_short(name, shape):
    layer, x = _build(name), _noise(*shape, DIM)
    y, state = layer(x)
    assert y.shape[:2] == shape
    again, state = layer(x, state)
    assert again.shape == y.shape
    last, _ = layer.step(_noise(shape[0], DIM), state)
    assert last.shape == (shape[0], y.shape[2])


def test_kept_matrices_follow_the_parameters():
    layer, x = _build("legs"), _noise(1, 5, DIM)
    with torch.no_grad():
        before, _ = layer(x)
        layer.log_dt += 0.5
        after, _ = layer(x)
    with_gradients, _ = layer(x)
    torch.testing.assert_close(after, with_gradients)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("name", ["legs", "legs-linear", "separate", "separate-linear"])
def test_every_parameter_has_a_gradient_the_same_in_all_views(name):
    layer, x = _build(name), _noise(2, 10, DIM)
    gradients = []
    for y in (layer(x)[0], layer.integrate(x, torch.ones(2, 10))[0]):
        layer.zero_grad()
        y.square().sum().backward()
        gradients.append({key: p.grad.clone() for key, p in layer.named_parameters()})
    for key, gradient in gradients[0].items():
        assert torch.isfinite(gradient).all()
        torch.testing.assert_close(gradient, gradients[1][key], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("size", [1, 8, 64])
def test_the_legs_system_is_hippo(size):
    stored, B = QuasiseparableSystem(size, "legs").double().matrices()
    A, b = ssm.transition("legs", size)
    torch.testing.assert_close(-stored, A, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(B, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("measure", LSSL_MEASURES)
@pytest.mark.parametrize("size", [1, 2, 17])
def test_the_linear_solve_is_the_dense_one(measure, size):
    system = QuasiseparableSystem(size, measure, generator=torch.Generator().manual_seed(0)).double()
    # 0.05 makes the diagonal of I + s diag(pl c pr) vanish at n = 20 for legs
    scale, right = torch.tensor([1e-3, 0.05, 0.1]).double(), _noise(3, size, 4)
    A, _ = system.matrices()
    want = torch.linalg.solve(torch.eye(size).double() + scale[:, None, None] * A, right)
    torch.testing.assert_close(system.solve(right, scale), want, rtol=1e-7, atol=1e-8)


def test_a_tridiagonal_system_is_solved():
    lower, main, upper = _noise(2, 6), 4 + _noise(2, 6).abs(), _noise(2, 6)
    T = torch.diag_embed(main) + torch.diag_embed(lower[:, 1:], -1) + torch.diag_embed(upper[:, :-1], 1)
    right = _noise(2, 6, 3)
    torch.testing.assert_close(T @ tridiagonal_solve(lower, main, upper, right), right)


@torch.no_grad()
def test_the_linear_solve_is_the_dense_one_for_many_states():
    system, dt = QuasiseparableSystem(256, "legs"), torch.full((4,), 0.01)
    A, _ = system.matrices()
    right = torch.randn(4, 256, 1)
    want = torch.linalg.solve(torch.eye(256) + dt[:, None, None] * A, right)
    torch.testing.assert_close(system.solve(right, dt), want, rtol=1e-3, atol=1e-4)


def test_a_delay_is_learned():
    torch.manual_seed(0)
    length, delay, steps = 200, 50, 160
    layer = LSSL(4, state_dim=64, learn="fixed", learn_dt=False, activation=None, dt_min=0.01, dt_max=0.03)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.02, total_steps=steps)
    for _ in range(steps):
        spectrum = torch.fft.rfft(torch.randn(16, length))
        spectrum[:, torch.fft.rfftfreq(length) > 0.04] = 0
        u = torch.fft.irfft(spectrum, n=length)
        u = (u / u.std())[..., None]
        y, _ = layer(u.expand(-1, -1, 4))
        # saying nothing costs the variance, 1
        loss = (y[:, delay:].mean(-1, keepdim=True) - u[:, :-delay]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert float(loss.detach()) < 0.1


def test_a_forget_gate_is_backward_euler():
    gate = _noise(7)
    dA, dB = ssm.discretize(-torch.ones(1, 1).double(), torch.ones(1).double(), torch.exp(gate), "backward")
    torch.testing.assert_close(dA[:, 0, 0], 1 - torch.sigmoid(gate))
    torch.testing.assert_close(dB[:, 0], torch.sigmoid(gate))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LSSL(2, measure="legz"), "measure: unknown 'legz'; known: legs"),
        (lambda: LSSL(2, learn="all"), "learn: known are fixed, shared, separate; got 'all'"),
        (lambda: LSSL(2, outputs=0), "outputs: at least 1, got 0"),
        (lambda: LSSL(2, solver="lapack"), "solver: known are dense, linear; got 'lapack'"),
        (lambda: LSSL(2).integrate(torch.zeros(1, 3, 2), torch.ones(1, 2)), r"intervals: expected \(1, 3\) as x has"),
        (lambda: LSSL(2).integrate(torch.zeros(1, 3, 2), torch.zeros(1, 3)), "intervals: must be positive"),
        (
            lambda: LSSL(2)(torch.zeros(2, 3, 2), offsets=torch.tensor([0, 3])),
            "offsets: packed sequences come in a batch",
        ),
        (lambda: QuasiseparableSystem(0), "state_dim: at least 1, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
