"""What the commands on language models share: the model, its tokenizer, text from files."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def load(model: str, tokenizer: str | None, *, device: str | None) -> tuple[Any, Any]:
    """A model on its device, and a tokenizer that fits it."""
    from statescan import checkpoints

    folder = checkpoints.locate(model)
    chosen = checkpoints.load_tokenizer(tokenizer or folder)
    loaded = checkpoints.load(folder, device=device_of(device))
    checkpoints.check_tokenizer(chosen, loaded)
    return loaded, chosen


def long_context(name: str | None, model: str, *, decay_threshold: float) -> Any:
    """The filter of a calibration: beside the model (``auto``) or in a file; None where there is to be none."""
    if name is None:
        return None
    from statescan import checkpoints, generation

    table = generation.LongContextTable.load(checkpoints.locate(model) if name == "auto" else name)
    return generation.LongContext(table, decay_threshold=decay_threshold)


def exits(name: str, model: str, loaded: Any, *, threshold: float | None) -> Any:
    """The model with the exits that lie beside it (``auto``) or in a file."""
    from statescan import checkpoints, generation

    made = generation.EarlyExit.load(loaded, checkpoints.locate(model) if name == "auto" else name)
    if threshold is not None:
        made.thresholds = (threshold,)
    return made


def read_prompt(path: Path) -> str:
    """The text of a file, or of the standard input where the path is ``-``."""
    from statescan.data import read_text

    if str(path) != "-":
        return "".join(piece.text for piece in read_text([path]))
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt-file: the standard input is not UTF-8 text ({error.reason})") from None


def unescape(text: str) -> str:
    r"""A string as typed on a command line, with ``\n``, ``\t`` and ``\\`` read as in Python."""
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found.group()], text)


def device_of(name: str | None) -> Any:
    """The device of this name; by default a GPU if there is one."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: unknown {name!r}; such as cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return device
