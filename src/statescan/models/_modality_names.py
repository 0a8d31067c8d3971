"""Published names of a Mixture-of-Mamba block, both ways."""

from __future__ import annotations

from typing import Any

import torch

from statescan.models._huggingface_parts import by_layer, rename
from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Tensors

_SPLIT = {
    "local_experts_in_proj": "input_projection",
    "local_experts_x_proj": "selection_projection",
    "local_experts_dt_proj": "delta_projection",
    "local_experts_out_proj": "output_projection",
}


def modality_mixer_from_published(tensors: Tensors) -> Tensors:
    """``local_experts_in_proj.{m}.weight`` and the like, stacked, and the names of a dense Mamba."""
    copies: dict[str, dict[int, torch.Tensor]] = {}
    others: Tensors = {}
    for name, tensor in tensors.items():
        stem, _, rest = name.partition(".")
        index, _, leaf = rest.partition(".")
        if stem in _SPLIT and index.isdigit():
            ours = f"{_SPLIT[stem]}.{leaf}"
            copies.setdefault("delta_bias" if ours == "delta_projection.bias" else ours, {})[int(index)] = tensor
        else:
            others[name] = tensor
    stacked = {name: torch.stack([parts[m] for m in sorted(parts)]) for name, parts in copies.items()}
    return mixer_from_published(others) | stacked


def modality_mixer_to_published(tensors: Tensors) -> Tensors:
    """The inverse of `modality_mixer_from_published`."""
    back = {ours: theirs for theirs, ours in _SPLIT.items()}
    published: Tensors = {}
    dense: Tensors = {}
    split_delta = "delta_bias" in tensors and tensors["delta_bias"].ndim == 2
    for name, tensor in tensors.items():
        named = "delta_projection.bias" if name == "delta_bias" and split_delta else name
        stem, _, leaf = named.partition(".")
        if stem in back and tensor.ndim == (3 if leaf == "weight" else 2):
            published.update({f"{back[stem]}.{m}.{leaf}": part for m, part in enumerate(tensor)})
        else:
            dense[name] = tensor
    # a dense delta_bias is a bias of the step projection, which `mixer_to_published` looks for
    return mixer_to_published(dense) | published


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """The blocks' published names within the layout of state-spaces language models, to ours.

    Only the block was published; the shell's names are those of the code that it extends.
    """
    layers, outer = by_layer(tensors, "backbone.layers.")
    ours: Tensors = {}
    for index, block in layers.items():
        mixer, others = split_prefix(block, "mixer.")
        block = others | add_prefix(modality_mixer_from_published(mixer), "mixer.")
        ours.update(add_prefix(block, f"stack.blocks.{index}."))
    return ours | rename(outer, _OUTER)


def to_published(tensors: Tensors, config: Any) -> Tensors:
    """The inverse of `from_published`."""
    layers, outer = by_layer(tensors, "stack.blocks.")
    published: Tensors = {}
    for index, block in layers.items():
        mixer, others = split_prefix(block, "mixer.")
        block = others | add_prefix(modality_mixer_to_published(mixer), "mixer.")
        published.update(add_prefix(block, f"backbone.layers.{index}."))
    return published | rename(outer, _OUTER, back=True)


_OUTER = (("backbone.embedding.", "embedding."), ("backbone.norm_f.", "norm."), ("lm_head.", "head."))
