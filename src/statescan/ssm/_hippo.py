"""HiPPO: closed-form continuous state spaces whose state remembers the input's history on an orthogonal basis.

Gu et al. 2020, "HiPPO: Recurrent Memory with Optimal Polynomial Projections", and Gu et al. 2023, "How to Train
Your HiPPO". Every system is x' = A x + B u; the measure says how the past is weighted and the basis in which
functions of the past are expanded. All matrices are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from statescan._names import nearest


def _order(state_dim: int) -> Tensor:
    return torch.arange(state_dim, dtype=torch.float64)


def _legs(state_dim: int) -> tuple[Tensor, Tensor]:
    """Scaled Legendre: exponentially warped Legendre polynomials, exponential measure (HiPPO, eq. 3)."""
    n = _order(state_dim)
    root = torch.sqrt(2 * n + 1)
    return -(torch.tril(torch.outer(root, root), -1) + torch.diag(n + 1)), root


def _legt(state_dim: int) -> tuple[Tensor, Tensor]:
    """Translated Legendre: a sliding window, uniform measure; halved, as trained models have it."""
    n = _order(state_dim)
    root = torch.sqrt(2 * n + 1)
    difference = n[:, None] - n[None, :]
    sign = torch.where(difference >= 0, torch.ones(()).double(), torch.pow(-1.0, difference))
    return -0.5 * torch.outer(root, root) * sign, 0.5 * root


def _lmu(state_dim: int) -> tuple[Tensor, Tensor]:
    """Legendre memory unit: the translated Legendre system in Voelker's scaling."""
    n = _order(state_dim)
    difference = n[:, None] - n[None, :]
    sign = torch.where(difference < 0, -torch.ones(()).double(), torch.pow(-1.0, difference + 1))
    return (2 * n + 1)[:, None] * sign, (2 * n + 1) * torch.pow(-1.0, n)


def _lagt(state_dim: int, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Laguerre: exponential decay."""
    ones = torch.ones(state_dim, state_dim, dtype=torch.float64)
    return 0.5 * torch.eye(state_dim, dtype=torch.float64) - torch.tril(ones), beta * ones[0]


def _tlagt(state_dim: int, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Tilted Laguerre: `beta` tilts the exponential measure."""
    ones = torch.ones(state_dim, state_dim, dtype=torch.float64)
    return (1 - beta) / 2 * torch.eye(state_dim, dtype=torch.float64) - torch.tril(ones), beta * ones[0]


def _glagt(state_dim: int, alpha: float = 0.0, beta: float = 0.01) -> tuple[Tensor, Tensor]:
    """Generalised Laguerre: weight t^alpha e^-t, tilted by `beta`, normalised basis."""
    n = _order(state_dim)
    eye = torch.eye(state_dim, dtype=torch.float64)
    A = -(1 + beta) / 2 * eye - torch.tril(torch.ones_like(eye), -1)
    scale = torch.exp(0.5 * (torch.lgamma(n + alpha + 1) - torch.lgamma(n + 1)))
    binomial = torch.exp(torch.lgamma(n + alpha + 1) - torch.lgamma(n + 1) - math.lgamma(alpha + 1))
    B = binomial / scale * math.exp(-0.5 * math.lgamma(1 - alpha)) * beta ** ((1 - alpha) / 2)
    return A * scale[None, :] / scale[:, None], B


def _fourier_parts(state_dim: int, factor: float) -> tuple[Tensor, Tensor]:
    """Rotations at multiples of `factor` on pairs (cosine, sine), and the readings of both at time zero."""
    if state_dim % 2:
        raise ValueError(f"state_dim: a Fourier measure has pairs of states, so it must be even, got {state_dim}")
    frequency = factor * torch.arange(state_dim // 2, dtype=torch.float64)
    skew = torch.zeros(state_dim, state_dim, dtype=torch.float64)
    even = torch.arange(0, state_dim, 2)
    skew[even + 1, even] = frequency
    skew[even, even + 1] = -frequency
    b = torch.zeros(state_dim, dtype=torch.float64)
    b[0], b[2::2] = 1.0, math.sqrt(2.0)
    return skew, b


def _fout(state_dim: int) -> tuple[Tensor, Tensor]:
    """Truncated Fourier: a sliding window (How to Train Your HiPPO, section 4.2)."""
    skew, b = _fourier_parts(state_dim, math.pi)
    return skew - torch.outer(b, b), b


def _fourier_decay(state_dim: int) -> tuple[Tensor, Tensor]:
    skew, b = _fourier_parts(state_dim, math.pi)
    return skew - 0.5 * torch.outer(b, b), 0.5 * b


def _fourier2(state_dim: int) -> tuple[Tensor, Tensor]:
    skew, b = _fourier_parts(state_dim, 2 * math.pi)
    return skew - 2 * torch.outer(b, b), 2 * b


def _foud(state_dim: int) -> tuple[Tensor, Tensor]:
    """Diagonal Fourier: decaying rotations, no window."""
    skew, b = _fourier_parts(state_dim, 2 * math.pi)
    return skew - 0.5 * torch.eye(state_dim, dtype=torch.float64), b


def _legsd(state_dim: int) -> tuple[Tensor, Tensor]:
    """The normal part of LegS, which S4D-LegS keeps."""
    A, B = _legs(state_dim)
    return A + 0.5 * torch.outer(B, B), 0.5 * B


_TRANSITIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "legs": _legs,
    "legt": _legt,
    "lmu": _lmu,
    "lagt": _lagt,
    "tlagt": _tlagt,
    "glagt": _glagt,
    "fout": _fout,
    "foud": _foud,
    "fourier_decay": _fourier_decay,
    "fourier2": _fourier2,
    "legsd": _legsd,
}
_ALIASES = {"fourier": "fout", "fourier_diag": "foud"}

#: The measures that `transition` knows.
MEASURES = (*_TRANSITIONS, *_ALIASES)


def _canonical(measure: str) -> str:
    if measure not in MEASURES:
        hint = nearest(measure, MEASURES)
        raise ValueError(f"measure: unknown {measure!r}; known: {', '.join(MEASURES)}{hint}")
    return _ALIASES.get(measure, measure)


def transition(measure: str, state_dim: int, **options: float) -> tuple[Tensor, Tensor]:
    """A and B of x' = A x + B u for a HiPPO measure.

    Arguments:
        measure: one of `MEASURES`.
        state_dim: N, the number of coefficients kept.
        options: ``beta`` of ``lagt`` and ``tlagt``, ``alpha`` and ``beta`` of ``glagt``.

    Returns:
        A (state_dim, state_dim) and B (state_dim,), float64.
    """
    if state_dim < 1:
        raise ValueError(f"state_dim: at least 1, got {state_dim}")
    name = _canonical(measure)
    accepted = {"lagt": {"beta"}, "tlagt": {"beta"}, "glagt": {"alpha", "beta"}}.get(name, set())
    unknown = set(options) - accepted
    if unknown:
        raise ValueError(
            f"options: measure {measure!r} takes {', '.join(sorted(accepted)) or 'none'}, "
            f"got {', '.join(sorted(unknown))}"
        )
    return _TRANSITIONS[name](state_dim, **options)


def low_rank_correction(measure: str, state_dim: int, rank: int = 1) -> Tensor:
    """P with A + P^T P = c I + (a skew matrix): what is missing for A to be normal.

    Returns:
        P (rank, state_dim), float64; rows beyond the rank that the measure needs are zero.

    Raises:
        ValueError: for a measure without such a form, or a rank below what it needs (``legt`` needs 2).
    """
    name = _canonical(measure)
    n = _order(state_dim)
    if name == "legs":
        rows = torch.sqrt(n + 0.5)[None]
    elif name == "legt":
        row = torch.sqrt(2 * n + 1) / math.sqrt(2.0)
        odd = n % 2 == 1
        rows = torch.stack([torch.where(odd, row, 0.0), torch.where(odd, 0.0, row)])
    elif name == "lagt":
        rows = torch.full((1, state_dim), math.sqrt(0.5), dtype=torch.float64)
    elif name in ("fout", "fourier_decay", "fourier2"):
        b = _fourier_parts(state_dim, math.pi)[1]
        rows = b[None] * {"fout": 1.0, "fourier_decay": math.sqrt(0.5), "fourier2": math.sqrt(2.0)}[name]
    elif name in ("foud", "legsd"):
        rows = torch.zeros(1, state_dim, dtype=torch.float64)
    else:
        raise ValueError(f"measure: {measure!r} has no low-rank correction that is known in closed form")
    if rank < rows.shape[0]:
        raise ValueError(f"rank: measure {measure!r} needs at least {rows.shape[0]}, got {rank}")
    return torch.cat([rows, torch.zeros(rank - rows.shape[0], state_dim, dtype=torch.float64)])


def nplr(
    measure: str, state_dim: int, rank: int = 1, *, clip: float | None = 2.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normal-plus-low-rank form A = V diag(w) V* - P^T P of a HiPPO matrix (S4, theorem 1).

    Arguments:
        measure: a measure that `low_rank_correction` knows.
        state_dim: N, even.
        rank: rows of P.
        clip: bound on the imaginary part of the transformed B, as published initialisations have it. The phase of an
            eigenvector is arbitrary, so what is clipped depends on the linear-algebra library; None leaves B alone.

    Returns:
        w (state_dim / 2,) complex eigenvalues with non-positive imaginary part in ascending order, V* P
        (rank, state_dim / 2), V* B (state_dim / 2,), V (state_dim, state_dim / 2). The other half are conjugates.
    """
    if state_dim % 2:
        raise ValueError(f"state_dim: eigenvalues come in conjugate pairs, so it must be even, got {state_dim}")
    A, B = transition(measure, state_dim)
    P = low_rank_correction(measure, state_dim, rank)
    normal = A + P.T @ P
    # normal = c I + skew, so -i (normal - c I) is Hermitian: `eigh` in float64 is exact where `eig` loses digits.
    real = torch.diagonal(normal).mean()
    skew = normal - real * torch.eye(state_dim, dtype=torch.float64)
    error = float((skew + skew.T).abs().max())
    if error > 1e-9 * max(1.0, float(A.abs().max())):
        raise ValueError(f"measure: {measure!r} with rank {rank} is not normal after correction (error {error:.1e})")
    imaginary, V = torch.linalg.eigh(skew * -1j)
    half = state_dim // 2
    imaginary, V = imaginary[:half], V[:, :half].clone()
    if state_dim >= 2 and abs(float(imaginary[-1])) < 1e-4:
        # A pair of zero eigenvalues (Fourier, frequency 0) has no distinguished vectors: take conjugate ones.
        V[:, -1] = 0.0
        V[0, -1], V[1, -1] = math.sqrt(0.5), 1j * math.sqrt(0.5)
    w = torch.complex(real.expand(half), imaginary)
    adjoint = V.conj().T
    P_transformed = (adjoint @ P.T.to(V.dtype)).T
    B_transformed = adjoint @ B.to(V.dtype)
    if clip is not None:
        B_transformed = torch.complex(B_transformed.real, B_transformed.imag.clamp(-clip, clip))
    return w, P_transformed, B_transformed, V


_DIAGONAL_IMAGINARY: dict[str, Callable[[Tensor, int], Tensor]] = {
    "diag-lin": lambda n, N: math.pi * n,
    "diag-inv": lambda n, N: N / math.pi * (N / (2 * n + 1) - 1),
    "diag-inv2": lambda n, N: N / math.pi * (N / (n + 1) - 1),
    "diag-quad": lambda n, N: (2 * n + 1) ** 2 / math.pi,
    "diag-real": lambda n, N: torch.zeros_like(n),
}

#: The initialisations that `diagonal` knows.
DIAGONAL_INITIALISATIONS = (*_DIAGONAL_IMAGINARY, "diag-legs", "diag-rand")


def diagonal(
    initialisation: str,
    state_dim: int,
    *,
    real_scale: float = 1.0,
    imaginary_scale: float = 1.0,
    clip: float | None = 2.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Diagonal state matrices of S4D (Gu et al. 2022, section 4).

    Arguments:
        initialisation: ``diag-lin`` (S4D-Lin), ``diag-inv`` (S4D-Inv), ``diag-inv2``, ``diag-quad``, ``diag-real``,
            ``diag-legs`` (S4D-LegS) or ``diag-rand``.
        state_dim: N; N/2 eigenvalues are kept, the others are their conjugates.

    Returns:
        eigenvalues (state_dim / 2,) complex, imaginary part not positive, and B (state_dim / 2,) complex; complex128.
    """
    if initialisation not in DIAGONAL_INITIALISATIONS:
        hint = nearest(initialisation, DIAGONAL_INITIALISATIONS)
        raise ValueError(
            f"initialisation: unknown {initialisation!r}; known: {', '.join(DIAGONAL_INITIALISATIONS)}{hint}"
        )
    half = state_dim // 2
    n = torch.arange(half, dtype=torch.float64)
    real = torch.full((half,), -0.5 * real_scale, dtype=torch.float64)
    B = torch.ones(half, dtype=torch.complex128)
    if initialisation == "diag-legs":
        w, _, B, _ = nplr("legs", state_dim, clip=clip)
        return torch.complex(w.real * real_scale, w.imag * imaginary_scale), B
    if initialisation == "diag-rand":
        imaginary = torch.exp(torch.randn(half, dtype=torch.float64, generator=generator))
    else:
        imaginary = _DIAGONAL_IMAGINARY[initialisation](n, state_dim)
    if initialisation == "diag-real":
        real = -real_scale * (n + 1)
    return torch.complex(real, -imaginary_scale * imaginary), B
