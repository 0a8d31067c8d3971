"""Models of images and texts as commands name them: a checkpoint's folder or a name, and what is said of fresh weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def model_of(name: str, *, seed: int = 0, **fields: Any) -> tuple[Any, bool]:
    """A model by the folder of a checkpoint or by name, and whether its weights are random.

    Raises:
        ValueError: neither a folder nor a known name.
    """
    import statescan
    from statescan import checkpoints

    if Path(name).exists():
        return checkpoints.load(name).eval(), False
    import torch

    torch.manual_seed(seed)
    return statescan.create_model(name, **fields).eval(), True


def tell_of_random_weights(name: str) -> None:
    """One line on standard error: what is measured is a model that has learnt nothing."""
    print(
        f"note: {name} has random weights; give the folder of a checkpoint to look into a trained model",
        file=sys.stderr,
    )
