"""Finished measurements, kept in a file as they come: a run that was killed goes on where it stood."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Points:
    """Measurements by what they measure.

    Arguments:
        path: a JSON file, read if there is one, replaced after every measurement.
    """

    def __init__(self, path: Path):
        self.path = path
        self._found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, point: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was found for these settings, else what `measure` finds now; it is written at once.

        Arguments:
            point: everything that the outcome depends on; another value of anything is another point.
        """
        key = json.dumps(point, sort_keys=True)
        if key not in self._found:
            self._found[key] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".part")
            beside.write_text(json.dumps(self._found, indent=1) + "\n")
            os.replace(beside, self.path)  # complete or as before
        return self._found[key]
