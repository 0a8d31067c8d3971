"""Loading published weights: names translated, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from statescan.models._model import Model
from statescan.models._registry import Family, Tensors, family

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


#: Other spellings of published names that are accepted: Hugging Face's embedding in the state-spaces layout.
_SYNONYMS = {"backbone.embeddings.weight": "backbone.embedding.weight"}
#: Ends of names of tensors that a formula gives: some published files store them.
_FIXED = ("rotary_emb.inv_freq", "transformer.decay.decay", "rope.freqs_cos", "rope.freqs_sin")


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
    fill_tensors(model, translate_published(model, tensors, constants=constants))


def translate_published(model: Model, tensors: Tensors, *, constants: Sequence[str] = ()) -> Tensors:
    """A published state dict under our names, every tensor accounted for; see `load_published`.

    The model itself is only looked at and may be on the meta device.
    """
    found = family(model.family)
    if found.upgrade is not None:
        tensors = found.upgrade(tensors)
    own = _own_tensors(model)
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in own.items()}
    expected = found.to_published(meta, model.config)
    given = {
        _SYNONYMS.get(name, name): tensor
        for name, tensor in tensors.items()
        if name not in constants and not name.endswith(_FIXED)
    }
    problems = [f"unexpected: {name}" for name in given if name not in expected]
    fitting = {}
    for name, tensor in given.items():
        if name in expected and tensor.shape == expected[name].shape:
            fitting[name] = tensor
        elif name in expected:
            problems.append(_shape_problem(name, tensor, expected[name]))
    translated = found.from_published(fitting, model.config)
    absent = [names for names in _groups(own) if not any(name in translated for name in names)]
    if absent:
        sources = _published_sources(own, found, model.config)
        for names in absent:
            known = [source for name in names for source in sources[name]]
            if not any(source in given for source in known if source not in fitting):
                missing = [source for source in known if source not in given]
                problems.append(f"missing: {' or '.join(dict.fromkeys(missing))}")
    _refuse(model, problems)
    _refuse_broken(fitting)
    return translated


def load_tensors(model: Model, tensors: Tensors) -> None:
    """Fill a model from tensors under our names, strictly; see `load_published`."""
    check_tensors(model, tensors)
    fill_tensors(model, tensors)


def check_tensors(model: Model, tensors: Tensors) -> None:
    """Refuse tensors under our names that do not fit the model; see `load_published`."""
    own = _own_tensors(model)
    problems = [f"unexpected: {name}" for name in tensors if name not in own]
    problems += [
        _shape_problem(name, tensors[name], own[name])
        for name in tensors
        if name in own and tensors[name].shape != own[name].shape
    ]
    problems += [
        f"missing: {' or '.join(names)}" for names in _groups(own) if not any(name in tensors for name in names)
    ]
    _refuse(model, problems)
    _refuse_broken(tensors)


def fill_tensors(model: Model, tensors: Tensors) -> None:
    """Copy tensors that were checked into a model."""
    own = _own_tensors(model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _refuse_broken(tensors: Tensors) -> None:
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise ValueError(f"checkpoint: NaN or infinity in {', '.join(broken)}; the file is damaged")


def _own_tensors(model: Model) -> Tensors:
    return dict(model.state_dict(keep_vars=True))


def _groups(own: Tensors) -> list[list[str]]:
    """Names by the tensor they mean: a tied one has several."""
    groups: dict[int, list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def _published_sources(own: Tensors, found: Family, config: Any) -> dict[str, list[str]]:
    """Our names to the published ones they are made of: numbered tensors are sent through the translation."""
    names = list(own)
    numbered = {name: torch.tensor(i).expand(own[name].shape) for i, name in enumerate(names)}
    sources: dict[str, list[str]] = {name: [] for name in names}
    for published, tensor in found.to_published(numbered, config).items():
        if tensor.numel():
            sources[names[int(tensor.flatten()[0])]].append(published)
    return sources


def _shape_problem(name: str, given: Tensor, wanted: Tensor) -> str:
    return f"shape of {name}: {tuple(given.shape)}, this model has {tuple(wanted.shape)}"


def _refuse(model: Model, problems: list[str]) -> None:
    if problems:
        count = f"{len(problems)} tensor{'s do' if len(problems) > 1 else ' does'}"
        raise ValueError(f"checkpoint: {count} not fit this {model.family} model: {'; '.join(problems)}")
