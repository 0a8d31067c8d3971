"""Tensors in files: safetensors, whole or in shards, and pickles without code. Writes are all or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
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

    Raises:
        FileNotFoundError: nothing is there, or shards are missing; says which.
        ValueError: a file is cut short, is no weights file, or is a pickle with code in it.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _NAMES if (path / name).exists()]
        if not found:
            partial = sorted(p.name for p in path.glob("*.incomplete")) + sorted(p.name for p in path.glob("*.part"))
            hint = f"; {', '.join(partial)} is an interrupted download: fetch it again" if partial else ""
            raise FileNotFoundError(f"checkpoint: {str(path)!r} holds none of {', '.join(_NAMES)}{hint}")
        path = found[0]
    if not path.exists():
        raise FileNotFoundError(f"checkpoint: no file {str(path)!r}")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        return _read_pickle(path)
    raise ValueError(
        f"checkpoint: {str(path)!r} has no known ending; known: .safetensors, .bin, .pt, .pth, .ckpt, .index.json"
    )


def _read_safetensors(path: Path) -> Tensors:
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"checkpoint: {str(path)!r} ({path.stat().st_size:,} bytes) is no whole safetensors file ({error}); "
            "was its download interrupted?"
        ) from None


def _read_pickle(path: Path) -> Tensors:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"checkpoint: {str(path)!r} holds more than tensors and was not loaded, since loading it would run its code "
            f"({reason}); ask its authors for safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"checkpoint: {str(path)!r} ({path.stat().st_size:,} bytes) is no whole weights file ({error}); was its "
            "download interrupted?"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"checkpoint: {str(path)!r} holds no dictionary of tensors")
    return dict(found)


def _read_shards(path: Path) -> Tensors:
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict):
        raise ValueError(f"checkpoint: {str(path)!r} has no weight_map")
    shards = sorted(set(table.values()))
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"checkpoint: {str(path.parent)!r} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing)}; "
            "was its download interrupted? Fetch it again"
        )
    tensors: Tensors = {}
    for name in shards:
        shard = path.parent / name
        tensors.update(_read_safetensors(shard) if shard.suffix == ".safetensors" else _read_pickle(shard))
    absent = [name for name in table if name not in tensors]
    if absent:
        raise ValueError(f"checkpoint: {str(path)!r} lists tensors that no shard holds: {', '.join(absent[:10])}")
    return {name: tensors[name] for name in table} | {n: t for n, t in tensors.items() if n not in table}


def write_tensors(tensors: Tensors, folder: Path, *, max_shard_bytes: int | None = None) -> None:
    """Write tensors into a folder as safetensors, in shards where they are larger than `max_shard_bytes`.

    Names that mean one tensor (a tied head) are written once, under the first.
    """
    from safetensors.torch import save_file

    unique: Tensors = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.storage_offset(), tensor.shape)
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


def write_json(value: dict[str, Any], path: Path) -> None:
    """Write a JSON object; infinities become the strings that `float` reads."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into that takes its name only when all is written; what stood there before is kept till then.

    Raises:
        ValueError: the place cannot be written, or the disk is full; nothing there has changed.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ValueError(f"path: {str(target)!r} is a file; give a folder")
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Inside a folder that is there already: it may be another file system than its parent.
        temporary = Path(tempfile.mkdtemp(dir=target if target.exists() else target.parent, prefix=f".{target.name}."))
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o644)  # the safetensors library makes files that only their owner can read
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if target.exists():
            # Files are replaced one by one, weights before the config that names them; others in the folder stay.
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
                os.replace(file, target / file.name)
            _drop_other_layouts(target, {file.name for file in target.iterdir()})
        else:
            os.replace(temporary, target)
            temporary = None
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"path: cannot write {str(target)!r}: {reason}; what was there is unchanged") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _drop_other_layouts(folder: Path, names: set[str]) -> None:
    """After a checkpoint was overwritten by one of another number of shards, only the new one is to be found."""
    newest = max((folder / n for n in (WEIGHTS, INDEX) if n in names), key=lambda p: p.stat().st_mtime_ns, default=None)
    if newest is None or not {WEIGHTS, INDEX} <= names:
        return
    (folder / (INDEX if newest.name == WEIGHTS else WEIGHTS)).unlink()
