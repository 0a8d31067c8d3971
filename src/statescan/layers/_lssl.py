"""The linear state-space layer: one dense system, seen as a recurrence, a convolution or a differential equation.

Gu et al. 2021, "Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers",
NeurIPS. The system is x' = -A x + B u with A quasiseparable, which orthogonal polynomials of every kind give.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan import ops, ssm
from statescan.layers._precision import widen
from statescan.layers._segments import walk_segments
from statescan.layers._state import State

#: The measures whose matrices a `QuasiseparableSystem` can start from.
LSSL_MEASURES = ("legs", "legt", "lagt", "cheb", "chebii", "jac")


class QuasiseparableSystem(nn.Module):
    """x' = -A x + B u with A = diag(pl) (T^-1 + diag(c)) diag(pr), T tridiagonal, and B = pl b (the paper, theorem 2).

    The rows of T hold dl below, d on and du above the diagonal; dl and du have an unused entry at either end.

    Arguments:
        state_dim: N.
        measure: what the matrix starts from, one of `LSSL_MEASURES`.
        learned: whether its parts are parameters, or buffers.
        copies: systems of their own, for so many channels; 0: one for all.
        generator: draws the noise on d that keeps T of ``legt``, ``cheb`` and ``chebii`` regular.
    """

    dl: Tensor
    d: Tensor
    du: Tensor
    pl: Tensor
    pr: Tensor
    c: Tensor
    b: Tensor

    def __init__(
        self,
        state_dim: int,
        measure: str = "legs",
        *,
        learned: bool = False,
        copies: int = 0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if measure not in LSSL_MEASURES:
            raise ValueError(f"measure: unknown {measure!r}; known: {', '.join(LSSL_MEASURES)}")
        if state_dim < 1:
            raise ValueError(f"state_dim: at least 1, got {state_dim}")
        self.state_dim = state_dim
        n, ones = torch.arange(state_dim).float(), torch.ones(state_dim)
        inner = nn.functional.pad(torch.ones(state_dim - 1), (1, 1))
        parts = dict(dl=-inner, d=ones, du=0 * inner, pl=ones, pr=ones, c=0 * ones, b=ones)
        if measure in ("legs", "legt"):
            parts["pl"] = parts["pr"] = torch.sqrt(2 * n + 1)
        if measure == "legs":
            parts["c"] = -n / (2 * n + 1)
        elif measure == "lagt":
            parts["c"] = -0.5 * ones
        elif measure == "jac":
            parts["pl"] = parts["pr"] = torch.sqrt(2 * n + 2)
            parts["b"] = 2 * ones
        else:
            noise = 0.01 if measure == "legt" else 0.001
            parts["dl"], parts["du"] = -0.5 * inner, 0.5 * inner
            parts["d"] = noise * torch.randn(state_dim, generator=generator)
            if measure == "legt":
                parts["d"][0] += 0.5
                parts["d"][-1] += 0.5
        for name, value in parts.items():
            value = value.repeat(copies, 1) if copies else value.clone()
            if learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A, as it is stored, with the opposite sign: (..., N, N); and B: (..., N)."""
        T = torch.diag_embed(widen(self.d))
        if self.state_dim > 1:
            T = T + torch.diag_embed(widen(self.dl)[..., 1:-1], -1) + torch.diag_embed(widen(self.du)[..., 1:-1], 1)
        inner = torch.linalg.inv(T) + torch.diag_embed(widen(self.c))
        return widen(self.pl)[..., :, None] * inner * widen(self.pr)[..., None, :], widen(self.pl) * widen(self.b)

    def solve(self, right: Tensor, scale: Tensor) -> Tensor:
        """(I + scale A)^-1 right in O(N), by a tridiagonal system.

        Arguments:
            right: (..., N, columns).
            scale: (...); positive, or elimination, which does not exchange rows, may break down.
        """
        pl, pr, s = widen(self.pl), widen(self.pr), scale[..., None]
        # With x = diag(pr)^-1 T z no diagonal is divided by that may vanish, as 1 + scale pl c pr does.
        row = (1 + s * pl * widen(self.c) * pr) / pr
        lower, upper = widen(self.dl)[..., :-1], widen(self.du)[..., 1:]
        z = tridiagonal_solve(row * lower, row * widen(self.d) + s * pl, row * upper, right)
        product = widen(self.d)[..., None] * z
        if self.state_dim > 1:
            product = product + nn.functional.pad(lower[..., 1:, None] * z[..., :-1, :], (0, 0, 1, 0))
            product = product + nn.functional.pad(upper[..., :-1, None] * z[..., 1:, :], (0, 0, 0, 1))
        return product / pr[..., None]

    def discretise(self, dt: Tensor, *, linear: bool = False) -> tuple[Tensor, Tensor]:
        """The bilinear transform with steps dt (...): dA (..., N, N), dB (..., N).

        `linear` solves by `solve`, else by dense elimination with exchanges of rows.
        """
        A, B = self.matrices()
        if not linear:
            return ssm.discretize(-A, B, dt, "bilinear")
        half = dt[..., None, None] / 2
        eye = torch.eye(self.state_dim, dtype=A.dtype, device=A.device)
        right = torch.cat([eye - half * A, (2 * half * B[..., None]).expand(*dt.shape, -1, 1)], dim=-1)
        solved = self.solve(right, dt / 2)
        return solved[..., :-1], solved[..., -1]


def tridiagonal_solve(lower: Tensor, main: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """Solve tridiagonal systems by elimination without exchanges of rows.

    Arguments:
        lower, main, upper: (..., N); row i is lower[i] x[i-1] + main[i] x[i] + upper[i] x[i+1], the first of lower and
            the last of upper unused.
        right: (..., N, columns).
    """
    pivots, values = [main[..., 0]], [right[..., 0, :]]
    for i in range(1, main.shape[-1]):
        factor = lower[..., i] / pivots[-1]
        pivots.append(main[..., i] - factor * upper[..., i - 1])
        values.append(right[..., i, :] - factor[..., None] * values[-1])
    found = [values[-1] / pivots[-1][..., None]]
    for i in range(main.shape[-1] - 2, -1, -1):
        found.append((values[i] - upper[..., i, None] * found[-1]) / pivots[i][..., None])
    return torch.stack(found[::-1], dim=-2)


class LSSL(nn.Module):
    """y = W activation(C x + D u) with x' = -A x + B u: A and B shared, C, D and the timescale dt per channel.

    Three views give the same output: `forward` convolves, `step` is the recurrence, and `integrate` follows the
    differential equation over steps of any size.

    Arguments:
        dim: channels of input and output.
        state_dim: N, states of each channel. None: dim.
        measure: one of `LSSL_MEASURES`.
        learn: ``fixed`` A and B (the paper's LSSL-f), ``shared`` by all channels and learned, or ``separate`` ones.
        outputs: M, outputs of each channel before the output projection.
        bias: whether a bias is added before the activation.
        dt_min, dt_max: timescales are between them.
        dt_init: log-uniformly ``random``, or ``uniform``: evenly spread in the logarithm.
        learn_dt: whether they are learned.
        activation: ``gelu`` or None.
        output_projection: whether there is W, from dim * outputs to dim; without it the output has dim * outputs.
        dropout: after the activation.
        solver: ``dense``, or ``linear``, O(N) a column of A; see `QuasiseparableSystem.solve`.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int | None = None,
        measure: str = "legs",
        learn: Literal["fixed", "shared", "separate"] = "shared",
        outputs: int = 1,
        bias: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init: Literal["random", "uniform"] = "random",
        learn_dt: bool = True,
        activation: Literal["gelu"] | None = "gelu",
        output_projection: bool = True,
        dropout: float = 0.0,
        solver: Literal["dense", "linear"] = "dense",
    ):
        super().__init__()
        for name, value, known in (
            ("learn", learn, ("fixed", "shared", "separate")),
            ("dt_init", dt_init, ("random", "uniform")),
            ("activation", activation, ("gelu", None)),
            ("solver", solver, ("dense", "linear")),
        ):
            if value not in known:
                raise ValueError(f"{name}: known are {', '.join(map(str, known))}; got {value!r}")
        if outputs < 1:
            raise ValueError(f"outputs: at least 1, got {outputs}")
        self.dim, self.state_dim, self.outputs, self.solver = dim, state_dim or dim, outputs, solver
        self.system = QuasiseparableSystem(
            self.state_dim, measure, learned=learn != "fixed", copies=dim if learn == "separate" else 0
        )
        log_dt = ssm.log_uniform_timescales((dim,), dt_min, dt_max)
        if dt_init == "uniform":
            log_dt = torch.linspace(math.log(dt_min), math.log(dt_max), dim)
        if learn_dt:
            self.log_dt = nn.Parameter(log_dt)
        else:
            self.register_buffer("log_dt", log_dt)
        self.C = nn.Parameter(torch.randn(dim, outputs, self.state_dim))
        self.D = nn.Parameter(torch.randn(dim, outputs))
        self.bias = nn.Parameter(torch.zeros(dim, outputs)) if bias else None
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.output_projection = nn.Linear(dim * outputs, dim) if output_projection else None
        self._kept: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``ssm`` (batch, dim, state_dim)."""
        return State({"ssm": widen(self.C).new_zeros(batch_size, self.dim, self.state_dim, device=device)})

    def discretise(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """dA (dim, N, N) and dB (dim, N) for steps of `rate` times dt. Without gradients they are kept for re-use."""
        dt = torch.exp(widen(self.log_dt)) * rate
        linear = self.solver == "linear"
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.system.discretise(dt, linear=linear)
        tensors = [self.log_dt, *self.system.parameters(), *self.system.buffers()]
        key = (rate, *((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors))
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self.system.discretise(dt, linear=linear)
        return self._kept[1]

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        rate: float = 1.0,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """The convolution: x (batch, length, dim) -> output of the same shape, and the state after it.

        `rate` stretches time: 2 for input sampled half as often as that of training. `resets` (batch, length) bool and
        `offsets` (sequences + 1,) mark where sequences begin, as in `ops`; the stretches between are convolved one after
        the other.
        """
        return walk_segments(
            lambda x, state: self._walk(x, state, rate), x, state or None, resets=resets, offsets=offsets
        )

    def _walk(self, x: Tensor, state: State | None, rate: float) -> tuple[Tensor, State]:
        before = None if state is None else state["ssm"]
        length = x.shape[1]
        if length == 0:
            empty = x if self.output_projection is not None else x.repeat_interleave(self.outputs, -1)
            return empty, self.initial_state(x.shape[0], device=x.device) if state is None else state
        dA, dB = self.discretise(rate)
        C = widen(self.C)
        columns = ssm.krylov(dA, dB, length)
        kernel = (C @ columns).flatten(0, 1)
        y = ops.fft_conv(x.repeat_interleave(self.outputs, dim=-1), kernel, widen(self.D).flatten())
        after = torch.einsum("blh,hnl->bhn", widen(x).flip(1), columns)
        if before is not None:
            rows = ssm.krylov(dA.mT[:, None], C, length + 1)  # (dim, outputs, N, length + 1)
            left = torch.einsum("bhn,hmnl->blhm", before, rows[..., 1:])
            y = y + left.flatten(2).to(y.dtype)
            after = after + torch.einsum("hij,bhj->bhi", torch.linalg.matrix_power(dA, length), before)
        return self._finish(y), State({"ssm": after})

    def step(self, x: Tensor, state: State, *, rate: float = 1.0) -> tuple[Tensor, State]:
        """The recurrence: x (batch, dim) -> output (batch, dim) and the next state."""
        dA, dB = self.discretise(rate)
        hidden = torch.einsum("hij,bhj->bhi", dA, state["ssm"]) + dB * widen(x)[..., None]
        return self._finish(self._read(hidden, x)), State({"ssm": hidden})

    def integrate(self, x: Tensor, intervals: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The differential equation at irregular times: each value is that of the interval that it ends.

        Arguments:
            x: (batch, length, dim).
            intervals: (batch, length), lengths of time in units of a regular step; all 1 gives what `forward` gives.
            state: before them.

        Returns:
            As `forward`.

        Raises:
            ValueError: intervals of another shape, or not positive.
        """
        if tuple(intervals.shape) != tuple(x.shape[:2]):
            raise ValueError(f"intervals: expected {tuple(x.shape[:2])} as x has, got {tuple(intervals.shape)}")
        if bool((intervals <= 0).any()):
            raise ValueError("intervals: must be positive")
        hidden = self.initial_state(x.shape[0], device=x.device)["ssm"] if state is None else state["ssm"]
        dt = torch.exp(widen(self.log_dt))
        A, B = self.system.matrices()
        eye = torch.eye(self.state_dim, dtype=A.dtype, device=A.device)
        outputs = []
        for value, interval in zip(x.unbind(1), intervals.unbind(1), strict=True):
            s = interval[:, None].to(dt.dtype) * dt  # (batch, dim)
            right = hidden - s[..., None] / 2 * (A @ hidden[..., None])[..., 0]
            right = (right + s[..., None] * B * widen(value)[..., None])[..., None]
            if self.solver == "linear":
                hidden = self.system.solve(right, s / 2)[..., 0]
            else:
                hidden = torch.linalg.solve(eye + s[..., None, None] / 2 * A, right)[..., 0]
            outputs.append(self._read(hidden, value))
        if not outputs:
            return self.forward(x, state)
        return self._finish(torch.stack(outputs, dim=1)), State({"ssm": hidden})

    def _read(self, hidden: Tensor, x: Tensor) -> Tensor:
        y = torch.einsum("bhn,hmn->bhm", hidden, widen(self.C)) + widen(self.D) * widen(x)[..., None]
        return y.flatten(1).to(x.dtype)

    def _finish(self, y: Tensor) -> Tensor:
        if self.bias is not None:
            y = y + self.bias.flatten()
        if self.activation == "gelu":
            y = nn.functional.gelu(y)
        y = self.dropout(y)
        return y if self.output_projection is None else self.output_projection(y)
