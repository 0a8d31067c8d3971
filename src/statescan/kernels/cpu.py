"""Binding of the compiled CPU library (`csrc/`): found, checked and called here through ctypes.

The library has a plain C interface and knows neither Python nor torch, so one build serves every version
of both. Each kernel is compiled for several instruction sets; the best one the processor has is taken, or
the one that the environment variable ``STATESCAN_CPU_LEVEL`` names (``baseline``, ``avx2``, ``avx512``).
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch  # first: torch brings the OpenMP runtime whose thread pool the library shares

CONTRACT_VERSION = 8
LIBRARY_NAME = "libstatescan_cpu"

#: Element types as the kernels know them (`DType` in csrc/common.h).
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_REMEDY = "install a C++ compiler (g++ or clang) and reinstall: pip install --force-reinstall --no-deps statescan"


class _Library:
    def __init__(self, handle: ctypes.CDLL, path: Path, level: str):
        self.handle, self.path, self.level = handle, path, level


def _candidates():
    import statescan

    for folder in statescan.__path__:  # an editable install keeps sources and the built library apart
        for suffix in (".so", ".dylib", ".dll"):
            yield Path(folder) / "kernels" / f"{LIBRARY_NAME}{suffix}"


@functools.cache
def _load() -> tuple[_Library | None, str]:
    """The library and, where there is none, the reason and the remedy."""
    if os.environ.get("STATESCAN_NO_CPU_KERNELS"):
        return None, "STATESCAN_NO_CPU_KERNELS is set"
    path = next((path for path in _candidates() if path.exists()), None)
    if path is None:
        return None, f"the compiled CPU library is not installed; {_REMEDY}"
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path} does not load ({error}); {_REMEDY}"
    version = handle.statescan_contract_version()
    if version != CONTRACT_VERSION:
        return None, f"{path} has calling contract {version}, this package needs {CONTRACT_VERSION}; {_REMEDY}"
    handle.statescan_levels.restype = ctypes.c_char_p
    compiled = handle.statescan_levels().decode().split(",")
    supported = [name for name in compiled if handle.statescan_level_supported(name.encode())]
    wanted = os.environ.get("STATESCAN_CPU_LEVEL")
    if wanted and wanted not in supported:
        raise ValueError(f"STATESCAN_CPU_LEVEL is {wanted!r}; this build and processor have {', '.join(supported)}")
    return _Library(handle, path, wanted or supported[-1]), ""


def available() -> bool:
    """Whether the compiled kernels can be called."""
    return _load()[0] is not None


def why_not() -> str:
    """Why the kernels are missing and how to get them; empty where they are there."""
    return _load()[1]


def level() -> str:
    """The instruction set in use: ``baseline``, ``avx2`` or ``avx512``."""
    library = _load()[0]
    if library is None:
        raise RuntimeError(why_not())
    return library.level


@functools.cache
def function(name: str, argtypes: str):
    """The kernel `name` for this processor.

    `argtypes` has a letter an argument: ``p`` pointer, ``l`` int64, ``i`` int, ``f`` float. Kernels return an
    int, 0 for success.
    """
    library = _load()[0]
    if library is None:
        raise RuntimeError(why_not())
    kernel = getattr(library.handle, f"statescan_{name}_{library.level}")
    letters = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
    kernel.argtypes = [letters[letter] for letter in argtypes]
    kernel.restype = ctypes.c_int
    return kernel


def pointer(tensor: torch.Tensor | None) -> int | None:
    """The address of a tensor's first element, or a null pointer."""
    return None if tensor is None else tensor.data_ptr()


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# The OpenMP pool does not survive a fork: its threads are gone and a parallel region waits for them for ever.
# In a forked child (a data-loader worker) every kernel therefore runs on the calling thread alone.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a kernel may use: torch's setting, or one in a forked child."""
    return 1 if _forked else torch.get_num_threads()


def row_offsets(batch: int, length: int, offsets: torch.Tensor | None) -> torch.Tensor:
    """Where sequences lie among batch x length rows: (sequences + 1,) int64 cumulative lengths."""
    if offsets is not None:
        return offsets.contiguous()
    return torch.arange(batch + 1, dtype=torch.int64) * length
