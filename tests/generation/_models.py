"""The language models that the engine is tested with, each tiny, by name."""

from __future__ import annotations

from typing import Any

from tests.generation._mock import MockModel

VOCABULARY = 256


def build(name: str) -> Any:
    """A model with weights that depend on its name alone, here and in another process."""
    if name == "mock":
        return MockModel(VOCABULARY).eval()
    raise KeyError(name)


NAMES = ["mock"]
#: Those whose state must not grow.
LONG_RUNNING = ["mock"]
