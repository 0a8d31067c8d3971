"""Readers of a user's text: files, folders, glob patterns and the `datasets` library."""

from __future__ import annotations

import codecs
import dataclasses
import glob as globbing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

_CHUNK = 1 << 22
_LONGEST = 4 * _CHUNK
_HUB = "datasets:"


@dataclass(frozen=True)
class TextPiece:
    """A part of a document, cut where a line ends, if there is a line end, where it does not hold all.

    Fields:
        text: its text.
        begins: whether a document begins here.
    """

    text: str
    begins: bool


@dataclass(frozen=True)
class HubSource:
    """A source of the `datasets` library, written ``datasets:NAME?config=...&split=...&column=...``.

    Fields:
        name: of the dataset on the hub, or a folder that `Dataset.save_to_disk` wrote.
        config: of the dataset, if it has several.
        split: the part to read.
        column: holds the texts, one document each.
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"

    @classmethod
    def parse(cls, source: str) -> HubSource:
        """Read a source written as above."""
        name, _, query = source.removeprefix(_HUB).partition("?")
        settings = dict(parse_qsl(query, keep_blank_values=True))
        unknown = settings.keys() - {field.name for field in dataclasses.fields(cls)[1:]}
        if not name or unknown:
            wrong = f"unknown setting {sorted(unknown)[0]!r}" if unknown else "no name"
            raise ValueError(f"data: {source!r}: {wrong}; write datasets:NAME?config=...&split=...&column=...")
        return cls(name, **settings)

    def documents(self) -> Iterator[str]:
        """The texts, in order."""
        try:
            import datasets
        except ImportError:
            raise ValueError(f"data: {_HUB}{self.name} needs the datasets library: pip install datasets") from None
        if Path(self.name).is_dir() and any(Path(self.name).glob("*dataset*.json")):
            rows: Any = datasets.load_from_disk(self.name)
            if isinstance(rows, datasets.DatasetDict):
                if self.split not in rows:
                    raise ValueError(f"data: {self.name!r} has no split {self.split!r}; it has {', '.join(rows)}")
                rows = rows[self.split]
        else:
            rows = datasets.load_dataset(self.name, self.config, split=self.split)
        if self.column not in rows.column_names:
            columns = ", ".join(rows.column_names)
            raise ValueError(f"data: {self.name!r} has no column {self.column!r}; it has {columns}")
        for row in rows:
            yield row[self.column]


def text_files(sources: Sequence[str | os.PathLike[str]], *, pattern: str = "**/*") -> list[Path]:
    """The files that the sources name, each once, those of a folder or a pattern in the order of their names.

    Arguments:
        sources: files, folders or glob patterns; sources of the `datasets` library are passed over.
        pattern: which files of a folder, as `pathlib.Path.glob` reads it; hidden files are passed over.

    Raises:
        FileNotFoundError: for a source that names nothing.
    """
    found: dict[Path, None] = {}
    for source in [os.fspath(source) for source in sources]:
        if source.startswith(_HUB):
            continue
        path = Path(source)
        if path.is_dir():
            inside = sorted(file for file in path.glob(pattern) if file.is_file())
            files = [file for file in inside if not _hidden(file.relative_to(path))]
            if not files:
                raise FileNotFoundError(f"data: folder {source!r} has no file that matches {pattern!r}")
        elif path.exists():
            files = [path]
        else:
            files = [Path(name) for name in sorted(globbing.glob(source, recursive=True)) if Path(name).is_file()]
            if not files:
                raise FileNotFoundError(f"data: no file, folder or pattern {source!r}")
        found.update(dict.fromkeys(files))
    return list(found)


def read_text(
    sources: Sequence[str | os.PathLike[str]], *, pattern: str = "**/*", separator: str | None = None
) -> Iterator[TextPiece]:
    """Read the documents that the sources name, in pieces of a few megabytes.

    A file is a document, or several where `separator` stands between them.

    Arguments:
        sources, pattern: see `text_files`; ``datasets:NAME`` reads through the `datasets` library (`HubSource`).
        separator: text between two documents of a file, part of neither.

    Raises:
        FileNotFoundError: for a source that names nothing.
        ValueError: where a file is not UTF-8 text, or where there is no text at all.
    """
    if not sources:
        raise ValueError("data: no source given; name a file, a folder or datasets:NAME")
    if separator == "":
        raise ValueError("separator: expected some text, got an empty one")
    text_files(sources, pattern=pattern)  # a missing source is known before the first is read
    empty = True
    for source in [os.fspath(source) for source in sources]:
        for document in _documents(source, pattern):
            for piece in _split(document, separator):
                empty = False
                yield piece
    if empty:
        names = ", ".join(repr(os.fspath(source)) for source in sources)
        raise ValueError(f"data: {names} holds no text")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _documents(source: str, pattern: str) -> Iterator[Iterator[str]]:
    if source.startswith(_HUB):
        for text in HubSource.parse(source).documents():
            yield iter([text])
    else:
        for path in text_files([source], pattern=pattern):
            yield _chunks(path)


def _chunks(path: Path) -> Iterator[str]:
    """The text of a file as it stands (line ends are not changed), a byte-order mark apart."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                if b"\0" in block:
                    raise ValueError(_binary(path, "a NUL byte", position + block.index(b"\0")))
                yield decoder.decode(block)
                position += len(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        # The decoder may have held back the beginning of a character from the block before.
        held = len(error.object) - len(block)
        raise ValueError(_binary(path, f"byte 0x{wrong:02x}", position + error.start - held)) from None
    except OSError as error:
        raise ValueError(f"data: {str(path)!r} cannot be read: {error.strerror}") from None


def _binary(path: Path, what: str, position: int) -> str:
    return f"data: {str(path)!r} is not UTF-8 text ({what} at position {position}); give text files"


def _split(chunks: Iterator[str], separator: str | None) -> Iterator[TextPiece]:
    """The documents of a file in pieces. Empty documents are passed over."""
    waiting, begins = "", True
    for chunk in chunks:
        waiting += chunk
        if separator is not None:
            *ended, waiting = waiting.split(separator)
            for text in ended:
                if text:
                    yield TextPiece(text, begins)
                begins = True
        if len(waiting) >= _CHUNK:
            certain = len(waiting) - len(separator or " ") + 1  # the rest may be the beginning of a separator
            cut = waiting.rfind("\n", 0, certain) + 1
            if not cut and certain > _LONGEST:
                cut = certain
            if cut:
                yield TextPiece(waiting[:cut], begins)
                waiting, begins = waiting[cut:], False
    if waiting:
        yield TextPiece(waiting, begins)
