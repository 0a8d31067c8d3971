"""Calls of the compiled selective scan (`csrc/selective_scan.cpp`), with the registered operator's arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.kernels import cpu

#: Positions between saved states (`kTile` in csrc/scan_tiles.h).
CHECKPOINT_INTERVAL = 64

# Fewer elements of length x channels x states than this a thread, and waking it costs more than it brings.
_WORK_PER_THREAD = 1 << 16

#: Types of the arguments with which every kernel of this scan begins.
PROBLEM = "p" * 11 + "l" * 13 + "i" * 8
#: Channels that a kernel takes together.
LANES = 16


def states_shape(x: Tensor, A: Tensor, offsets: Tensor | None) -> tuple[int, int, int]:
    """Shape of the saved states: (checkpoints, states, channels).

    Sequence s, whose first row among all batch * length rows is r, has its checkpoints from r // 64 + s on: there
    is room for any lengths, and the size is known from shapes alone.
    """
    rows = x.shape[0] * x.shape[1]
    return rows // CHECKPOINT_INTERVAL + _sequences(x, offsets), A.shape[1], A.shape[0]


def _sequences(x: Tensor, offsets: Tensor | None) -> int:
    return x.shape[0] if offsets is None else offsets.shape[0] - 1


def _matrix(tensor: Tensor | None) -> Tensor | None:
    """(batch, length, channels) as rows whose elements lie side by side; a view where strides allow."""
    if tensor is None:
        return None
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _weights(tensor: Tensor) -> tuple[Tensor, int, int, int]:
    """B or C with its row stride, group stride and number of groups; constants have no groups."""
    tensor = tensor.resolve_conj()
    if tensor.ndim == 2:
        return tensor.contiguous(), 0, 0, 0
    rows = tensor.reshape(-1, *tensor.shape[2:])
    if rows.stride(2) != 1:
        rows = rows.contiguous()
    floats = 2 if tensor.is_complex() else 1
    return rows, rows.stride(0) * floats, rows.stride(1) * floats, rows.shape[1]


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.resolve_conj().contiguous()


def _code(tensor: Tensor | None) -> int:
    return 0 if tensor is None else cpu.DTYPES.get(tensor.dtype, 0)  # complex64 is read as pairs of float32


class ScanCall:
    """What every call of these kernels has: the first arguments, the tensors they point into, and threads.

    Arguments:
        keep: tensors that must outlive the call.
        sizes: groups of B and of C, sequences, channels, states, and whether the numbers are complex.
        length: positions of a sequence.
        blocks: of channels that can be walked apart.
    """

    arguments: tuple[object, ...]

    def __init__(self, keep: tuple[object, ...], sizes: tuple[int, ...], length: int, blocks: int):
        self.keep, self.sizes = keep, sizes
        _, _, sequences, channels, states, _ = sizes
        work = sequences * length * channels * states // _WORK_PER_THREAD
        self.threads = max(1, min(cpu.threads(), blocks * sequences, work))

    def workspace(self, backward: bool) -> Tensor:
        """Memory for all threads."""
        kibibytes = cpu.function("selective_scan_workspace", "lllll" + "iii")
        return torch.empty(kibibytes(*self.sizes, int(backward), self.threads) << 10, dtype=torch.uint8)


class _Call(ScanCall):
    """The arguments that both directions share."""

    def __init__(
        self,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        initial_state: Tensor | None,
        resets: Tensor | None,
        offsets: Tensor | None,
        delta_softplus: bool,
    ):
        batch, length, channels = x.shape
        sequences, states = _sequences(x, offsets), A.shape[1]
        x_rows, delta_rows, z_rows = _matrix(x), _matrix(delta), _matrix(z)
        B_rows, *B_sizes = _weights(B)
        C_rows, *C_sizes = _weights(C)
        assert x_rows is not None
        assert delta_rows is not None
        others = [_plain(t) for t in (D, delta_bias, initial_state, resets, offsets)]
        A = A.resolve_conj().contiguous()
        keep = (x_rows, delta_rows, z_rows, A, B_rows, C_rows, *others)
        groups = max(B_sizes[2], C_sizes[2], 1)
        is_complex = int(A.is_complex())
        sizes = (B_sizes[2], C_sizes[2], sequences, channels, states, is_complex)
        super().__init__(keep, sizes, length * batch // max(1, sequences), groups * -(-channels // (groups * LANES)))
        self.arguments = (
            *(cpu.pointer(t) for t in keep),
            x_rows.stride(0),
            delta_rows.stride(0),
            0 if z_rows is None else z_rows.stride(0),
            B_sizes[0],
            C_sizes[0],
            B_sizes[1],
            C_sizes[1],
            B_sizes[2],
            C_sizes[2],
            sequences,
            length,
            channels,
            states,
            *(_code(t) for t in (x, delta, z, B, C)),
            int(delta_softplus),
            is_complex,
            self.threads,
        )


def forward(*args, window: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the saved states (none unless the last argument asks for them).

    With `window`, which divides `CHECKPOINT_INTERVAL`, windows of so many positions are scanned backward too.
    """
    *arguments, save_states = args
    x, A, initial_state, offsets = args[0], args[2], args[8], args[10]
    checkpoints, states, channels = states_shape(x, A, offsets)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    last_state = A.new_empty(_sequences(x, offsets), channels, states)
    # packed sequences leave gaps between their checkpoints, which a graph that compares outputs would read
    new = A.new_empty if offsets is None else A.new_zeros
    saved = new(checkpoints if save_states else 0, states, channels)
    if last_state.numel() == 0 or x.numel() == 0:
        last_state = last_state.zero_() if initial_state is None else last_state.copy_(initial_state)
        return y.zero_(), last_state, saved
    call = _Call(*arguments)
    memory = call.workspace(backward=False)
    name, types, more = ("local_scan", "i", (window,)) if window else ("selective_scan", "", ())
    cpu.function(f"{name}_forward", PROBLEM + types + "pppp")(
        *call.arguments,
        *more,
        y.data_ptr(),
        last_state.data_ptr(),
        saved.data_ptr() if save_states else None,
        memory.data_ptr(),
    )
    return y, last_state, saved


def backward(
    grad_y: Tensor | None, grad_last_state: Tensor | None, saved: Tensor, *args, window: int = 0
) -> list[Tensor | None]:
    """The gradients of the first nine arguments; None where one is absent."""
    *arguments, _ = args
    x, A, B, C, initial_state, offsets = (arguments[i] for i in (0, 2, 3, 4, 8, 10))
    if saved.shape != states_shape(x, A, offsets):  # the forward pass ran on another implementation
        saved = forward(*arguments, True, window=window)[2]
    gradients = [
        None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in arguments[:9]
    ]
    if x.numel() == 0 or A.numel() == 0:
        for gradient in gradients:
            if gradient is not None:
                gradient.zero_()
        if initial_state is not None and grad_last_state is not None:
            gradients[8] = grad_last_state.clone()
        return gradients
    call = _Call(*arguments)
    grad_rows = _matrix(None if grad_y is None else grad_y.to(x.dtype))
    grad_last_state = _plain(grad_last_state)
    # Each thread adds up its channels' share of the gradients of B and C; one thread alone needs no second place.
    parts = []
    for weights, gradient in ((B, gradients[3]), (C, gradients[4])):
        if weights.ndim == 2 or (call.threads == 1 and weights.dtype in (torch.float32, torch.complex64)):
            parts.append(gradient)
        else:
            parts.append(torch.empty(call.threads, *weights.shape, dtype=A.dtype))
    memory = call.workspace(backward=True)
    name, types, more = ("local_scan", "i", (window,)) if window else ("selective_scan", "", ())
    cpu.function(f"{name}_backward", PROBLEM + types + "pl" + "p" * 14)(
        *call.arguments,
        *more,
        cpu.pointer(grad_rows),
        0 if grad_rows is None else grad_rows.stride(0),
        cpu.pointer(grad_last_state),
        saved.data_ptr(),
        *(cpu.pointer(gradient) for gradient in gradients),
        *(cpu.pointer(part) for part in parts),
        memory.data_ptr(),
    )
    return gradients
