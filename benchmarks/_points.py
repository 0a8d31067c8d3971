"""Finished measurements, kept in a file as they come: a run that was killed goes on where it stood."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Points:
    """Measurements by what they measure.

    Several processes may share a file, if they measure different points.

    Arguments:
        path: a file of JSON lines, read if there is one; every measurement adds a line.
    """

    def __init__(self, path: Path):
        self.path = path
        self._found: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the process was killed while it wrote
            self._found[_key(entry["point"])] = entry["found"]

    def __len__(self) -> int:
        return len(self._found)

    def get(self, point: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was found for these settings, else what `measure` finds now; it is written at once.

        Arguments:
            point: everything that the outcome depends on; another value of anything is another point.
        """
        key = _key(point)
        if key not in self._found:
            found = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                # A line of its own, even after one that was cut short.
                file.write("\n" * self._cut_short() + json.dumps({"point": point, "found": found}) + "\n")
            self._found[key] = found
        return self._found[key]

    def _cut_short(self) -> bool:
        text = self.path.read_bytes() if self.path.exists() else b""
        return bool(text) and not text.endswith(b"\n")


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)
