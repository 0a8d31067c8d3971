"""A parity fixture: what published code printed, and the rule that makes its weights and inputs again.

A fixture is a pair of files. ``NAME.json`` names the published class and its arguments, every tensor of its state dict,
how the inputs were made, and the tolerance; ``NAME.npz`` holds the outputs, whole or at evenly spread flat indices.
Weights are not stored: each is filled by a rule on its published name.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Outputs with more values are stored at this many evenly spread flat indices.
STORED_VALUES = 4096


class ParityError(AssertionError):
    """Ours is not what the fixture describes; the message is what the report prints."""


class Fixture:
    """One fixture, read from its json file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        self.data: dict[str, Any] = json.loads(self.path.read_text())
        with np.load(self.path.with_suffix(".npz")) as archive:
            self.stored = {key: archive[key] for key in archive.files}

    @property
    def system(self) -> str:
        """The slug of the system it belongs to."""
        return self.data["system"]

    @property
    def class_name(self) -> str:
        """The published class or function, dotted; where a table names several, "SYSTEM: several"."""
        name = self.data["official"].get("class")
        return f"{self.system}: several" if isinstance(name, dict) else str(name)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The published arguments."""
        return dict(self.data["official"]["kwargs"])

    @property
    def outputs(self) -> dict[str, list[int]]:
        """Names and shapes of the stored outputs."""
        return self.data["outputs"]

    @property
    def notes(self) -> str:
        """What is peculiar about it, in words."""
        return self.data.get("notes", "")

    def note(self, pattern: str) -> str | None:
        """The first group of a regular expression in the notes."""
        found = re.search(pattern, self.notes)
        return found.group(1) if found else None

    def state_dict(self) -> dict[str, Tensor]:
        """The published weights by their published names, in file order."""
        salt = self.data.get("salt", "")
        return {
            name: torch.from_numpy(np.array(fill(name, shape, dtype, salt)))
            for name, shape, dtype in self.data["state_dict"]
        }

    def inputs(self) -> list[Tensor]:
        """The inputs in call order, transforms applied."""
        return [torch.from_numpy(np.array(_transformed(spec))) for spec in self.data["inputs"]]

    def named_inputs(self) -> dict[str, Tensor]:
        """The inputs by name, transforms applied."""
        names = [spec["name"] for spec in self.data["inputs"]]
        return dict(zip(names, self.inputs(), strict=True))

    def check_parameters(self, module: torch.nn.Module) -> None:
        """Raise unless the module has exactly the published number of parameters, a shared one counted once."""
        ours = sum(parameter.numel() for parameter in module.parameters())
        published = self.data["parameters"]
        if ours != published:
            raise ParityError(f"{ours:,} parameters, published {published:,}")

    def differences(self, got: Mapping[str, Any]) -> list[str]:
        """What differs from the stored outputs, a line each; empty when all agree.

        The error is the largest absolute difference over the largest stored magnitude.
        """
        problems = []
        tolerance = self.data.get("tolerance", 1e-4)
        for name, want in self.stored.items():
            if name not in got:
                problems.append(f"{name}: no such output")
                continue
            value = got[name]
            value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
            shape = tuple(self.outputs[name])
            if value.shape != shape:
                problems.append(f"{name}: shape {value.shape}, published {shape}")
                continue
            have = _stored_part(value)
            if not want.size:
                continue
            scale = float(np.max(np.abs(want))) or 1.0
            error = float(np.max(np.abs(have - want))) / scale
            if not error <= tolerance:
                problems.append(f"{name}: error {error:.2e}, tolerance {tolerance:.0e}")
        return problems


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The fixtures among files and in folders, sorted by name."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += [file for file in path.rglob("*.json") if file.with_suffix(".npz").is_file()]
        elif not path.is_file():
            raise FileNotFoundError(f"no file or folder {str(path)!r}")
        else:
            found.append(path.with_suffix(".json"))
    return sorted(set(found), key=lambda file: file.name)


def normal(seed: str, shape: Iterable[int]) -> np.ndarray:
    """Standard normal values in float64, from a stream that numpy keeps frozen."""
    return np.random.RandomState(zlib.crc32(seed.encode())).standard_normal(tuple(shape))


def fill(name: str, shape: Iterable[int], dtype: str = "float32", salt: str = "") -> np.ndarray:
    """The values of the published tensor `name`, by name and shape alone."""
    shape = tuple(int(size) for size in shape)
    if not dtype.startswith(("float", "bfloat", "complex")):
        return np.zeros(shape, dtype="int64")
    lower = name.lower()
    leaf = lower.rsplit(".", 1)[-1]
    noise = normal(salt + name, shape)
    if leaf == "running_var":
        values = 1.0 + 0.1 * np.abs(noise)
    elif leaf == "running_mean":
        values = 0.1 * noise
    elif "a_log" in leaf:
        last = shape[-1] if shape else 1
        values = np.log(np.arange(1, last + 1, dtype=np.float64)) + 0.1 * noise
    elif leaf in ("dt_bias", "dt_projs_bias") or lower.endswith(("dt_proj.bias", "dt_proj_b.bias")):
        values = -4.0 + 0.5 * noise
    elif leaf in ("d", "ds", "d_b"):
        values = 1.0 + 0.1 * noise
    elif len(shape) <= 1:
        values = (1.0 if leaf in ("weight", "gamma", "scale", "g") else 0.0) + 0.1 * noise
    else:
        values = noise / np.sqrt(max(1, int(np.prod(shape[1:]))))
    if dtype.startswith("complex"):
        values = values + 1j * normal(salt + name + "#imag", shape) * (np.std(values) or 1.0)
        return values.astype("complex64")
    return values.astype("float32")


def _input(spec: Mapping[str, Any]) -> np.ndarray:
    """One input from its recipe."""
    kind = spec["kind"]
    if kind == "literal":
        return np.asarray(spec["value"])
    seed, shape = f"input{spec['seed']}", tuple(spec["shape"])
    stream = np.random.RandomState(zlib.crc32(seed.encode()))
    if kind == "normal":
        return stream.standard_normal(shape).astype("float32") * spec.get("scale", 1.0)
    if kind == "uniform":
        return stream.random_sample(shape).astype("float32")
    if kind == "tokens":
        return stream.randint(0, spec["high"], size=shape).astype("int64")
    raise ParityError(f"unknown input kind {kind!r}")


def _transformed(spec: Mapping[str, Any]) -> np.ndarray:
    """An input after its transform: arithmetic in `value` and `abs`; what follows a semicolon is a remark."""
    value = _input(spec)
    expression = spec.get("transform", "value").split(";")[0]
    names = {"value": value, "abs": np.abs, "__builtins__": {}}
    return np.asarray(eval(expression, names)).astype(value.dtype)


def _stored_part(value: np.ndarray) -> np.ndarray:
    flat = value.reshape(-1)
    if flat.size <= STORED_VALUES:
        return flat
    return flat[np.linspace(0, flat.size - 1, STORED_VALUES).astype("int64")]
