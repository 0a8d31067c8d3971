"""Models by name: families, their variants, and where they are defined."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from statescan._names import nearest
from statescan.models._manifest import MANIFEST
from statescan.models._model import Model, build_config

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One published architecture.

    Arguments:
        slug: its name in the registry and in files.
        config: its frozen dataclass.
        model: its class, made from a config.
        variants: named configs: the fields that differ from the defaults.
        from_published: tensors under published names -> under ours; pure. Takes the config as second argument.
        to_published: the inverse.
        upgrade: published names of an earlier release -> those that `from_published` takes; None: there were none.
    """

    slug: str
    config: type
    model: type[Model]
    variants: dict[str, dict[str, Any]]
    from_published: Callable[[Tensors, Any], Tensors]
    to_published: Callable[[Tensors, Any], Tensors]
    upgrade: Callable[[Tensors], Tensors] | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What `model_info` tells of a named variant."""

    name: str
    family: str
    config: Any


def family(slug: str) -> Family:
    """The family `slug`; its module is imported on first use."""
    for name, entry in MANIFEST.items():
        if name == slug:
            return importlib.import_module(entry.module).FAMILY
    raise ValueError(_unknown("family", slug, list(MANIFEST)))


def list_models(pattern: str = "*") -> list[str]:
    """Names of all variants that match a shell pattern, sorted: ``list_models("mamba2_*")``. Imports no model."""
    names = [name for entry in MANIFEST.values() for name in entry.variants]
    return sorted(fnmatch.filter(names, pattern))


def _family_of(name: str) -> Family:
    for slug, entry in MANIFEST.items():
        if name in entry.variants:
            return family(slug)
    if name in MANIFEST:
        near = ", ".join(MANIFEST[name].variants[:4])
        raise ValueError(f"unknown model {name!r}: it is a family; its models are {near}, …")
    raise ValueError(_unknown("model", name, list_models()))


def model_info(name: str) -> ModelInfo:
    """Family and config of a named variant, without building it."""
    found = _family_of(name)
    return ModelInfo(name, found.slug, build_config(found.config, found.variants[name], name=name))


def create_model(name: str, checkpoint: str | os.PathLike[str] | None = None, **overrides: Any) -> Any:
    """Build a named variant, with fresh weights or those of a checkpoint.

    Arguments:
        name: one of `list_models()`.
        checkpoint: a file or folder in any layout that `statescan.checkpoints` knows; its tensors must fit exactly.
        overrides: fields of the family's config to set differently, for instance ``depth=4``.

    Raises:
        ValueError: an unknown name or field; the nearest known one is named.
    """
    found = _family_of(name)
    config = build_config(found.config, {**found.variants[name], **overrides}, name=name)
    model = found.model(config)
    if checkpoint is not None:
        # The room of file formats stands above this one and is reached by name.
        importlib.import_module("statescan.checkpoints").load_weights(model, checkpoint)
    return model


def build_model(slug: str, config: Any) -> Any:
    """Build a model of a family from its config, or from a dictionary of the config's fields."""
    found = family(slug)
    if isinstance(config, dict):
        config = build_config(found.config, config, name=slug)
    return found.model(config)


def config_dict(model: Model) -> dict[str, Any]:
    """A model's config as plain data."""
    return dataclasses.asdict(model.config)


def _unknown(kind: str, name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return f"unknown {kind} {name!r}{hint}; `statescan models` lists all"
