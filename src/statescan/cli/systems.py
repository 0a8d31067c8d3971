"""The published systems that work here: paper, models, what was verified."""

from __future__ import annotations


def run(*, json: bool = False) -> None:
    """List the published systems that work here.

    Args:
        json: print data instead of a table.
    """
    import dataclasses

    from statescan import models
    from statescan.cli import _print

    found = models.systems()
    if json:
        _print.as_json([dataclasses.asdict(system) for system in found])
        return
    rows = [(s.slug, s.paper, ", ".join(s.families), "; ".join(s.verified)) for s in found]
    _print.table("systems", ("slug", "paper", "families", "verified"), rows)
