"""What the commands on encoders share."""

from __future__ import annotations

from typing import Any

from statescan.cli._language import device_of


def load(model: str, tokenizer: str | None, *, device: str | None) -> tuple[Any, Any]:
    """An encoder on its device, and a tokenizer that fits it.

    Raises:
        ValueError: for a model of another kind.
    """
    from statescan import checkpoints
    from statescan.models.retriever import Retriever

    folder = checkpoints.locate(model)
    loaded = checkpoints.load(folder, device=device_of(device))
    if not isinstance(loaded, Retriever):
        raise ValueError(f"model: {model!r} is no encoder but a {loaded.family}; `statescan train retrieval` makes one")
    chosen = checkpoints.load_tokenizer(tokenizer or folder)
    checkpoints.check_tokenizer(chosen, loaded.backbone)
    return loaded, chosen
