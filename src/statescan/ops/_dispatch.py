"""Which body of an operator runs: one table an operator, and it can say why.

An operator is registered with `torch.library` under ``statescan::NAME``; its registered body asks the table
here for the first implementation that accepts the arguments. The last entry, ``reference``, is plain PyTorch
and accepts everything.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from statescan._names import nearest

#: Holds the definitions of all operators; one library object for the whole package.
LIBRARY = torch.library.Library("statescan", "DEF")

BACKENDS = ("auto", "reference", "cpu", "triton")

_pinned = "auto"
_warned: set[str] = set()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Pin the implementation of every operator inside the block.

    Arguments:
        name: ``"auto"`` (the fastest that accepts the arguments), ``"reference"`` (plain PyTorch), ``"cpu"`` (the
            compiled library) or ``"triton"``. A pinned kernel that does not accept its arguments raises.

    The choice holds for the whole process, so that the backward pass, which may run on another thread, sees it.
    """
    global _pinned
    if name not in BACKENDS:
        hint = nearest(name, BACKENDS)
        raise ValueError(f"backend: unknown name {name!r}; known: {', '.join(BACKENDS)}{hint}")
    before, _pinned = _pinned, name
    try:
        yield
    finally:
        _pinned = before


@dataclass(frozen=True)
class Implementation:
    """One body of an operator.

    `accepts` takes the operator's arguments and returns None for yes, or why not. `forward` takes and returns what
    the registered operator does; `backward` likewise for the registered gradient.
    """

    name: str
    accepts: Callable[..., str | None]
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None


@dataclass
class Operator:
    """An operator's name, its argument check and its implementations, fastest first; the reference comes last.

    `bind` takes the public function's arguments, checks them, and returns those of the registered operator.
    """

    name: str
    bind: Callable[..., tuple[Any, ...]]
    implementations: list[Implementation] = field(default_factory=list)
    body: Callable[..., Any] | None = None  # what is registered, and the registered operator: `_registration.define`
    registered: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Compute: through torch's dispatcher where somebody listens there (a gradient, a compiler, a mode), else at
        once. The way through Python's part of the dispatcher costs 40 us a call, several times a step's kernel."""
        assert self.body is not None and self.registered is not None
        return self.registered(*args) if torch.compiler.is_compiling() or _heard(args) else self.body(*args)

    def choose(self, *args: Any) -> Implementation:
        """The implementation that runs for these arguments."""
        reasons: list[str] = []
        for implementation in self.implementations:
            if _pinned not in ("auto", implementation.name):
                continue
            reason = implementation.accepts(*args)
            if reason is None:
                if implementation.name == "reference" and _pinned == "auto":
                    self._warn_slow(reasons)
                return implementation
            reasons.append(f"{implementation.name}: {reason}")
        raise ValueError(
            f"{self.name}: backend {_pinned!r} does not take these arguments ({'; '.join(reasons) or 'not written'})"
        )

    def explain(self, *args: Any) -> str:
        """A line an implementation: used, not needed, or why not."""
        lines, used = [], False
        for implementation in self.implementations:
            if _pinned not in ("auto", implementation.name):
                verdict = f"not considered, backend {_pinned!r} is pinned"
            elif used:
                verdict = "not needed"
            else:
                reason = implementation.accepts(*args)
                used = reason is None
                verdict = "used" if used else f"no, {reason}"
            lines.append(f"{implementation.name}: {verdict}")
        return "\n".join(lines)

    def _warn_slow(self, reasons: list[str]) -> None:
        """One warning for the process where a kernel that should be there is missing."""
        from statescan.kernels import cpu

        missing = cpu.why_not()
        if missing and missing not in _warned:
            _warned.add(missing)
            warnings.warn(f"statescan runs on its slow references: {missing}", RuntimeWarning, stacklevel=4)


def _heard(args: tuple[Any, ...]) -> bool:
    """Whether anything beside the operator's body has to learn of a call with these arguments."""
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.autograd.profiler._is_profiler_enabled
    ):
        return True
    tracked = torch.is_grad_enabled()
    for value in args:
        if isinstance(value, torch.Tensor) and (
            type(value) not in _PLAIN
            or (tracked and value.requires_grad)
            or not (value.is_cpu or value.is_cuda)
            or value.is_conj()
            or value.is_neg()
        ):
            return True
    return False


def unheard(implementation: str, *args: Any) -> bool:
    """Whether a kernel of one implementation that has no gradient and no entry with `torch.library` may take a call: no
    other one is pinned, and nobody listens."""
    return _pinned in ("auto", implementation) and not torch.compiler.is_compiling() and not _heard(args)


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_OPERATORS: dict[str, Operator] = {}


def register(operator: Operator) -> Operator:
    """Make an operator known to `explain`."""
    _OPERATORS[operator.name] = operator
    return operator


def explain(name: str, *args: Any, **kwargs: Any) -> str:
    """Which implementation of operator `name` runs for these arguments, and why the others do not.

    The arguments are those of the public function, for instance
    ``explain("selective_scan", x, delta, A, B, C)``.
    """
    if name not in _OPERATORS:
        hint = nearest(name, _OPERATORS)
        raise ValueError(f"explain: unknown operator {name!r}; known: {', '.join(sorted(_OPERATORS))}{hint}")
    operator = _OPERATORS[name]
    return operator.explain(*operator.bind(*args, **kwargs))


def cpu_accepts(*tensors: torch.Tensor | None) -> str | None:
    """The part of `accepts` that all compiled CPU kernels share: device, element type, library."""
    from statescan.kernels import cpu

    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}"
        if tensor.dtype not in cpu.DTYPES:
            return f"no kernel for {tensor.dtype}"
    return None if cpu.available() else cpu.why_not()


def triton_implementation(
    module: str, accepts: Callable[..., str | None], backward: Callable[..., Any] | None = None
) -> Implementation:
    """The entry of the Triton kernels in `statescan.kernels.triton.MODULE`, imported when they first run; `backward`
    where the module has none of its own."""

    def direction(name: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            return getattr(importlib.import_module(f"statescan.kernels.triton.{module}"), name)(*args)

        return run

    return Implementation("triton", accepts, direction("forward"), backward or direction("backward"))


def triton_accepts(*tensors: torch.Tensor | None) -> str | None:
    """The part of `accepts` that all Triton kernels share. On a CPU they run only in Triton's interpreter."""
    import os

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type == "cpu" and not (interpreted and _pinned == "triton"):
            return "tensor is on cpu"
        if tensor.device.type not in ("cpu", "cuda"):
            return f"a tensor is on {tensor.device}"
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"no kernel for {tensor.dtype}"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed; pip install triton"
    return None
