"""Where a checkpoint is: a folder, a run's folder, or the Hugging Face hub and its cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from statescan.checkpoints._folder import CONFIG


def locate(path: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of a checkpoint: a folder itself, the model of a training run's folder, or what the hub has.

    Arguments:
        path: a folder, or a hub id ``owner/name``. An existing folder wins.
        revision: branch, tag or commit on the hub.
        local_files_only: look in the hub's cache alone, as with HF_HUB_OFFLINE=1.

    Raises:
        FileNotFoundError: there is no such folder, and the hub gave nothing; says why.
        ValueError: the path is a file.
    """
    folder = Path(path)
    if folder.is_dir():
        trained = folder / "model"
        return trained if (trained / CONFIG).is_file() and not (folder / CONFIG).is_file() else folder
    if folder.is_file():
        raise ValueError(
            f"path: {str(path)!r} is a file; give the folder that holds it and config.json, or "
            "create_model(name, checkpoint=file)"
        )
    name = os.fspath(path)
    if not is_hub_id(name):
        raise FileNotFoundError(f"path: no folder {name!r}, and it is no hub id of the form owner/name")
    # Pickles only where there is nothing better: most repositories hold either or both.
    weights = [["*.safetensors"], ["pytorch_model*.bin"]]
    return _fetch(name, weights, revision=revision, local_files_only=local_files_only)


def is_hub_id(name: str) -> bool:
    """Whether a name could be one of the hub: ``owner/name``."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def locate_tokenizer(name: str) -> Path:
    """The folder of a tokenizer on the hub; errors are those of `locate`."""
    return _fetch(name, [["tokenizer.json"]])


def _fetch(name: str, choices: list[list[str]], **options: Any) -> Path:
    """The snapshot of a repository: the files of the first choice of patterns that there are any of."""
    from huggingface_hub import constants, snapshot_download

    folder = Path()
    try:
        for patterns in choices:
            # In subfolders and under other names lie other formats of the same weights.
            ignored = ["*/*", "consolidated*"]
            folder = Path(
                snapshot_download(name, allow_patterns=["*.json", *patterns], ignore_patterns=ignored, **options)
            )
            if any(list(folder.glob(pattern)) for pattern in patterns):
                break
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        advice = ""
        if options.get("local_files_only") or constants.HF_HUB_OFFLINE:
            advice = f"; the hub is switched off: where there is a network, run `hf download {name}` once"
        raise FileNotFoundError(
            f"path: no folder {name!r}, and the hub gave nothing under this id ({type(error).__name__}: {reason}){advice}"
        ) from None
    return folder
