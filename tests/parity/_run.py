"""Running fixtures: find the adapter, build, compare, and say what came of it in a line."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from statescan import ops
from tests.parity import adapters
from tests.parity._fixture import Fixture, ParityError

#: Builds ours from the published arguments, runs the fixture's inputs, and returns the named outputs.
Adapter = Callable[[Fixture], dict[str, Any]]

Verdict = Literal["pass", "fail", "no adapter"]


@dataclass(frozen=True)
class Result:
    """What came of one fixture."""

    name: str
    verdict: Verdict
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}{f': {self.why}' if self.why else ''}"


@cache
def all_adapters() -> dict[str, Adapter | None]:
    """Adapters by published class, gathered from the tables ``ADAPTERS`` of the modules in ``adapters/``."""
    table: dict[str, Adapter | None] = {}
    for module in pkgutil.iter_modules(adapters.__path__):
        entries = importlib.import_module(f"{adapters.__name__}.{module.name}").ADAPTERS
        twice = sorted(table.keys() & entries.keys())
        if twice:
            raise ValueError(f"two adapters for {', '.join(twice)}")
        table |= entries
    return table


def adapter_for(fixture: Fixture) -> Adapter | None:
    """The adapter for a fixture's published class.

    Forks that keep its name are told apart as ``repository:class``. A system that does something else with the class of
    another is told apart as ``system:class``; None stands there while it has no adapter.
    """
    table = all_adapters()
    for place in (fixture.system, fixture.data["official"].get("repo")):
        if f"{place}:{fixture.class_name}" in table:
            return table[f"{place}:{fixture.class_name}"]
    return table.get(fixture.class_name)


def run(path: Path, *, backend: str = "auto") -> Result:
    """Run one fixture. A failure of any kind becomes a result; nothing is raised."""
    name = path.stem
    try:
        fixture = Fixture(path)
        adapter = adapter_for(fixture)
        if adapter is None:
            return Result(name, "no adapter", fixture.class_name)
        torch.manual_seed(0)
        with ops.backend(backend):
            problems = fixture.differences(adapter(fixture))
    except ParityError as error:
        return Result(name, "fail", str(error))
    except Exception as error:
        return Result(name, "fail", f"{type(error).__name__}: {error}")
    return Result(name, "fail", "; ".join(problems)) if problems else Result(name, "pass")
