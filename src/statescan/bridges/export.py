"""Image models as programs: torch.export files (``.pt2``) and ONNX, each run again and compared."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statescan.bridges._plain_operators import plain_operators

#: Largest difference of two outputs, over the largest output, that is taken for rounding.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """A written program.

    Fields:
        path: of the file.
        kind: ``onnx`` or ``pt2``.
        shape: of the images that it was compared on.
        difference: the largest between the program's outputs and the model's.
        largest: the model's largest output by absolute value.
        bytes: of the file.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    difference: float
    largest: float
    bytes: int


def export_model(
    model: Any, path: str | os.PathLike[str], *, batch: int | None = None, plain: bool = False, seed: int = 0
) -> Exported:
    """Write an image model as a program, run that on random images and compare.

    The size of the images is that of the model's config; the program takes no other. Nothing is written where the outputs
    differ.

    Arguments:
        model: an image model; exported in evaluation mode.
        path: ends in ``.onnx``, or in ``.pt2`` for torch.export.
        batch: images that the program takes at a time; None: any number.
        plain: of ``.pt2``: in torch's operators alone, so that it runs where the library is not installed; slower. ONNX
            files are always so.
        seed: of the random images.

    Raises:
        ValueError: another ending, outputs that differ, or a model that cannot be traced.
        ImportError: packages of the extra `export` are missing.
    """
    target = Path(path)
    if target.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"out: a file ending in .onnx or .pt2, got {target.name!r}")
    model = model.eval()
    height, width = model.config.image_shape
    shape = (2 if batch is None else batch, model.config.in_channels, height, width)
    device = model.device
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    target.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _quiet():
        wanted = model(images)
        program = _program(model, images, batch)
        onnx = target.suffix == ".onnx"
        if onnx or plain:
            program = program.run_decompositions(plain_operators())
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            made = Path(folder) / target.name
            found = _onnx(program, made, images, batch) if onnx else _pt2(program, made, images)
            difference = float((found - wanted.cpu()).abs().max())
            largest = float(wanted.abs().max())
            if not difference <= TOLERANCE * max(1.0, largest):
                raise ValueError(
                    f"export: the program's outputs differ from the model's by up to {difference:.3g} (the largest is "
                    f"{largest:.3g}); nothing was written"
                )
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == made):
                os.replace(file, target.parent / file.name)
    return Exported(str(target), target.suffix[1:], shape, difference, largest, target.stat().st_size)


def _program(model: nn.Module, images: Tensor, batch: int | None) -> Any:
    dynamic = None if batch is not None else {"images": {0: torch.export.Dim("batch", min=1, max=4096)}}
    try:
        return torch.export.export(model, (images,), dynamic_shapes=dynamic)
    except Exception as error:  # torch raises many kinds
        fixed = "" if batch is not None else "; a fixed number of images, --batch 1, asks less of it"
        raise ValueError(f"export: torch.export cannot trace this model{fixed}: {_first_line(error)}") from error


def _pt2(program: Any, path: Path, images: Tensor) -> Tensor:
    torch.export.save(program, path)
    return torch.export.load(path).module()(images).cpu()


def _onnx(program: Any, path: Path, images: Tensor, batch: int | None) -> Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export: ONNX needs onnx, onnxscript and onnxruntime: pip install 'statescan[export]' ({error})"
        ) from None
    try:
        # onnxruntime simplifies the graph when it reads it; onnxscript would take minutes for the same.
        written: Any = torch.onnx.export(
            program, input_names=["images"], output_names=["scores"], verbose=False, optimize=False
        )
    except Exception as error:
        raise ValueError(f"export: this model has no ONNX form: {_first_line(error)}") from error
    written.save(str(path), external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = images.cpu().numpy()
    (scores,) = session.run(None, {session.get_inputs()[0].name: given})
    if batch is None:  # another number of images than it was traced with
        (one,) = session.run(None, {session.get_inputs()[0].name: given[:1]})
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(scores[:1]), rtol=1e-3, atol=1e-3)
    return torch.from_numpy(scores)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to those who write exporters."""
    names = ("torch.onnx", "torch.export", "onnxscript", "torch._dynamo", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
