"""What adapters of image models have in common."""

from __future__ import annotations

from typing import Any

import torch

from statescan.models import build_model, load_published
from tests.parity._fixture import Fixture


@torch.no_grad()
def image_model(fixture: Fixture, family: str, options: dict[str, Any]) -> dict[str, Any]:
    """Build a family's model, load the published tensors strictly, and run the images in evaluation."""
    model = build_model(family, options)
    fixture.check_parameters(model)
    constants = [name for name, *_ in fixture.data.get("constants", [])]
    load_published(model, fixture.state_dict(), constants=constants)
    given = model.eval()(*fixture.inputs())
    if isinstance(given, list):
        return {f"features_{index}": value for index, value in zip(model.out_indices, given, strict=True)}
    (name,) = fixture.outputs
    return {name: given}


def features(options: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Options of a published backbone class (`out_indices`, `pretrained`), added to those of its classifier."""
    given.pop("pretrained", None)
    given.pop("key", None)
    indices = given.pop("out_indices", None)
    return options | {"features_only": True, "out_indices": None if indices is None else tuple(indices)}
