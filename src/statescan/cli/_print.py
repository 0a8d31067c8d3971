"""Tables and JSON: what commands print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], (int, float)) for row in rows) and bool(rows)
        # names are copied from a table: they stay in one piece
        made.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=column == "name")
    for row in rows:
        made.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    Console().print(made)


def as_json(value: Any) -> None:
    """Print plain data as JSON."""
    print(json.dumps(value, indent=2, default=str))
