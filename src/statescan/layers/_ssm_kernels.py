"""Convolution kernels that are state-space models: diagonal (S4D, DSS) and diagonal plus low rank (S4).

One system x' = A x + B u, y = C x a channel, with N/2 complex states that stand for conjugate pairs. The same parameters
give a kernel of any length (training), a step (decoding) and the passing of a state from chunk to chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan import ops, ssm
from statescan._names import choice
from statescan.layers._precision import widen

#: From parameters to positive quantities, and back.
TRANSFORMS = ("none", "exp", "relu", "sigmoid", "softplus")
#: What the diagonal kernel can be discretised by.
DISCRETIZATIONS = ("zoh", "bilinear", "dss")
#: First values of B for the diagonal initialisations.
B_INITIALISATIONS = ("constant", "random", "alternating", "unit-cw", "unit-ccw")
#: Mixtures of initialisations: equal shares of the copies.
_MIXTURES = {
    "hippo": ("legs", "fout"),
    "diag": ("diag-inv", "diag-lin"),
    "all": ("legs", "fout", "diag-inv", "diag-lin"),
}
#: Bytes of Cauchy products that are taken together.
_PART = 1 << 22
#: States advance over this many positions by one product of matrices.
_BLOCK = 128


def _transform(value: Tensor, name: str) -> Tensor:
    """A positive quantity from its parameter."""
    if name == "none":
        return value
    if name == "relu":
        return F.relu(value) + 1e-4
    if name == "softplus":
        return F.softplus(value)
    return torch.exp(value) if name == "exp" else torch.sigmoid(value)


def _inverse_transform(value: Tensor, name: str) -> Tensor:
    """The parameter of a positive quantity, clamped away from zero as published initialisations are."""
    value = value.clamp(min=1e-4)
    if name == "relu":
        return value - 1e-4
    if name == "softplus":
        return value + torch.log(-torch.expm1(-value))
    if name == "none":
        return value
    return torch.log(value) if name == "exp" else torch.logit(value)


def _first_B(name: str, states: int) -> Tensor | None:
    """First values of B (N/2,), complex128; None for those that come with A."""
    if choice("B_initialisation", name, B_INITIALISATIONS) == "constant":
        return None
    if name == "random":
        return torch.randn(states, dtype=torch.complex128)
    n = torch.arange(states)
    if name == "alternating":
        return (1 - 2 * (n % 2)).to(torch.complex128)
    turn = (1 if name == "unit-ccw" else -1) * 2 * math.pi * n.double() / states
    return torch.polar(torch.ones_like(turn), turn)


def initial_system(
    name: str,
    state_dim: int,
    rank: int,
    copies: int,
    *,
    B_initialisation: str = "constant",
    real_scale: float = 1.0,
    imaginary_scale: float = 1.0,
    clip: float | None = 2.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """First values of A (copies, N/2), B (copies, N/2) and P (rank, copies, N/2), complex128.

    Arguments:
        name: a HiPPO measure (``legs``, ``legt``, ``fout``, …), a diagonal initialisation (``diag-lin``, …), or a
            mixture: ``hippo`` (legs and fout), ``diag`` (diag-inv and diag-lin), ``all`` (those four).
        state_dim: N, even.
        rank: rows of P; zero where the initialisation needs none.
        copies: how many systems; a mixture takes equal shares.
        B_initialisation, real_scale, imaginary_scale: of the diagonal initialisations.
        clip: bound on the imaginary part of B of a measure; None for none.
    """
    if state_dim < 2 or state_dim % 2:
        raise ValueError(f"state_dim: states come in conjugate pairs, so even and at least 2, got {state_dim}")
    parts = _MIXTURES.get(name, (name,))
    if copies % len(parts):
        raise ValueError(f"copies: {copies} systems cannot be shared equally by {' and '.join(parts)}")
    device = torch.empty(0).device
    with torch.device("cpu"):  # eigenvalues are needed even of a model that is built without memory
        columns = [
            _first_system(part, state_dim, rank, B_initialisation, real_scale, imaginary_scale, clip) for part in parts
        ]
        each = copies // len(parts)
        A, B, P = (
            torch.stack([column[i] for column in columns], dim=-2).repeat_interleave(each, dim=-2) for i in range(3)
        )
    return A.to(device), B.to(device), P.to(device)


def _first_system(
    name: str,
    state_dim: int,
    rank: int,
    B_initialisation: str,
    real_scale: float,
    imaginary_scale: float,
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    choice("initialisation", name, (*ssm.DIAGONAL_INITIALISATIONS, *ssm.MEASURES, *_MIXTURES))
    if name not in ssm.DIAGONAL_INITIALISATIONS:
        A, P, B, _ = ssm.nplr(name, state_dim, rank, clip=clip)
        return A, B, P
    A, B = ssm.diagonal(name, state_dim, real_scale=real_scale, imaginary_scale=imaginary_scale, clip=clip)
    given = _first_B(B_initialisation, state_dim // 2)
    B = B if given is None or name == "diag-legs" else given
    return A, B, torch.zeros(rank, state_dim // 2, dtype=A.dtype)


def _pair(value: Tensor) -> Tensor:
    """A complex tensor as float32 pairs (..., 2), with memory of its own."""
    return torch.view_as_real(value.resolve_conj()).float().contiguous().clone()


def _complex(pair: Tensor) -> Tensor:
    return torch.view_as_complex(widen(pair).contiguous())


def _with_conjugates(half: Tensor) -> Tensor:
    """(..., N/2) -> (..., N): both of every conjugate pair, complex128."""
    return torch.cat([half, half.conj()], dim=-1).to(torch.complex128)


class DiagonalKernel(nn.Module):
    """The kernel of a diagonal system, a Vandermonde product. Gu et al. 2022, arXiv 2206.11893, section 3.

    Arguments:
        dim: H, independent systems.
        state_dim: N; N/2 complex states are kept.
        channels: outputs of each system.
        copies: independent (A, B); they are repeated H / copies times. None: H.
        initialisation: see `initial_system`.
        initialisation_options: keywords of `initial_system`.
        discretization: ``zoh``, ``bilinear`` or ``dss`` (Gupta et al. 2022: normalised, allows growing states).
        dt_min, dt_max: first step sizes are log-uniform between them.
        dt_tie: one step size a channel; otherwise one a state.
        dt_transform, real_transform, imaginary_transform: from parameters to step sizes, -Re A and -Im A.
        dt_sinh: step parameters pass through sinh first (Ohno and Kumagai 2022).
        bandlimit: frequencies above half of it (of the sampling rate) are masked (S4ND).
        real: A, B and C are real; all N states are kept.
        trainable_B: whether B is learned; otherwise it is fixed at its first value, ones for most initialisations, and
            no file holds it.
        frozen: parts that keep their first values but are stored: any of ``dt``, ``A`` (with P), ``B``, ``C``.
    """

    inverse_dt: Tensor
    A_real: Tensor
    A_imag: Tensor | None
    B: Tensor
    C: Tensor

    def __init__(
        self,
        dim: int,
        state_dim: int = 64,
        *,
        channels: int = 1,
        copies: int | None = None,
        initialisation: str = "diag-lin",
        initialisation_options: Mapping[str, Any] | None = None,
        discretization: str = "zoh",
        rank: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        dt_transform: str = "exp",
        dt_sinh: bool = False,
        real_transform: str = "exp",
        imaginary_transform: str = "none",
        bandlimit: float | None = None,
        real: bool = False,
        trainable_B: bool = True,
        frozen: Sequence[str] = (),
    ):
        super().__init__()
        self.frozen = frozenset(choice("frozen", part, ("dt", "A", "B", "C")) for part in frozen)
        self.dt_transform = choice("dt_transform", dt_transform, TRANSFORMS)
        self.real_transform = choice("real_transform", real_transform, TRANSFORMS)
        self.imaginary_transform = choice("imaginary_transform", imaginary_transform, TRANSFORMS)
        self.discretization = choice("discretization", discretization, DISCRETIZATIONS)
        copies = dim if copies is None else copies
        if copies < 1 or dim % copies:
            raise ValueError(f"copies: {copies} does not divide {dim} channels")
        states = state_dim if real else state_dim // 2
        self.dim, self.states, self.channels, self.copies = dim, states, channels, copies
        self.real, self.bandlimit, self.dt_sinh = real, bandlimit, dt_sinh
        A, B, self._first_P = initial_system(
            initialisation, 2 * state_dim if real else state_dim, rank, copies, **(initialisation_options or {})
        )
        dt = ssm.log_uniform_timescales((dim, 1 if dt_tie else states), dt_min, dt_max)
        dt = dt if dt_transform == "exp" else _inverse_transform(torch.exp(dt), dt_transform)
        self._store("inverse_dt", torch.asinh(dt) if dt_sinh else dt, "dt")
        C = torch.randn(channels, dim, states, dtype=torch.complex64)
        self._store("C", C.real.clone() if real else _pair(C), "C")
        first_B = B.real.float().clone() if real else _pair(B)
        if trainable_B:
            self._store("B", first_B, "B")
        else:
            self.register_buffer("B", first_B, persistent=False)
        self._store("A_real", _inverse_transform(-A.real.float(), real_transform), "A")
        if real:
            self.register_parameter("A_imag", None)
        else:
            self._store("A_imag", _inverse_transform(-A.imag.float(), imaginary_transform), "A")
        self._cache: tuple[Any, Any] = (None, None)

    def _store(self, name: str, value: Tensor, part: str) -> None:
        """Keep first values as a parameter, or as a buffer if the part is frozen."""
        if part in self.frozen:
            self.register_buffer(name, value)
        else:
            setattr(self, name, nn.Parameter(value))

    def system(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt (H, 1 or N/2), A (H, N/2), B (H, N/2), C (channels, H, N/2); `rate` multiplies dt."""
        repeats = self.dim // self.copies
        decay = _transform(widen(self.A_real), self.real_transform)
        if self.A_imag is None:
            A = torch.complex(-decay, torch.zeros_like(decay))
            B, C = (torch.complex(t, torch.zeros_like(t)) for t in (widen(self.B), widen(self.C)))
        else:
            A = -torch.complex(decay, _transform(widen(self.A_imag), self.imaginary_transform))
            B, C = _complex(self.B), _complex(self.C)
        dt = widen(self.inverse_dt)
        dt = _transform(torch.sinh(dt) if self.dt_sinh else dt, self.dt_transform)
        A, B = A.tile(repeats, 1), B.tile(repeats, 1)
        if self.bandlimit is not None:
            # the step before the rate: what was masked in training stays masked at any resolution
            C = C * (dt * A.imag.abs() / (2 * math.pi) < self.bandlimit / 2)
        return dt * rate, A, B, C

    def forward(self, length: int, *, rate: float = 1.0, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The kernel (channels, H, length) and, for a state (batch, H, N/2), what it adds to the output
        (batch, channels, H, length)."""
        if self.discretization == "dss":
            self._refuse_recurrence(state is not None)
            return self._dss_kernel(length, rate), None
        dA, dB, C, exponents = self._discrete(rate)
        kernel = ops.vandermonde(C * dB, exponents, length)
        if state is None:
            return kernel, None
        weights = (C[None] * (dA * state)[:, None]).flatten(0, 1)  # C dA^(l+1) state
        return kernel, ops.vandermonde(weights, exponents, length).unflatten(0, (-1, self.channels))

    def _discrete(self, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dA, dB (H, N/2), C (channels, H, N/2) and log dA."""
        dt, A, B, C = self.system(rate)
        dA, dB = ssm.discretize_diagonal(A, B, dt, self.discretization)
        return dA, dB, C, dt * A if self.discretization == "zoh" else torch.log(dA)

    def _dss_kernel(self, length: int, rate: float) -> Tensor:
        dt, A, B, C = self.system(rate)
        dtA = dt * A
        grows = A.real > 0
        decaying = torch.where(grows, -dtA, dtA)
        x = (torch.exp(decaying * length) - 1) * A
        reciprocal = x.conj() / (x * x.conj() + 1e-7)
        weights = C * B * (torch.exp(decaying) - 1) * reciprocal / 2  # its kernel is a real part without the factor 2
        falling = ops.vandermonde(torch.where(grows, torch.zeros_like(weights), weights), decaying, length)
        # A growing state is normalised at its last position: the same sum, read from the end.
        rising = ops.vandermonde(torch.where(grows, weights, torch.zeros_like(weights)), decaying, length).flip(-1)
        return falling + rising

    def _refuse_recurrence(self, wanted: bool = True) -> None:
        if wanted and self.discretization == "dss":
            raise ValueError(
                "discretization: 'dss' normalises by the length, so it has no recurrence: no steps, no passing of "
                "states; convolve whole sequences (return_state=False) or choose zoh or bilinear"
            )

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        """Zeros (batch, H, N/2), complex64 (complex128 in double precision)."""
        dtype = torch.complex128 if self.A_real.dtype == torch.float64 else torch.complex64
        return torch.zeros(batch_size, self.dim, self.states, dtype=dtype, device=device or self.C.device)

    def step(self, u: Tensor, state: Tensor, *, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """u (batch, H), state (batch, H, N/2) -> y (batch, channels, H) and the next state."""
        self._refuse_recurrence()
        dA, dB, read = self._cached(("step", rate), lambda: self._recurrence(rate))
        state = torch.addcmul(dA * state, dB, widen(u)[..., None].to(dB.dtype))
        return _read(state, read), state

    def _recurrence(self, rate: float) -> tuple[Tensor, ...]:
        """dA, dB (H, N/2), and what reads the outputs from a state, (channels, H, N), real."""
        dA, dB, C, _ = self._discrete(rate)
        return dA, dB, _as_reader(C)

    def advance(self, u: Tensor, state: Tensor, *, rate: float = 1.0) -> Tensor:
        """The state after u (batch, H, length)."""
        self._refuse_recurrence()
        _, dB, _, exponents = self._discrete(rate)
        driven = ops.vandermonde_transpose(widen(u).flip(-1), exponents)
        return torch.exp(exponents * u.shape[-1]) * state + dB * driven

    def _cached(self, key: Any, build: Callable[[], Any]) -> Any:
        """What `build` gives, kept until a parameter changes; always built anew where gradients are recorded."""
        tensors = [t for t in (*self._parameters.values(), *self._buffers.values()) if t is not None]
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(t.is_inference() for t in tensors):
            return build()
        stamp = (key, [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors])
        if self._cache[0] != stamp:
            self._cache = stamp, build()
        return self._cache[1]


class DPLRKernel(DiagonalKernel):
    """The kernel of a diagonal-plus-low-rank system A - P P*, through its generating function at the roots of unity.

    Gu, Goel and Re 2022, arXiv 2111.00396, algorithm 1, with the stable low-rank part of Goel et al. 2022.

    As published, C is stored truncated: once a length L is known, C becomes C (I - dA^L) and `kernel_length` remembers L;
    a longer kernel doubles it. Checkpoints therefore carry `kernel_length`. Below `rate` 1, kernels longer than L in the
    rate's positions repeat themselves approximately; a `bandlimit` masks the truncated weights, so what it does depends
    on L. Both are as published.

    Arguments: those of `DiagonalKernel` but ``discretization``, which is bilinear, and
        rank: of P.
        max_length: the length to truncate at; None: the first length that is asked for.
    """

    P: Tensor
    kernel_length: Tensor

    def __init__(
        self,
        dim: int,
        state_dim: int = 64,
        *,
        initialisation: str = "legs",
        rank: int = 1,
        max_length: int | None = None,
        **options: Any,
    ):
        for name in ("discretization", "real"):
            if options.pop(name, "bilinear") not in ("bilinear", False):
                raise ValueError(f"{name}: a low-rank part needs complex states and the bilinear discretization")
        super().__init__(dim, state_dim, initialisation=initialisation, rank=rank, discretization="bilinear", **options)
        self.rank, self.max_length = rank, max_length
        self._store("P", _pair(self._first_P), "A")
        self.register_buffer("kernel_length", torch.tensor(0))

    def _P(self) -> Tensor:
        return _complex(self.P).tile(1, self.dim // self.copies, 1)  # (rank, H, N/2)

    def dense(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """dA (H, N, N) and dB (H, N), complex128, with both halves of every conjugate pair."""
        dt, A, B, _ = self.system(rate)
        step = torch.cat([dt.expand_as(A)] * 2, dim=-1).double()[..., None]
        A, B, P = (_with_conjugates(t) for t in (A, B, self._P()))
        matrix = torch.diag_embed(A) - torch.einsum("rhn,rhm->hnm", P, P.conj())
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        scaled = step * matrix / 2  # rows scale with their own step where steps are not tied
        solved = torch.linalg.solve(eye - scaled, torch.cat([eye + scaled, step * B[..., None]], dim=-1))
        return solved[..., :-1], solved[..., -1]

    @torch.no_grad()
    def set_length(self, length: int) -> None:
        """Make C the truncated output weights for at least `length`: the first call truncates, later ones double."""
        known = int(self.kernel_length)
        while known < length:
            span = known or length
            power = torch.linalg.matrix_power(self.dense()[0], span)
            full = _with_conjugates(_complex(self.C))
            tail = torch.einsum("hmn,chm->chn", power, full)
            full = full + tail if known else full - tail
            self.C.copy_(torch.view_as_real(full[..., : self.states].contiguous()))
            known = 2 * span if known else span
            self.kernel_length.fill_(known)

    def _settle(self) -> None:
        if self.max_length and int(self.kernel_length) == 0:
            self.set_length(self.max_length)

    def forward(self, length: int, *, rate: float = 1.0, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The kernel (channels, H, length) and, for a state (batch, H, N/2), what it adds to the output
        (batch, channels, H, length)."""
        self._settle()
        self.set_length(round(rate * length))
        whole = max(1, round(int(self.kernel_length) / rate))
        dt, A, B, C = self.system(rate)
        P = self._P()
        rows = B[None]
        if state is not None:
            rows = torch.cat([self._as_input(state, dt, A, P), rows])
        rows, columns = torch.cat([rows, P]), torch.cat([C, P.conj()])
        v = rows[:, None] * columns[None, :] * dt  # (rows, columns, H, N/2)
        tangent = torch.tan(torch.arange(whole // 2 + 1, device=v.device, dtype=torch.float64) * (math.pi / whole))
        if whole % 2 == 0:
            tangent[-1] = 0.0  # the tangent's pole; the value there is filled in below
        tangent = tangent.to(v.real.dtype)
        poles = A * dt
        parts = self._parts(v, tangent.shape[0])

        def respond(part: slice) -> Tensor:
            return self._response(v[:, :, part], poles[part], tangent, whole, length)

        if (
            len(parts) > 1 and torch.is_grad_enabled()
        ):  # keep no quotients for the gradient: they are quickly made again
            kernels = [checkpoint(respond, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        else:
            kernels = [respond(part) for part in parts]
        kernel = kernels[0] if len(kernels) == 1 else torch.cat(kernels, dim=2)
        return kernel[-1], (None if state is None else kernel[:-1])

    @staticmethod
    def _parts(v: Tensor, nodes: int) -> list[slice]:
        """Systems taken together: as many as leave what is computed of them in the cache."""
        each = 8 * nodes * v.shape[0] * v.shape[1]
        some = max(1, _PART // max(1, each))
        if torch.compiler.is_compiling() or v.device.type != "cpu" or some >= v.shape[2]:
            return [slice(None)]
        return [slice(start, start + some) for start in range(0, v.shape[2], some)]

    def _response(self, v: Tensor, poles: Tensor, tangent: Tensor, whole: int, length: int) -> Tensor:
        """(rows, columns, H, N/2) -> impulse responses (rows, columns, H, length) without those of the low rank."""
        z = torch.complex(torch.zeros_like(tangent), 2 * tangent)
        r = ops.cauchy(v.flatten(0, 1), z, poles).unflatten(0, v.shape[:2])
        spectrum = self._woodbury(r) * torch.complex(torch.ones_like(tangent), tangent)
        if whole % 2 == 0:
            # z grows without bound there: the sum of v / z times 1 + z / 2 tends to the sum of Re v.
            last = v[: -self.rank, : -self.rank].real.sum(-1, keepdim=True)
            spectrum = torch.cat([spectrum[..., :-1], torch.complex(last, torch.zeros_like(last))], dim=-1)
        return torch.fft.irfft(spectrum, n=whole)[..., :length]

    def _woodbury(self, r: Tensor) -> Tensor:
        """The resolvent with the low-rank part, from those without it (rows, columns, H, nodes)."""
        rank = self.rank
        plain, right, left, inner = r[:-rank, :-rank], r[:-rank, -rank:], r[-rank:, :-rank], r[-rank:, -rank:]
        if rank == 1:
            return plain - right * left / (1 + inner)
        inner = torch.eye(rank, device=r.device, dtype=r.dtype) + inner.permute(2, 3, 0, 1)
        solved = torch.linalg.solve(inner, left.permute(2, 3, 0, 1))  # (H, nodes, rank, columns)
        return plain - torch.einsum("arhj,hjrc->achj", right, solved)

    def _as_input(self, state: Tensor, dt: Tensor, A: Tensor, P: Tensor) -> Tensor:
        """The input weights whose first response is that of `state`: (I / dt + A / 2) state."""
        return state / dt + (A * state - self._low_rank(P, _overlap(P, state))) / 2

    @staticmethod
    def _low_rank(P: Tensor, weights: Tensor) -> Tensor:
        return torch.einsum("rhn,bhr->bhn", P, weights.to(P.dtype))

    def step(self, u: Tensor, state: Tensor, *, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """u (batch, H), state (batch, H, N/2) -> y (batch, channels, H) and the next state, in O(N rank)."""
        diagonal, read, write, across = self._cached(("step", rate), lambda: self._recurrence(rate))
        seen = _read(state, read)  # (batch, 2 rank + channels, H)
        low = torch.cat([seen[:, : 2 * self.rank], widen(u)[:, None]], dim=1)  # (batch, 2 rank + 1, H)
        state = diagonal * state
        for weights, factor in zip(write, low.unbind(1), strict=True):
            state = torch.addcmul(state, weights, factor[..., None].to(state.dtype))
        return seen[:, 2 * self.rank :] + (low[:, :, None] * across).sum(1), state

    def _recurrence(self, rate: float) -> tuple[Tensor, ...]:
        """A step as four matrices a channel: what decays (H, N/2); what is read of a state, (2 rank + channels, H, N), real:
        two overlaps with P a rank, and outputs; what overlaps and the input add to the state, (2 rank + 1, H, N/2), and to
        the outputs, (2 rank + 1, channels, H).

        (I - dt/2 A)^-1 (I + dt/2 A) for A = diag - P P*, by the Woodbury identity (S4, appendix C.2): with a = P* x,
        z = D (ahead x - P a + 2 B u) and x' = z - D P (I + P* D P)^-1 P* z, everything but `diagonal` is of low rank.
        """
        self._settle()
        dt, A, B, _ = self.system(rate)
        P, C = self._P(), self.output_weights()
        D = 1 / (2 / dt - A)
        diagonal, driven, across = D * (2 / dt + A), 2 * D * B, D * P  # (H, N/2), (H, N/2), (rank, H, N/2)

        def overlaps(x: Tensor) -> Tensor:  # P* x over both halves of the conjugate pairs: (H, rank, columns)
            return 2 * torch.einsum("rhn,shn->hrs", P.conj(), x).real

        inner = overlaps(across)
        inverse = torch.linalg.inv(torch.eye(self.rank, device=P.device, dtype=inner.dtype) + inner).to(P.dtype)
        kept = torch.einsum("rhn,hrs->shn", across, inverse)  # D P (I + P* D P)^-1
        columns = [
            torch.einsum("rhn,hrs->shn", kept, inner.to(P.dtype)) - across,  # of a
            -kept,  # of P* (diagonal x)
            (driven - torch.einsum("rhn,hrs->shn", kept, overlaps(driven[None]).to(P.dtype))[0])[None],  # of u
        ]
        write = torch.cat(columns)
        read = torch.cat([_as_reader(P.conj()), _as_reader(P.conj() * diagonal), _as_reader(C * diagonal)])
        return diagonal, read, write, 2 * torch.einsum("chn,khn->kch", C, write).real

    def output_weights(self) -> Tensor:
        """C (channels, H, N/2) with the truncation undone: C (I - dA^L)^-1."""
        C = self.system()[3]
        length = int(self.kernel_length)
        if length == 0:
            return C
        power = torch.linalg.matrix_power(self.dense()[0], length)
        left = torch.eye(power.shape[-1], dtype=power.dtype, device=power.device) - power
        full = _with_conjugates(C).permute(1, 2, 0)
        solved = torch.linalg.solve(left.transpose(-1, -2), full).permute(2, 0, 1)
        return solved[..., : self.states].to(C.dtype)

    def advance(self, u: Tensor, state: Tensor, *, rate: float = 1.0) -> Tensor:
        """The state after u (batch, H, length): blocks of positions at a time, by products of dense matrices."""
        length = u.shape[-1]
        dA, dB = self.dense(rate)
        block = min(length, _BLOCK)
        columns, power = dB[..., None], dA  # dA^k dB for k below the number of columns, dA to that number
        while columns.shape[-1] < block:
            columns, power = torch.cat([columns, power @ columns], dim=-1), power @ power
        full, start = _with_conjugates(state), 0
        powers: dict[int, Tensor] = {}
        while start < length:
            size = (length - start - 1) % block + 1 if block else 0
            if size not in powers:
                powers[size] = torch.linalg.matrix_power(dA, size)
            recent = u[..., start : start + size].flip(-1).to(columns.dtype)
            full = torch.einsum("hmn,bhn->bhm", powers[size], full)
            full = full + torch.einsum("hnl,bhl->bhn", columns[..., :size], recent)
            start += size
        return full[..., : self.states].to(state.dtype)


def _as_reader(weights: Tensor) -> Tensor:
    """Weights (rows, H, N/2), complex, to (rows, H, N), real: products with a state's real and imaginary parts side by side
    sum to 2 Re(weights state)."""
    return torch.view_as_real(2 * weights.conj().resolve_conj()).flatten(-2)


def _read(state: Tensor, reader: Tensor) -> Tensor:
    """A state (batch, H, N/2) through `_as_reader`: (batch, rows, H). So small products are faster than `bmm`'s."""
    return (torch.view_as_real(state.resolve_conj()).flatten(-2)[:, None] * reader).sum(-1)


def _overlap(P: Tensor, x: Tensor) -> Tensor:
    """P* x over both halves of the conjugate pairs: (batch, H, rank), real."""
    return 2 * torch.einsum("rhn,bhn->bhr", P.conj(), x).real


#: Kernels by name, with the published ones.
KERNELS: dict[str, type[DiagonalKernel]] = {"diagonal": DiagonalKernel, "dplr": DPLRKernel}
