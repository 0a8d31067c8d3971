"""Tensors in files: safetensors, whole or in shards, and pickles without code."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

Tensors = dict[str, Tensor]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
_NAMES = (WEIGHTS, INDEX, PICKLE, PICKLE_INDEX)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")


def holds_weights(name: str) -> bool:
    """Whether a file of this name is (part of) the weights of a checkpoint's folder."""
    return name in _NAMES or _SHARD.fullmatch(name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint: {str(path)!r} is not JSON ({error}); was its download interrupted?") from None
    if not isinstance(found, dict):
        raise ValueError(f"checkpoint: {str(path)!r} holds no JSON object")
    return found


def read_tensors(path: str | os.PathLike[str]) -> Tensors:
    """All tensors of a checkpoint: a weights file, an index of shards, or a folder that holds one of them.

    Files are mapped into memory: a tensor is read from the disk when it is first used.

    Raises:
        FileNotFoundError: nothing is there, or shards are missing; says which.
        ValueError: a file is cut short, is no weights file, or is a pickle with code in it.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _NAMES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"checkpoint: {str(path)!r} holds none of {', '.join(_NAMES)}{_interrupted(path)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: no file {str(path)!r}")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLES:
        return _read_pickle(path)
    known = ", ".join((".safetensors", *_PICKLES, ".index.json"))
    raise ValueError(f"checkpoint: {str(path)!r} has no known ending; known: {known}")


def _read_safetensors(path: Path) -> Tensors:
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(_cut_short(path, "safetensors", error)) from None


def _read_pickle(path: Path) -> Tensors:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what is refused is said below
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"checkpoint: {str(path)!r} holds more than tensors and was not loaded, since loading it would run its code "
            f"({reason}); ask its authors for safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(_cut_short(path, "weights", error)) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"checkpoint: {str(path)!r} holds no dictionary of tensors")
    return dict(found)


def _cut_short(path: Path, kind: str, error: Exception) -> str:
    return (
        f"checkpoint: {str(path)!r} ({path.stat().st_size:,} bytes) is no whole {kind} file ({error}); was its download "
        "interrupted? Fetch it again"
    )


def _read_shards(path: Path) -> Tensors:
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"checkpoint: {str(path)!r} has no weight_map from tensors to files")
    shards = sorted(set(table.values()))
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise ValueError(f"checkpoint: {str(path)!r} names files outside its folder: {', '.join(outside)}")
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"checkpoint: {str(path.parent)!r} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing)}"
            f"{_interrupted(path.parent) or '; was its download interrupted? Fetch it again'}"
        )
    tensors: Tensors = {}
    for name in shards:
        shard = path.parent / name
        tensors.update(_read_safetensors(shard) if shard.suffix == ".safetensors" else _read_pickle(shard))
    absent = [name for name in table if name not in tensors]
    if absent:
        raise ValueError(f"checkpoint: {str(path)!r} lists tensors that no shard holds: {', '.join(absent)}")
    return {name: tensors[name] for name in table} | {n: t for n, t in tensors.items() if n not in table}


def _interrupted(folder: Path) -> str:
    """What an interrupted download left behind, and what to do."""
    places = [folder, folder / ".cache" / "huggingface" / "download"]
    hub_id = "ID"
    if folder.parent.name == "snapshots":  # the hub's cache: models--OWNER--NAME/snapshots/REVISION beside blobs
        places.append(folder.parent.parent / "blobs")
        hub_id = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    left = [file for place in places for ending in ("incomplete", "part") for file in place.glob(f"*.{ending}")]
    if not left:
        return ""
    some = ", ".join(sorted(file.name for file in left)[:4]) + (", …" if len(left) > 4 else "")
    return f"; its download was interrupted (there is {some}): fetch it again, with `hf download {hub_id}`"


def write_tensors(tensors: Tensors, folder: Path, *, max_shard_bytes: int | None = None) -> None:
    """Write tensors into a folder as safetensors, in shards where they are larger than `max_shard_bytes`.

    Names that mean one tensor (a tied head) are written once, under the first.
    """
    from safetensors.torch import save_file

    unique: Tensors = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        unique[name] = tensor.detach().cpu().contiguous()
    shards: list[Tensors] = [{}]
    size = 0
    for name, tensor in unique.items():
        nbytes = tensor.numel() * tensor.element_size()
        if max_shard_bytes is not None and shards[-1] and size + nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += nbytes
    if len(shards) == 1:
        save_file(unique, str(folder / WEIGHTS), metadata={"format": "pt"})
        return
    table = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, str(folder / name), metadata={"format": "pt"})
        table.update(dict.fromkeys(shard, name))
    total = sum(t.numel() * t.element_size() for t in unique.values())
    write_json({"metadata": {"total_size": total}, "weight_map": table}, folder / INDEX)


def write_pickle(tensors: Tensors, folder: Path) -> None:
    """Write tensors into a folder as the state-spaces project does: pytorch_model.bin."""
    try:
        with (folder / PICKLE).open("wb") as file:
            torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # what torch makes of a full disk
            raise error.__context__ from None
        raise


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write a JSON object; infinities become the strings that `float` reads."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
