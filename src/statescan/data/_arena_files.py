"""The published files of the Long Range Arena, as they lie on a disk: one reader for each layout, each error one line."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Side and channels of CIFAR's images.
_SIDE, _CHANNELS = 32, 3
#: What pickles of CIFAR's images name; nothing else is let in.
_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_TEXT_LABELS = {"0": 0, "neg": 0, "negative": 0, "1": 1, "pos": 1, "positive": 1}
_TEXT_COLUMNS = (("text", "review"), ("label", "sentiment"))


def locate(folder: Path, names: tuple[str, ...], *, wanted: str) -> Path:
    """The folder itself or the one of its folders that holds one of these names.

    Raises:
        FileNotFoundError: where neither does; `wanted` says what to place there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data: there is no folder {str(folder)!r}; expected {wanted}")
    for place in (folder, *sorted(inner for inner in folder.iterdir() if inner.is_dir())):
        if any((place / name).exists() for name in names):
            return place
    raise FileNotFoundError(f"data: {str(folder)!r} holds no {' and no '.join(names)}; expected {wanted}")


def listops_rows(path: Path) -> Iterator[tuple[list[str], int]]:
    """Tokens and value of each row of ``basic_train.tsv`` and the like: a head ``Source``, ``Target``, two columns."""
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t")
        if number == 1 and fields == ["Source", "Target"]:
            continue
        if len(fields) != 2:
            raise ValueError(f"{path}, line {number}: expected 2 columns, Source and Target, got {len(fields)}")
        tokens = fields[0].replace("(", " ").replace(")", " ").replace("]", "X").split()
        yield tokens, _label(fields[1], 10, f"{path}, line {number}")


def review_rows(folder: Path, part: str) -> Iterator[tuple[str, int]]:
    """Text and label (1: positive) of a part, ``train`` or ``test``: from ``PART/pos/*.txt``, ``PART/neg/*.txt``, or from
    ``PART.csv`` or ``PART.tsv`` with columns text (or review) and label (or sentiment)."""
    if (folder / part).is_dir():
        for label, name in enumerate(("neg", "pos")):
            place = folder / part / name
            if not place.is_dir():
                raise FileNotFoundError(f"data: there is no folder {str(place)!r}; expected one text file a review")
            files = sorted(place.glob("*.txt"))
            if not files:
                raise ValueError(f"{place}: no file ends in .txt; expected one a review")
            for path in files:
                yield _text(path), label
        return
    tables = [path for path in (folder / f"{part}.csv", folder / f"{part}.tsv") if path.is_file()]
    if not tables:
        raise FileNotFoundError(
            f"data: {str(folder)!r} has neither a folder {part!r} nor a file {part}.csv or {part}.tsv"
        )
    path = tables[0]
    rows = csv.reader(io.StringIO(_text(path), newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    head = [name.strip().lower() for name in next(rows, [])]
    columns = [next((head.index(name) for name in names if name in head), None) for names in _TEXT_COLUMNS]
    if None in columns:
        missing = _TEXT_COLUMNS[columns.index(None)]
        raise ValueError(f"{path}: no column {' or '.join(missing)}; it has {', '.join(head) or 'none'}")
    text, label = (column for column in columns if column is not None)
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"{path}, line {rows.line_num}: expected {len(head)} columns, got {len(row)}")
        word = row[label].strip().lower()
        if word not in _TEXT_LABELS:
            raise ValueError(
                f"{path}, line {rows.line_num}: label {row[label]!r} is none of {', '.join(sorted(_TEXT_LABELS))}"
            )
        yield row[text], _TEXT_LABELS[word]


def pair_rows(path: Path) -> Iterator[tuple[str, str, int]]:
    """Both texts and the label of each row of ``new_aan_pairs.train.tsv`` and the like: label, two names, two texts."""
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t")
        if len(fields) != 5:
            raise ValueError(
                f"{path}, line {number}: expected 5 columns (label, two names, two texts), got {len(fields)}"
            )
        yield fields[3], fields[4], _label(fields[0], 2, f"{path}, line {number}")


def cifar_images(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """To learn from and to be tried on: images (number, 3, 32, 32) uint8 and labels (number,).

    The binary version (``data_batch_1.bin``, …) and the one for Python (``data_batch_1``, …) are read; from the pickles of
    the latter nothing but arrays, bytes, numbers, lists and dictionaries is taken.
    """
    found = sorted(folder.glob("data_batch_*.bin"))
    read = _cifar_binary if found else _cifar_pickle
    found = found or sorted(path for path in folder.glob("data_batch_*") if not path.suffix)
    test = folder / ("test_batch.bin" if found and found[0].suffix else "test_batch")
    if not test.is_file():
        raise FileNotFoundError(f"data: {str(folder)!r} has {len(found)} data batches, but no {test.name}")
    parts = [read(path) for path in found]
    return (np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])), read(test)


def pathfinder_rows(folder: Path) -> list[tuple[Path, int]]:
    """File and label of the images of ``curv_contour_length_14``, in the order of its metadata."""
    level = folder / "curv_contour_length_14"
    files = sorted((level / "metadata").glob("*.npy"), key=lambda path: (len(path.stem), path.stem))
    if not files:
        raise FileNotFoundError(f"data: {str(level / 'metadata')!r} holds no .npy files, which list images and labels")
    rows = []
    for path in files:
        for number, line in enumerate(_lines(path), 1):  # text, whatever the ending says
            fields = line.split()
            if len(fields) < 4:
                raise ValueError(
                    f"{path}, line {number}: expected folder, file, number, label and more, got {len(fields)} columns"
                )
            image = level / fields[0] / fields[1]
            label = _label(fields[3], 2, f"{path}, line {number}")
            if image.is_file() and not image.stat().st_size:
                continue  # one of the published files is empty
            rows.append((image, label))
    return rows


def grey_image(path: Path, side: int) -> np.ndarray:
    """A picture (side, side) uint8."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError(
            "data: Pathfinder's published files are pictures, read with Pillow: pip install pillow"
        ) from None
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {str(path)!r}, which the metadata name")
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a picture: {error}") from None
    if pixels.shape != (side, side):
        raise ValueError(f"{path}: expected {side} x {side} pixels, got {' x '.join(map(str, pixels.shape))}")
    return pixels


def _cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one byte of label and 3072 of pixels."""
    data = np.fromfile(path, dtype=np.uint8)
    row = 1 + _CHANNELS * _SIDE**2
    if not data.size or data.size % row:
        raise ValueError(f"{path}: expected rows of {row:,} bytes, a label and an image, got {data.size:,} bytes")
    rows = data.reshape(-1, row)
    return _cifar_part(path, rows[:, 1:], rows[:, 0])


def _cifar_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A dictionary of ``data`` (number, 3072) uint8 and ``labels``, pickled by Python 2."""
    try:
        with path.open("rb") as file:
            found = _OnlyArrays(file, encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path}: cannot be read as a pickle: {type(error).__name__}: {error}") from None
    if isinstance(found, dict):
        found = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
    if not isinstance(found, dict) or not {"data", "labels"} <= found.keys():
        raise ValueError(f"{path}: expected a dictionary with data and labels; is this CIFAR-10 (not 100)?")
    data = found["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.size % (_CHANNELS * _SIDE**2):
        raise ValueError(f"{path}: data: expected an array of {_CHANNELS * _SIDE**2:,} bytes an image")
    return _cifar_part(path, data, np.asarray(found["labels"]))


def _cifar_part(path: Path, data: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = data.reshape(-1, _CHANNELS, _SIDE, _SIDE)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: expected one label an image, got {labels.shape} for {len(images)} images")
    wrong = labels[(labels < 0) | (labels > 9)]
    if len(wrong):
        raise ValueError(f"{path}: label {wrong[0]} is not one of 0 to 9")
    return images, labels.astype(np.int64)


class _OnlyArrays(pickle.Unpickler):
    """Takes arrays and plain data; a pickle that names anything else is refused before it can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is no array; refused, for it could run code")
        if name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]  # where this version of numpy has it
        return super().find_class(module, name)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {str(path)!r}")
    text = _text(path)
    if not text.strip():
        raise ValueError(f"{path}: is empty")
    return text.rstrip("\r\n").replace("\r\n", "\n").split("\n")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def _label(text: str, classes: int, where: str) -> int:
    try:
        label = float(text)
    except ValueError:
        raise ValueError(f"{where}: label {text!r} is no number") from None
    if label not in range(classes):
        raise ValueError(f"{where}: label {text!r} is not one of 0 to {classes - 1}")
    return int(label)
