"""GGUF, the single-file format of llama.cpp: Mamba and Mamba-2 language models, out and in.

Peculiar to it: A is stored as -exp(A_log); matrices may be half-precision or quantised in blocks of 32, vectors and
convolutions are float32. A `tokenizers` file goes in as it is, and spelled out for llama.cpp where it is byte-level BPE.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statescan import models
from statescan.checkpoints._files import Tensors
from statescan.checkpoints._folder import BYTES, TOKENIZER, TOKENIZER_SETTINGS
from statescan.checkpoints._layouts import _essence

SUFFIX = ".gguf"
#: Of matrices, by our name: GGUF's name and number of the kind of file.
TYPES = {
    "float32": ("F32", 0),
    "float16": ("F16", 1),
    "bfloat16": ("BF16", 32),
    "q8_0": ("Q8_0", 7),
    "q4_0": ("Q4_0", 2),
}
_FAMILIES = ("mamba", "falcon_mamba", "mamba2")

_OUTER = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}
_BLOCK = {
    "norm.weight": "attn_norm.weight",
    "mixer.input_projection.weight": "ssm_in.weight",
    "mixer.convolution.weight": "ssm_conv1d.weight",
    "mixer.convolution.bias": "ssm_conv1d.bias",
    "mixer.selection_projection.weight": "ssm_x.weight",
    "mixer.delta_projection.weight": "ssm_dt.weight",
    "mixer.delta_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.norm.weight": "ssm_norm.weight",
    "mixer.output_projection.weight": "ssm_out.weight",
}
_MATRICES = ("token_embd.weight", "output.weight", "ssm_in.weight", "ssm_x.weight", "ssm_dt.weight", "ssm_out.weight")


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a GGUF file."""
    return Path(path).suffix == SUFFIX


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError("gguf: the library is not installed; pip install 'statescan[gguf]'") from None
    return gguf


# ---- out -----------------------------------------------------------------------------------------------------------


def write(model: Any, path: str | os.PathLike[str], *, dtype: str = "float32", beside: Path | None = None) -> None:
    """Write a model as one GGUF file, all or nothing.

    Arguments:
        model: of family mamba, falcon_mamba or mamba2.
        path: the file, ending in ``.gguf``.
        dtype: of matrices: ``float32``, ``float16``, ``bfloat16``, ``q8_0`` or ``q4_0``.
        beside: a folder whose tokenizer goes into the file.

    Raises:
        ValueError: GGUF has no words for the model, or the place cannot be written; says which.
    """
    target = Path(path)
    if target.suffix != SUFFIX:
        raise ValueError(f"path: a GGUF file ends in {SUFFIX}, got {str(target)!r}")
    if dtype not in TYPES:
        raise ValueError(f"dtype: unknown {dtype!r}; known: {', '.join(TYPES)}")
    if model.family not in _FAMILIES:
        raise ValueError(f"layout: {model.family} has no GGUF form; known for {', '.join(_FAMILIES)}")
    if model.config.attention_layers or model.config.mlp_dim or model.config.norm != "rms":
        raise ValueError("layout: gguf cannot express attention layers, MLPs or LayerNorm in a Mamba model")
    library = _library()
    fields = _fields(model)
    _, back = _config(fields, rows=model.config.padded_vocab_size, tied=model.config.tie_embeddings)
    have, want = _essence(back), _essence(model.config)
    for name, value in want.items():
        if have.get(name) != value:
            raise ValueError(f"layout: gguf cannot express {name}={getattr(model.config, name)!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        writer = library.GGUFWriter(temporary, fields["general.architecture"])
        for key, value in fields.items():
            _add(writer, key, value)
        writer.add_file_type(TYPES[dtype][1])
        _add_tokenizer(writer, library, beside, model.config.padded_vocab_size)
        for name, tensor in _named(model):
            array = tensor.detach().float().contiguous().numpy()
            kind = library.GGMLQuantizationType[TYPES[dtype][0] if name.endswith(_MATRICES) else "F32"]
            if array.shape[-1] % library.GGML_QUANT_SIZES[kind][0]:
                kind = library.GGMLQuantizationType.F32  # too narrow for whole blocks
            if kind == library.GGMLQuantizationType.F32:
                writer.add_tensor(name, array)
            else:
                writer.add_tensor(name, library.quants.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise ValueError(f"path: cannot write {str(target)!r}: {error.strerror or error}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _fields(model: Any) -> dict[str, Any]:
    config, mixer = model.config, model.stack.blocks[0].mixer if len(model.stack.blocks) else None
    if mixer is None:
        raise ValueError("layout: gguf cannot express a model without layers")
    kind = "mamba2" if model.family == "mamba2" else "mamba"
    fields: dict[str, Any] = {
        "general.architecture": kind,
        "general.name": f"{model.family} of {config.depth} layers",
        "context_length": 1 << 20,  # there is no bound; llama.cpp wants a number
        "embedding_length": config.dim,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "block_count": config.depth,
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.inner_size": mixer.inner_dim,
        "ssm.state_size": config.state_dim,
        "ssm.time_step_rank": mixer.dt_rank if kind == "mamba" else mixer.heads,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
    }
    if kind == "mamba2":
        fields["ssm.group_count"] = config.groups
    elif config.inner_norm == "weightless":
        fields["ssm.dt_b_c_rms"] = True
    return {name if name.startswith("general.") else f"{kind}.{name}": value for name, value in fields.items()}


def _add(writer: Any, key: str, value: Any) -> None:
    if key == "general.architecture":
        return  # the writer has put it there
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _named(model: Any) -> list[tuple[str, Tensor]]:
    """GGUF names and tensors in its shapes."""
    groups = getattr(model.config, "groups", 1)
    named = []
    for name, tensor in model.state_dict().items():
        if name == "head.weight" and model.config.tie_embeddings:
            continue
        if not name.startswith("stack.blocks."):
            named.append((_OUTER[name], tensor))
            continue
        index, rest = name.removeprefix("stack.blocks.").split(".", 1)
        if rest not in _BLOCK:
            raise ValueError(f"layout: gguf has no name for {name}")
        if rest == "mixer.A_log":
            tensor = -torch.exp(tensor.float())
        if model.family == "mamba2" and rest in ("mixer.A_log", "mixer.D"):
            tensor = tensor[:, None]
        if rest == "mixer.norm.weight":
            tensor = tensor.unflatten(0, (groups, -1))
        named.append((f"blk.{index}.{_BLOCK[rest]}", tensor))
    return named


def _add_tokenizer(writer: Any, library: Any, beside: Path | None, rows: int) -> None:
    """What llama.cpp reads of a tokenizer, and our own files of it, to have them back."""
    file = None if beside is None else beside / TOKENIZER
    if beside is not None and (beside / BYTES).is_file():
        writer.add_string(f"statescan.{BYTES}", (beside / BYTES).read_text())
    if beside is not None and (beside / TOKENIZER_SETTINGS).is_file():
        writer.add_string(f"statescan.{TOKENIZER_SETTINGS}", (beside / TOKENIZER_SETTINGS).read_text())
    content = None
    if file is not None and file.is_file():
        text = file.read_text()
        writer.add_string(library.Keys.Tokenizer.HF_JSON, text)
        content = json.loads(text)
    if content is None or content.get("model", {}).get("type") != "BPE" or "ByteLevel" not in json.dumps(content):
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(rows)
        return
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [int(library.TokenType.UNUSED)] * rows
    for token, number in content["model"]["vocab"].items():
        tokens[number], types[number] = token, int(library.TokenType.NORMAL)
    for added in content.get("added_tokens", []):
        kind = library.TokenType.CONTROL if added.get("special") else library.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"].get("merges", [])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)


# ---- in ------------------------------------------------------------------------------------------------------------


def _config(fields: dict[str, Any], *, rows: int, tied: bool) -> tuple[str, Any]:
    """Our family and config of a file's fields."""
    kind = fields.get("general.architecture")
    if kind not in ("mamba", "mamba2"):
        raise ValueError(f"checkpoint: a GGUF file of architecture {kind!r}; known: mamba, mamba2")

    def field(name: str) -> Any:
        if f"{kind}.{name}" not in fields:
            raise ValueError(f"checkpoint: the GGUF file lacks {kind}.{name}")
        return fields[f"{kind}.{name}"]

    eps = float(np.format_float_positional(np.float32(field("attention.layer_norm_rms_epsilon")), trim="0"))
    common: dict[str, Any] = dict(
        dim=int(field("embedding_length")),
        depth=int(field("block_count")),
        vocab_size=rows,
        pad_vocab_size_multiple=1,
        conv_kernel=int(field("ssm.conv_kernel")),
        state_dim=int(field("ssm.state_size")),
        expand=field("ssm.inner_size") / field("embedding_length"),
        norm_eps=eps,
        tie_embeddings=tied,
    )
    if kind == "mamba2":
        heads = int(field("ssm.time_step_rank"))
        common |= dict(head_dim=int(field("ssm.inner_size")) // heads, groups=int(field("ssm.group_count")))
        family = "mamba2"
    else:
        family = "falcon_mamba" if fields.get("mamba.ssm.dt_b_c_rms") else "mamba"
        common |= dict(dt_rank=int(field("ssm.time_step_rank")))
        if family == "falcon_mamba":
            common |= dict(inner_norm_eps=eps)
    return family, models.build_config(models.family(family).config, common, name="gguf")


def read(path: str | os.PathLike[str]) -> tuple[str, Any, Tensors]:
    """Our family, config and float32 tensors of a GGUF file; quantised matrices are multiplied out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no GGUF file, is damaged, or of another architecture.
    """
    library = _library()
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"checkpoint: no file {str(place)!r}")
    try:
        reader = library.GGUFReader(place)
        found = {tensor.name: tensor for tensor in reader.tensors}
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        arrays = {name: _array(library, tensor) for name, tensor in found.items()}
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise ValueError(f"checkpoint: {str(place)!r} is no complete GGUF file: {error}") from None
    if "token_embd.weight" not in arrays:
        raise ValueError(f"checkpoint: {str(place)!r} has no token_embd.weight")
    tied = "output.weight" not in arrays
    family, config = _config(fields, rows=arrays["token_embd.weight"].shape[0], tied=tied)
    outer, block = ({theirs: ours for ours, theirs in table.items()} for table in (_OUTER, _BLOCK))
    tensors: Tensors = {}
    for name, tensor in arrays.items():
        if name in outer:
            tensors[outer[name]] = tensor
            continue
        index, rest = name.removeprefix("blk.").split(".", 1)
        if rest not in block:
            raise ValueError(f"checkpoint: {str(place)!r} has a tensor that is not known: {name}")
        if rest == "ssm_a":
            tensor = torch.log(-tensor)
        if family == "mamba2" and rest in ("ssm_a", "ssm_d", "ssm_norm.weight"):
            tensor = tensor.flatten()
        tensors[f"stack.blocks.{index}.{block[rest]}"] = tensor
    if tied:
        tensors["head.weight"] = tensors["embedding.weight"]
    return family, config, tensors


def _array(library: Any, tensor: Any) -> Tensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    values = library.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return torch.from_numpy(values.reshape(shape).copy())


def tokenizer_files(path: str | os.PathLike[str]) -> dict[str, str]:
    """Names and texts of the tokenizer's files that `write` has put into a GGUF file."""
    library = _library()
    reader = library.GGUFReader(Path(path))
    names = {
        library.Keys.Tokenizer.HF_JSON: TOKENIZER,
        f"statescan.{BYTES}": BYTES,
        f"statescan.{TOKENIZER_SETTINGS}": TOKENIZER_SETTINGS,
    }
    return {file: str(reader.fields[key].contents()) for key, file in names.items() if key in reader.fields}
