"""Turn a checkpoint of one layout into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    *,
    to: Literal["statescan", "state-spaces", "huggingface"] = "statescan",
    max_shard_megabytes: int = 4096,
) -> None:
    """Turn a checkpoint of one layout into another.

    The source's layout is found by looking. Names, shapes and values are kept; a tokenizer goes with them.

    Examples:

      statescan convert state-spaces/mamba-130m mamba-130m

      statescan convert runs/book/model for-transformers --to huggingface

    Args:
        source: folder or hub id.
        target: folder to write.
        to: layout to write: our own, the state-spaces one (pytorch_model.bin), or Hugging Face's.
        max_shard_megabytes: larger weights are split into files of this size.
    """
    from statescan import checkpoints

    found = checkpoints.convert(source, target, layout=to, max_shard_bytes=max_shard_megabytes << 20)
    print(f"{source} ({found}) -> {target} ({to})")
