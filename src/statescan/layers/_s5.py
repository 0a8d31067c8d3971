"""S5: one diagonal system with many inputs and outputs, by a scan. Smith et al. 2023, arXiv 2208.04933.

The state is complex. Where conjugates come in pairs only one of each is stored, and outputs are twice the real part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from statescan import ops
from statescan.layers._precision import widen, widened
from statescan.layers._state import State
from statescan.ssm import discretize_diagonal, log_uniform_timescales, transition

Discretization = Literal["zoh", "bilinear"]
OutputInit = Literal["lecun_normal", "trunc_standard_normal", "complex_normal"]
S5Activation = Literal["full_glu", "half_glu1", "half_glu2", "gelu"]

DISCRETIZATIONS = ("zoh", "bilinear")
OUTPUT_INITS = ("lecun_normal", "trunc_standard_normal", "complex_normal")
ACTIVATIONS = ("full_glu", "half_glu1", "half_glu2", "gelu")
_PLACES = ("before", "inside", "after")
#: Eigenvalues are kept this far left of the imaginary axis where they are clipped.
_LEFT = -1e-4


class S5(nn.Module):
    """x_k = exp(step Lambda) x_(k-1) + B_bar u_k; y_k = Re(C x_k) + D u_k, with matrices B and C for all channels.

    Equations 2 to 6 of the paper; the first Lambda is `blocks` copies of the normal part of HiPPO-LegS (section 4.2).

    Arguments:
        dim: channels of input and output.
        state_dim: real states; with conjugate symmetry half as many complex ones are stored.
        blocks: copies of HiPPO on the first state matrix's diagonal; divides state_dim.
        discretization: ``zoh`` (the input is held between steps) or ``bilinear``.
        bidirectional: a second output matrix reads the states of a scan from the end; there is no `step` then.
        conjugate_symmetry: store one eigenvalue of each conjugate pair.
        clip_eigenvalues: keep real parts negative, without which training may make the system unstable.
        output_init: C's first values: ``lecun_normal`` and ``trunc_standard_normal`` (real normal values in the basis of
            HiPPO, of variance 1 / (dim state_dim) and 1 / state_dim), or ``complex_normal`` (in the eigenbasis, variance 1).
        dt_min, dt_max: first step sizes are log-uniform between them, one a state.
        step_rescale: factor on all step sizes: 2 for input at half the rate of training. May be set later.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 64,
        blocks: int = 1,
        discretization: Discretization = "zoh",
        bidirectional: bool = False,
        conjugate_symmetry: bool = True,
        clip_eigenvalues: bool = False,
        output_init: OutputInit = "lecun_normal",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        step_rescale: float = 1.0,
    ):
        super().__init__()
        if blocks < 1 or state_dim % blocks:
            raise ValueError(f"blocks: {blocks} does not divide {state_dim} states")
        if conjugate_symmetry and state_dim // blocks % 2:
            raise ValueError(f"state_dim: conjugate pairs need an even block, got {state_dim} states / {blocks} blocks")
        _known("discretization", discretization, DISCRETIZATIONS)
        _known("output_init", output_init, OUTPUT_INITS)
        self.dim, self.conjugate_symmetry, self.bidirectional = dim, conjugate_symmetry, bidirectional
        self.discretization, self.clip_eigenvalues, self.step_rescale = discretization, clip_eigenvalues, step_rescale
        Lambda, V = _hippo_blocks(state_dim, blocks, conjugate_symmetry)
        self.states = Lambda.shape[0]
        self.Lambda_re = nn.Parameter(Lambda.real.float())
        self.Lambda_im = nn.Parameter(Lambda.imag.float())
        B = V.conj().T @ _lecun_normal((state_dim, dim), state_dim).to(V.dtype)
        self.B = nn.Parameter(_as_pairs(B))
        readouts = 2 if bidirectional else 1
        if output_init == "complex_normal":
            self.C = nn.Parameter(torch.randn(dim, readouts * self.states, 2) * math.sqrt(0.5))
        else:
            inputs = dim * state_dim if output_init == "lecun_normal" else state_dim
            drawn = [torch.view_as_complex(_lecun_normal((dim, state_dim, 2), inputs)) for _ in range(readouts)]
            self.C = nn.Parameter(_as_pairs(torch.cat([C.to(V.dtype) @ V for C in drawn], dim=1)))
        self.D = nn.Parameter(torch.randn(dim))
        self.log_step = nn.Parameter(log_uniform_timescales((self.states,), dt_min, dt_max))

    def extra_repr(self) -> str:
        """The sizes."""
        both = ", bidirectional=True" if self.bidirectional else ""
        return f"{self.dim}, states={self.states}, discretization={self.discretization!r}{both}"

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``ssm`` (batch, states, 2), real and imaginary parts, in float32. Empty for a bidirectional system."""
        if self.bidirectional:
            return State()
        shape = (batch_size, self.states, 2)
        return State({"ssm": self.log_step.new_zeros(shape, dtype=widened(self.log_step.dtype), device=device)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        intervals: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        `resets` (batch, length) bool and `offsets` (sequences + 1,) mark where sequences begin, as in `ops`.
        `intervals` (batch, length): the time since the observation before, in units of the trained step, for input
        sampled irregularly.

        Raises:
            ValueError: a bidirectional system is given a state.
        """
        if self.bidirectional and state:
            raise ValueError("state: a bidirectional S5 needs the whole sequence at once and takes no state")
        if intervals is not None and intervals.shape != x.shape[:2]:
            raise ValueError(f"intervals: expected (batch, length) {tuple(x.shape[:2])}, got {tuple(intervals.shape)}")
        decay, driven = self._discretize(x, intervals)
        before = torch.view_as_complex(widen(state["ssm"]).contiguous()) if state else None
        hidden, last = ops.linear_scan(
            decay, driven, initial_state=before, resets=resets, offsets=offsets, return_last_state=True
        )
        if not self.bidirectional:
            return self._read(hidden, x), State({"ssm": torch.view_as_real(last)})
        if resets is not None:
            # Walking backwards, a sequence's first position is its last: the state is dropped one position earlier.
            resets = F.pad(resets[:, 1:], (0, min(1, resets.shape[1])))
        backward = ops.linear_scan(decay, driven, resets=resets, offsets=offsets, reverse=True)
        assert isinstance(backward, Tensor)
        return self._read(torch.cat([hidden, backward], dim=-1), x), State()

    def step(self, x: Tensor, state: State, *, intervals: Tensor | None = None) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state; `intervals` (batch,)."""
        if self.bidirectional:
            raise NotImplementedError("S5.step: a bidirectional system has no step; call it on the whole sequence")
        decay, driven = self._discretize(x, intervals)
        hidden = decay * torch.view_as_complex(widen(state["ssm"]).contiguous()) + driven
        return self._read(hidden, x), State({"ssm": torch.view_as_real(hidden)})

    def _discretize(self, x: Tensor, intervals: Tensor | None) -> tuple[Tensor, Tensor]:
        """Lambda_bar (states,), or (..., states) with intervals; B_bar x (..., states), complex."""
        real = widen(self.Lambda_re)
        if self.clip_eigenvalues:
            real = real.clamp(max=_LEFT)
        Lambda = torch.complex(real, widen(self.Lambda_im))
        step = self.step_rescale * torch.exp(widen(self.log_step))
        B = torch.view_as_complex(widen(self.B).contiguous())
        if intervals is None:
            decay, B = discretize_diagonal(Lambda[:, None], B, step[:, None], self.discretization)
            return decay[:, 0], self._drive(B, x)
        # The input's weight is a factor on each state, so B need not be discretised once a position.
        step = step * widen(intervals)[..., None]
        decay, weight = discretize_diagonal(Lambda, torch.ones_like(Lambda), step, self.discretization)
        return decay, weight * self._drive(B, x)

    def _drive(self, B: Tensor, x: Tensor) -> Tensor:
        # x is real: a real product with both parts of B is half the work of a complex one. Their rows take turns, so that
        # the product is complex as it lies.
        rows = torch.view_as_real(B).mT.flatten(0, 1)
        parts = F.linear(widen(x), rows.to(widened(x.dtype))).to(B.real.dtype)
        return torch.view_as_complex(parts.unflatten(-1, (-1, 2)))

    def _read(self, hidden: Tensor, x: Tensor) -> Tensor:
        C = widen(self.C)
        scale = 2.0 if self.conjugate_symmetry else 1.0
        weight = (C * C.new_tensor([scale, -scale])).flatten(1)
        y = F.linear(torch.view_as_real(hidden).flatten(-2), weight)
        return torch.addcmul(y, widen(self.D), x.to(y.dtype)).to(x.dtype)


class S5Block(nn.Module):
    """x + gate(S5(x)): the residual layer of the published models (section 3.3 and appendix).

    The gate is of ``full_glu``: W1 g sigmoid(W2 g) with g = gelu(y); ``half_glu1``: g sigmoid(W2 g); ``half_glu2``:
    y sigmoid(W2 g); ``gelu``: g. GELU is its tanh form.

    Arguments:
        mixer: an `S5`.
        activation: one of the four.
        norm: ``layer`` (eps 1e-6) or ``batch`` (statistics over batch and time).
        norm_at: where the one norm is applied: ``before`` the mixer, ``inside``, between mixer and gate, ``after`` the
            residual sum; any of them, or none.
        norm_momentum: of the batch norm's running statistics, the share that is kept.
        dropout: probability; a mask is the same at all times.
        residual: False leaves out x, for a stack that adds it.
    """

    def __init__(
        self,
        mixer: S5,
        *,
        activation: S5Activation = "half_glu1",
        norm: Literal["layer", "batch"] = "layer",
        norm_at: Sequence[Literal["before", "inside", "after"]] = ("before",),
        norm_momentum: float = 0.95,
        dropout: float = 0.0,
        residual: bool = True,
    ):
        super().__init__()
        _known("activation", activation, ACTIVATIONS)
        _known("norm", norm, ("layer", "batch"))
        for place in norm_at:
            _known("norm_at", place, _PLACES)
        dim = mixer.dim
        self.mixer, self.activation, self.norm_at, self.dropout = mixer, activation, tuple(norm_at), dropout
        self.residual = residual
        self.norm: nn.Module | None = None
        if norm_at:
            self.norm = nn.LayerNorm(dim, eps=1e-6) if norm == "layer" else SequenceBatchNorm(dim, norm_momentum)
        self.output_projection = nn.Linear(dim, dim) if activation == "full_glu" else None
        self.gate_projection = nn.Linear(dim, dim) if activation != "gelu" else None
        for linear in (self.output_projection, self.gate_projection):
            if linear is not None:
                initialise_dense(linear)

    def initial_state(self, batch_size: int, **options: Any) -> State:
        """The mixer's."""
        return self.mixer.initial_state(batch_size, **options)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        intervals: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> the same shape, and the mixer's state; see `S5.forward`."""
        y, state = self.mixer(self._normed("before", x), state, resets=resets, offsets=offsets, intervals=intervals)
        return self._finish(x, y), state

    def step(self, x: Tensor, state: State, *, intervals: Tensor | None = None) -> tuple[Tensor, State]:
        """One position: x (batch, dim)."""
        y, state = self.mixer.step(self._normed("before", x), state, intervals=intervals)
        return self._finish(x, y), state

    def _normed(self, place: str, x: Tensor) -> Tensor:
        return self.norm(x) if self.norm is not None and place in self.norm_at else x

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        y = self._normed("inside", y)
        activated = self._drop(F.gelu(y, approximate="tanh"))
        if self.gate_projection is not None:
            gate = torch.sigmoid(self.gate_projection(activated))
            if self.output_projection is not None:
                activated = self.output_projection(activated)
            elif self.activation == "half_glu2":
                activated = y
            activated = self._drop(activated * gate)
        return self._normed("after", x + activated if self.residual else activated)

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return y
        mask = torch.ones_like(y[:, :1] if y.ndim == 3 else y)
        return y * F.dropout(mask, self.dropout)


class SequenceBatchNorm(nn.Module):
    """Batch normalisation of channels that stand last, statistics over batch and time. Ioffe and Szegedy 2015.

    Arguments:
        dim: channels.
        momentum: the share of the running statistics that an update keeps.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, momentum: float = 0.95, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape. In training the batch's own statistics are used, and remembered."""
        rows = F.batch_norm(
            x.reshape(-1, x.shape[-1]),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=1 - self.momentum,
            eps=self.eps,
        )
        return rows.view(x.shape)


@torch.no_grad()
def initialise_dense(linear: nn.Linear) -> nn.Linear:
    """Weights truncated normal of variance 1 / inputs, biases zero, as the published code draws them. In place."""
    linear.weight.copy_(_lecun_normal(tuple(linear.weight.shape), linear.in_features))
    if linear.bias is not None:
        linear.bias.zero_()
    return linear


def _hippo_blocks(state_dim: int, blocks: int, halve: bool) -> tuple[Tensor, Tensor]:
    """Eigenvalues (states,) and eigenvectors (state_dim, states) of a block-diagonal normal HiPPO-LegS matrix."""
    size = state_dim // blocks
    normal = transition("legsd", size)[0]
    real = normal.diagonal().mean()
    # normal = c I + skew, so -i (normal - c I) is Hermitian.
    imaginary, V = torch.linalg.eigh((normal - real * torch.eye(size, dtype=normal.dtype)) * -1j)
    kept = size // 2 if halve else size
    Lambda = torch.complex(real.expand(kept), imaginary[:kept])
    return Lambda.repeat(blocks), torch.block_diag(*[V[:, :kept]] * blocks)


def _lecun_normal(shape: tuple[int, ...], inputs: int) -> Tensor:
    """Normal values within two deviations, of variance 1 / inputs."""
    values = torch.empty(shape)
    nn.init.trunc_normal_(values, std=1.0, a=-2.0, b=2.0)
    return values / (0.87962566103423978 * math.sqrt(inputs))  # the deviation that the cut leaves


def _as_pairs(values: Tensor) -> Tensor:
    return torch.view_as_real(values).to(torch.float32).contiguous()


def _known(name: str, given: object, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(f"{name}: unknown {given!r}; known: {', '.join(known)}")
