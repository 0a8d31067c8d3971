"""Images that come with packages, and those of the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from statescan.data._synthetic import batch_seed

Part = tuple[list[np.ndarray], Tensor, tuple[str, ...]]

#: Photographs that scikit-image holds in its package, and whose parts look alike enough for a part to be told.
PHOTOGRAPHS = (
    "brick",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "motorcycle",
    "retina",
    "astronaut",
)
#: A photograph is divided into 4 x 4 blocks; those of the test, a row after the other, and those of the validation.
_TEST, _VALIDATION = (1, 3, 0, 2), (2, 0, 3, 1)
#: Images of each class in the parts.
COUNTS = {"train": 200, "validation": 30, "test": 60}


def textures(seed: int, *, size: int = 64, counts: dict[str, int] = COUNTS) -> tuple[Part, Part, Part]:
    """Which photograph is a crop from? Twelve classes; crops to learn from and those to be tried on never share a pixel.

    Each photograph of `PHOTOGRAPHS`, in grey, is cut into 4 x 4 blocks: two of every row and column to learn from, one to
    validate and one for the test. A crop lies within a block, is a random square of 44 to 72 pixels a side, resized, turned
    by a multiple of 90 degrees, mirrored or not, brought to a random brightness and contrast and given a random tint, so
    that neither brightness nor colour tells the class.

    Arguments:
        seed: of the crops.
        size: side of the images in pixels.
        counts: images of each class in each part.

    Raises:
        ValueError: scikit-image is not installed.
    """
    pictures = _photographs()
    parts = []
    for part, count in counts.items():
        images, targets = [], []
        for number, (name, picture) in enumerate(pictures.items()):
            generator = np.random.default_rng(batch_seed(seed, f"textures {part} {name}", 0))
            blocks = [_block(picture, row, column) for row, column in _places(part)]
            images += [_crop(blocks[i % len(blocks)], size, generator) for i in range(count)]
            targets += [number] * count
        parts.append((images, torch.tensor(targets), PHOTOGRAPHS))
    train, validation, test = parts
    return train, validation, test


def _places(part: str) -> list[tuple[int, int]]:
    taken = {"test": {*enumerate(_TEST)}, "validation": {*enumerate(_VALIDATION)}}
    every = {(row, column) for row in range(4) for column in range(4)}
    return sorted(taken.get(part, every - taken["test"] - taken["validation"]))


def _block(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    height, width = picture.shape
    rows, columns = (slice(k * n // 4, (k + 1) * n // 4) for k, n in ((row, height), (column, width)))
    return picture[rows, columns]


def _crop(block: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    side = int(generator.integers(44, 73))
    top, left = (int(generator.integers(0, n - side + 1)) for n in block.shape)
    crop = torch.from_numpy(block[top : top + side, left : left + side].copy())[None, None]
    resized = torch.nn.functional.interpolate(crop, size=(size, size), mode="bicubic", antialias=True)[0, 0].numpy()
    turned = np.rot90(resized, int(generator.integers(4)))
    if generator.integers(2):
        turned = turned[:, ::-1]
    standard = (turned - turned.mean()) / (turned.std() + 1e-3)
    grey = generator.uniform(100, 155) + generator.uniform(25, 55) * standard
    tinted = grey[..., None] * generator.uniform(0.75, 1.25, 3)
    return np.clip(np.rint(tinted), 0, 255).astype(np.uint8)


def _photographs() -> dict[str, np.ndarray]:
    """Grey pictures with values to 1; each block has room for the largest crop."""
    try:
        from skimage import color, data
    except ImportError:
        raise ValueError("data: 'textures' comes with scikit-image: pip install 'statescan[images]'") from None
    found = {}
    for name in PHOTOGRAPHS:
        picture = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
        grey = color.rgb2gray(picture[..., :3]) if picture.ndim == 3 else picture / 255
        found[name] = grey.astype(np.float32)
    return found


def digit_images(seed: int) -> tuple[Part, Part, Part]:
    """1,797 real handwritten digits of 8 x 8 pixels, of scikit-learn: 70, 10 and 20 of a hundred of them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("data: 'digits' comes with scikit-learn: pip install 'statescan[eval]'") from None
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8, 1) / 16 * 255).astype(np.uint8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).split([1258, 180, 359])
    train, validation, test = (
        ([images[i] for i in index.tolist()], torch.from_numpy(labels)[index], tuple("0123456789")) for index in order
    )
    return train, validation, test


def hub_images(source: str) -> dict[str, Any]:
    """The parts of a source of the `datasets` library: images, targets and class names of each.

    Written ``datasets:NAME?config=...&column=...&label=...``; NAME is a data set on the hub or a folder that
    `Dataset.save_to_disk` wrote. Its splits are the parts; the column of images and that of labels are found by their kinds
    unless named. Images are decoded one after the other and kept as bytes.

    Raises:
        ValueError: no such column or setting.
    """
    name, _, query = source.removeprefix("datasets:").partition("?")
    settings = dict(parse_qsl(query))
    unknown = settings.keys() - {"config", "split", "column", "label"}
    if unknown or not name:
        wrong = f"unknown setting {sorted(unknown)[0]!r}" if unknown else "no name"
        raise ValueError(f"data: {source!r}: {wrong}; write datasets:NAME?config=...&split=...&column=...&label=...")
    try:
        import datasets
    except ImportError:
        raise ValueError(f"data: {source} needs the datasets library: pip install 'statescan[eval]'") from None
    if Path(name).is_dir() and any(Path(name).glob("*dataset*.json")):
        found: Any = datasets.load_from_disk(name)
    else:
        found = datasets.load_dataset(name, settings.get("config"))
    splits = dict(found) if isinstance(found, dict) else {"": found}
    if "split" in settings:
        if settings["split"] not in splits:
            raise ValueError(f"data: {name!r} has no split {settings['split']!r}; it has {', '.join(splits)}")
        splits = {"": splits[settings["split"]]}
    known = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
    features = next(iter(splits.values())).features
    column = _column(features, "column", settings, datasets.Image, ("image", "img"), name)
    label = _column(features, "label", settings, datasets.ClassLabel, ("label", "labels", "class"), name)
    parts: dict[str, Any] = {}
    names: tuple[str, ...] = tuple(getattr(features[label], "names", None) or ())
    values = {split: list(rows[label]) for split, rows in splits.items()}
    if not names:
        names = tuple(sorted({str(value) for each in values.values() for value in each}))
        values = {split: [names.index(str(value)) for value in each] for split, each in values.items()}
    if len(names) < 2:
        raise ValueError(f"data: {name!r} has one class only; a classifier needs two or more")
    for split, rows in splits.items():
        if split in known or split == "":
            targets = torch.tensor(values[split], dtype=torch.int64)
            if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= len(names)):
                continue  # a split whose labels are held back, as those of some tests are
            parts[known.get(split, "")] = ([*_arrays(rows, column)], targets, names)
    return parts


def _arrays(rows: Any, column: str) -> Iterator[np.ndarray]:
    for row in rows:
        image = row[column]
        if not hasattr(image, "convert"):
            raise ValueError(f"data: column {column!r} holds {type(image).__name__}, expected images")
        yield np.atleast_3d(np.array(image.convert("L" if image.mode in ("1", "L") else "RGB")))


def _column(features: Any, role: str, settings: dict[str, str], kind: type, usual: tuple[str, ...], name: str) -> str:
    if role in settings:
        if settings[role] not in features:
            raise ValueError(f"data: {name!r} has no column {settings[role]!r}; it has {', '.join(features)}")
        return settings[role]
    for column, feature in features.items():
        if isinstance(feature, kind):
            return column
    for column in usual:
        if column in features:
            return column
    raise ValueError(
        f"data: {name!r} has no column of that kind; name it with {role}=...; it has {', '.join(features)}"
    )
