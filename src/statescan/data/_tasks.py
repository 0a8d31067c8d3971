"""The synthetic tasks by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from statescan._names import nearest
from statescan.data._chains import (
    Arithmetic,
    EditDistance,
    LastOccurrence,
    LocalProgram,
    LongestIncreasing,
    PrefixLookup,
    StringCopy,
)
from statescan.data._copying import Copying, SelectiveCopying
from statescan.data._induction import InductionHead, InductionHeads
from statescan.data._long_context import Passkey, PhoneBook
from statescan.data._recall import AssociativeRecall, MultiQueryRecall
from statescan.data._state_tracking import ModularSum, Parity
from statescan.data._synthetic import SyntheticTask

SYNTHETIC_TASKS: dict[str, type[Any]] = {
    "arithmetic": Arithmetic,
    "associative_recall": AssociativeRecall,
    "copying": Copying,
    "edit_distance": EditDistance,
    "induction_head": InductionHead,
    "induction_heads": InductionHeads,
    "last_occurrence": LastOccurrence,
    "local_program": LocalProgram,
    "longest_increasing": LongestIncreasing,
    "modular_sum": ModularSum,
    "mqar": MultiQueryRecall,
    "parity": Parity,
    "passkey": Passkey,
    "phone_book": PhoneBook,
    "prefix_lookup": PrefixLookup,
    "selective_copying": SelectiveCopying,
    "string_copy": StringCopy,
}


def synthetic_task(name: str, settings: Mapping[str, Any] | None = None) -> SyntheticTask:
    """The task of this name with some of its settings changed.

    Raises:
        ValueError: for a name or a setting that does not exist; the nearest one is shown.
    """
    if name not in SYNTHETIC_TASKS:
        raise ValueError(f"task: unknown name {name!r}{_nearest(name, SYNTHETIC_TASKS)}")
    task = SYNTHETIC_TASKS[name]
    fields = {field.name for field in dataclasses.fields(task)}
    for setting in settings or {}:
        if setting not in fields:
            raise ValueError(f"{name}: unknown setting {setting!r}{_nearest(setting, fields)}")
    return task(**(settings or {}))


def _nearest(name: str, known: Any) -> str:
    return nearest(name, known) or f"; known: {', '.join(sorted(known))}"
