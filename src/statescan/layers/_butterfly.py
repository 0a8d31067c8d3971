"""The Fourier transform as products with small matrices. Fu et al. 2023, arXiv 2302.06646, section 3.3 (FlashButterfly)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers._precision import widen

#: size -> the transform matrix of that size, or one a channel: complex (..., size, size).
Matrices = Callable[[int], Tensor]


def dft_matrix(size: int, *, dtype: torch.dtype = torch.complex64, device: torch.device | None = None) -> Tensor:
    """exp(-2 pi i j k / size), angles reduced in whole numbers first: (size, size)."""
    return _roots(size, size, size, dtype, device)


def _roots(rows: int, columns: int, size: int, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """exp(-2 pi i j k / size) for j below `rows`, k below `columns`."""
    place = torch.arange(rows, device=device)[:, None] * torch.arange(columns, device=device) % size
    angle = place.double() * (-2 * math.pi / size)
    return torch.complex(angle.cos(), angle.sin()).to(dtype)


def butterfly_transform(
    x: Tensor, size: int | None = None, *, matrices: Matrices | None = None, base: int = 16
) -> Tensor:
    """The discrete Fourier transform of the last axis, as products with matrices of at most `base` rows.

    A transform of size m n is one of size m over strides of n, a multiplication by roots of unity, and one of size n
    (Cooley and Tukey 1965); the second is split again until it is at most `base`.

    Arguments:
        x: (..., channels, length), real or complex.
        size: of the transform, a power of two, at least the length; zeros are appended. None: the least such.
        matrices: what stands in for the transform matrices, from 2 to `base` rows; complex (rows, rows), or
            (channels, rows, rows). None: those of the Fourier transform.
        base: a power of two.

    Returns:
        complex (..., channels, size).
    """
    length = x.shape[-1]
    size = 1 << max(0, length - 1).bit_length() if size is None else size
    for name, value in (("size", size), ("base", base)):
        if value < 1 or value & (value - 1):
            raise ValueError(f"{name}: a power of two, got {value}")
    if base < 2:
        raise ValueError(f"base: at least 2, got {base}")
    if size < length:
        raise ValueError(f"size: at least the length {length}, got {size}")
    dtype = torch.promote_types(x.dtype, torch.complex64)
    if matrices is None:

        def matrices(rows: int) -> Tensor:
            return dft_matrix(rows, dtype=dtype, device=x.device)

    return _transform(F.pad(x, (0, size - length)).to(dtype), matrices, base)


def _transform(x: Tensor, matrices: Matrices, base: int) -> Tensor:
    size = x.shape[-1]
    if size == 1:
        return x
    if size <= base:
        return (matrices(size) @ x[..., None])[..., 0]
    columns = size // base
    x = matrices(base) @ x.unflatten(-1, (base, columns))  # over strides of `columns`
    x = x * _roots(base, columns, size, x.dtype, x.device)
    # The rows become a leading axis, so that matrices of channels still meet the channels.
    x = _transform(x.movedim(-2, 0), matrices, base)
    return x.movedim(0, -1).flatten(-2)


class ButterflyTransform(nn.Module):
    """`butterfly_transform` whose matrices are learned; at first it is the Fourier transform, or near it.

    Arguments:
        channels: channels that have matrices of their own; 1 for all together.
        base: rows of the largest matrix, a power of two; there is one for each power of two from 2 to it.
        additive: what is learned is added to the Fourier matrices, and begins near zero.
        dropout: probability that training drops an entry of what is learned.
    """

    def __init__(self, channels: int = 1, *, base: int = 16, additive: bool = False, dropout: float = 0.0):
        super().__init__()
        if base < 2 or base & (base - 1):
            raise ValueError(f"base: a power of two, at least 2, got {base}")
        self.base, self.additive = base, additive
        self.dropout = nn.Dropout(dropout)
        for power in range(1, base.bit_length()):
            rows = 2**power
            first = torch.view_as_real(dft_matrix(rows)).expand(channels, -1, -1, -1).clone()
            if additive:
                first = 0.01 * torch.randn_like(first)
            setattr(self, f"matrix_{rows}", nn.Parameter(first))  # pairs: real and imaginary parts

    def matrix(self, rows: int) -> Tensor:
        """The matrix in force: complex (channels, rows, rows)."""
        learned = self.dropout(widen(getattr(self, f"matrix_{rows}")))
        matrix = torch.view_as_complex(learned)
        return matrix + dft_matrix(rows, dtype=matrix.dtype, device=matrix.device) if self.additive else matrix

    def forward(self, x: Tensor, size: int | None = None) -> Tensor:
        """x (..., channels, length) -> complex (..., channels, size); `size` as in `butterfly_transform`."""
        return butterfly_transform(x, size, matrices=self.matrix, base=self.base)
