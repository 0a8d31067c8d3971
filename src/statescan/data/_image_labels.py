"""Tables of labels of images."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

_NAMES = ("image", "file", "filename", "file_name", "path", "name", "id")
_LABELS = ("label", "class", "target", "category")
_SEVERAL = ("labels", "classes", "tags")
_PARTS = {"train": "train", "training": "train", "val": "validation", "valid": "validation"}
_PARTS |= {"validation": "validation", "test": "test", "testing": "test", "": ""}


@dataclass(frozen=True)
class Label:
    """An image's file, its labels, its part of the data ('' for none), and whether it could have had several labels."""

    path: Path
    labels: tuple[str, ...]
    part: str
    multilabel: bool


def read_labels(table: str | os.PathLike[str], root: Path) -> list[Label]:
    """The rows of a ``.csv`` file with a header.

    The image's file is in a column ``image`` (or ``file``, ``filename``, ``path``, ``name``, ``id``), relative to the
    folder; the ending may be left out. Its labels are in one of

    * ``label`` (or ``class``): one,
    * ``labels``: several, separated by ``;`` or ``|``,
    * all other columns, if each holds 0 and 1 alone: one column a class.

    A column ``split`` may say ``train``, ``val`` or ``test``.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a table that cannot be read so; the line is named. Images of the table that are not in the folder.
    """
    path = Path(table)
    if not path.is_file():
        raise FileNotFoundError(f"labels: there is no file {str(path)!r}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"labels: {str(path)!r} cannot be read as a table: {error}") from None
    lower = {column.strip().lower(): column for column in columns if column}
    named = next((lower[name] for name in _NAMES if name in lower), None)
    if named is None or not lines:
        shown = ", ".join(columns) or "nothing"
        what = (
            "has no rows"
            if named
            else f"needs a column {_NAMES[0]!r} and one {_LABELS[0]!r}; its first line is {shown}"
        )
        raise ValueError(f"labels: {str(path)!r} {what}")
    part = lower.get("split", lower.get("part", ""))
    single = next((lower[name] for name in _LABELS if name in lower), None)
    several = next((lower[name] for name in _SEVERAL if name in lower), None)
    flags = [column for column in columns if column not in (named, part)]
    if single is None and several is None:
        wrong = [c for c in flags if any((line[c] or "").strip() not in ("0", "1", "0.0", "1.0") for line in lines)]
        if wrong or not flags:
            raise ValueError(
                f"labels: {str(path)!r} has neither a column {_LABELS[0]!r} or {_SEVERAL[0]!r} nor columns of 0 and 1 "
                f"alone ({wrong[0] if wrong else 'none'!r} is none)"
            )
    files = _Files(root)
    rows, missing = [], []
    for number, line in enumerate(lines, 2):
        where = (line[part] or "").strip().lower() if part else ""
        if where not in _PARTS:
            raise ValueError(f"labels: {str(path)!r}, line {number}: split {where!r}; known: train, val, test")
        if single is not None:
            labels: tuple[str, ...] = ((line[single] or "").strip(),)
            if not labels[0]:
                raise ValueError(f"labels: {str(path)!r}, line {number}: no label")
        elif several is not None:
            text = (line[several] or "").replace("|", ";")
            labels = tuple(label.strip() for label in text.split(";") if label.strip())
        else:
            labels = tuple(column.strip() for column in flags if float(line[column]))
        found = files.find((line[named] or "").strip())
        if found is None:
            missing.append(f"{line[named]!r} (line {number})")
        else:
            rows.append(Label(found, labels, _PARTS[where], single is None))
    if missing:
        raise ValueError(
            f"labels: {len(missing)} of the {len(lines)} images in {str(path)!r} are not in {str(root)!r}, the first "
            f"{missing[0]}"
        )
    twice = len(rows) - len({row.path for row in rows})
    if twice:
        raise ValueError(f"labels: {str(path)!r} names {twice} images more than once; put several labels into one row")
    return rows


class _Files:
    """Files of a folder by the names that tables give them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stems: dict[str, Path] | None = None

    def find(self, name: str) -> Path | None:
        """The file of this name, with or without its ending."""
        path = self._root / name
        if name and path.is_file():
            return path
        if self._stems is None:
            files = sorted(file for file in self._root.rglob("*") if file.is_file())
            self._stems = {str(file.relative_to(self._root).with_suffix("")): file for file in files}
        return self._stems.get(name)
