"""Turn a checkpoint of one layout into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    *,
    to: Literal["statescan", "state-spaces", "huggingface", "gguf"] = "statescan",
    from_: Annotated[Literal["auto", "gguf"], tyro.conf.arg(name="from")] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0", "q4_0"] = "auto",
    max_shard_megabytes: int = 4096,
) -> None:
    """Turn a checkpoint of one layout into another.

    The source's layout is found by looking. Names, shapes and values are kept; a tokenizer goes with them.

    Examples:

      statescan convert state-spaces/mamba-130m mamba-130m

      statescan convert runs/book/model for-transformers --to huggingface

      statescan convert runs/book/model book.gguf --to gguf --dtype q8_0

      statescan convert book.gguf book --from gguf

    Args:
        source: folder, GGUF file or hub id.
        target: folder to write, or a file that ends in .gguf.
        to: layout to write: our own, the state-spaces one (pytorch_model.bin), Hugging Face's, or llama.cpp's GGUF.
        from_: gguf insists that the source is a GGUF file; auto looks.
        dtype: of the written weights; auto leaves them as they are. q8_0 and q4_0 are GGUF's.
        max_shard_megabytes: larger weights are split into files of this size.
    """
    from statescan import checkpoints

    if max_shard_megabytes < 1:
        raise ValueError(f"max-shard-megabytes: at least 1, got {max_shard_megabytes}")
    if from_ == "gguf" and not source.endswith(".gguf"):
        raise ValueError(f"from: a GGUF file ends in .gguf, got {source!r}")
    found = checkpoints.convert(source, target, layout=to, dtype=dtype, max_shard_bytes=max_shard_megabytes << 20)
    print(f"{source} ({found}) -> {target} ({to})")
