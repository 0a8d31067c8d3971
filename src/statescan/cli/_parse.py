"""Flags from a command's signature, by tyro; what it cannot read becomes one line."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any


def parse(function: Callable[..., Any], program: str, arguments: Sequence[str]) -> Callable[[], Any]:
    """The call of `function` that the arguments ask for, not yet made.

    Raises:
        ValueError: arguments that do not fit the signature.
    """
    import tyro

    @functools.wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(function, *args, **kwargs)

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(bound, prog=program, args=list(arguments))
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        raise ValueError(f"{_one_line(complaint.getvalue())} `{program} --help` tells more") from None


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """What to say of a name that is none of the known ones."""
    near = get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")


def _one_line(box: str) -> str:
    """The message of tyro's box, drawn with lines or without: its first part, and the flag it thinks was meant."""
    parts: list[list[str]] = [[]]
    framed = box.startswith("╭")  # the title is then within the frame, else it is a part of its own
    for line in (line.strip("│ ") for line in box.splitlines()):
        if re.fullmatch("[─-]{2,}", line):
            parts.append([])
        elif line and line[0] not in "╭╰":
            parts[-1].append(line)
    if not framed and len(parts) > 1:
        del parts[0]
    message = " ".join(parts[0]).rstrip(".") or " ".join(box.split())
    meant = re.search(r"Perhaps you meant: (--[\w-]+)", " ".join(line for part in parts[1:] for line in part))
    return message[:1].lower() + message[1:] + (f"; did you mean {meant[1]}?" if meant else ";")
