"""Convolutions whose kernels are learned tap by tap, and kept sparse. Fu et al. 2023, arXiv 2302.06646."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import ops
from statescan._names import choice
from statescan.layers._butterfly import ButterflyTransform, butterfly_transform
from statescan.layers._h3 import HeadProducts
from statescan.layers._precision import widen, widened
from statescan.layers._s4 import SequenceDropout, build_activation
from statescan.layers._segments import walk_segments
from statescan.layers._state import State

#: How kernels are smoothed and first drawn.
SMOOTHINGS = ("mean", "frequency")
INITIALISATIONS = ("random", "geometric")
#: Butterfly transforms that a layer may convolve through.
BUTTERFLIES = ("fixed", "learned", "additive")


def squash(kernel: Tensor, threshold: float) -> Tensor:
    """Soft threshold: sign(k) max(|k| - threshold, 0)."""
    return torch.sign(kernel) * F.relu(kernel.abs() - threshold)


def smooth(kernel: Tensor, window: int) -> Tensor:
    """Moving average of (..., taps) over an odd `window`; beyond the ends stand zeros, which count."""
    return F.avg_pool1d(kernel, window, stride=1, padding=window // 2)


def smooth_spectrum(kernel: Tensor, window: int) -> Tensor:
    """(rows, channels, taps) with every spectrum convolved over `window` frequencies with exp(-d^2 / 2), unnormalised."""
    distance = torch.arange(window, device=kernel.device, dtype=kernel.dtype) - window // 2
    weight = torch.exp(-0.5 * distance**2).expand(kernel.shape[1], 1, window)
    spectrum = torch.fft.rfft(kernel)
    left = (window - 1) // 2
    parts = (
        F.conv1d(F.pad(part, (left, window - 1 - left)), weight, groups=kernel.shape[1])
        for part in (spectrum.real, spectrum.imag)
    )
    return torch.fft.irfft(torch.complex(*parts), n=kernel.shape[-1])


class LongKernel(nn.Module):
    """A kernel with a parameter a tap, smoothed, squashed and dropped out at every use, in this order.

    Arguments:
        dim: channels.
        max_length: taps.
        outputs: kernels a channel.
        threshold: of `squash`; 0 for none. A tap below it is zero and gets no gradient, so it belongs below the scale
            of the first taps.
        smoothing: ``mean`` (`smooth`), ``frequency`` (`smooth_spectrum`) or None.
        window: of the smoothing.
        dropout: probability that training drops a tap.
        initialisation: ``random`` (0.002 normal) or ``geometric`` (0.02 normal, decaying faster from channel to channel).
    """

    def __init__(
        self,
        dim: int,
        max_length: int,
        *,
        outputs: int = 1,
        threshold: float = 0.001,
        smoothing: str | None = None,
        window: int = 7,
        dropout: float = 0.0,
        initialisation: str = "random",
    ):
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length: at least 1, got {max_length}")
        if threshold < 0:
            raise ValueError(f"threshold: 0 or more, got {threshold}")
        if smoothing is not None:
            choice("smoothing", smoothing, SMOOTHINGS)
            if window < 1 or (smoothing == "mean" and window % 2 == 0):
                raise ValueError(f"window: {'odd' if smoothing == 'mean' else 'at least 1'}, got {window}")
        choice("initialisation", initialisation, INITIALISATIONS)
        self.threshold, self.smoothing, self.window = threshold, smoothing, window
        taps = torch.randn(outputs, dim, max_length)
        if initialisation == "random":
            taps *= 0.002
        else:
            rate = (dim // 2) ** (torch.arange(dim) / dim)
            taps *= 0.02 * torch.exp(-rate[:, None] * (torch.arange(max_length) / max_length))
        self.taps = nn.Parameter(taps)
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> Tensor:
        """(outputs, dim, max_length), in float32 or wider."""
        kernel = widen(self.taps)
        if self.smoothing == "mean":
            kernel = smooth(kernel, self.window)
        elif self.smoothing == "frequency":
            kernel = smooth_spectrum(kernel, self.window)
        return self.dropout(squash(kernel, self.threshold))


def _convolve(x: Tensor, kernel: Tensor, D: Tensor, past: Tensor | None) -> Tensor:
    """Causal convolution of (batch, length, channels) that follows `past` (batch, earlier, channels)."""
    if past is None:
        return ops.fft_conv(x, kernel, D)
    return ops.fft_conv(torch.cat([past.to(x.dtype), x], dim=1), kernel, D)[:, past.shape[1] :]


def _convolve_one(x: Tensor, kernel: Tensor, D: Tensor, past: Tensor) -> Tensor:
    """One position of it: x (batch, channels)."""
    earlier = past[:, past.shape[1] - kernel.shape[1] + 1 :].to(kernel.dtype)
    wide = x.to(kernel.dtype)
    y = torch.einsum("btd,dt->bd", earlier, kernel[:, 1:].flip(-1))
    return (y + (kernel[:, 0] + D) * wide).to(x.dtype)


def _remember(past: Tensor | None, x: Tensor, places: int) -> Tensor:
    """The last `places` inputs (batch, places, channels), zeros where there were none."""
    if past is None:
        return F.pad(x, (0, 0, max(0, places - x.shape[1]), 0))[:, max(0, x.shape[1] - places) :]
    return torch.cat([past, x.to(past.dtype)], dim=1)[:, x.shape[1] :]


class LongConv(nn.Module):
    """y = W act(k * x + D x) with a kernel that is learned directly (`LongKernel`).

    Causal, its state is the last `max_length` - 1 inputs. Inputs may be shorter or longer than the kernel.

    Arguments:
        dim: channels of input and output.
        max_length: taps of the kernel.
        channels: kernels a channel; all outputs go into the projection.
        bidirectional: a second kernel reads the future, from one position ahead; then there are no states and no steps.
        activation: between convolution and projection.
        output: activation of the projection (``glu`` doubles its width first), or None for no projection.
        dropout: before the projection.
        tied_dropout: one mask for all positions.
        butterfly: None to convolve through `ops.fft_conv`, or through butterfly transforms of input and kernel: ``fixed``
            (the same result), ``learned`` or ``additive`` (`layers.ButterflyTransform`). Through learned ones every output
            reads the whole input: there are no states and no steps.
        butterfly_dropout: probability that training drops an entry of the learned matrices.
        kernel_options: keywords of the kernel: threshold, smoothing, window, dropout (as `kernel_dropout`),
            initialisation.
    """

    skips_state = True

    def __init__(
        self,
        dim: int,
        *,
        max_length: int = 1024,
        channels: int = 1,
        bidirectional: bool = False,
        activation: str = "gelu",
        output: str | None = "glu",
        dropout: float = 0.0,
        tied_dropout: bool = False,
        kernel_dropout: float = 0.0,
        butterfly: str | None = None,
        butterfly_dropout: float = 0.0,
        **kernel_options: Any,
    ):
        super().__init__()
        if butterfly is not None:
            choice("butterfly", butterfly, BUTTERFLIES)
        if channels < 1:
            raise ValueError(f"channels: at least 1, got {channels}")
        if output is None and channels > 1:
            raise ValueError(f"output: {channels} channels need a projection, got None")
        self.dim, self.max_length, self.channels, self.bidirectional = dim, max_length, channels, bidirectional
        self.D = nn.Parameter(torch.randn(channels, dim))
        outputs = channels * (1 + bidirectional)
        self.kernel = LongKernel(dim, max_length, outputs=outputs, dropout=kernel_dropout, **kernel_options)
        self.butterfly = butterfly
        #: Whether outputs depend on what follows, so that there is no state.
        self.reads_future = bidirectional or butterfly in ("learned", "additive")
        if butterfly in ("learned", "additive"):
            additive = butterfly == "additive"
            self.input_transform = ButterflyTransform(additive=additive, dropout=butterfly_dropout)
            self.kernel_transform = ButterflyTransform(additive=additive, dropout=butterfly_dropout)
        self.activation = build_activation(activation)
        self.dropout = SequenceDropout(dropout, tied=tied_dropout)
        self.output_projection: nn.Module | None = None
        if output is not None:
            self.output_activation = build_activation(output, "output")
            self.output_projection = nn.Linear(channels * dim, dim * (2 if output == "glu" else 1))

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``inputs`` (batch, max_length - 1, dim). A layer that reads the future has none: empty."""
        if self.reads_future:
            return State()
        return State(
            {"inputs": self.D.new_zeros(batch_size, self.max_length - 1, self.dim, dtype=dtype, device=device)}
        )

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        lengths: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it.

        Arguments:
            x: the input.
            state: what a call on the positions before gave.
            resets, offsets: where sequences begin, as in `ops`; the stretches between are convolved one after the other.
            lengths: (batch,), where sequences are padded at the end: what stands there is read as zeros.
            return_state: False saves keeping the inputs (the state is empty then).
        """
        if lengths is not None:
            x = x * (torch.arange(x.shape[1], device=x.device) < lengths[:, None].to(x.device))[..., None]
        if self.reads_future and (state or resets is not None or offsets is not None):
            raise ValueError(
                f"state, resets, offsets: {self._kind()} reads the future; pass the sequences as rows of a batch, "
                "padded at the end"
            )
        if resets is not None or offsets is not None:
            return walk_segments(
                self._walk,
                x,
                state or None,
                resets=resets,
                offsets=offsets,
                last=lambda part, before: self._walk(part, before, return_state),
            )
        return self._walk(x, state or None, return_state)

    def _walk(self, x: Tensor, state: State | None, return_state: bool = True) -> tuple[Tensor, State]:
        causal, future = self.kernel().chunk(2) if self.bidirectional else (self.kernel(), None)
        kernel, D = causal.flatten(0, 1), widen(self.D).flatten()
        past = state["inputs"] if state else None
        wide = x.repeat(1, 1, self.channels)
        if self.butterfly is not None and x.numel():
            follows = x if past is None else torch.cat([past.to(x.dtype), x], dim=1)
            y = self._transformed(follows, causal, future)[:, -x.shape[1] :]
        elif future is not None:
            y = ops.fft_conv(wide, kernel, D, anticausal_kernel=future.flatten(0, 1))
        else:
            y = _convolve(wide, kernel, D, None if past is None else past.repeat(1, 1, self.channels))
        y = self._activate(y)
        if not return_state or self.reads_future:
            return y, State()
        return y, State({"inputs": _remember(past, x, self.max_length - 1)})

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        if self.reads_future:
            raise ValueError(f"step: {self._kind()} reads the future; call it on whole sequences")
        past, kernel = state["inputs"], self.kernel()
        D = widen(self.D)
        y = torch.cat([_convolve_one(x, kernel[c], D[c], past) for c in range(self.channels)], dim=-1)
        return self._activate(y), State({"inputs": _remember(past, x[:, None], self.max_length - 1)})

    def _kind(self) -> str:
        return "a bidirectional layer" if self.bidirectional else "a layer with learned transforms"

    def _transformed(self, x: Tensor, causal: Tensor, future: Tensor | None) -> Tensor:
        """The convolution through butterfly transforms: (batch, length, dim) -> (batch, length, channels x dim)."""
        length = x.shape[1]
        reach = min(length, self.max_length)
        size = 1 << (length + reach - 1).bit_length()
        rows = x.to(widened(x.dtype)).transpose(1, 2)
        circle = F.pad(causal[..., :reach], (0, size - reach))
        if future is not None:  # at negative delays, the end of the circle
            circle = circle + F.pad(future[..., :reach].flip(-1), (size - reach, 0))
        if self.butterfly == "fixed":
            spectrum, filters = butterfly_transform(rows, size), butterfly_transform(circle, size)
        else:
            spectrum, filters = self.input_transform(rows, size), self.kernel_transform(circle, size)
        # Learned transforms of real inputs have no symmetry: the whole spectrum goes back.
        y = torch.fft.ifft(spectrum[:, None] * filters).real[..., :length] + rows[:, None] * widen(self.D)[..., None]
        return y.flatten(1, 2).transpose(1, 2).to(x.dtype)

    def _activate(self, y: Tensor) -> Tensor:
        """Everything after the convolution, position by position."""
        y = self.dropout(self.activation(y))
        return y if self.output_projection is None else self.output_activation(self.output_projection(y))


class H3Conv(nn.Module):
    """`layers.H3` with both systems replaced by kernels that are learned directly (`LongKernel`).

    Arguments:
        dim: channels of input and output.
        max_length: taps of both kernels; the state is the last `max_length` - 1 keys and products.
        head_dim: every head multiplies all its keys with all its values, and shares one kernel for the products.
        kernel_dropout: probability that training drops a tap.
        kernel_options: keywords of both kernels: threshold, smoothing, window, initialisation.
    """

    def __init__(
        self, dim: int, *, max_length: int = 1024, head_dim: int = 1, kernel_dropout: float = 0.0, **kernel_options: Any
    ):
        super().__init__()
        self.dim, self.max_length, self.head_dim = dim, max_length, head_dim
        self.products = HeadProducts(dim, head_dim)
        heads = self.products.heads
        self.query_projection = nn.Linear(dim, dim)
        self.key_projection = nn.Linear(dim, dim)
        self.value_projection = nn.Linear(dim, dim)
        self.shift_kernel = LongKernel(dim, max_length, dropout=kernel_dropout, **kernel_options)
        self.shift_D = nn.Parameter(torch.randn(dim))
        self.kernel = LongKernel(heads, max_length, dropout=kernel_dropout, **kernel_options)
        self.D = nn.Parameter(torch.randn(heads))
        self.output_projection = nn.Linear(dim, dim)

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """Zeros: ``keys`` (batch, max_length - 1, dim) and ``products`` (batch, max_length - 1, dim x head_dim)."""
        places = self.max_length - 1
        keys = self.D.new_zeros(batch_size, places, self.dim, dtype=dtype, device=device)
        return State({"keys": keys, "products": keys.repeat(1, 1, self.head_dim)})

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """x (batch, length, dim) -> output of the same shape, and the state after it; resets, offsets as in `ops`."""
        if resets is not None or offsets is not None:
            return walk_segments(self._walk, x, state or None, resets=resets, offsets=offsets)
        return self._walk(x, state or None)

    def _walk(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        q, key, v = self.query_projection(x), self.key_projection(x), self.value_projection(x)
        keys, products = (state["keys"], state["products"]) if state else (None, None)
        k = _convolve(key, self.shift_kernel()[0], widen(self.shift_D), keys)
        kv = self.products.outer(k, v)
        kernel, D = self.products.shared(self.kernel()[0]), self.products.shared(widen(self.D))
        y = self.products.read(q, _convolve(kv, kernel, D, products))
        places = self.max_length - 1
        after = {"keys": _remember(keys, key, places), "products": _remember(products, kv, places)}
        return self.output_projection(y), State(after)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (batch, dim) -> output (batch, dim) and the next state."""
        q, key, v = self.query_projection(x), self.key_projection(x), self.value_projection(x)
        k = _convolve_one(key, self.shift_kernel()[0], widen(self.shift_D), state["keys"])
        kv = self.products.outer(k, v)
        kernel, D = self.products.shared(self.kernel()[0]), self.products.shared(widen(self.D))
        y = self.products.read(q, _convolve_one(kv, kernel, D, state["products"]))
        places = self.max_length - 1
        after = {
            "keys": _remember(state["keys"], key[:, None], places),
            "products": _remember(state["products"], kv[:, None], places),
        }
        return self.output_projection(y), State(after)
