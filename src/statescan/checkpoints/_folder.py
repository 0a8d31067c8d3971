"""Writing a checkpoint's folder: all of it or nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from statescan.checkpoints._files import holds_weights

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
#: Beside it in Hugging Face's folders; names the special tokens.
TOKENIZER_SETTINGS = "tokenizer_config.json"
#: Says that the tokens are bytes.
BYTES = "byte_tokenizer.json"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_SETTINGS, BYTES)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into that takes its name only when all is written; what stood there before is kept till then.

    Where there is a folder of that name already, the checkpoint in it is replaced and other files in it stay.

    Raises:
        ValueError: the place cannot be written, or the disk is full; nothing there has changed.
    """
    target = Path(path)
    for place in (target, *target.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"path: {str(place)!r} is a file; give a folder")
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Inside a folder that is there already: it may be another file system than its parent.
        temporary = Path(tempfile.mkdtemp(dir=target if target.exists() else target.parent, prefix=f".{target.name}."))
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o644)  # the safetensors library makes files that only their owner can read
            _to_disk(file)
        if target.exists():
            _replace(target, temporary)
        else:
            os.replace(temporary, target)
            temporary = None
        _to_disk(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"path: cannot write {str(target)!r}: {reason}; what was there is unchanged") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(target: Path, fresh: Path) -> None:
    """Move the files of `fresh` over the checkpoint in `target`: all data is written, only names change."""
    files = sorted(file for file in fresh.iterdir() if file.name != CONFIG)
    names = {file.name for file in files}
    replaced = TOKENIZER_FILES if names & set(TOKENIZER_FILES) else ()
    stale = [
        file
        for file in target.iterdir()
        if (holds_weights(file.name) or file.name in replaced) and file.name not in names and not file.is_dir()
    ]
    config = target / CONFIG
    same = config.is_file() and config.read_bytes() == (fresh / CONFIG).read_bytes()
    if stale or not same or sum(holds_weights(file.name) for file in files) > 1:
        # More than one name changes. Should the process be killed in between, a folder without config.json is refused;
        # half of one checkpoint and half of another might load.
        config.unlink(missing_ok=True)
    for file in files:
        os.replace(file, target / file.name)
    for file in stale:
        file.unlink()
    os.replace(fresh / CONFIG, config)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
