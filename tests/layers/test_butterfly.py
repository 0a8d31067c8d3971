"""The transform as products of small matrices: equal to torch's, learned, per channel, and what is refused."""

from __future__ import annotations

import pytest
import torch

from statescan.layers import ButterflyTransform, butterfly_transform


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("base", [2, 4, 16])
@pytest.mark.parametrize("power", range(15))
def test_equal_to_the_transform_of_torch(power: int, base: int) -> None:
    size = 2**power
    x = noise(2, 3, size)
    want = torch.fft.fft(x)
    assert float((butterfly_transform(x, base=base) - want).abs().max()) < 1e-4 * float(want.abs().max())
    z = torch.complex(x, noise(2, 3, size) - 1).to(torch.complex128)
    torch.testing.assert_close(butterfly_transform(z, base=base), torch.fft.fft(z), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 32, 512])
def test_learned_matrices_begin_as_the_transform(channels: int, size: int) -> None:
    x = noise(2, 3, size)
    got = ButterflyTransform(channels)(x)
    torch.testing.assert_close(got, torch.fft.fft(x), atol=1e-4, rtol=1e-4)
    near = ButterflyTransform(channels, additive=True)(x)
    assert size == 1 or 0 < float((near - got).abs().max()) < 0.5 * float(got.abs().max())


def test_channels_have_matrices_of_their_own() -> None:
    transform, x = ButterflyTransform(3, base=4).double(), noise(2, 3, 32, dtype=torch.float64)
    before = transform(x)
    with torch.no_grad():
        transform.matrix_4[1] *= 2
        transform.matrix_2[1] *= 3
    after = transform(x)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    torch.testing.assert_close(after[:, 1], before[:, 1] * 2 * 2 * 3)  # 32 = 4 x 4 x 2


def test_zeros_are_appended() -> None:
    x = noise(1, 5)
    torch.testing.assert_close(butterfly_transform(x), torch.fft.fft(x, n=8), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(butterfly_transform(x, 64), torch.fft.fft(x, n=64), atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_matrix_that_is_used() -> None:
    transform = ButterflyTransform(2, base=4).double()
    x = noise(1, 2, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: torch.view_as_real(transform(u)), (x,))
    transform(x).abs().sum().backward()
    for parameter in transform.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0


def test_dropout_is_for_training() -> None:
    x = noise(1, 1, 16)
    transform = ButterflyTransform(dropout=0.5)
    assert not torch.allclose(transform(x), torch.fft.fft(x), atol=1e-3)
    torch.testing.assert_close(transform.eval()(x), torch.fft.fft(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=12), "size: a power of two, got 12"),
        (dict(size=4), "size: at least the length 5, got 4"),
        (dict(base=6), "base: a power of two, got 6"),
        (dict(base=1), "base: at least 2, got 1"),
    ],
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        butterfly_transform(noise(1, 5), **options)  # type: ignore[arg-type]
    if "base" in options:
        with pytest.raises(ValueError, match="base: a power of two, at least 2"):
            ButterflyTransform(**options)
