"""Loading published weights: names translated, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from statescan.models._model import Model
from statescan.models._registry import Tensors, family

#: Parts of names, published to ours, that all mixers of the state-spaces layout share. Order matters.
MIXER_NAMES = (
    ("in_proj.", "input_projection."),
    ("out_proj.", "output_projection."),
    ("x_proj.", "selection_projection."),
    ("dt_proj.weight", "delta_projection.weight"),
    ("dt_proj.bias", "delta_bias"),
    ("dt_bias", "delta_bias"),
    ("conv1d.", "convolution."),
    ("init_states", "learned_state"),
)


def mixer_from_published(tensors: Tensors) -> Tensors:
    """A mixer's tensors under our names: Mamba, Mamba2, Mamba2Simple and MHA of `mamba_ssm`, and their copies."""
    ours = {}
    for name, tensor in tensors.items():
        for theirs, mine in MIXER_NAMES:
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
                break
        ours[name] = tensor.squeeze(1) if name == "convolution.weight" and tensor.ndim == 3 else tensor
    return ours


def mixer_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `mixer_from_published`."""
    published = {}
    for name, tensor in tensors.items():
        if name == "convolution.weight":
            tensor = tensor.unsqueeze(1)
        if name == "delta_bias":
            # Mamba keeps it as its step projection's bias, Mamba-2, which has no such projection, by itself.
            name = "dt_proj.bias" if "delta_projection.weight" in tensors else "dt_bias"
        else:
            for theirs, mine in MIXER_NAMES:
                if name.startswith(mine):
                    name = theirs + name.removeprefix(mine)
                    break
        published[name] = tensor
    return published


def split_prefix(tensors: Tensors, prefix: str) -> tuple[Tensors, Tensors]:
    """Tensors whose names begin with `prefix`, without it; and the others."""
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return inside, {name: t for name, t in tensors.items() if not name.startswith(prefix)}


def add_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The inverse of taking a prefix away."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def load_published(model: Model, tensors: Tensors, *, constants: Sequence[str] = ()) -> None:
    """Fill a model from a published state dict, strictly.

    Arguments:
        model: one of ours.
        tensors: published names to tensors, in file order: where several names mean one tensor (a tied head, a shared
            block), the last one given is in force.
        constants: names of fixed tensors that the published code stores; accepted and ignored.

    Raises:
        ValueError: names every tensor that is missing, unexpected, of another shape, or not finite.
    """
    found = family(model.family)
    given = {name: tensor for name, tensor in tensors.items() if name not in constants}
    load_tensors(model, found.from_published(given, model.config), published=found)


def load_tensors(model: Model, tensors: Tensors, *, published: Any = None) -> None:
    """Fill a model from tensors under our names, strictly; see `load_published`."""
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    own = {name: own[name] for name in model.state_dict(keep_vars=True)}
    groups: dict[int, list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault(id(tensor), []).append(name)
    problems = [
        f"missing: {' or '.join(names)}" for names in groups.values() if not any(name in tensors for name in names)
    ]
    problems += [f"unexpected: {name}" for name in tensors if name not in own]
    problems += [
        f"shape of {name}: {tuple(tensors[name].shape)}, this model has {tuple(own[name].shape)}"
        for name in tensors
        if name in own and tensors[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"checkpoint: {len(problems)} tensors do not fit this {model.family} model: {shown}")
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise ValueError(f"checkpoint: NaN or infinity in {', '.join(broken[:20])}; the file is damaged")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
