"""Published arguments under our names; one that we do not know is an error, never ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tests.parity._fixture import ParityError


def translate(
    given: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    ignored: Iterable[str] = (),
    only: Mapping[str, tuple[Any, ...]] | None = None,
) -> dict[str, Any]:
    """Rename arguments.

    Arguments:
        given: published names to values.
        names: published names to ours.
        ignored: published names that change speed or bookkeeping alone.
        only: published names to the values that we can express; they are checked and dropped.
    """
    ours = {}
    for name, value in given.items():
        if name in names:
            ours[names[name]] = tuple(value) if isinstance(value, list) else value
        elif only is not None and name in only:
            if value not in only[name]:
                raise ParityError(f"argument {name}={value!r} is not supported; supported: {only[name]}")
        elif name not in ignored:
            raise ParityError(f"unknown argument {name}={value!r} of the published class")
    return ours
