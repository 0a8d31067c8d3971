"""Names that a user may have mistyped: what all rooms say of an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(given: str, known: Iterable[str]) -> str:
    """``; nearest: 'NAME'`` where a known name is like the given one, to be appended to an error; else nothing."""
    near = get_close_matches(given, list(known), n=1)
    return f"; nearest: {near[0]!r}" if near else ""


def choice(argument: str, given: str, known: tuple[str, ...]) -> str:
    """`given`, if it is one of `known`.

    Raises:
        ValueError: otherwise; it names the argument, the nearest of the known names and all of them.
    """
    if given not in known:
        raise ValueError(f"{argument}: unknown {given!r}{nearest(str(given), known)}; known: {', '.join(known)}")
    return given
