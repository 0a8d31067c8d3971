"""The Long Range Arena's generator of ListOps."""

from __future__ import annotations

from typing import Any

from statescan.data import ListOps
from tests.parity._arguments import translate
from tests.parity._fixture import Fixture

NAMES = {"depth": "max_depth", "args": "max_operands", "lo": "shortest", "hi": "longest"}


def listops(fixture: Fixture) -> dict[str, Any]:
    """Trees drawn one after the other, and kept by their length alone."""
    options = translate(fixture.kwargs, NAMES, ignored=("seed", "n"))
    tokens, lengths, targets = ListOps(**options, distinct=False).sequences(
        fixture.kwargs["n"], seed=fixture.kwargs["seed"]
    )
    return {"tokens": tokens, "lengths": lengths, "targets": targets}


ADAPTERS = {"lra_benchmarks.data.listops.generate_tree/to_string/to_value": listops}
