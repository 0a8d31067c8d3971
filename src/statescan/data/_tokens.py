"""Text as one stream of tokens, in memory or in a file that is mapped into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statescan.data._text import TextPiece, text_files

Encode = Callable[[str], Sequence[int]]

_TOKENS, _STARTS, _ABOUT = "tokens.bin", "starts.npy", "about.json"


@dataclass(frozen=True)
class TokenStream:
    """Documents one after the other.

    Fields:
        tokens: (tokens,), unsigned integers.
        starts: (documents,), int64: where each document begins, ascending.
    """

    tokens: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self.tokens)

    def split(self, position: int) -> tuple[TokenStream, TokenStream]:
        """What stands before a position and what stands from there on."""
        if not 0 <= position <= len(self):
            raise ValueError(f"position: expected 0 to {len(self)}, got {position}")
        before = self.starts < position
        behind = self.starts[~before] - position
        return (
            TokenStream(self.tokens[:position], self.starts[before]),
            TokenStream(self.tokens[position:], behind),
        )

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenStream:
        """Map what `write_tokens` wrote into memory; nothing is read before it is used."""
        place = Path(folder)
        about = json.loads((place / _ABOUT).read_text())
        if about["tokens"] == 0:
            return cls(np.zeros(0, about["dtype"]), np.zeros(0, np.int64))
        tokens = np.memmap(place / _TOKENS, dtype=about["dtype"], mode="r")
        if len(tokens) != about["tokens"]:
            raise ValueError(f"cache: {str(place)!r} has {len(tokens)} tokens, {about['tokens']} were written")
        return cls(tokens, np.load(place / _STARTS))


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest unsigned integer that holds every token."""
    for dtype in (np.uint8, np.uint16, np.uint32):
        if vocab_size - 1 <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise ValueError(f"vocab_size: {vocab_size} does not fit 32 bits")


def tokenize(
    pieces: Iterable[TextPiece], *, encode: Encode | None = None, vocab_size: int = 256, end_token: int | None = None
) -> TokenStream:
    """Text to tokens, in memory.

    Arguments:
        pieces: from `read_text`.
        encode: tokens of a text; None takes the bytes of UTF-8.
        vocab_size: how many tokens there are; a token outside raises.
        end_token: put after each document.
    """
    parts: list[np.ndarray] = []
    starts = _collect(pieces, parts.append, encode, vocab_size, end_token)
    tokens = np.concatenate(parts) if parts else np.zeros(0, token_dtype(vocab_size))
    return TokenStream(tokens, starts)


def write_tokens(
    folder: str | os.PathLike[str],
    pieces: Iterable[TextPiece],
    *,
    encode: Encode | None = None,
    vocab_size: int = 256,
    end_token: int | None = None,
) -> TokenStream:
    """Text to tokens in a new folder, which is there whole or not at all; memory stays constant.

    The arguments are those of `tokenize`. A folder that is there already is opened as it is.
    """
    target = Path(folder)
    if (target / _ABOUT).is_file():
        return TokenStream.open(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        with (temporary / _TOKENS).open("wb") as file:
            starts = _collect(pieces, lambda part: part.tofile(file), encode, vocab_size, end_token)
            count = file.tell() // token_dtype(vocab_size).itemsize
        np.save(temporary / _STARTS, starts)
        (temporary / _ABOUT).write_text(json.dumps({"tokens": count, "dtype": token_dtype(vocab_size).name}))
        os.replace(temporary, target)
    except OSError as error:
        if (target / _ABOUT).is_file():  # another process was faster
            return TokenStream.open(target)
        raise ValueError(f"cache: cannot write {str(target)!r}: {error.strerror}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return TokenStream.open(target)


def fingerprint(sources: Sequence[str | os.PathLike[str]], *, pattern: str = "**/*", **settings: Any) -> str:
    """A name for the tokens of these sources; another file, size, time or setting gives another name."""
    files = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in text_files(sources, pattern=pattern)
    ]
    known = {"sources": [os.fspath(source) for source in sources], "files": files, "settings": settings}
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _collect(
    pieces: Iterable[TextPiece],
    write: Callable[[np.ndarray], Any],
    encode: Encode | None,
    vocab_size: int,
    end_token: int | None,
) -> np.ndarray:
    """Write the tokens piece by piece; gives where documents begin."""
    if end_token is not None and not 0 <= end_token < vocab_size:
        raise ValueError(f"end_token: expected 0 to {vocab_size - 1}, got {end_token}")
    dtype = token_dtype(vocab_size)
    end = np.array([] if end_token is None else [end_token], dtype)
    starts: list[int] = []
    position = 0
    for piece in pieces:
        if piece.begins:
            if starts:
                write(end)
                position += len(end)
            starts.append(position)
        tokens = _encode(piece.text, encode, vocab_size, dtype)
        write(tokens)
        position += len(tokens)
    if starts:
        write(end)
    return np.array(starts, dtype=np.int64)


def _encode(text: str, encode: Encode | None, vocab_size: int, dtype: np.dtype) -> np.ndarray:
    tokens = np.frombuffer(text.encode(), np.uint8) if encode is None else np.asarray(encode(text), dtype=np.int64)
    if len(tokens) and (tokens.max() >= vocab_size or tokens.min() < 0):
        wrong = int(tokens.max() if tokens.max() >= vocab_size else tokens.min())
        raise ValueError(f"tokenizer: it gives token {wrong}, outside the vocabulary of {vocab_size}")
    return tokens.astype(dtype, copy=False)
