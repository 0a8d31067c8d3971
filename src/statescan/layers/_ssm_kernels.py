"""Convolution kernels that are state-space models: diagonal (S4D, DSS) and diagonal plus low rank (S4).

One system x' = A x + B u, y = C x a channel, with N/2 complex states that stand for conjugate pairs. The same parameters
give a kernel of any length (training), a step (decoding) and the passing of a state from chunk to chunk.
"""

from __future__ import annotations

import math
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops, ssm

_TRANSFORMS = ("none", "exp", "relu", "sigmoid", "softplus")


def _transform(value: Tensor, name: str) -> Tensor:
    """A positive quantity from its parameter."""
    if name == "none":
        return value
    if name == "relu":
        return F.relu(value) + 1e-4
    return {"exp": torch.exp, "sigmoid": torch.sigmoid, "softplus": F.softplus}[name](value)


def _inverse_transform(value: Tensor, name: str) -> Tensor:
    """The parameter of a positive quantity, clamped away from zero as published initialisations are."""
    value = value.clamp(min=1e-4)
    if name == "relu":
        return value - 1e-4
    if name == "softplus":
        return value + torch.log(-torch.expm1(-value))
    return {"none": lambda v: v, "exp": torch.log, "sigmoid": torch.logit}[name](value)


def _check(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        near = get_close_matches(given, known, n=1)
        hint = f"; nearest: {near[0]!r}" if near else ""
        raise ValueError(f"{name}: unknown {given!r}{hint}; known: {', '.join(known)}")


#: Mixtures of initialisations: equal shares of the copies.
_MIXTURES = {"hippo": ("legs", "fout"), "diag": ("diag-inv", "diag-lin")}


def initial_system(name: str, state_dim: int, rank: int, copies: int) -> tuple[Tensor, Tensor, Tensor]:
    """First values of A (copies, N/2), B (copies, N/2) and P (rank, copies, N/2), complex64.

    `name` is a HiPPO measure (``legs``, ``legt``, ``fout``, …), a diagonal initialisation (``diag-lin``, …), or a mixture:
    ``hippo`` (legs and fout), ``diag`` (diag-inv and diag-lin).
    """
    parts = _MIXTURES.get(name, (name,))
    if copies % len(parts):
        raise ValueError(f"copies: {copies} systems cannot be shared equally by {' and '.join(parts)}")
    columns = []
    for part in parts:
        if part in ssm.DIAGONAL_INITIALISATIONS:
            A, B = ssm.diagonal(part, state_dim)
            P = torch.zeros(rank, state_dim // 2, dtype=A.dtype)
        elif part in ssm.MEASURES:
            A, P, B, _ = ssm.nplr(part, state_dim, rank)
        else:
            _check("initialisation", part, (*ssm.MEASURES, *ssm.DIAGONAL_INITIALISATIONS, *_MIXTURES))
            raise AssertionError
        columns.append((A, B, P))
    repeats = copies // len(parts)
    A, B, P = (torch.stack([column[i] for column in columns], dim=-2) for i in range(3))
    return tuple(t.repeat_interleave(1, 0).tile(*[1] * (t.ndim - 2), repeats, 1).to(torch.complex64) for t in (A, B, P))  # type: ignore[return-value]


class DiagonalKernel(nn.Module):
    """The kernel of a diagonal system, a Vandermonde product. Gu et al. 2022, arXiv 2206.11893, section 3.

    Arguments:
        dim: H, independent systems.
        state_dim: N; N/2 complex states are kept.
        channels: outputs of each system.
        copies: independent (A, B); they are repeated H / copies times. None: H.
        initialisation: see `initial_system`.
        discretization: ``zoh``, ``bilinear`` or ``dss`` (Gupta et al. 2022: normalised, allows growing states).
        dt_min, dt_max: first step sizes are log-uniform between them.
        dt_tie: one step size a channel; otherwise one a state.
        dt_transform, real_transform, imaginary_transform: from parameters to step sizes, -Re A and -Im A.
        bandlimit: frequencies above half of it (of the sampling rate) are masked (S4ND).
        trainable_B: whether B is learned; otherwise it is fixed at its first value, ones for most initialisations.
    """

    def __init__(
        self,
        dim: int,
        state_dim: int = 64,
        *,
        channels: int = 1,
        copies: int | None = None,
        initialisation: str = "diag-lin",
        discretization: str = "zoh",
        rank: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        dt_transform: str = "exp",
        real_transform: str = "exp",
        imaginary_transform: str = "none",
        bandlimit: float | None = None,
        trainable_B: bool = True,
    ):
        super().__init__()
        for label, given in (
            ("dt_transform", dt_transform),
            ("real_transform", real_transform),
            ("imaginary_transform", imaginary_transform),
        ):
            _check(label, given, _TRANSFORMS)
        _check("discretization", discretization, ("zoh", "bilinear", "dss"))
        copies = dim if copies is None else copies
        if dim % copies:
            raise ValueError(f"copies: {copies} does not divide {dim} channels")
        self.dim, self.states, self.channels, self.copies = dim, state_dim // 2, channels, copies
        self.discretization, self.bandlimit = discretization, bandlimit
        self.dt_transform, self.real_transform = dt_transform, real_transform
        self.imaginary_transform = imaginary_transform
        A, B, P = initial_system(initialisation, state_dim, rank, copies)
        log_dt = ssm.log_uniform_timescales((dim, 1 if dt_tie else self.states), dt_min, dt_max)
        self.dt = nn.Parameter(_inverse_transform(torch.exp(log_dt), dt_transform) if dt_transform != "exp" else log_dt)
        self.C = nn.Parameter(torch.view_as_real(torch.randn(channels, dim, self.states, dtype=torch.complex64)))
        first_B = torch.view_as_real(B.resolve_conj()).contiguous().clone()
        if trainable_B:
            self.B = nn.Parameter(first_B)
        else:
            self.register_buffer("B", first_B, persistent=False)
        self.A_real = nn.Parameter(_inverse_transform(-A.real, real_transform))
        self.A_imag = nn.Parameter(_inverse_transform(-A.imag, imaginary_transform))
        self._initial_P = P  # taken by the subclass that has a low-rank part

    def system(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt (H, 1 or N/2), A (H, N/2), B (H, N/2), C (channels, H, N/2); `rate` multiplies dt."""
        repeats = self.dim // self.copies
        real = _transform(self.A_real.float(), self.real_transform)
        imaginary = _transform(self.A_imag.float(), self.imaginary_transform)
        A = -torch.complex(real, imaginary)
        B, C = torch.view_as_complex(self.B.float()), torch.view_as_complex(self.C.float())
        dt = _transform(self.dt.float(), self.dt_transform)
        A, B = A.tile(repeats, 1), B.tile(repeats, 1)
        if self.bandlimit is not None:
            C = C * (dt * A.imag.abs() / (2 * math.pi) < self.bandlimit / 2)
        return dt * rate, A, B, C

    def forward(self, length: int, *, rate: float = 1.0, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The kernel (channels, H, length) and, for a state (batch, H, N/2), what it adds to the output
        (batch, channels, H, length)."""
        dt, A, B, C = self.system(rate)
        if self.discretization == "dss":
            if state is not None:
                raise ValueError("state: the dss discretization has no recurrence to pass a state on")
            return self._dss_kernel(dt * A, A, B, C, length), None
        dA, dB = ssm.discretize_diagonal(A, B, dt, self.discretization)
        exponents = dt * A if self.discretization == "zoh" else torch.log(dA)
        kernel = ops.vandermonde(C * dB, exponents, length)
        if state is None:
            return kernel, None
        weights = (C[None] * (dA * state)[:, None]).flatten(0, 1)  # C dA^(l+1) state
        return kernel, ops.vandermonde(weights, exponents, length).unflatten(0, (-1, self.channels))

    def _dss_kernel(self, dtA: Tensor, A: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
        grows = A.real > 0
        decaying = torch.where(grows, -dtA, dtA)
        x = (torch.exp(decaying * length) - 1) * A
        reciprocal = x.conj_physical() / (x * x.conj_physical() + 1e-7)
        weights = C * B * (torch.exp(decaying) - 1) * reciprocal / 2  # its kernel is a real part without the factor 2
        falling = ops.vandermonde(torch.where(grows, torch.zeros_like(weights), weights), decaying, length)
        # a growing state is normalised at its last position: the same sum, read from the end
        rising = ops.vandermonde(torch.where(grows, weights, torch.zeros_like(weights)), decaying, length).flip(-1)
        return falling + rising

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        """Zeros (batch, H, N/2), complex64."""
        device = device or self.C.device
        return torch.zeros(batch_size, self.dim, self.states, dtype=torch.complex64, device=device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """u (batch, H), state (batch, H, N/2) -> y (batch, channels, H) and the next state."""
        dt, A, B, C = self.system()
        dA, dB = ssm.discretize_diagonal(A, B, dt, self.discretization)
        state = dA * state + dB * u.float()[..., None]
        return 2 * torch.einsum("chn,bhn->bch", C, state).real, state

    def advance(self, u: Tensor, state: Tensor) -> Tensor:
        """The state after u (batch, H, length)."""
        dt, A, B, _ = self.system()
        dA, dB = ssm.discretize_diagonal(A, B, dt, self.discretization)
        exponents = dt * A if self.discretization == "zoh" else torch.log(dA)
        driven = ops.vandermonde_transpose(u.float().flip(-1), exponents)
        return torch.exp(exponents * u.shape[-1]) * state + dB * driven


class DPLRKernel(DiagonalKernel):
    """The kernel of a diagonal-plus-low-rank system A - P P*, through its generating function at the roots of unity.

    Gu, Goel and Re 2022, arXiv 2111.00396, algorithm 1, with the stable low-rank part of Goel et al. 2022.

    As published, C is stored truncated: once a length L is known, C becomes C (I - dA^L) and `kernel_length` remembers L;
    a longer kernel doubles it. Checkpoints therefore carry `kernel_length`.

    Arguments: as `DiagonalKernel`, and
        rank: of P.
        max_length: the length to truncate at; None: the first length that is asked for.
    """

    def __init__(
        self,
        dim: int,
        state_dim: int = 64,
        *,
        channels: int = 1,
        copies: int | None = None,
        initialisation: str = "legs",
        rank: int = 1,
        max_length: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        dt_transform: str = "exp",
        real_transform: str = "exp",
        imaginary_transform: str = "none",
        bandlimit: float | None = None,
    ):
        super().__init__(
            dim,
            state_dim,
            channels=channels,
            copies=copies,
            initialisation=initialisation,
            discretization="bilinear",
            rank=rank,
            dt_min=dt_min,
            dt_max=dt_max,
            dt_tie=dt_tie,
            dt_transform=dt_transform,
            real_transform=real_transform,
            imaginary_transform=imaginary_transform,
            bandlimit=bandlimit,
        )
        self.rank, self.max_length = rank, max_length
        self.P = nn.Parameter(torch.view_as_real(self._initial_P.resolve_conj()).contiguous().clone())
        self.register_buffer("kernel_length", torch.tensor(0))

    def _P(self) -> Tensor:
        return torch.view_as_complex(self.P.float()).tile(1, self.dim // self.copies, 1)  # (rank, H, N/2)

    def dense(self) -> tuple[Tensor, Tensor]:
        """dA (H, N, N) and dB (H, N), complex128, with both halves of every conjugate pair."""
        dt, A, B, _ = self.system()
        P = self._P()
        A, B, P = (torch.cat([t, t.conj()], dim=-1).to(torch.complex128) for t in (A, B, P))
        matrix = torch.diag_embed(A) - torch.einsum("rhn,rhm->hnm", P, P.conj())
        step = torch.cat([dt.expand_as(A[:, : self.states])] * 2, dim=-1).double()
        # rows scale with their own step where steps are not tied
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        scaled = step[..., None] * matrix / 2
        left = eye - scaled
        return torch.linalg.solve(left, eye + scaled), torch.linalg.solve(left, (step * B)[..., None])[..., 0]

    @torch.no_grad()
    def set_length(self, length: int) -> None:
        """Make C the truncated output weights for `length`: the first call truncates, later ones double."""
        known = int(self.kernel_length)
        while known < length:
            span = known or length
            dA, _ = self.dense()
            power = torch.linalg.matrix_power(dA, span)
            C = torch.view_as_complex(self.C.float())
            full = torch.cat([C, C.conj()], dim=-1).to(power.dtype)
            tail = torch.einsum("hmn,chm->chn", power, full)
            full = full + tail if known else full - tail
            self.C.copy_(torch.view_as_real(full[..., : self.states].to(torch.complex64).contiguous()))
            known = 2 * span if known else span
            self.kernel_length.fill_(known)

    def forward(self, length: int, *, rate: float = 1.0, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The kernel (channels, H, length) and, for a state (batch, H, N/2), what it adds to the output
        (batch, channels, H, length)."""
        if int(self.kernel_length) == 0 and self.max_length:
            self.set_length(self.max_length)
        self.set_length(round(rate * length))
        whole = round(int(self.kernel_length) / rate)
        dt, A, B, C = self.system(rate)
        P = self._P()
        rows = B[None]
        if state is not None:
            rows = torch.cat([self._as_input(state, dt, A, P), rows])
        rows, columns = torch.cat([rows, P]), torch.cat([C, P.conj()])
        v = rows[:, None] * columns[None, :] * dt  # (rows, columns, H, N/2)
        angle = torch.arange(whole // 2 + 1, device=v.device, dtype=torch.float64) * (math.pi / whole)
        tangent = torch.tan(angle)
        if whole % 2 == 0:
            tangent[-1] = 0.0  # the pole of the tangent; its value is filled in below
        tangent = tangent.float()
        z = torch.complex(torch.zeros_like(tangent), 2 * tangent)
        r = ops.cauchy(v.flatten(0, 1), z, A * dt).unflatten(0, v.shape[:2])
        rank = self.rank
        spectrum = r[:-rank, :-rank]
        inner = torch.eye(rank, device=r.device, dtype=r.dtype) + r[-rank:, -rank:].permute(2, 3, 0, 1)
        correction = torch.linalg.solve(inner, r[-rank:, :-rank].permute(2, 3, 0, 1))  # (H, nodes, rank, columns)
        spectrum = spectrum - torch.einsum("arhj,hjrc->achj", r[:-rank, -rank:], correction)
        spectrum = spectrum * torch.complex(torch.ones_like(tangent), tangent)
        if whole % 2 == 0:
            # z grows without bound there: the sum of v / z times 1 + z / 2 tends to the sum of Re v
            last = v[:-rank, :-rank].real.sum(-1, keepdim=True)
            spectrum = torch.cat([spectrum[..., :-1], torch.complex(last, torch.zeros_like(last))], dim=-1)
        kernel = torch.fft.irfft(spectrum, n=whole)[..., :length]
        return kernel[-1], (None if state is None else kernel[:-1])

    def _as_input(self, state: Tensor, dt: Tensor, A: Tensor, P: Tensor) -> Tensor:
        """The input weights whose first response is `state`: (I / dt + A / 2) state."""
        overlap = 2 * torch.einsum("rhn,bhn->rbh", P.conj(), state).real
        applied = A * state - torch.einsum("rbh,rhn->bhn", overlap.to(P.dtype), P)
        return state / dt + applied / 2

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """u (batch, H), state (batch, H, N/2) -> y (batch, channels, H) and the next state, in O(N rank)."""
        dt, A, B, _ = self.system()
        state = self._linear_step(u.float(), state, dt, A, B)
        return 2 * torch.einsum("chn,bhn->bch", self.output_weights(), state).real, state

    def _linear_step(self, u: Tensor, state: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> Tensor:
        # (I - dt/2 A)^-1 (I + dt/2 A) for A = diag - P P*, by the Woodbury identity (S4, appendix C.2)
        P = self._P()
        D = 1 / (2 / dt - A)
        inner = torch.eye(self.rank, device=u.device) + 2 * torch.einsum("rhn,hn,shn->hrs", P.conj(), D, P).real

        def overlap(x: Tensor) -> Tensor:
            return 2 * torch.einsum("rhn,bhn->bhr", P.conj(), x).real

        z = (2 / dt + A) * state - torch.einsum("rhn,bhr->bhn", P, overlap(state).to(P.dtype)) + 2 * B * u[..., None]
        z = D * z
        weights = torch.linalg.solve(inner, overlap(z)[..., None])[..., 0]
        return z - D * torch.einsum("rhn,bhr->bhn", P, weights.to(P.dtype))

    def output_weights(self) -> Tensor:
        """C (channels, H, N/2) with the truncation undone: C (I - dA^L)^-1."""
        C = torch.view_as_complex(self.C.float())
        length = int(self.kernel_length)
        if length == 0:
            return C
        dA, _ = self.dense()
        left = torch.eye(dA.shape[-1], dtype=dA.dtype, device=dA.device) - torch.linalg.matrix_power(dA, length)
        full = torch.cat([C, C.conj()], dim=-1).to(dA.dtype)
        solved = torch.linalg.solve(left.transpose(-1, -2), full.permute(1, 2, 0)).permute(2, 0, 1)
        return solved[..., : self.states].to(torch.complex64)

    def advance(self, u: Tensor, state: Tensor) -> Tensor:
        """The state after u (batch, H, length): log-many products of dense matrices."""
        dA, dB = self.dense()
        full = torch.cat([state, state.conj()], dim=-1).to(dA.dtype)
        carried = torch.einsum("hmn,bhn->bhm", torch.linalg.matrix_power(dA, u.shape[-1]), full)
        driven = (dB[None, :, :, None] * u.double()[:, :, None]).to(dA.dtype)  # (batch, H, N, length)
        power = dA
        while driven.shape[-1] > 1:
            if driven.shape[-1] % 2:
                driven = F.pad(driven, (1, 0))
            driven = torch.einsum("hmn,bhnl->bhml", power, driven[..., 0::2]) + driven[..., 1::2]
            power = power @ power
        after = carried + (driven[..., 0] if u.shape[-1] else 0)
        return after[..., : self.states].to(torch.complex64)
