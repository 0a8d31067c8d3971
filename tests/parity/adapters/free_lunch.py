"""The dynamic programs of the free-lunch experiments, by the definitions of their sheet."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.data import edit_distances, last_values, local_recurrence, longest_increasing
from tests.parity._fixture import Fixture


def tables(fixture: Fixture) -> dict[str, Tensor]:
    """The four tables; the fixture's inputs are a, s, t and x in this order."""
    settings = {"local_weights": (1, 2, 3), "modulus": 7, "keys": 4} | fixture.data["ours"]["kwargs"]
    keys = settings["keys"]
    a, s, t, x = (value.long() for value in fixture.inputs())
    pairs = min(a.shape[1], x.shape[1])
    found = {
        "lis_table": longest_increasing(a),
        "edit_distance_table": edit_distances(s, t),
        "local_dp": local_recurrence(x, settings["local_weights"], settings["modulus"]),
        "last_occurrence": last_values(a[:, :pairs] % keys, x[:, :pairs], keys),
    }
    return {name: table.to(torch.float32) for name, table in found.items()}


ADAPTERS = {"free_lunch:": tables}
