"""Features of samples, layer by layer: read from files, or computed by a model of the library.

As "Dynamic Reflections" (ICLR 2026, arXiv 2511.02767) takes them: of images and frames the mean over all tokens of a layer,
of a video the mean over its frames, of a text the mean over its tokens, the captions of one sample joined to one text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from statescan.inspect._alignment import Features
from statescan.inspect._image_files import as_input, picture_files, read_picture

#: Endings of files that hold features.
FEATURE_FILES = (".npy", ".npz", ".safetensors")


def read_features(path: str | os.PathLike[str]) -> Features:
    """Features from a file.

    An array (samples, width) or (samples, layers, width); where a file holds several arrays, each is a layer, in the order
    of their names (numbers in them count as numbers).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another ending, or arrays of other axes.
    """
    place = Path(path)
    if place.suffix not in FEATURE_FILES:
        raise ValueError(f"features: a file that ends in {', '.join(FEATURE_FILES)}, got {os.fspath(path)!r}")
    if not place.is_file():
        raise FileNotFoundError(f"features: no file {os.fspath(path)!r}")
    if place.suffix == ".npy":
        arrays = {"": torch.from_numpy(np.load(place))}
    elif place.suffix == ".npz":
        with np.load(place) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    else:
        from safetensors.torch import load_file

        arrays = load_file(place)
    ordered = [arrays[name].float() for name in sorted(arrays, key=_natural)]
    for name, array in arrays.items():
        if array.ndim not in ((2, 3) if len(arrays) == 1 else (2,)):
            raise ValueError(
                f"features: (samples, width), or one array (samples, layers, width), got {name or 'one'} of shape "
                f"{tuple(array.shape)} in {os.fspath(path)!r}"
            )
    if not ordered:
        raise ValueError(f"features: {os.fspath(path)!r} holds no arrays")
    return ordered[0] if len(ordered) == 1 else ordered


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """A model's blocks by name, in their order: the entries of its lists `blocks` or `layers` that are in no other such.

    Raises:
        ValueError: it has none.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("blocks", "layers") and not inside:
            found |= {f"{name}.{index}": block for index, block in enumerate(module)}
    if not found:
        raise ValueError(f"model: {type(model).__name__} has no list of blocks or layers whose output could be read")
    return found


@torch.no_grad()
def layer_means(model: Any, batch: Tensor) -> list[Tensor]:
    """What each block gives for a batch, averaged over tokens or cells: (batch, width) a block.

    Of a block that hands on its output and the residual stream apart, their sum is taken.

    Arguments:
        model: any of the library.
        batch: what it reads.
    """
    with _kept_outputs(model) as kept:
        model.eval()
        model(batch)
    if any(len(part) != len(batch) for part in kept):
        raise ValueError(
            "model: its blocks do not keep samples apart along the first axis; take its features elsewhere"
        )
    return [part.flatten(1, -2).mean(1) if part.ndim > 2 else part for part in kept]


def image_features(model: Any, folder: str | os.PathLike[str], *, batch: int = 16) -> tuple[list[str], Features]:
    """Names of a folder's images, and every block's mean over each image."""
    files = picture_files(folder)
    return [path.stem for path in files], _stacked(
        [layer_means(model, as_input(pictures)) for pictures in _pictures(model, files, batch)]
    )


def text_features(model: Any, texts: Sequence[str], tokenizer: Any) -> Features:
    """Every block's mean over the tokens of each text.

    Raises:
        ValueError: a text without tokens.
    """
    found = []
    for number, text in enumerate(texts):
        tokens = tokenizer.encode(text)
        if not len(tokens):
            raise ValueError(f"texts: number {number} has no tokens")
        found.append(layer_means(model, torch.tensor([list(tokens)])))
    return _stacked(found)


def read_texts(path: str | os.PathLike[str]) -> tuple[list[str] | None, list[list[str]]]:
    """Captions of samples: of a file, a sample a line; of a folder, a .txt file a sample, a caption a line.

    Returns:
        names of the samples, where it is a folder; captions of each sample.

    Raises:
        FileNotFoundError: there is no such file or folder, or no .txt file in it.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(place.glob("*.txt"))
        if not files:
            raise FileNotFoundError(f"texts: no .txt files in {os.fspath(path)!r}")
        return [file.stem for file in files], [_lines(file) for file in files]
    if not place.is_file():
        raise FileNotFoundError(f"texts: no file or folder {os.fspath(path)!r}")
    return None, [[line] for line in _lines(place)]


def spread_frames(available: int, wanted: int) -> list[int]:
    """Which of a video's frames stand for it: `wanted` of them, evenly from the first to the last.

    Raises:
        ValueError: more than there are, or fewer than one.
    """
    if not 1 <= wanted <= available:
        raise ValueError(f"frames: from 1 to the {available} there are, got {wanted}")
    return [round(place) for place in np.linspace(0, available - 1, wanted)] if wanted > 1 else [0]


def frame_features(
    model: Any, folder: str | os.PathLike[str], *, batch: int = 16
) -> tuple[list[str], list[list[Tensor]]]:
    """Videos as a folder of folders of frames: names of the videos, and of each every block's mean over each frame.

    Raises:
        FileNotFoundError: there are no folders in it, or one without images.
    """
    place = Path(folder)
    videos = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    if not videos:
        raise FileNotFoundError(
            f"images: with frames, a folder with a folder of frames a sample, got {os.fspath(folder)!r}"
        )
    found = []
    for video in videos:
        parts = [layer_means(model, as_input(p)) for p in _pictures(model, picture_files(video), batch)]
        found.append([torch.cat(layer) for layer in zip(*parts, strict=True)])
    return [video.name for video in videos], found


def mean_of_frames(videos: Sequence[Sequence[Tensor]], frames: int) -> Features:
    """Features of videos, by so many frames of each: the mean of theirs; see `spread_frames`."""
    chosen = [[layer[spread_frames(len(layer), frames)].mean(0, keepdim=True) for layer in video] for video in videos]
    return _stacked(chosen)


def _pictures(model: Any, files: Sequence[Path], batch: int) -> Iterator[np.ndarray]:
    shape, channels = model.config.image_shape, model.config.in_channels
    for start in range(0, len(files), batch):
        yield np.stack([read_picture(path, shape, channels=channels) for path in files[start : start + batch]])


def _stacked(batches: Sequence[Sequence[Tensor]]) -> Features:
    """Layers of batches as features: one tensor where all layers have one width."""
    layers = [torch.cat(list(layer)) for layer in zip(*batches, strict=True)]
    return torch.stack(layers, 1) if len({layer.shape[1] for layer in layers}) == 1 else layers


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@contextmanager
def _kept_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        parts = [output] if isinstance(output, Tensor) else [part for part in output if isinstance(part, Tensor)]
        same = [part for part in parts if part.shape == parts[0].shape]
        kept.append(sum(same[1:], same[0]).detach().float())

    handles = [block.register_forward_hook(keep) for block in blocks_of(model).values()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
