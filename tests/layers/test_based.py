"""The mixers of Based beyond the promises of all mixers: what each attends to, and how much it remembers."""

from __future__ import annotations

import pytest
import torch

from statescan.layers import BaseConv, SlidingAttention, TaylorLinearAttention

DIM = 12


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


BUILD = {
    "linear": lambda: TaylorLinearAttention(DIM, heads=3, feature_dim=4),
    "window": lambda: SlidingAttention(DIM, heads=3, window=7),
    "conv": lambda: BaseConv(DIM),
}


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@torch.no_grad()
def test_whole_chunks_and_steps_of_a_long_sequence(name: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    length = 4096 if dtype == torch.float32 else 512
    mixer, x = BUILD[name]().to(dtype), noise(1, length, DIM, dtype=dtype)
    want, _ = mixer(x)
    parts, state = [], mixer.initial_state(1, dtype=dtype)
    for part in x[:, : length - 50].split(1000, dim=1):
        y, state = mixer(part, state)
        parts.append(y)
    for t in range(length - 50, length):
        y, state = mixer.step(x[:, t], state)
        parts.append(y[:, None])
    torch.testing.assert_close(torch.cat(parts, 1), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window", [0, 1, 4, 30])
def test_a_window_sees_so_many_positions_and_itself(window: int) -> None:
    torch.manual_seed(0)
    mixer, x = SlidingAttention(DIM, heads=2, window=window), noise(1, 13, DIM).requires_grad_()
    y, _ = mixer(x)
    for t in (0, 5, 12):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0
        assert seen.nonzero().flatten().tolist() == list(range(max(0, t - window), t + 1))


@torch.no_grad()
def test_a_window_is_softmax_attention_with_a_band() -> None:
    torch.manual_seed(0)
    mixer, x = SlidingAttention(DIM, heads=2, window=4, rotary_dim=0), noise(2, 11, DIM)
    q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in mixer.input_projection(x).chunk(3, dim=-1))
    lag = torch.arange(11)[:, None] - torch.arange(11)
    scores = (q @ k.mT / 6**0.5).masked_fill((lag < 0) | (lag > 4), float("-inf"))
    want = mixer.output_projection((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(mixer(x)[0], want)


@torch.no_grad()
def test_a_cache_is_as_long_as_the_window_whatever_was_seen() -> None:
    mixer = SlidingAttention(DIM, heads=2, window=5)
    _, state = mixer(noise(2, 100, DIM))
    assert state.nbytes == mixer.initial_state(2).nbytes
    assert state["seen"].tolist() == [100, 100]


@torch.no_grad()
def test_a_memory_does_not_grow_with_length_but_with_the_feature_dim() -> None:
    sizes = []
    for width in (2, 4, 8):
        mixer = TaylorLinearAttention(DIM, heads=2, feature_dim=width)
        _, state = mixer(noise(1, 50, DIM))
        assert state["memory"].shape == mixer.initial_state(1)["memory"].shape
        sizes.append(state.nbytes)
    assert sizes == [4 * 2 * 7 * features for features in (6, 15, 45)]


@torch.no_grad()
def test_half_precision_keeps_the_memory_in_float32() -> None:
    mixer = TaylorLinearAttention(DIM, heads=2, feature_dim=4).half()
    # 200 equal values of 1,000 exceed what float16 can hold.
    mixer.value_projection.weight.fill_(100)
    y, state = mixer(torch.ones(1, 200, DIM, dtype=torch.float16))
    assert state["memory"].dtype == torch.float32
    assert torch.isfinite(y).all() and state["memory"].abs().max() > 65504


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TaylorLinearAttention(DIM, heads=5), "heads: 5 does not divide 12 channels; give head_dim"),
        (lambda: SlidingAttention(DIM, heads=5), "heads: 5 does not divide 12 channels"),
        (lambda: SlidingAttention(DIM, heads=4, kv_heads=3), "kv_heads: 3 does not divide 4 heads"),
        (lambda: SlidingAttention(DIM, heads=4), "rotary_dim: even and at most head_dim 3, got 3"),
        (lambda: SlidingAttention(DIM, heads=2, window=-1), "window: 0 or more earlier positions, got -1"),
        (lambda: BaseConv(5, expand=3), "expand: expand x dim must be even and positive, got 3 x 5"),
    ],
)
def test_wrong_options_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
