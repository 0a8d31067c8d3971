"""The named models, by pattern."""

from __future__ import annotations

from typing import Annotated

import tyro


def run(
    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN")] = "*", *, json: bool = False
) -> None:
    """List named models that match a shell pattern, for instance `statescan models "mamba2_*"`.

    Args:
        pattern: shell pattern of names.
        json: print data instead of a table.
    """
    from statescan import inspect, models
    from statescan.cli import _print

    names = models.list_models(pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}; `statescan models` lists all")
    rows = []
    for name in names:
        info = models.model_info(name)
        rows.append((name, info.family, inspect.count_parameters(name), *inspect.width_and_depth(info.config)))
    if json:
        _print.as_json([dict(zip(("name", "family", "parameters", "dim", "depth"), row, strict=True)) for row in rows])
        return
    shown = [[" ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in row] for row in rows]
    _print.table("models", ("name", "family", "parameters", "dim", "depth"), shown)
