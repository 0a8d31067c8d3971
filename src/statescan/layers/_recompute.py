"""What is cheap to compute again is not kept for the backward pass.

A mixer's convolution, norms and small projections cost little beside its scan and matrix products, but what they give is as
large as anything else that training keeps. Mamba's published CUDA code computes those again as well. Chen et al. 2016,
"Training deep nets with sublinear memory cost" (arXiv 1604.06174), for cheap operations alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph


class _Local(threading.local):
    def __init__(self) -> None:
        #: By storage, what computes its tensor again, and the version of the numbers that it gives.
        self.entries: dict[int, tuple[Callable[[], Tensor], int]] = {}
        self.observer: Callable[[Tensor], Any] | None = None


_LOCAL = _Local()


class _Again:
    """A saved tensor that is a view of one that can be computed again."""

    def __init__(self, compute: Callable[[], Tensor], saved: Tensor):
        self.compute = compute
        self.view = saved.size(), saved.stride(), saved.storage_offset()
        device = saved.device.type
        self.precision: dict[str, Any] = {"device_type": "cpu", "enabled": False}
        if torch.amp.is_autocast_available(device):
            self.precision = {
                "device_type": device,
                "enabled": torch.is_autocast_enabled(device),
                "dtype": torch.get_autocast_dtype(device),
            }

    def __call__(self) -> Tensor:
        with torch.no_grad(), torch.autocast(**self.precision):
            return self.compute().as_strided(*self.view)


def _pack(tensor: Tensor) -> Tensor | _Again:
    compute, version = _LOCAL.entries.get(tensor.untyped_storage()._cdata, (None, 0))
    if compute is not None and tensor._version == version:  # else it was overwritten since
        return _Again(compute, tensor)
    if _LOCAL.observer is not None:
        _LOCAL.observer(tensor)
    return tensor


def _unpack(saved: Tensor | _Again) -> Tensor:
    return saved() if isinstance(saved, _Again) else saved


def _under_other_hooks() -> bool:
    """Whether saved tensors already go somewhere else: to gradient checkpointing, which keeps less still, or to other
    memory; and whether they may not be hooked at all, as within `torch.func`."""
    own: Any = torch._C._autograd
    if not own._saved_tensors_hooks_is_enabled():
        return True
    top = own._top_saved_tensors_default_hooks(False)
    return top is not None and top[0] is not _pack


@contextmanager
def recomputed(tensor: Tensor, compute: Callable[[], Tensor]) -> Iterator[None]:
    """Operations within keep, instead of `tensor` and its views, what `compute` makes it from.

    Nothing changes where there is no gradient, in a graph that `torch.compile` makes (which chooses for itself), and under
    other hooks of saved tensors, as those of gradient checkpointing.

    Arguments:
        tensor: fresh from an operation: contiguous, no view of anything older.
        compute: gives the same numbers in the same layout, from detached tensors; called once a saved view in the
            backward pass, without gradients, under the autocast of now.
    """
    if torch.compiler.is_compiling() or not tensor.requires_grad or _under_other_hooks():
        yield
        return
    key = tensor.untyped_storage()._cdata
    _LOCAL.entries[key] = compute, tensor._version
    try:
        with graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        del _LOCAL.entries[key]


@contextmanager
def observed(observer: Callable[[Tensor], Any]) -> Iterator[None]:
    """Calls `observer` with every tensor that is kept for the backward pass; what is computed again is none."""
    before, _LOCAL.observer = _LOCAL.observer, observer
    try:
        with graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _LOCAL.observer = before
