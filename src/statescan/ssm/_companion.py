"""Companion matrices: systems whose powers are polynomials modulo one polynomial, so that kernels cost O(d + l).

A (d x d) has ones below the diagonal and `a` as its last column, so A x is z x(z) modulo z^d - a(z), where x(z) is the
polynomial with coefficients x. Rows c A^l are windows of one linear recurrence. Both facts turn powers of A into
products and quotients of polynomials, which the fast Fourier transform does in O((d + l) log(d + l)).

The fast functions are as accurate as the fast Fourier transform: to a share of the largest value. With the sum of
\\|a\\| at most 1 all values are bounded and nothing is lost. Zhang et al. 2023, "Effectively Modeling Time Series with
Simple Discrete State Spaces" (SpaceTime), section 3.3, use Woodbury's identity at roots of unity instead, which
fails where one of these is an eigenvalue.
"""

from __future__ import annotations

import torch
from torch import Tensor


def companion_matrix(a: Tensor) -> Tensor:
    """The matrix with ones below the diagonal and `a` as its last column: (..., d) -> (..., d, d)."""
    size = a.shape[-1]
    shift = torch.diag(a.new_ones(size - 1), -1)
    last = torch.zeros(size, dtype=a.dtype, device=a.device)
    last[-1] = 1
    return shift + a[..., :, None] * last


def krylov(A: Tensor, b: Tensor, length: int) -> Tensor:
    """A^l b for l < length, by repeated squaring: A (..., N, N), b (..., N) -> (..., N, length)."""
    if length < 1:
        raise ValueError(f"length: at least 1, got {length}")
    columns, power = b[..., None], A
    while columns.shape[-1] < length:
        missing = length - columns.shape[-1]
        columns = torch.cat([columns, power @ columns[..., :missing]], dim=-1)
        if columns.shape[-1] < length:
            power = power @ power
    return columns


def companion_kernel_naive(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """c A^l b for l < length from powers of the matrix, O(d^2 l): a, b, c (..., d) -> (..., length)."""
    return torch.einsum("...nl,...n->...l", krylov(companion_matrix(a), b, length), c)


def companion_kernel(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """c A^l b for l < length in O((d + l) log(d + l)): a, b, c (..., d) -> (..., length)."""
    if length < 1:
        raise ValueError(f"length: at least 1, got {length}")
    return correlate(companion_rows(a, c, length), b, length)


def companion_rows(a: Tensor, c: Tensor, length: int) -> Tensor:
    """The sequence s (..., length + d - 1) whose windows are the rows c A^l: s[l : l + d], for l < length.

    It continues c by s[n + d] = sum_j a[j] s[n + j], what an autoregression does with its past.
    """
    size, total = a.shape[-1], length + a.shape[-1] - 1
    series = _inverse_series(_denominator(a), total)
    # The numerator is what makes the first d values those of c.
    numerator = _product(c, _denominator(a)[..., :size], size)
    return _product(numerator, series, total)


def companion_state(a: Tensor, b: Tensor, inputs: Tensor, state: Tensor | None = None) -> Tensor:
    """The state after all inputs, x <- A x + b u, in O((d + l) log(d + l)).

    Arguments:
        a, b: (channels, d).
        inputs: (batch, channels, length).
        state: (batch, channels, d) before them; zero if not given.

    Returns:
        (batch, channels, d).
    """
    size, length = a.shape[-1], inputs.shape[-1]
    if length == 0:
        return torch.zeros(*inputs.shape[:-1], size, dtype=a.dtype, device=a.device) if state is None else state
    total = length + size - 1
    dividend = _product(b, inputs.flip(-1), total)  # the sum of z^(age of u) b(z) u
    if state is not None:
        total += 1
        dividend = torch.nn.functional.pad(dividend, (0, 1))
        dividend = dividend + torch.nn.functional.pad(state, (length, 0))  # z^length x(z)
    count = total - size
    if count == 0:
        return dividend
    # Division with remainder: reversed, the quotient is a quotient of power series.
    reversed_quotient = _product(dividend.flip(-1)[..., :count], _inverse_series(_denominator(a), count), count)
    return dividend[..., :size] + _product(a, reversed_quotient.flip(-1), size)


def correlate(signal: Tensor, taps: Tensor, length: int) -> Tensor:
    """sum_j signal[l + j] taps[j] for l < length, over the last axes, which otherwise broadcast."""
    if not signal.numel() or not taps.numel():
        return _empty(signal, taps, length)
    size = _transform_size(signal.shape[-1] + taps.shape[-1])
    spectrum = torch.fft.rfft(signal, n=size) * torch.fft.rfft(taps, n=size).conj()
    return torch.fft.irfft(spectrum, n=size)[..., :length]


def _denominator(a: Tensor) -> Tensor:
    """1 - a[d-1] z - ... - a[0] z^d: the characteristic polynomial, reversed."""
    return torch.cat([torch.ones_like(a[..., :1]), -a.flip(-1)], dim=-1)


def _inverse_series(polynomial: Tensor, length: int) -> Tensor:
    """1 / polynomial as a power series to z^(length - 1), by Newton's iteration; its constant term is 1."""
    series = torch.ones_like(polynomial[..., :1])
    known = 1
    while known < length:
        known = min(2 * known, length)
        correction = -_product(_product(series, series, known), polynomial[..., :known], known)
        correction[..., : series.shape[-1]] += 2 * series
        series = correction
    return series


def _product(left: Tensor, right: Tensor, length: int) -> Tensor:
    """The first coefficients of the product of two polynomials; leading axes broadcast."""
    left, right = left[..., :length], right[..., :length]
    if not left.numel() or not right.numel():
        return _empty(left, right, length)
    size = _transform_size(left.shape[-1] + right.shape[-1])
    product = torch.fft.irfft(torch.fft.rfft(left, n=size) * torch.fft.rfft(right, n=size), n=size)
    if size < length:
        product = torch.nn.functional.pad(product, (0, length - size))
    return product[..., :length]


def _empty(left: Tensor, right: Tensor, length: int) -> Tensor:
    """What an empty batch gives, which some transforms refuse."""
    return left.new_zeros(*torch.broadcast_shapes(left.shape[:-1], right.shape[:-1]), length)


def _transform_size(needed: int) -> int:
    return 1 << max(1, (needed - 1).bit_length())
