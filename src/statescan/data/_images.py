"""Labelled images: a user's folders, tables of labels and `datasets` sources, read with Pillow.

Whatever is read becomes `LabelledImages`; training, evaluation and prediction know nothing else. A reader of another kind of
file (spectral cubes, records) gives arrays (height, width, channels) there and adds its name to `IMAGE_DATA`.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statescan.data._image_labels import Label, read_labels
from statescan.data._image_sources import digit_images, hub_images, textures

#: Endings of the names of files that are taken for images in a folder.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
#: Names of subfolders that divide a folder, and the part each is.
PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation"}
PARTS |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class LabelledImages:
    """Images and what each shows.

    Fields:
        images: files, or arrays (height, width, channels) of bytes or of floating-point numbers.
        targets: (images,) class numbers, or (images, classes) of 0 and 1 where an image can show several.
        classes: names of the classes, in the order of their numbers.
    """

    images: Sequence[Path | np.ndarray]
    targets: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.targets):
            raise ValueError(f"images: {len(self.images)} of them, but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def multilabel(self) -> bool:
        """Whether an image can show several classes."""
        return self.targets.ndim == 2

    @property
    def spectrum(self) -> int | None:
        """How many channels its arrays have where these are no pictures of 1, 3 or 4; None for pictures."""
        first = self.images[0]
        channels = first.shape[2] if isinstance(first, np.ndarray) and first.ndim == 3 else 3
        return None if channels in (1, 3, 4) else channels

    @property
    def counts(self) -> Tensor:
        """How many images show each class."""
        if self.multilabel:
            return self.targets.sum(0).long()
        return torch.bincount(self.targets, minlength=len(self.classes))

    def select(self, index: Tensor | Sequence[int]) -> LabelledImages:
        """Those of these numbers, in this order."""
        numbers = torch.as_tensor(index, dtype=torch.int64)
        return dataclasses.replace(
            self, images=[self.images[i] for i in numbers.tolist()], targets=self.targets[numbers]
        )

    def split(self, fraction: float, *, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """At random, each class by itself: the images but this fraction, and that fraction. Both in the given order.

        A class keeps at least one image in the first part, and gives at least one to the second where it has two. Where
        an image can show several classes, they are divided by all of theirs together.

        Raises:
            ValueError: fewer than two images.
        """
        if len(self) < 2:
            raise ValueError(f"images: {len(self)} cannot be split in two")
        generator = torch.Generator().manual_seed(seed)
        kinds = self.targets if not self.multilabel else self.targets.unique(dim=0, return_inverse=True)[1]
        second = torch.zeros(len(self), dtype=torch.bool)
        for kind in kinds.unique():
            members = (kinds == kind).nonzero()[:, 0]
            count = min(len(members) - 1, max(1, round(fraction * len(members))))
            second[members[torch.randperm(len(members), generator=generator)[:count]]] = True
        if not second.any():  # every kind has one image
            second[torch.randperm(len(self), generator=generator)[: max(1, round(fraction * len(self)))]] = True
        return self.select((~second).nonzero()[:, 0]), self.select(second.nonzero()[:, 0])

    def read(self, index: int, *, channels: int) -> Tensor:
        """One image as (channels, height, width): bytes, or floating-point numbers where it holds such.

        Raises:
            ValueError: an image that cannot be read, has another number of channels, or holds NaN.
        """
        image = self.images[index]
        if isinstance(image, np.ndarray):
            return from_array(image, channels=channels, name=f"image {index}")
        return read_image(image, channels=channels)


def read_image(path: str | os.PathLike[str], *, channels: int = 3) -> Tensor:
    """A file as (channels, height, width): bytes, or floating-point numbers where it holds such.

    Arguments:
        path: of the file, in any format that Pillow reads; of several frames the first.
        channels: 1 for grey, 3 for red, green and blue, 4 with opacity.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, or a damaged one, or NaN in it.
    """
    image_module = _pillow()
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise ValueError(
            f"images: files of pictures have 1, 3 or 4 channels, the model was made for in_channels={channels}"
        )
    try:
        with warnings.catch_warnings(), image_module.open(path) as image:
            warnings.simplefilter("ignore")
            if image.mode == "F":
                return from_array(np.array(image)[..., None], channels=channels, name=f"image {os.fspath(path)!r}")
            if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would cut them off at 255
                wide = np.array(image).astype(np.float32) / 65535
                return from_array(wide[..., None], channels=channels, name=f"image {os.fspath(path)!r}")
            array = np.array(image.convert(mode))
    except FileNotFoundError:
        raise FileNotFoundError(f"images: there is no file {os.fspath(path)!r}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        if "NaN" in str(error):
            raise
        raise ValueError(f"images: {os.fspath(path)!r} cannot be read as an image: {error}") from None
    except image_module.DecompressionBombError as error:
        raise ValueError(f"images: {os.fspath(path)!r} is too large: {error}") from None
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(array).transpose(2, 0, 1)))


def from_array(array: np.ndarray, *, channels: int, name: str) -> Tensor:
    """An array (height, width[, channels]) as (channels, height, width); one channel is repeated where three are wanted.

    Raises:
        ValueError: another number of channels or axes, or NaN or infinity.
    """
    whole = array[..., None] if array.ndim == 2 else array
    if whole.ndim == 3 and whole.shape[2] == 1 < channels <= 3:
        whole = np.repeat(whole, channels, axis=2)
    if whole.ndim != 3 or whole.shape[2] != channels or 0 in whole.shape:
        raise ValueError(f"images: {name} is of shape {array.shape}; expected (height, width, {channels})")
    if whole.dtype != np.uint8:
        whole = whole.astype(np.float32)
        if not np.isfinite(whole).all():
            raise ValueError(f"images: {name} holds NaN or infinity; fill or drop it")
    return torch.from_numpy(np.ascontiguousarray(whole.transpose(2, 0, 1)))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("images: reading them needs Pillow: pip install 'statescan[images]'") from None
    return Image


@dataclass(frozen=True)
class ImageParts:
    """What is learnt from, what validates while learning, what the model is tried on, and what could not be read.

    Fields:
        train, validation, test: share their classes.
        skipped: files that were left out, and why.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    skipped: tuple[tuple[str, str], ...] = ()


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder and its subfolders, in the order of their names; hidden ones are passed over."""
    root = Path(folder)
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_ENDINGS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The images that files, folders and patterns name, each once, in the given order.

    Raises:
        FileNotFoundError: for one that names nothing, or a folder without images.
    """
    import glob

    found: dict[Path, None] = {}
    for source in [os.fspath(source) for source in sources]:
        path = Path(source)
        if path.is_dir():
            files = image_files(path)
            if not files:
                raise FileNotFoundError(f"images: folder {source!r} holds no images ({', '.join(IMAGE_ENDINGS)})")
        elif path.exists():
            files = [path]
        else:
            files = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]
            if not files:
                raise FileNotFoundError(f"images: no file, folder or pattern {source!r}")
        found.update(dict.fromkeys(files))
    return list(found)


def usable(
    paths: Sequence[Path], *, strict: bool = False, decode: bool = True
) -> tuple[list[bool], list[tuple[str, str]]]:
    """Which files are images, and for those that are not, their names and why.

    Arguments:
        paths: of the files.
        strict: raise instead.
        decode: read every pixel; else only what stands at each file's head, which finds no damage further on.

    Raises:
        ValueError: with `strict`, for the first file that is no image.
    """
    image_module = _pillow()
    good, skipped = [], []
    for path in paths:
        try:
            if decode:
                read_image(path)
            else:
                with image_module.open(path):
                    pass
        except (ValueError, OSError) as error:
            reason = str(error).partition("cannot be read as an image: ")[2] or str(error)
            if strict:
                raise ValueError(
                    f"images: {str(path)!r} cannot be read ({reason}); mend it or leave --strict out"
                ) from None
            skipped.append((str(path), reason))
            good.append(False)
        else:
            good.append(True)
    return good, skipped


#: Images by name, each made from a seed: parts to learn from, to validate with and to be tried on.
IMAGE_DATA: dict[str, Callable[[int], tuple[Any, Any, Any]]] = {"textures": textures, "digits": digit_images}


def read_images(
    source: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    decode: bool = True,
) -> ImageParts:
    """Images to learn from, to validate with and to be tried on.

    A folder holds a subfolder for each class, or ``train``, ``val`` and ``test`` that do; without ``val`` or ``test``, these
    are taken from the rest, each class by itself.

    Arguments:
        source: a folder, a name of `IMAGE_DATA`, or ``datasets:NAME?split=...&column=...&label=...``.
        labels: a ``.csv`` file of names of images, in the folder, and their labels (`read_labels`).
        validation_fraction, test_fraction: for parts that are not given.
        seed: of the division.
        strict: a file that cannot be read is an error; else it is left out and named in `skipped`.
        decode: look at every pixel of every file first; else only at each file's head.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: an unknown name, an empty folder or class, one class only, labels that do not fit.
    """
    name = os.fspath(source)
    found, skipped = _labelled(source, labels, seed=seed, strict=strict, decode=decode)
    return _parts(found, tuple(skipped), name, validation_fraction, test_fraction, seed)


def images_to_try(
    source: str | os.PathLike[str],
    classes: tuple[str, ...],
    *,
    part: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strict: bool = False,
    decode: bool = True,
) -> tuple[LabelledImages, tuple[tuple[str, str], ...]]:
    """Images to try a trained model on, whose classes these are, and the files that could not be read.

    Arguments:
        source, labels, seed, strict, decode: see `read_images`.
        classes: names; those of the source must be among them.
        part: ``train``, ``validation``, ``test`` or ``all``; None: the test's where the source is divided, else all.

    Raises:
        ValueError: a class that the model does not know, or a part that is not there.
    """
    found, skipped = _labelled(source, labels, seed=seed, strict=strict, decode=decode, classes=classes)
    wanted = part or next((name for name in ("test", "validation", "") if name in found), "all")
    if wanted != "all" and wanted not in found:
        shown = ", ".join(name or "all" for name in found)
        raise ValueError(f"part: {os.fspath(source)!r} has no part {wanted!r}; it has {shown}")
    chosen = list(found.values()) if wanted == "all" else [found[wanted]]
    unknown = [name for name in chosen[0].classes if name not in classes]
    if unknown:
        raise ValueError(
            f"data: class {unknown[0]!r} is none of the model's; it knows {', '.join(classes[:10])}"
            f"{', …' if len(classes) > 10 else ''}"
        )
    images = [image for some in chosen for image in some.images]
    targets = torch.cat([some.targets for some in chosen])
    order = torch.tensor([classes.index(name) for name in chosen[0].classes])
    if targets.ndim == 1:
        return LabelledImages(images, order[targets], classes), tuple(skipped)
    placed = torch.zeros(len(targets), len(classes))
    placed[:, order] = targets
    return LabelledImages(images, placed, classes), tuple(skipped)


def _labelled(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None,
    *,
    seed: int,
    strict: bool,
    decode: bool,
    classes: tuple[str, ...] | None = None,
) -> tuple[dict[str, LabelledImages], list[tuple[str, str]]]:
    """What a source holds, by part ('' where it is not divided), and the files that could not be read."""
    name = os.fspath(source)
    if name in IMAGE_DATA:
        made = [LabelledImages(list(images), targets, names) for images, targets, names in IMAGE_DATA[name](seed)]
        return dict(zip(("train", "validation", "test"), made, strict=True)), []
    if name.startswith("datasets:"):
        return {part: LabelledImages(*fields) for part, fields in hub_images(name).items()}, []
    root = Path(source)
    if not root.exists():
        near = get_close_matches(name, IMAGE_DATA, n=1)
        hint = f"; nearest name: {near[0]!r}" if near else ""
        raise FileNotFoundError(f"data: there is no folder {name!r}{hint}; data by name: {', '.join(IMAGE_DATA)}")
    if not root.is_dir():
        raise ValueError(f"data: {name!r} is a file; give a folder of images, or datasets:NAME")
    rows = read_labels(labels, root) if labels is not None else _by_folder(root)
    good, skipped = usable([row.path for row in rows], strict=strict, decode=decode)
    kept = [row for row, fine in zip(rows, good, strict=True) if fine]
    if not kept:
        raise ValueError(f"data: none of the {len(rows)} images in {name!r} can be read")
    return _divide(kept, rows, name, classes), skipped


def _by_folder(root: Path) -> list[Label]:
    """A row an image: its class is the subfolder, its part the folder above."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    divided = [path for path in folders if path.name.lower() in PARTS]
    if not divided:
        return _classes(root, folders, "")
    others = sorted(path.name for path in folders if path not in divided)
    if others:
        raise ValueError(
            f"data: {str(root)!r} holds {divided[0].name!r} and beside it {others[0]!r}; expected parts "
            f"({', '.join(PARTS)}) or classes, not both"
        )
    rows = []
    for path in divided:
        inside = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        rows += _classes(path, inside, PARTS[path.name.lower()])
    return rows


def _classes(root: Path, folders: Sequence[Path], part: str) -> list[Label]:
    if not folders:
        count = len(image_files(root))
        advice = "give each class a subfolder, or name a file of labels" if count else "it is empty"
        raise ValueError(f"data: folder {str(root)!r} holds no subfolders with images but {count} images; {advice}")
    rows = []
    for folder in folders:
        files = image_files(folder)
        if not files:
            raise ValueError(
                f"data: class {folder.name!r} in {str(root)!r} has no images; fill its folder or remove it"
            )
        rows += [Label(path, (folder.name,), part, False) for path in files]
    return rows


def _divide(
    kept: list[Label], rows: list[Label], name: str, known: tuple[str, ...] | None
) -> dict[str, LabelledImages]:
    """Labels as numbers, by part ('' for not divided)."""
    multilabel = any(row.multilabel for row in rows)
    learnt = [row for row in rows if row.part in ("", "train")]
    classes = known or tuple(sorted({label for row in learnt for label in row.labels}))
    numbers = {label: index for index, label in enumerate(classes)}
    for row in rows:
        unknown = [label for label in row.labels if label not in numbers]
        if unknown:
            raise ValueError(
                f"data: {str(row.path)!r} shows class {unknown[0]!r}, which {'the model' if known else 'the training part'} "
                "does not know; known: "
                f"{', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
            )
    if len(classes) < 2 and not multilabel:
        raise ValueError(f"data: {name!r} has one class only, {classes[0]!r}; a classifier needs two or more")
    found: dict[str, LabelledImages] = {}
    for part in dict.fromkeys(row.part for row in kept):
        mine = [row for row in kept if row.part == part]
        if multilabel:
            targets = torch.zeros(len(mine), len(classes))
            for target, row in zip(targets, mine, strict=True):
                target[[numbers[label] for label in row.labels]] = 1.0
        else:
            targets = torch.tensor([numbers[row.labels[0]] for row in mine])
        found[part] = LabelledImages([row.path for row in mine], targets, classes)
    return found


def _parts(
    found: dict[str, LabelledImages],
    skipped: tuple[tuple[str, str], ...],
    name: str,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> ImageParts:
    """All three parts, those that are not there taken from what there is to learn from."""
    train = found.get("train", found.get(""))
    if train is None:
        raise ValueError(f"data: {name!r} has nothing to learn from; it has {', '.join(found)}")
    empty = [train.classes[i] for i, count in enumerate(train.counts.tolist()) if not count]
    if empty:
        raise ValueError(
            f"data: no image of class {empty[0]!r} that can be read is left to learn from in {name!r}; add some, or "
            "remove the class"
        )
    for part, fraction, offset in (("test", test_fraction, 0), ("validation", validation_fraction, 1)):
        if part not in found:
            if part == "test" and "validation" in found:
                found["test"] = found["validation"]  # as image folders are used: one held-out part
                continue
            train, found[part] = train.split(fraction, seed=seed + offset)
    return ImageParts(train, found["validation"], found["test"], skipped)
