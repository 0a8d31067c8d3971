"""What adapters of image models have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from statescan.models import build_model, load_published
from tests.parity._fixture import Fixture


@torch.no_grad()
def image_model(
    fixture: Fixture, family: str, options: dict[str, Any], *, alter: Callable[[nn.Module], None] | None = None
) -> dict[str, Any]:
    """Build a family's model, load the published tensors strictly, and run the images in evaluation; `alter` changes the
    model where a fixture holds what a fault of the published code gave."""
    model = build_model(family, options)
    fixture.check_parameters(model)
    constants = [name for name, *_ in fixture.data.get("constants", [])]
    load_published(model, fixture.state_dict(), constants=constants)
    if alter is not None:
        alter(model)
    given = model.eval()(*fixture.inputs())
    if isinstance(given, list):
        return dict(zip(fixture.outputs, given, strict=True))
    (name,) = fixture.outputs
    return {name: given}


def features(options: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Options of a published backbone class (`out_indices`, `pretrained`), added to those of its classifier."""
    given.pop("pretrained", None)
    given.pop("key", None)
    indices = given.pop("out_indices", None)
    return options | {"features_only": True, "out_indices": None if indices is None else tuple(indices)}
