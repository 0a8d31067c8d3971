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
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
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
        dtype: of the written weights; auto leaves them as they are.
        max_shard_megabytes: larger weights are split into files of this size.
    """
    from statescan import checkpoints

    if max_shard_megabytes < 1:
        raise ValueError(f"max-shard-megabytes: at least 1, got {max_shard_megabytes}")
    found = checkpoints.convert(source, target, layout=to, dtype=dtype, max_shard_bytes=max_shard_megabytes << 20)
    print(f"{source} ({found}) -> {target} ({to})")
