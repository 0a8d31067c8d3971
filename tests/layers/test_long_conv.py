"""Long convolutions: the direct sum, causality at any length, states, regularisation, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statescan.layers import H3Conv, LongConv, LongKernel
from statescan.layers._long_conv import smooth, smooth_spectrum, squash

DIM = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": dict(threshold=0.0),
    "channels": dict(channels=3, smoothing="mean", window=3, threshold=0.0002),
    "spectrum": dict(smoothing="frequency", window=4, initialisation="geometric"),
    "linear": dict(output=None, activation="silu", initialisation="geometric"),
    "projected": dict(output="identity", activation="identity", threshold=0.0),
}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def build(key: str, kind: Any = LongConv, **more: Any) -> Any:
    torch.manual_seed(0)
    layer = kind(DIM, **dict(max_length=7) | VARIANTS[key] | more)
    with torch.no_grad():
        for parameter in layer.modules():
            if isinstance(parameter, LongKernel):
                parameter.taps *= 100  # kernels begin near zero, where mistakes would not show
    return layer.eval()


@pytest.mark.parametrize("length", [1, 5, 7, 8, 19])
@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_equal_to_the_direct_sum(length: int, bidirectional: bool) -> None:
    layer = build("projected", bidirectional=bidirectional, channels=2)
    x, kernel = noise(2, length, DIM), layer.kernel()
    want = layer.D[None, None] * x[:, :, None]  # (batch, length, channels, dim)
    for t, s in itertools.product(range(length), repeat=2):
        if 0 <= t - s < 7:
            want[:, t] += kernel[:2, :, t - s] * x[:, s, None]
        elif bidirectional and 0 < s - t <= 7:
            want[:, t] += kernel[2:, :, s - t - 1] * x[:, s, None]
    torch.testing.assert_close(layer(x)[0], layer.output_projection(want.flatten(2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [LongConv, H3Conv])
@pytest.mark.parametrize("length", [2, 6, 7, 20])
@torch.no_grad()
def test_causal_for_inputs_of_any_length(kind: Any, length: int) -> None:
    layer, x = build("plain", kind), noise(1, length, DIM)
    changed = x.clone()
    changed[:, length // 2 :] += 3
    before = length // 2
    torch.testing.assert_close(layer(changed)[0][:, :before], layer(x)[0][:, :before], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("kind", [LongConv, H3Conv])
@torch.no_grad()
def test_whole_chunks_and_steps_over_a_long_sequence(kind: Any, dtype: torch.dtype, tolerance: float) -> None:
    length = 4096
    layer = build("plain", kind, max_length=600, initialisation="geometric").to(dtype)
    x = noise(1, length, DIM, dtype=dtype)
    want, last = layer(x)
    scale, parts, state = float(want.abs().max()), [], None
    for start, end in itertools.pairwise([0, 1, 8, 599, 600, 601, 2000, length - 40]):
        y, state = layer(x[:, start:end], state)
        parts.append(y)
    for t in range(length - 40, length):
        y, state = layer.step(x[:, t], state)
        parts.append(y[:, None])
    assert float((torch.cat(parts, 1) - want).abs().max()) < tolerance * scale
    for name, tensor in last.items():
        torch.testing.assert_close(state[name], tensor, atol=tolerance * float(tensor.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("key", VARIANTS)
@torch.no_grad()
def test_steps(key: str) -> None:
    layer, x = build(key).double(), noise(2, 17, DIM, dtype=torch.float64)
    want, last = layer(x)
    state, parts = layer.initial_state(2), []
    for t in range(17):
        y, state = layer.step(x[:, t], state)
        parts.append(y)
    torch.testing.assert_close(torch.stack(parts, 1), want, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(state["inputs"], last["inputs"])


@pytest.mark.parametrize("kind", [LongConv, H3Conv])
def test_gradients(kind: Any) -> None:
    layer = build("plain", kind).double()
    x = noise(1, 9, DIM, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: layer(u)[0], (x,))
    layer(x)[0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


@torch.no_grad()
def test_padding_is_read_as_zeros() -> None:
    for bidirectional in (False, True):
        layer, x = build("channels", bidirectional=bidirectional), noise(2, 9, DIM)
        lengths = torch.tensor([9, 4])
        got, _ = layer(x, lengths=lengths)
        torch.testing.assert_close(got[1, :4], layer(x[1:, :4])[0][0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_reversed_input_exchanges_the_two_kernels() -> None:
    layer, x = build("projected", bidirectional=True), noise(1, 6, DIM)
    layer.D.zero_()
    causal, future = layer.kernel.taps.chunk(2)
    mirrored = build("projected", bidirectional=True)
    mirrored.load_state_dict(layer.state_dict())
    # The future begins one position ahead: of the mirrored past, the tap at the position itself is moved to D.
    mirrored.D.copy_(causal[..., 0])
    mirrored.kernel.taps.copy_(
        torch.cat([nn.functional.pad(future, (1, -1)), nn.functional.pad(causal[..., 1:], (0, 1))])
    )
    torch.testing.assert_close(mirrored(x.flip(1))[0].flip(1), layer(x)[0], atol=1e-6, rtol=1e-5)


def test_regularisation() -> None:
    kernel = torch.tensor([[[-0.5, -0.1, 0.0, 0.1, 0.5, 0.3]]])
    want = torch.tensor([[[-0.3, 0.0, 0.0, 0.0, 0.3, 0.1]]])
    torch.testing.assert_close(squash(kernel, 0.2), want)
    ones = torch.ones(1, 2, 5)
    torch.testing.assert_close(smooth(ones, 3)[0, 0], torch.tensor([2 / 3, 1, 1, 1, 2 / 3]))
    for taps in (6, 7):
        impulse = torch.zeros(1, 1, taps)
        impulse[..., 0] = 1  # its spectrum is even: smoothing multiplies, up to the ends of the spectrum
        assert smooth_spectrum(impulse, 1).shape == impulse.shape
        torch.testing.assert_close(smooth_spectrum(impulse, 1), impulse, atol=1e-6, rtol=0)
        assert float(smooth_spectrum(impulse, 3)[0, 0, 0]) > 1.5
    torch.manual_seed(0)
    fresh = LongKernel(16, 200)
    assert float((fresh() == 0).float().mean()) < 0.5
    sparse = LongKernel(16, 200, threshold=0.002)
    assert float((sparse() == 0).float().mean()) > 0.5
    dropped = LongKernel(16, 200, threshold=0.0, dropout=0.5).train()
    assert 0.4 < float((dropped() == 0).float().mean()) < 0.6
    assert float((dropped.eval()() == 0).float().mean()) == 0
    geometric = LongKernel(64, 400, initialisation="geometric", threshold=0.0)()[0].detach()
    assert float(geometric[-1, -100:].abs().max()) < 1e-3 < float(geometric[0, :100].abs().max())


def test_a_tap_inside_the_threshold_stays_zero() -> None:
    layer = build("plain", threshold=0.1)
    layer(noise(2, 7, DIM))[0].square().sum().backward()
    squashed, gradient = layer.kernel() == 0, layer.kernel.taps.grad
    assert 0 < int(squashed.sum()) < squashed.numel()
    torch.testing.assert_close(gradient == 0, squashed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_length=0), "max_length: at least 1, got 0"),
        (dict(channels=0), "channels: at least 1, got 0"),
        (dict(channels=2, output=None), "output: 2 channels need a projection, got None"),
        (dict(threshold=-1.0), r"threshold: 0 or more, got -1\.0"),
        (dict(smoothing="means"), "smoothing: unknown 'means'; nearest: 'mean'"),
        (dict(smoothing="mean", window=4), "window: odd, got 4"),
        (dict(initialisation="randon"), "nearest: 'random'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LongConv(DIM, **options)


def test_a_bidirectional_layer_has_no_state() -> None:
    layer, x = build("plain", bidirectional=True), noise(1, 5, DIM)
    y, state = layer(x)
    assert list(state) == list(layer.initial_state(1)) == []
    for call in (
        lambda: layer(x, build("plain").initial_state(1)),
        lambda: layer(x, resets=torch.zeros(1, 5, dtype=torch.bool)),
        lambda: layer.step(x[:, 0], state),
    ):
        with pytest.raises(ValueError, match="reads the future"):
            call()
