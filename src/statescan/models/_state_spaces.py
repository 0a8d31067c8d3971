"""The published layout of state-spaces language models (`MambaLMHeadModel`): names both ways."""

from __future__ import annotations

from typing import Any

from statescan.models._published import add_prefix, mixer_from_published, mixer_to_published, split_prefix
from statescan.models._registry import Tensors

_BLOCK_NAMES = (
    ("norm.", "norm."),
    ("norm2.", "channel_norm."),
    ("mlp.fc1.", "channel_mixer.input_projection."),
    ("mlp.fc2.", "channel_mixer.output_projection."),
)
_OUTER_NAMES = {
    "backbone.embedding.weight": "embedding.weight",
    "backbone.norm_f.weight": "norm.weight",
    "backbone.norm_f.bias": "norm.bias",
    "lm_head.weight": "head.weight",
}


def from_published(tensors: Tensors, config: Any) -> Tensors:
    """Published names to ours; the Hugging Face spelling ``backbone.embeddings`` is taken too."""
    ours: Tensors = {}
    for name, tensor in tensors.items():
        # In file order, so that the last name of a tied tensor stays last.
        name = name.replace("backbone.embeddings.", "backbone.embedding.")
        layers = "backbone.layers."
        if not name.startswith(layers):
            ours[_OUTER_NAMES.get(name, name)] = tensor
            continue
        index, rest = name.removeprefix(layers).split(".", 1)
        ours.update(add_prefix(_block_from_published({rest: tensor}), f"stack.blocks.{index}."))
    return ours


def _block_from_published(tensors: Tensors) -> Tensors:
    mixer, others = split_prefix(tensors, "mixer.")
    ours = add_prefix(mixer_from_published(mixer), "mixer.")
    for name, tensor in others.items():
        for theirs, mine in _BLOCK_NAMES:
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
                break
        ours[name] = tensor
    return ours


def to_published(tensors: Tensors, config: Any, *, embedding: str = "embedding") -> Tensors:
    """Our names to published; `embedding` is ``embeddings`` in Hugging Face's spelling."""
    inverse = {mine: theirs for theirs, mine in _OUTER_NAMES.items()}
    published: Tensors = {}
    blocks: dict[str, Tensors] = {}
    head: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith("stack.blocks."):
            index, rest = name.removeprefix("stack.blocks.").split(".", 1)
            blocks.setdefault(index, {})[rest] = tensor
        elif name == "head.weight":
            head[inverse[name]] = tensor
        elif name == "embedding.weight":
            published[f"backbone.{embedding}.weight"] = tensor
        else:
            published[inverse.get(name, name)] = tensor
    for index, block in blocks.items():
        published.update(add_prefix(_block_to_published(block), f"backbone.layers.{index}."))
    return published | head


def _block_to_published(tensors: Tensors) -> Tensors:
    mixer, others = split_prefix(tensors, "mixer.")
    published = add_prefix(mixer_to_published(mixer), "mixer.")
    for name, tensor in others.items():
        for theirs, mine in _BLOCK_NAMES:
            if name.startswith(mine):
                name = theirs + name.removeprefix(mine)
                break
        published[name] = tensor
    return published
