"""Memory for weights that are read in order, token after token: in large pages, where the system has them."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_CHUNK = 32 << 20
_LINE = 64


class Arena:
    """Hands out pieces of large stretches of memory; they live as long as the tensors that stand on them."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int) -> Tensor:
        """So many bytes, uint8, zero, beginning at a cache line."""
        rounded = -(-nbytes // _LINE) * _LINE
        if rounded > self._rest.numel():
            self._rest = _stretch(max(rounded, _CHUNK))
        piece, self._rest = self._rest[:nbytes], self._rest[rounded:]
        return piece


def _stretch(nbytes: int) -> Tensor:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8)
    # Private: what could be shared with other processes gets no large pages.
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
