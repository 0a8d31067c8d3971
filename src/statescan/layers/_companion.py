"""SpaceTime's layers: companion systems, fixed preprocessing filters, closed loops. Zhang et al. 2023, ICLR.

"Effectively Modeling Time Series with Simple Discrete State Spaces". A discrete system x = A x + B u, y = C x with a
companion matrix A can be any autoregression; with feedback K x in the place of u it forecasts by itself.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from statescan import ops, ssm
from statescan.layers._precision import widen
from statescan.layers._segments import walk_segments
from statescan.layers._state import State


def normalise(x: Tensor, order: float) -> Tensor:
    """x over its norm of this order along the last axis; as it is for order 0, or where the norms all but vanish."""
    if order <= 0:
        return x
    size = torch.linalg.vector_norm(x, ord=order, dim=-1, keepdim=True)
    return torch.where(size.mean() > 1e-4, x / size, x)


class CompanionSSM(nn.Module):
    """y = C x + D u with x = A x + B u and A a companion matrix, channels in groups that share one system.

    Arguments:
        dim: channels of input and output.
        state_dim: d, the order of the autoregression.
        kernels: systems, a divisor of dim; neighbouring channels share one. None: one a channel.
        norm_order: the last column of A is divided by its norm of this order; 1 bounds all powers of A; 0: it is not.
        skip: whether there is the direct path D u. The parameter is there either way, as the published one is.
        shift: A shifts and B is the first unit vector, both fixed: C is a causal filter of `state_dim` taps.
        kernel: ``fast``, O(d + l) a kernel; ``naive``, O(d^2 l); ``auto``: fast where powers of A are bounded, since
            a Fourier transform is accurate to a share of the largest value only.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 64,
        kernels: int | None = None,
        norm_order: int = 1,
        skip: bool = True,
        shift: bool = False,
        kernel: Literal["auto", "fast", "naive"] = "auto",
    ):
        super().__init__()
        kernels = dim if kernels is None else kernels
        if kernels < 1 or dim % kernels:
            raise ValueError(f"kernels: {kernels} does not divide {dim} channels")
        if state_dim < 1:
            raise ValueError(f"state_dim: at least 1, got {state_dim}")
        if norm_order < 0:
            raise ValueError(f"norm_order: 0 or more, got {norm_order}")
        if kernel not in ("auto", "fast", "naive"):
            raise ValueError(f"kernel: known are auto, fast, naive; got {kernel!r}")
        self.dim, self.state_dim, self.kernels, self.norm_order = dim, state_dim, kernels, norm_order
        self.skip, self.shift = skip, shift
        self.fast = kernel == "fast" or (kernel == "auto" and (shift or norm_order == 1))
        self.D = nn.Parameter(torch.randn(dim))
        if shift:
            self.register_buffer("a", torch.zeros(kernels, state_dim))
            self.register_buffer("b", torch.eye(state_dim)[:1].repeat(kernels, 1))
        else:
            self.a = nn.Parameter(torch.randn(kernels, state_dim))
            self.b = nn.Parameter(torch.randn(kernels, state_dim))
        self.c = nn.Parameter(torch.randn(kernels, state_dim))

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """The last column of A, B and C as they are used, each (kernels, state_dim)."""
        return normalise(widen(self.a), self.norm_order), widen(self.b), widen(self.c)

    def kernel(self, length: int) -> Tensor:
        """C A^l B for l < length: (kernels, length)."""
        return self._kernel(*self.system(), length)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``ssm`` (batch, dim, state_dim)."""
        shape = (batch_size, self.dim, self.state_dim)
        return State({"ssm": widen(self.c).new_zeros(shape, device=device)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        `resets` (batch, length) bool and `offsets` (sequences + 1,) mark where sequences begin, as in `ops`; the stretches
        between are convolved one after the other.
        """
        a, b, c = self.system()

        def walk(x: Tensor, state: State | None) -> tuple[Tensor, State]:
            before = None if state is None else state["ssm"]
            return self._respond(x, a, b, c, before), self._advance(x, a, b, before)

        return walk_segments(walk, x, state or None, resets=resets, offsets=offsets)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        a, b, c = (self._per_channel(t) for t in self.system())
        hidden = ssm_step(a, state["ssm"]) + b * widen(x)[..., None]
        y = (hidden * c).sum(-1)
        if self.skip:
            y = y + widen(self.D) * x
        return y.to(x.dtype), State({"ssm": hidden})

    def _kernel(self, a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
        return (ssm.companion_kernel if self.fast else ssm.companion_kernel_naive)(a, b, c, length)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.dim // self.kernels, dim=0)

    def _respond(self, x: Tensor, a: Tensor, b: Tensor, c: Tensor, before: Tensor | None) -> Tensor:
        """The output: a convolution, and what is left of the state before."""
        length = x.shape[1]
        if length == 0:
            return x
        y = ops.fft_conv(x, self._per_channel(self._kernel(a, b, c, length)), widen(self.D) if self.skip else None)
        if before is None:
            return y
        if self.fast:
            rows = ssm.companion_rows(a, c, length + 1)[..., 1:]
            left = ssm.correlate(self._per_channel(rows), before, length)
        else:
            rows = ssm.krylov(ssm.companion_matrix(a).mT, c, length + 1)[..., 1:]
            left = torch.einsum("bcn,cnl->bcl", before, self._per_channel(rows))
        return y + left.transpose(1, 2).to(y.dtype)

    def _advance(self, x: Tensor, a: Tensor, b: Tensor, before: Tensor | None) -> State:
        """The state after x."""
        u = widen(x).transpose(1, 2)
        if self.fast or u.shape[-1] == 0:
            return State({"ssm": ssm.companion_state(self._per_channel(a), self._per_channel(b), u, before)})
        A = ssm.companion_matrix(a)
        columns = self._per_channel(ssm.krylov(A, b, u.shape[-1]))
        after = torch.einsum("bcl,cnl->bcn", u.flip(-1), columns)
        if before is not None:
            power = self._per_channel(torch.linalg.matrix_power(A, u.shape[-1]))
            after = after + torch.einsum("cnm,bcm->bcn", power, before)
        return State({"ssm": after})


class ClosedLoopCompanionSSM(CompanionSSM):
    """A companion system that feeds itself: beyond the known inputs, u = K x.

    Open loop it is a mixer, with B and C over their norms. Closed loop, the state after the known inputs goes on by
    A + B K. As published, that state is formed with B as it is, and predictions of inputs use K as it is, while the
    loop itself and the open-loop prediction use both over their norms.

    Arguments:
        dim, state_dim, kernels, norm_order, shift, kernel: as for `CompanionSSM`. There is no direct path; its
            parameter is there all the same.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 64,
        kernels: int | None = None,
        norm_order: int = 1,
        shift: bool = False,
        kernel: Literal["auto", "fast", "naive"] = "auto",
    ):
        super().__init__(
            dim,
            state_dim=state_dim,
            kernels=kernels,
            norm_order=norm_order,
            skip=False,
            shift=shift,
            kernel=kernel,
        )
        self.k = nn.Parameter(torch.randn(self.kernels, state_dim))

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """The last column of A, B and C as the open loop uses them, each (kernels, state_dim)."""
        a, b, c = super().system()
        return a, normalise(b, self.norm_order), normalise(c, self.norm_order)

    def predict_inputs(self, x: Tensor) -> Tensor:
        """What each next input will be, from those before: (batch, length, dim) to the same."""
        a, b, _ = self.system()
        return self._respond(x, a, b, normalise(widen(self.k), self.norm_order), None)

    def forecast(self, x: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
        """Go on alone for `horizon` steps after x (batch, length, dim).

        Returns:
            outputs (batch, horizon, dim) and the inputs that it gave itself, of the same shape.

        Raises:
            ValueError: a horizon below 1.
        """
        if horizon < 1:
            raise ValueError(f"horizon: at least 1, got {horizon}")
        a, b, c = self.system()
        state = self._advance(x, a, widen(self.b), None)["ssm"]
        feedback = normalise(widen(self.k), self.norm_order)
        loop = (ssm.companion_matrix(a) + b[..., :, None] * feedback[..., None, :]).mT
        # Rows c (A + B K)^h do not depend on the batch, states would.
        outputs = []
        for row in (c, widen(self.k)):
            rows = self._per_channel(ssm.krylov(loop, row, horizon))
            outputs.append(torch.einsum("bcn,cnh->bhc", state, rows).to(x.dtype))
        return outputs[0], outputs[1]


class CompanionMixer(nn.Module):
    """y + W gelu(y) with y = CompanionSSM(x): the mixer of a SpaceTime block, without its filters.

    Arguments:
        dim, state_dim, kernels, norm_order, kernel: as for `CompanionSSM`.
        skip: whether y is added; it is in the published blocks.
        dropout: before W.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 64,
        kernels: int | None = None,
        norm_order: int = 1,
        skip: bool = True,
        dropout: float = 0.0,
        kernel: Literal["auto", "fast", "naive"] = "auto",
    ):
        super().__init__()
        self.ssm = CompanionSSM(dim, state_dim=state_dim, kernels=kernels, norm_order=norm_order, kernel=kernel)
        self.skip = skip
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, dim)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """The system's."""
        return self.ssm.initial_state(batch_size, dtype=dtype, device=device)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it; see `CompanionSSM.forward`."""
        y, state = self.ssm(x, state, resets=resets, offsets=offsets)
        return self._mix(y), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        y, state = self.ssm.step(x, state)
        return self._mix(y), state

    def _mix(self, y: Tensor) -> Tensor:
        mixed = self.projection(self.dropout(nn.functional.gelu(y)))
        return mixed + y if self.skip else mixed


class DifferencingFilters(nn.Module):
    """Fixed causal filters before a SpaceTime network: differences, and distances from moving averages.

    Every group of `kernels` filters holds the differences of order 0 .. `difference_order` - 1, then u minus its mean
    over the last w values, for windows w that are drawn once and kept in a buffer.

    Arguments:
        dim: channels; each group of filters serves kernels * head_dim of them.
        kernels: filters a group.
        head_dim: neighbouring channels that share a filter.
        difference_order: how many of the filters are differences.
        windows: least and greatest window, the latter excluded.
        seed: draws the windows.
    """

    difference_kernel: Tensor
    average_kernel: Tensor

    def __init__(
        self,
        dim: int,
        *,
        kernels: int = 8,
        head_dim: int = 1,
        difference_order: int = 4,
        windows: tuple[int, int] = (4, 64),
        seed: int = 0,
    ):
        super().__init__()
        if kernels * head_dim < 1 or dim % (kernels * head_dim):
            raise ValueError(f"kernels: {kernels} filters for {head_dim} channels each do not divide {dim} channels")
        if not 0 <= difference_order <= kernels:
            raise ValueError(f"difference_order: between 0 and kernels = {kernels}, got {difference_order}")
        if not 1 <= windows[0] < windows[1]:
            raise ValueError(f"windows: need 1 <= least < greatest, got {windows}")
        self.dim, self.head_dim, self.groups = dim, head_dim, dim // (kernels * head_dim)
        self.register_buffer("difference_kernel", _signed_pascal(difference_order).repeat(self.groups, 1))
        count = (kernels - difference_order) * self.groups
        drawn = torch.randint(*windows, (count,), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("average_kernel", _less_means(drawn, windows[1]))

    def set_windows(self, windows: Tensor) -> None:
        """Use other moving averages: whole numbers, (groups * (kernels - difference_order),)."""
        count, most = self.average_kernel.shape
        if tuple(windows.shape) != (count,) or (count and not 1 <= int(windows.min()) <= int(windows.max()) <= most):
            raise ValueError(f"windows: expected {count} numbers from 1 to {most}, got {windows.tolist()}")
        self.average_kernel.copy_(_less_means(windows, most))

    def taps(self) -> Tensor:
        """All filters, (dim, width)."""
        width = max(self.difference_kernel.shape[1], self.average_kernel.shape[1])
        kinds = [
            nn.functional.pad(kernel, (0, width - kernel.shape[1])).view(self.groups, -1, width)
            for kernel in (self.difference_kernel, self.average_kernel)
        ]
        return widen(torch.cat(kinds, dim=1).view(-1, width)).repeat_interleave(self.head_dim, dim=0)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``inputs`` (batch, width - 1, dim)."""
        width = max(self.difference_kernel.shape[1], self.average_kernel.shape[1])
        dtype = dtype or self.average_kernel.dtype
        return State({"inputs": self.average_kernel.new_zeros(batch_size, width - 1, self.dim, dtype=dtype,
                                                              device=device)})  # fmt: skip

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the last inputs.

        `resets` (batch, length) bool and `offsets` (sequences + 1,) mark where sequences begin, as in `ops`.
        """
        return walk_segments(self._walk, x, state or None, resets=resets, offsets=offsets)

    def _walk(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        past = self.initial_state(x.shape[0], dtype=x.dtype, device=x.device)["inputs"]
        if state is not None:
            past = state["inputs"].to(x.dtype)
        known = torch.cat([past, x], dim=1)
        kept = State({"inputs": known[:, known.shape[1] - past.shape[1] :]})
        if x.shape[1] == 0:
            return x, kept
        y = ops.fft_conv(known if state is not None else x, self.taps())
        return y[:, y.shape[1] - x.shape[1] :], kept

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim)."""
        known = torch.cat([state["inputs"].to(x.dtype), x[:, None]], dim=1)
        y = torch.einsum("bld,dl->bd", widen(known), self.taps().flip(-1)).to(x.dtype)
        return y, State({"inputs": known[:, 1:]})


def ssm_step(a: Tensor, hidden: Tensor) -> Tensor:
    """A x for companion matrices with the last columns `a`, in O(d)."""
    return nn.functional.pad(hidden[..., :-1], (1, 0)) + a * hidden[..., -1:]


def _less_means(windows: Tensor, most: int) -> Tensor:
    """Filters for u minus its mean over the last w values: (count,) -> (count, most)."""
    age = torch.arange(most, device=windows.device)
    inside = (age < windows[:, None]).double()
    return ((age == 0).double() - inside / windows[:, None]).float()


def _signed_pascal(rows: int) -> Tensor:
    """Row r holds the coefficients of (1 - z)^r: (rows, rows)."""
    found = torch.zeros(rows, rows)
    if rows:
        found[0, 0] = 1.0
    for row in range(1, rows):
        found[row] = found[row - 1] - nn.functional.pad(found[row - 1, :-1], (1, 0))
    return found
