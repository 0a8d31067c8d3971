"""Saving and loading models in every layout that the library knows."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import torch

from statescan import __version__, models
from statescan.checkpoints._files import Tensors, new_folder, read_json, read_tensors, write_json, write_tensors
from statescan.checkpoints._layouts import LAYOUTS, build, identify

CONFIG = "config.json"
_SHARD_BYTES = 4 << 30


def save(
    model: Any,
    path: str | os.PathLike[str],
    *,
    layout: str = "statescan",
    tokenizer: Any = None,
    max_shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write a model's folder: config.json and model.safetensors (in shards above `max_shard_bytes`), all or nothing.

    Arguments:
        model: one of ours.
        path: the folder; a checkpoint that is there is replaced when all is written.
        layout: ``statescan``, ``state-spaces`` (pytorch_model.bin under the published names), or ``huggingface``.
        tokenizer: saved beside it if it has a file.

    Raises:
        ValueError: an unknown layout, or one that the model has no form in; a place that cannot be written.
    """
    config, tensors = _export(model, layout)
    with new_folder(path) as folder:
        if layout == "state-spaces":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            write_tensors(tensors, folder, max_shard_bytes=max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(folder)
        write_json(config, folder / CONFIG)


def _export(model: Any, layout: str) -> tuple[dict[str, Any], Tensors]:
    family, config = model.family, model.config
    state = model.state_dict()
    if layout == "statescan":
        fields = _encode(dataclasses.asdict(config))
        return {"statescan": __version__, "family": family, "config": fields}, state
    published = models.family(family).to_published(state, config)
    if layout == "state-spaces":
        if family not in ("mamba", "mamba2"):
            raise ValueError(f"layout: {family} has no state-spaces form; known for mamba and mamba2")
        return LAYOUTS["state-spaces"].write(config), published
    if layout == "huggingface":
        if family not in LAYOUTS:
            raise ValueError(f"layout: {family} has no Hugging Face form; known for {', '.join(list(LAYOUTS)[1:])}")
        _check_expressible(family, config)
        renamed = {
            name.replace("backbone.embedding.", "backbone.embeddings."): tensor for name, tensor in published.items()
        }
        return LAYOUTS[family].write(config) | {"torch_dtype": _dtype_name(model)}, renamed
    raise ValueError(f"layout: unknown {layout!r}; known: statescan, state-spaces, huggingface")


def _check_expressible(family: str, config: Any) -> None:
    """Hugging Face's classes take fewer options than ours."""
    fixed: dict[str, Any] = {}
    if family in ("mamba", "falcon_mamba", "mamba2"):
        fixed = {"attention_layers": (), "mlp_dim": 0, "norm": "rms"}
    if family == "mamba":
        fixed |= {"inner_norm": None, "selective": True}
    if family in ("mamba2", "bamba", "zamba2"):
        fixed |= {"ssm_dim": None, "D_per_channel": False, "gated_norm": True, "norm_before_gate": False}
        fixed |= {"learned_initial_state": False}
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ValueError(f"layout: Hugging Face's {family} cannot express {name}={getattr(config, name)!r}")


def _dtype_name(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Any:
    """Load a model from a folder of any layout, or from the Hugging Face hub by its id.

    Arguments:
        path: a folder with config.json and weights, or ``owner/name``.
        dtype: of the weights; None: as the model's class has them (float32).
        device: where to put them.
        revision, local_files_only: for hub ids.

    Returns:
        the model, in evaluation mode.

    Raises:
        FileNotFoundError: nothing there, or parts are missing; says what.
        ValueError: a damaged file, an unknown layout, tensors that do not fit the config (each named).
    """
    folder = locate(path, revision=revision, local_files_only=local_files_only)
    layout, config = _describe(folder)
    if layout == "statescan":
        with torch.device("meta"):
            model = models.build_model(config["family"], _decode(config["config"]))
    else:
        with torch.device("meta"):
            model = build(config, layout)
    model.to_empty(device="cpu")
    _reset_buffers(model)
    _retie(model)
    load_weights(model, folder)
    model.eval()
    return model.to(device=device, dtype=dtype)


def _retie(model: Any) -> None:
    if getattr(model.config, "tie_embeddings", False):
        model.head.weight = model.embedding.weight


def _reset_buffers(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "reset_buffers"):
            module.reset_buffers()


def load_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Fill a model from a weights file or a checkpoint's folder, under our names or published ones, strictly.

    Raises:
        ValueError: every tensor that is missing, unexpected or of another shape, or holds NaN, is named; where the config
            beside the file tells, so is the variant that would fit.
    """
    tensors = read_tensors(path)
    own = set(model.state_dict())
    if own & set(tensors):
        models.load_tensors(model, tensors)
    else:
        models.load_published(model, tensors)


def detect(path: str | os.PathLike[str]) -> str:
    """The layout of a checkpoint's folder: ``statescan``, ``state-spaces`` or a Hugging Face model type."""
    return _describe(locate(path))[0]


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, layout: str, max_shard_bytes: int = _SHARD_BYTES
) -> str:
    """Load a checkpoint of any layout and save it in another; its tokenizer goes with it. Gives the source's layout."""
    from statescan.checkpoints._tokenizer import load_tokenizer

    folder = locate(source)
    if Path(target).exists() and Path(target).resolve() == folder.resolve():
        raise ValueError(f"target: {str(target)!r} is the source; give another folder")
    model = load(folder)
    save(model, target, layout=layout, tokenizer=load_tokenizer(folder), max_shard_bytes=max_shard_bytes)
    return detect(folder)


def locate(path: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of a checkpoint: a folder itself, the model of a training run's folder, or what the hub has.

    The arguments and errors are those of `load`.
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
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"path: no folder {name!r}, and it is no hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=["*.json", "*.safetensors", "*.bin"],
            )
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"path: no folder {name!r}, and the hub gave nothing under this id ({type(error).__name__}: {reason})"
        ) from None


def _describe(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {str(folder)!r} has no config.json; is it the folder of a model?")
    config = read_json(path)
    return identify(config, str(folder)), config


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encode(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(entry) for entry in value]
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"  # JSON itself has no infinities
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_decode(entry) for entry in value)
    return {"Infinity": math.inf, "-Infinity": -math.inf}.get(value, value) if isinstance(value, str) else value
