"""H3: two state-space convolutions and two multiplications. Fu et al. 2023, arXiv 2212.14052, section 3."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from statescan import ops
from statescan.layers._precision import widen, widened
from statescan.layers._segments import walk_segments
from statescan.layers._ssm_kernels import DiagonalKernel
from statescan.layers._state import State


class ShiftKernel(nn.Module):
    """The kernel of a system whose matrix shifts its state by one place: kernel[l] = sum_n B[n] C[n + l].

    Its state holds the last inputs, seen through B: state_t = shift(state_{t-1}) + B u_t, y_t = C state_t.

    Arguments:
        dim: channels, each a system of its own.
        state_dim: N, places; the kernel is zero from there on.
        trainable_B: False keeps B at its first value (but files hold it).
    """

    B: Tensor

    def __init__(self, dim: int, state_dim: int, *, trainable_B: bool = True):
        super().__init__()
        if state_dim < 1:
            raise ValueError(f"state_dim: at least 1, got {state_dim}")
        self.dim, self.state_dim = dim, state_dim
        first = torch.zeros(dim, state_dim)
        first[:, 0] = 1
        if trainable_B:
            self.B = nn.Parameter(first)
        else:
            self.register_buffer("B", first)
        bound = 1 / math.sqrt(state_dim)
        self.C = nn.Parameter(torch.empty(dim, state_dim).uniform_(-bound, bound))

    def forward(self, length: int) -> Tensor:
        """The first taps (dim, at most state_dim)."""
        return self._read(widen(self.B))[:, :length]

    def added(self, state: Tensor, length: int) -> Tensor:
        """What a state (batch, dim, N) adds to the outputs that follow it: (batch, at most N - 1, dim)."""
        return self._read(state)[..., 1 : length + 1].transpose(1, 2)

    def advance(self, u: Tensor, state: Tensor) -> Tensor:
        """The state after u (batch, length, dim)."""
        size, length = self.state_dim, u.shape[1]
        recent = widen(u[:, -size:]).flip(1).transpose(1, 2)  # the newest first
        driven = torch.fft.irfft(
            torch.fft.rfft(recent, n=2 * size) * torch.fft.rfft(widen(self.B), n=2 * size), n=2 * size
        )[..., :size]
        if length >= size:
            return driven
        return driven + nn.functional.pad(state, (length, -length))

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """u (batch, dim), state (batch, dim, N) -> y (batch, dim) and the next state."""
        state = torch.addcmul(nn.functional.pad(state, (1, -1)), widen(self.B), widen(u)[..., None])
        return (state * widen(self.C)).sum(-1), state

    def _read(self, state: Tensor) -> Tensor:
        """sum_n state[n] C[n + l] for l below N."""
        size = 2 * self.state_dim
        spectrum = torch.fft.rfft(state, n=size).conj() * torch.fft.rfft(widen(self.C), n=size)
        return torch.fft.irfft(spectrum, n=size)[..., : self.state_dim]


class HeadProducts:
    """Products of keys and values a head, and their reading by queries; channels split into heads, head_dim fastest.

    Arguments:
        dim: channels.
        head_dim: channels a head.
    """

    def __init__(self, dim: int, head_dim: int):
        if head_dim < 1 or dim % head_dim:
            raise ValueError(f"head_dim: {head_dim} does not divide {dim} channels")
        self.heads, self.head_dim = dim // head_dim, head_dim

    def outer(self, k: Tensor, v: Tensor) -> Tensor:
        """k, v (..., dim) -> their products (..., heads x head_dim^2)."""
        if self.head_dim == 1:
            return k * v
        k, v = (t.unflatten(-1, (self.heads, self.head_dim)) for t in (k, v))
        return (k[..., :, None] * v[..., None, :]).flatten(-3)

    def read(self, q: Tensor, y: Tensor) -> Tensor:
        """q (..., dim), y (..., heads x head_dim^2) -> (..., dim)."""
        if self.head_dim == 1:
            return q * y
        q = q.unflatten(-1, (self.heads, self.head_dim))
        y = y.unflatten(-1, (self.heads, self.head_dim, self.head_dim))
        return (q[..., None] * y).sum(-2).flatten(-2)

    def shared(self, value: Tensor) -> Tensor:
        """What a head's products share: (heads, ...) -> (heads x head_dim^2, ...)."""
        return value if self.head_dim == 1 else value.repeat_interleave(self.head_dim**2, dim=0)

    def convolve(self, q: Tensor, k: Tensor, v: Tensor, kernel: Tensor, D: Tensor) -> Tensor:
        """q read from the convolved products of k and v: (batch, length, dim); kernel (heads, taps), D (heads,)."""
        if self.head_dim == 1:
            return q * ops.fft_conv(v, kernel, D, gate=k)
        return self.read(q, ops.fft_conv(self.outer(k, v), self.shared(kernel), self.shared(D)))


class H3(nn.Module):
    """q, k, v = projections of x; y = W_out q read(diagonal(shift(k) v)): both systems convolve, nothing is activated.

    The shift system lets a key meet the value some places later; the diagonal one remembers the products.

    Arguments:
        dim: channels of input and output.
        state_dim: N, places of the shift system and states of the diagonal one (N/2 complex ones); even.
        head_dim: every head multiplies all its keys with all its values, and shares one diagonal system.
        max_length: bound on the length of both kernels where no state is given; None: as long as the input.
        chunk_length: longer inputs are convolved in chunks of this length, the state passed on; None: at once.
        kernel_options: keywords of the diagonal system (`layers.DiagonalKernel`); it is bilinear unless they say else.
    """

    skips_state = True

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 64,
        head_dim: int = 1,
        max_length: int | None = None,
        chunk_length: int | None = None,
        **kernel_options: Any,
    ):
        super().__init__()
        for name, value in (("max_length", max_length), ("chunk_length", chunk_length)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: at least 1 or None, got {value}")
        self.dim, self.state_dim, self.head_dim = dim, state_dim, head_dim
        self.max_length, self.chunk_length = max_length, chunk_length
        self.products = HeadProducts(dim, head_dim)
        heads = self.products.heads
        self.query_projection = nn.Linear(dim, dim)
        self.key_projection = nn.Linear(dim, dim)
        self.value_projection = nn.Linear(dim, dim)
        self.shift_kernel = ShiftKernel(dim, state_dim, trainable_B="B" not in kernel_options.get("frozen", ()))
        self.shift_D = nn.Parameter(torch.randn(dim))
        self.kernel = DiagonalKernel(heads, state_dim, **{"discretization": "bilinear"} | kernel_options)
        self.D = nn.Parameter(torch.randn(heads))
        self.output_projection = nn.Linear(dim, dim)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros, in float32 (float64 in double precision) whatever `dtype` is.

        ``shift`` (batch, dim, N), and ``ssm`` (batch, head_dim^2, heads, N/2, 2), real and imaginary parts.
        """
        wide = widened(self.D.dtype)
        shift = self.D.new_zeros(batch_size, self.dim, self.state_dim, dtype=wide, device=device)
        shape = (batch_size, self.head_dim**2, self.products.heads, self.kernel.states, 2)
        return State({"shift": shift, "ssm": self.D.new_zeros(shape, dtype=wide, device=device)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        Arguments:
            x: the input.
            state: what a call on the positions before gave; the kernels are then as long as the chunk.
            resets, offsets: where sequences begin, as in `ops`; the stretches between are convolved one after the other.
            return_state: False saves computing the state (it is empty then).
        """
        if resets is not None or offsets is not None:
            return walk_segments(
                self._chunked,
                x,
                state or None,
                resets=resets,
                offsets=offsets,
                last=lambda part, before: self._chunked(part, before, return_state),
            )
        return self._chunked(x, state or None, return_state)

    def _chunked(self, x: Tensor, state: State | None, return_state: bool = True) -> tuple[Tensor, State]:
        if self.chunk_length is None or x.shape[1] <= self.chunk_length:
            return self._whole(x, state, return_state)
        if state is None:
            state = self.initial_state(x.shape[0], device=x.device)
        outputs, parts = [], x.split(self.chunk_length, dim=1)
        for index, part in enumerate(parts):
            y, state = self._whole(part, state, return_state or index + 1 < len(parts))
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def _whole(self, x: Tensor, state: State | None, return_state: bool) -> tuple[Tensor, State]:
        batch, length, _ = x.shape
        if batch == 0 or length == 0:
            return x, (state or self.initial_state(batch, device=x.device)) if return_state else State()
        q, key, v = self.query_projection(x), self.key_projection(x), self.value_projection(x)
        taps = length if state or self.max_length is None else min(length, self.max_length)
        k = ops.fft_conv(key, self.shift_kernel(taps), widen(self.shift_D))
        if state:
            added = self.shift_kernel.added(state["shift"], length)
            k = k + nn.functional.pad(added, (0, 0, 0, length - added.shape[1])).to(k.dtype)
        carried = _as_complex(state["ssm"]).flatten(0, 1) if state else None  # a row a product of a head
        kernel, response = self.kernel(taps, state=carried)
        y = self.products.convolve(q, k, v, kernel[0], widen(self.D))
        if response is not None:
            y = y + self.products.read(q, self._from_rows(response[:, 0], batch).to(q.dtype))
        y = self.output_projection(y.to(x.dtype))
        if not return_state or self.kernel.discretization == "dss":
            return y, State()
        before = state or self.initial_state(batch, device=x.device)
        rows = self._to_rows(self.products.outer(k, v))
        ssm = self.kernel.advance(rows, _as_complex(before["ssm"]).flatten(0, 1))
        return y, self._state(self.shift_kernel.advance(key, before["shift"]), ssm, batch)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        batch = x.shape[0]
        q, key, v = self.query_projection(x), self.key_projection(x), self.value_projection(x)
        shifted, shift = self.shift_kernel.step(key, state["shift"])
        k = shifted + widen(self.shift_D) * widen(key)
        kv = self.products.outer(k, widen(v))
        rows = self._to_rows(kv[:, None])[..., 0]
        y, ssm = self.kernel.step(rows, _as_complex(state["ssm"]).flatten(0, 1))
        y = self._from_rows(y[:, 0, :, None], batch)[:, 0] + self.products.shared(widen(self.D)) * kv
        return self.output_projection(self.products.read(widen(q), y).to(x.dtype)), self._state(shift, ssm, batch)

    def _to_rows(self, kv: Tensor) -> Tensor:
        """(batch, length, heads x head_dim^2) -> (batch x head_dim^2, heads, length)."""
        return kv.unflatten(-1, (self.products.heads, -1)).permute(0, 3, 2, 1).flatten(0, 1)

    def _from_rows(self, rows: Tensor, batch: int) -> Tensor:
        """The inverse of `_to_rows`."""
        return rows.unflatten(0, (batch, -1)).permute(0, 3, 2, 1).flatten(-2)

    def _state(self, shift: Tensor, ssm: Tensor, batch: int) -> State:
        pairs = torch.view_as_real(ssm.resolve_conj()).unflatten(0, (batch, -1))
        return State({"shift": shift, "ssm": pairs})


def _as_complex(pair: Tensor) -> Tensor:
    return torch.view_as_complex(widen(pair).contiguous())
