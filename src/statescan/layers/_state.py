"""What a sequence layer or model remembers, as a value that is passed in and handed back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

_KINDS: dict[str, type[State]] = {}
_FORMAT = "statescan.state"


class State(Mapping[str, Any]):
    """A nested mapping of names to tensors and further states; every tensor has the batch as its first axis.

    Entries are read as items (``state["scan"]``) or attributes (``state.scan``) and are not replaced: operations
    return new states. A state is a pytree, so `torch.compile`, `torch.func` and `torch.utils.checkpoint` take it.

    Arguments:
        entries: names (no dots) to tensors or states.

    >>> state = State({"scan": torch.zeros(2, 8, 16), "convolution": torch.zeros(2, 3, 8)})
    >>> twice = State.concatenate([state, state])  # a batch of four
    >>> best = twice.select([3, 3, 0])  # reorder, drop or fork sequences
    """

    __slots__ = ("_entries",)
    _entries: dict[str, Any]

    def __init__(self, entries: Mapping[str, Tensor | State] | None = None) -> None:
        checked: dict[str, Any] = {}
        for name, entry in (entries or {}).items():
            if not isinstance(name, str) or not name or "." in name:
                raise ValueError(f"State: a name must be a string without dots, not {name!r}")
            if not isinstance(entry, (Tensor, State)):
                raise TypeError(f"State: {name} must be a tensor or a State, not {type(entry).__name__}")
            checked[name] = entry
        object.__setattr__(self, "_entries", checked)

    def __init_subclass__(cls) -> None:
        _register(cls)

    @classmethod
    def _of(cls, entries: dict[str, Any]) -> Any:
        """Without checks: pytrees also hold what is no tensor."""
        state = object.__new__(cls)
        object.__setattr__(state, "_entries", entries)
        return state

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getattr__(self, name: str) -> Any:
        if name != "_entries" and name in self._entries:
            return self._entries[name]
        raise AttributeError(f"{type(self).__name__} has no entry {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a {type(self).__name__} is a value: make a new one instead of setting {name!r}")

    def __eq__(self, other: object) -> bool:
        return self is other  # comparing tensors has no one answer

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._of, (self._entries,)

    def __repr__(self) -> str:
        parts = []
        for name, entry in self._entries.items():
            if isinstance(entry, Tensor):
                dtype = "" if entry.dtype == torch.float32 else f" {str(entry.dtype).removeprefix('torch.')}"
                parts.append(f"{name}={tuple(entry.shape)}{dtype}")
            else:
                parts.append(f"{name}={entry!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _map(self, function: Callable[[Tensor], Tensor]) -> Any:
        return self._of(
            {
                name: entry._map(function) if isinstance(entry, State) else function(entry)
                for name, entry in self._entries.items()
            }
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors with their dotted names."""
        for name, entry in self._entries.items():
            if isinstance(entry, State):
                for inner, tensor in entry.tensors():
                    yield f"{name}.{inner}", tensor
            else:
                yield name, entry

    @property
    def batch_size(self) -> int | None:
        """How many sequences it stands for; None for a state that holds nothing."""
        return next((tensor.shape[0] for _, tensor in self.tensors()), None)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.tensors())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
        """The same on another device; with `dtype`, floating tensors in another type."""
        return self._map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def detach(self) -> Any:
        """The same values without their history: gradients stop here."""
        return self._map(Tensor.detach)

    def clone(self) -> Any:
        """A copy that shares no memory."""
        return self._map(Tensor.clone)

    def select(self, indices: Tensor | Sequence[int]) -> Any:
        """The sequences with these indices, in this order; an index that occurs twice forks its sequence."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self._map(lambda t: t.index_select(0, rows.to(t.device)))

    @classmethod
    def concatenate(cls, states: Sequence[Any]) -> Any:
        """States of several batches as one, in order."""
        if not states:
            raise ValueError("State.concatenate: no states given")
        first = states[0]
        for state in states:
            if type(state) is not type(first) or list(state) != list(first):
                raise ValueError(f"State.concatenate: states differ in kind or names: {first!r} and {state!r}")
        return type(first)._concatenate(states)

    @classmethod
    def _concatenate(cls, states: Sequence[Any]) -> Any:
        entries: dict[str, Any] = {}
        for name, entry in states[0].items():
            same = [state[name] for state in states]
            if isinstance(entry, State):
                entries[name] = State.concatenate(same)
            elif any(tensor.shape[1:] != entry.shape[1:] for tensor in same):
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in same)
                raise ValueError(f"State.concatenate: {name} has shapes {shapes}; all but the first axis must agree")
            else:
                entries[name] = torch.cat(same)
        return cls._of(entries)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file. It is complete or absent: a failed save leaves what was there before."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.tensors():
            stored = tensor.detach().cpu().contiguous()
            if stored.is_complex():
                name, stored = f"{name}.complex", torch.view_as_real(stored)
            if stored.numel() and stored.untyped_storage().data_ptr() in seen:
                stored = stored.clone()  # the format refuses tensors that share memory
            seen.add(stored.untyped_storage().data_ptr())
            tensors[name] = stored
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata={"format": _FORMAT, "kinds": json.dumps(_kinds(self))})
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Any:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no safetensors file, is cut short, or holds no state.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"State.load: no file {os.fspath(path)!r}")
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"State.load: {os.fspath(path)!r} is no complete safetensors file: {error}") from None
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"State.load: {os.fspath(path)!r} holds no state; State.save writes such files")
        return _restore(json.loads(metadata["kinds"]), tensors, "")


def _kinds(state: State) -> dict[str, Any]:
    """The names in order and the kind of each state, for a file's metadata."""
    names = {name: _kinds(entry) if isinstance(entry, State) else None for name, entry in state.items()}
    return {"kind": type(state).__name__, "entries": names}


def _restore(kinds: dict[str, Any], tensors: dict[str, Tensor], prefix: str) -> Any:
    entries: dict[str, Any] = {}
    for name, inner in kinds["entries"].items():
        if inner is not None:
            entries[name] = _restore(inner, tensors, f"{prefix}{name}.")
        elif f"{prefix}{name}.complex" in tensors:
            entries[name] = torch.view_as_complex(tensors[f"{prefix}{name}.complex"])
        else:
            entries[name] = tensors[f"{prefix}{name}"]
    if kinds["kind"] not in _KINDS:
        raise ValueError(f"State.load: unknown kind of state {kinds['kind']!r}; known: {', '.join(sorted(_KINDS))}")
    return _KINDS[kinds["kind"]]._of(entries)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _register(cls: type[State]) -> None:
    """Make a kind of state known to files and to torch's pytrees."""
    _KINDS[cls.__name__] = cls

    def flatten(state: State) -> tuple[list[Any], list[str]]:
        return list(state._entries.values()), list(state._entries)

    def flatten_with_keys(state: State) -> tuple[list[tuple[Any, Any]], list[str]]:
        return [(_pytree.MappingKey(name), entry) for name, entry in state._entries.items()], list(state._entries)

    def unflatten(entries: Any, names: list[str]) -> State:
        return cls._of(dict(zip(names, entries, strict=True)))

    _pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"statescan.layers.{cls.__name__}",
        flatten_with_keys_fn=flatten_with_keys,
    )


_register(State)
