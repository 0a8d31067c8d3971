"""Tokenisers: bytes, built in, and files of the `tokenizers` library."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from statescan.checkpoints._files import read_json

_FILE = "tokenizer.json"
#: Beside it in Hugging Face's folders; names the special tokens.
_SETTINGS = "tokenizer_config.json"


class ByteTokenizer:
    """Text as its UTF-8 bytes: 256 tokens, no training, no unknown words."""

    vocab_size = 256
    #: The token that ends a text: bytes have none.
    end_of_text: int | None = None

    def encode(self, text: str) -> list[int]:
        """Bytes of a text."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of bytes; what is no character becomes U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Nothing to write: a checkpoint without a tokenizer file is read as bytes."""


class FileTokenizer:
    """A tokenizer of the `tokenizers` library.

    Arguments:
        path: its tokenizer.json.
    """

    def __init__(self, path: str | os.PathLike[str]):
        from tokenizers import Tokenizer

        self.path = Path(path)
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(self.path))
        except Exception as error:
            raise ValueError(f"tokenizer: {str(self.path)!r} is no tokenizer file ({error})") from None
        # Not the number of tokens: added ones may leave numbers out.
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        #: The token that ends a text, if the settings beside the file name one.
        self.end_of_text: int | None = self._special_token("eos_token")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special tokens around it."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Copy the file, and the settings beside it, into a checkpoint's folder."""
        if self.path.resolve() == (folder / _FILE).resolve():
            return
        shutil.copyfile(self.path, folder / _FILE)
        if self.path.with_name(_SETTINGS).is_file():
            shutil.copyfile(self.path.with_name(_SETTINGS), folder / _SETTINGS)

    def _special_token(self, name: str) -> int | None:
        settings = self.path.with_name(_SETTINGS)
        named = read_json(settings).get(name) if settings.is_file() else None
        text = named.get("content") if isinstance(named, dict) else named
        return None if text is None else self._tokenizer.token_to_id(text)


def load_tokenizer(path: str | os.PathLike[str] = "bytes") -> ByteTokenizer | FileTokenizer:
    """A tokenizer by file, by the folder of a checkpoint that holds one, or ``bytes``.

    A folder without a tokenizer.json is a checkpoint of bytes.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the file is no tokenizer.
    """
    if os.fspath(path) == "bytes":
        return ByteTokenizer()
    found = Path(path)
    if found.is_dir():
        return FileTokenizer(found / _FILE) if (found / _FILE).is_file() else ByteTokenizer()
    if not found.is_file():
        raise FileNotFoundError(f"tokenizer: no file or folder {str(found)!r}; for bytes say 'bytes'")
    return FileTokenizer(found)


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings.

    Raises:
        ValueError: names both numbers.
    """
    rows = model.config.padded_vocab_size
    if tokenizer.vocab_size > rows:
        raise ValueError(
            f"tokenizer: it has {tokenizer.vocab_size:,} tokens, the model embeds {rows:,}; give the tokenizer that the "
            "model was trained with"
        )
