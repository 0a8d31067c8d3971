"""Saving and loading models in every layout that the library knows."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statescan import __version__, models
from statescan.checkpoints import _gguf
from statescan.checkpoints._files import Tensors, read_json, read_tensors, write_json, write_pickle, write_tensors
from statescan.checkpoints._folder import CONFIG, TOKENIZER_FILES, new_folder
from statescan.checkpoints._hub import is_hub_id, locate
from statescan.checkpoints._layouts import LAYOUTS, identify, read_config, same_model, write_config
from statescan.checkpoints._sizes import reconcile

_SHARD_BYTES = 4 << 30
#: Fields of a published config that say which tokens begin, end and pad a text: they travel through every layout.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: What lies beside a model and belongs to it.
_BESIDE = (*TOKENIZER_FILES, "generation_config.json", "special_tokens_map.json", "chat_template.jinja", "images.json")
#: Parameters of the recurrence: rounded to half precision, they change the timescales of a model. A router's correction
#: decides between experts that are nearly equal.
_WIDE = ("A_log", "D", "delta_bias", "correction")


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
        layout: ``statescan``, ``state-spaces`` (pytorch_model.bin under the published names), ``huggingface``, or ``gguf``
            (a file that ends in ``.gguf``, for Mamba and Mamba-2).
        tokenizer: saved beside it; None leaves one that lies there.

    Raises:
        ValueError: an unknown layout, or one that the model has no form in; a place that cannot be written.
    """
    if layout == "gguf":
        kind = _dtype_name(model)
        _gguf.write(model, path, dtype=kind if kind in _gguf.TYPES else "float32")
        return
    config, tensors = _export(model, layout)
    with new_folder(path) as folder:
        _write(config, tensors, folder, layout, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(folder)


def _write(config: dict[str, Any], tensors: Tensors, folder: Path, layout: str, max_shard_bytes: int) -> None:
    if layout == "state-spaces":
        write_pickle(tensors, folder)
    else:
        write_tensors(tensors, folder, max_shard_bytes=max_shard_bytes)
    write_json(config, folder / CONFIG)


def _export(model: Any, layout: str) -> tuple[dict[str, Any], Tensors]:
    family, config = model.family, model.config
    state = model.state_dict()
    if layout == "statescan":
        fields = _encode(dataclasses.asdict(config))
        return {"statescan": __version__, "family": family, "config": fields}, state
    if layout == "state-spaces":
        if family not in ("mamba", "mamba2", "mamba3"):
            raise ValueError(f"layout: {family} has no state-spaces form; known for mamba, mamba2 and mamba3")
        return write_config("state-spaces", config), models.family(family).to_published(state, config)
    if layout == "huggingface":
        if family not in LAYOUTS:
            raise ValueError(f"layout: {family} has no Hugging Face form; known for {', '.join(list(LAYOUTS)[1:])}")
        written = write_config(family, config)
        published = models.family(family).to_published(state, config)
        renamed = {
            name.replace("backbone.embedding.", "backbone.embeddings."): tensor for name, tensor in published.items()
        }
        return written | {"torch_dtype": _dtype_name(model)}, renamed
    raise ValueError(f"layout: unknown {layout!r}; known: statescan, state-spaces, huggingface, gguf")


def _dtype_name(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Any:
    """Load a model from a folder of any layout, a GGUF file, or from the Hugging Face hub by its id.

    Arguments:
        path: a folder with config.json and weights, a file that ends in ``.gguf``, or ``owner/name``.
        dtype: of the weights: None is float32; ``"auto"`` as they are in the file; a half-precision type leaves A_log, D
            and delta_bias in float32, which decide the timescales.
        device: where to put them.
        revision, local_files_only: for hub ids; see `locate`.

    Returns:
        the model, in evaluation mode. Weights are copied out of the file one by one: memory for one copy is enough.

    Raises:
        FileNotFoundError: nothing there, or parts are missing; says what.
        ValueError: a damaged file, an unknown layout, a config that contradicts the tensors (its fields are named),
            tensors that do not fit the config (each named).
    """
    chosen = _check_dtype(dtype)
    if _gguf.is_gguf(path):
        return _load_gguf(path, chosen, device)
    folder = locate(path, revision=revision, local_files_only=local_files_only)
    layout, config = _describe(folder)
    tensors = read_tensors(folder)
    family, ours = _our_config(layout, config, tensors, folder)
    try:
        model = _skeleton(family, ours)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"checkpoint: config.json of {str(folder)!r} describes no model: {error}") from None
    translated = _translate(model, tensors)
    _allocate(model, translated, chosen, torch.device(device or "cpu"))
    models.fill_tensors(model, translated)
    return model.eval()


def _load_gguf(path: str | os.PathLike[str], dtype: torch.dtype | None, device: torch.device | str | None) -> Any:
    family, config, tensors = _gguf.read(path)
    model = _skeleton(family, config)
    models.check_tensors(model, tensors)
    _allocate(model, tensors, dtype, torch.device(device or "cpu"))
    models.fill_tensors(model, tensors)
    return model.eval()


def _our_config(layout: str, config: dict[str, Any], tensors: Tensors, folder: Path) -> tuple[str, Any]:
    if layout != "statescan":
        return read_config(layout, reconcile(layout, config, tensors, str(folder)), str(folder))
    fields, family = config.get("config"), config.get("family")
    if not isinstance(fields, dict) or not isinstance(family, str):
        raise ValueError(f"checkpoint: config.json of {str(folder)!r} lacks 'family' or 'config'")
    try:
        return family, models.build_config(models.family(family).config, _decode(fields), name=family)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"checkpoint: config.json of {str(folder)!r}, written by statescan {config['statescan']}: {error}"
        ) from None


def _check_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype to load as; None is the file's own."""
    known = {None: torch.float32, "auto": None}
    known |= {
        str(kind).removeprefix("torch."): kind for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    }
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype not in known:
        raise ValueError(f"dtype: unknown {dtype!r}; known: {', '.join(name for name in known if name)}")
    return known[dtype]


def _translate(model: Any, tensors: Tensors) -> Tensors:
    """Tensors of a file under our names, whichever names they have there, every one accounted for."""
    if set(model.state_dict()) & set(tensors):
        models.check_tensors(model, tensors)
        return tensors
    return models.translate_published(model, tensors)


def _skeleton(family: str, config: Any) -> Any:
    """A model that has no memory for its weights yet."""
    with torch.device("meta"):
        model = models.build_model(family, config)
    if {name for name, _ in model.named_buffers()} <= set(model.state_dict()):
        return model
    return models.build_model(family, config)  # buffers that no file holds have to be computed


def _allocate(model: Any, tensors: Tensors, dtype: torch.dtype | None, device: torch.device) -> None:
    """Memory for the weights of a model: as `dtype`, or as `tensors` are. Shared parameters stay shared."""
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    made: dict[int, Tensor] = {}
    entries = [
        (module, table, leaf, f"{path}.{leaf}" if path else leaf, entry)
        for path, module in model.named_modules()
        for table in (module._parameters, module._buffers)
        for leaf, entry in table.items()
        if entry is not None
    ]
    for *_, name, entry in entries:  # of the names of one tensor, the one in the file decides
        if name in kinds and id(entry) not in made:
            kind = entry.dtype if not entry.is_floating_point() else dtype or kinds[name]
            if name.rpartition(".")[2] in _WIDE:
                kind = torch.promote_types(kind, torch.float32) if dtype is not None else kind
            empty = torch.empty(entry.shape, dtype=kind, device=device)
            made[id(entry)] = nn.Parameter(empty, entry.requires_grad) if isinstance(entry, nn.Parameter) else empty
    for _, table, leaf, _, entry in entries:
        table[leaf] = made[id(entry)] if id(entry) in made else entry.to(device)


def load_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Fill a model from a weights file, a checkpoint's folder or the hub, under our names or published ones, strictly.

    Raises:
        ValueError: every tensor that is missing, unexpected or of another shape, or holds NaN, is named; where the config
            beside the file tells, so is the variant that would fit.
    """
    place = Path(path)
    if not place.is_file() and (place.is_dir() or is_hub_id(os.fspath(path))):
        place = locate(path)
    tensors = read_tensors(place)
    try:
        translated = _translate(model, tensors)
    except ValueError as error:
        raise ValueError(f"{error}{_variant_beside(place, tensors)}") from None
    models.fill_tensors(model, translated)


def _variant_beside(place: Path, tensors: Tensors) -> str:
    """What the config beside weights describes, as advice; nothing where it tells nothing."""
    folder = place if place.is_dir() else place.parent
    try:
        layout, config = _describe(folder)
        family, ours = _our_config(layout, config, tensors, folder)
    except (ValueError, OSError):
        return ""
    names = [name for name in models.list_models() if same_model(models.model_info(name).config, ours)]
    if names:
        return f". The config beside it is that of {names[0]!r}"
    return f". The config beside it is that of a {family} model; statescan.load({str(folder)!r}) builds it"


def detect(path: str | os.PathLike[str]) -> str:
    """The layout of a checkpoint: ``statescan``, ``state-spaces``, a Hugging Face model type, or ``gguf``."""
    if _gguf.is_gguf(path):
        return "gguf"
    return _describe(locate(path))[0]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str,
    dtype: torch.dtype | str | None = "auto",
    max_shard_bytes: int = _SHARD_BYTES,
) -> str:
    """Load a checkpoint of any layout and save it in another. Gives the source's layout.

    What lies beside the weights goes with them: its tokenizer, the settings of generation. With layout ``gguf`` the
    target is a file that ends in ``.gguf``, and `dtype` may also be ``q8_0`` or ``q4_0`` (``auto`` is as the model is).
    """
    if layout != "gguf" and dtype in ("q8_0", "q4_0"):
        raise ValueError(f"dtype: {dtype} is a type of GGUF files only")
    if _gguf.is_gguf(source):
        return _convert_from_gguf(source, target, layout=layout, dtype=dtype, max_shard_bytes=max_shard_bytes)
    folder = locate(source)
    if layout == "gguf":
        model = load(folder, dtype="auto")
        own = "float32" if dtype in (None, "auto") and _dtype_name(model) not in _gguf.TYPES else _dtype_name(model)
        chosen = own if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
        _gguf.write(model, target, dtype=chosen, beside=folder)
        return _describe(folder)[0]
    if Path(target).exists() and Path(target).resolve() == folder.resolve():
        raise ValueError(f"target: {str(target)!r} is the source; give another folder")
    found, given = _describe(folder)
    config, tensors = _export(load(folder, dtype=dtype), layout)
    carried = {name: given[name] for name in _TOKENS if name in given}
    with new_folder(target) as fresh:
        _write(config | carried, tensors, fresh, layout, max_shard_bytes)
        for name in _BESIDE:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, fresh / name)
    return found


def _convert_from_gguf(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str,
    dtype: torch.dtype | str | None,
    max_shard_bytes: int,
) -> str:
    if layout == "gguf":
        chosen = "float32" if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
        _gguf.write(load(source), target, dtype=chosen)
        return "gguf"
    config, tensors = _export(load(source, dtype=None if dtype == "auto" else dtype), layout)
    with new_folder(target) as fresh:
        _write(config, tensors, fresh, layout, max_shard_bytes)
        for name, text in _gguf.tokenizer_files(source).items():
            (fresh / name).write_text(text)
    return "gguf"


def _describe(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint: {str(folder)!r} has no config.json; is it the folder of a model? Weights alone are read by "
            "create_model(name, checkpoint=path)"
        )
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
