"""Companion layers: any way of walking a sequence, the closed loop, the fixed filters."""

import itertools

import pytest
import torch

from statescan.layers import ClosedLoopCompanionSSM, CompanionSSM, DifferencingFilters

DIM = 6
LAYERS = {
    "companion": lambda: CompanionSSM(DIM, state_dim=5),
    "companion-shared": lambda: CompanionSSM(DIM, state_dim=4, kernels=2, skip=False),
    "companion-naive": lambda: CompanionSSM(DIM, state_dim=5, kernels=3, kernel="naive"),
    "companion-order-2": lambda: CompanionSSM(DIM, state_dim=3, norm_order=2),
    "shift": lambda: CompanionSSM(DIM, state_dim=7, shift=True),
    "closed-loop": lambda: ClosedLoopCompanionSSM(DIM, state_dim=5),
    "closed-loop-shared": lambda: ClosedLoopCompanionSSM(DIM, state_dim=4, kernels=3, shift=True),
    "filters": lambda: DifferencingFilters(DIM, kernels=3, head_dim=2, difference_order=2, windows=(2, 6)),
}


def _build(name):
    torch.manual_seed(0)
    return LAYERS[name]().double()


def _noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("cuts", [(5,), (1, 2, 13), (0, 7, 7)])
@torch.no_grad()
def test_chunks_and_steps_are_the_whole(name, cuts):
    layer, x = _build(name), _noise(2, 20, DIM)
    want, last = layer(x)
    parts, state = [], None
    for start, end in itertools.pairwise((0, *cuts, 20)):
        y, state = layer(x[:, start:end], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), want, rtol=1e-9, atol=1e-9)
    stepped, outputs = layer.initial_state(2), []
    for index in range(20):
        y, stepped = layer.step(x[:, index], stepped)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), want, rtol=1e-9, atol=1e-9)
    for key, value in last.items():
        torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(stepped[key], value, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_float32_at_length_4096():
    torch.manual_seed(0)
    layer, x = CompanionSSM(4, state_dim=16), torch.randn(1, 4096, 4)
    want, last = layer(x)
    first, state = layer(x[:, :3000])
    second, state = layer(x[:, 3000:], state)
    scale = float(want.abs().max())
    assert float((torch.cat([first, second], 1) - want).abs().max()) < 1e-4 * scale
    exact, _ = layer.double()(x.double())
    assert float((exact - want).abs().max()) < 1e-4 * scale
    assert float((state["ssm"] - last["ssm"]).abs().max()) < 1e-4 * scale


def test_fast_and_naive_layers_agree_with_their_gradients():
    torch.manual_seed(0)
    fast = CompanionSSM(DIM, state_dim=5, kernel="fast").double()
    naive = CompanionSSM(DIM, state_dim=5, kernel="naive").double()
    naive.load_state_dict(fast.state_dict())
    x = _noise(2, 17, DIM)
    for layer in (fast, naive):
        y, state = layer(x)
        layer(x, state)[0].square().sum().backward()
    for mine, theirs in zip(fast.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_the_closed_loop_is_a_recurrence():
    layer, x = _build("closed-loop"), _noise(2, 12, DIM)
    outputs, inputs = layer.forecast(x, 9)
    a, b, c = layer.system()
    feedback = layer.k / layer.k.abs().sum(-1, keepdim=True)
    state = torch.zeros(2, DIM, 5, dtype=torch.float64)
    for u in x.unbind(1):
        state = torch.cat([torch.zeros_like(state[..., :1]), state[..., :-1]], -1) + a * state[..., -1:]
        state = state + layer.b * u[..., None]
    for index in range(9):
        torch.testing.assert_close(outputs[:, index], (c * state).sum(-1))
        torch.testing.assert_close(inputs[:, index], (layer.k * state).sum(-1))
        u = (feedback * state).sum(-1, keepdim=True)
        state = torch.cat([torch.zeros_like(state[..., :1]), state[..., :-1]], -1) + a * state[..., -1:] + b * u


@torch.no_grad()
def test_without_feedback_the_loop_is_the_free_system():
    layer, x = _build("closed-loop"), _noise(2, 12, DIM)
    layer.k.zero_()
    outputs, inputs = layer.forecast(x, 6)
    a, _, c = layer.system()
    state = layer._advance(x, a, layer.b, None)["ssm"]
    A = torch.stack([torch.diag(torch.ones(4).double(), -1) for _ in range(DIM)])
    A[..., -1] += a
    for index in range(6):
        torch.testing.assert_close(outputs[:, index], (c * state).sum(-1))
        state = torch.einsum("cnm,bcm->bcn", A, state)
    assert not inputs.any()


def test_a_companion_system_is_any_autoregression():
    # x holds the last values, newest last, if C reads what A makes next: y_t = sum_i phi_i y_(t-i)
    phi = torch.tensor([0.5, -0.3, 0.2, 0.1]).double()
    layer = CompanionSSM(1, state_dim=4, norm_order=0, skip=False).double()
    with torch.no_grad():
        layer.a.zero_()
        layer.b.copy_(torch.eye(4)[:1])
        layer.c.copy_(phi[None])
    y = _noise(1, 30, 1)
    predicted, _ = layer(y)
    for t in range(4, 30):
        want = sum(phi[i] * y[0, t - 1 - i, 0] for i in range(4))
        torch.testing.assert_close(predicted[0, t - 1, 0], want)


@torch.no_grad()
def test_filters_are_differences_and_distances_from_means():
    layer, x = _build("filters"), _noise(1, 15, DIM)
    y, _ = layer(x)
    windows = [2, 3, 5]
    single = DifferencingFilters(3, kernels=3, difference_order=0, windows=(2, 6)).double()
    single.set_windows(torch.tensor(windows))
    means, _ = single(x[..., :3])
    torch.testing.assert_close(y[..., :2], x[..., :2])
    torch.testing.assert_close(y[:, 1:, 2:4], x[:, 1:, 2:4] - x[:, :-1, 2:4])
    for channel, width in enumerate(windows):
        want = x[0, 10, channel] - x[0, 11 - width : 11, channel].mean()
        torch.testing.assert_close(means[0, 10, channel], want)


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


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_resets_and_offsets_separate_sequences(name):
    layer, x = _build(name), _noise(1, 11, DIM)
    _, before = layer(_noise(1, 4, DIM))
    parts = [layer(x[:, :3], before), layer(x[:, 3:4]), layer(x[:, 4:])]
    resets = torch.zeros(1, 11, dtype=torch.bool)
    resets[0, [3, 4]] = True
    got, state = layer(x, before, resets=resets)
    torch.testing.assert_close(got, torch.cat([y for y, _ in parts], 1))
    packed, states = layer(x, offsets=torch.tensor([0, 3, 4, 11]))
    torch.testing.assert_close(packed[:, 3:], got[:, 3:])
    for key, value in parts[2][1].items():
        torch.testing.assert_close(state[key], value)
        torch.testing.assert_close(states[key][2:], value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CompanionSSM(6, kernels=4), "kernels: 4 does not divide 6 channels"),
        (lambda: CompanionSSM(6, state_dim=0), "state_dim: at least 1, got 0"),
        (lambda: CompanionSSM(6, norm_order=-1), "norm_order: 0 or more, got -1"),
        (lambda: CompanionSSM(6, kernel="slow"), "kernel: known are auto, fast, naive; got 'slow'"),
        (lambda: ClosedLoopCompanionSSM(2).forecast(torch.zeros(1, 3, 2), 0), "horizon: at least 1, got 0"),
        (lambda: DifferencingFilters(6, kernels=4), "kernels: 4 filters for 1 channels each do not divide 6"),
        (lambda: DifferencingFilters(8, difference_order=9), "difference_order: between 0 and kernels = 8, got 9"),
        (lambda: DifferencingFilters(8, windows=(4, 4)), "windows: need 1 <= least < greatest"),
        (lambda: DifferencingFilters(8).set_windows(torch.tensor([3])), "windows: expected 4 numbers from 1 to 64"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
