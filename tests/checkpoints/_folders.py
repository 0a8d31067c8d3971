"""What the tests of checkpoints share: small models, and edits of files."""

import json
from pathlib import Path

import torch

import statescan


def small(name="mamba_tiny", **options):
    """A model of two narrow layers."""
    narrow = dict(head_dim=8, groups=2, state_dim=8) if name.startswith("mamba2") else {}
    return statescan.create_model(name, **(dict(dim=32, depth=2) | narrow | options)).eval()


def logits(model):
    """Of a fixed prompt."""
    with torch.no_grad():
        return model(torch.arange(12)[None])[0]


def edit_config(folder: Path, **fields):
    """Set fields of a folder's config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | fields).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def same_weights(one, other):
    """Whether two models have equal tensors under equal names."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
