"""Tokenisers: bytes, built in, and files of the `tokenizers` library."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from statescan.checkpoints._files import read_json, write_json
from statescan.checkpoints._folder import BYTES, CONFIG, TOKENIZER, TOKENIZER_SETTINGS
from statescan.checkpoints._hub import is_hub_id, locate_tokenizer

#: What tokenizers are kept in that the `tokenizers` library does not read.
_OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json")
#: A model that embeds more tokens than this is not one of bytes, with however many special tokens.
_MANY = 1024


class ByteTokenizer:
    """Text as its UTF-8 bytes: 256 tokens, no training, no unknown words.

    Arguments:
        specials: names of further tokens, from 256 on. Text is never read as one of them. The first ends a text.
    """

    vocab_size: int = 256
    #: The token that ends a text, where there is one.
    end_of_text: int | None = None

    def __init__(self, specials: Sequence[str] = ()):
        self.specials = tuple(specials)
        if self.specials:
            self.vocab_size, self.end_of_text = 256 + len(self.specials), 256

    def encode(self, text: str) -> list[int]:
        """Bytes of a text."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of bytes; special tokens as their names; what is no character, and no token, becomes U+FFFD."""
        pieces = []
        for plain, run in itertools.groupby(tokens, lambda token: token < 256):
            if plain:
                pieces.append(bytes(run).decode("utf-8", errors="replace"))
            else:
                pieces += [self.specials[t - 256] if t - 256 < len(self.specials) else "\ufffd" for t in run]
        return "".join(pieces)

    def save(self, folder: Path) -> None:
        """Write what says that a checkpoint's tokens are bytes."""
        write_json({"tokens": "bytes", "specials": list(self.specials)}, folder / BYTES)


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
        if self.path.resolve() == (folder / TOKENIZER).resolve():
            return
        shutil.copyfile(self.path, folder / TOKENIZER)
        if self.path.with_name(TOKENIZER_SETTINGS).is_file():
            shutil.copyfile(self.path.with_name(TOKENIZER_SETTINGS), folder / TOKENIZER_SETTINGS)

    def _special_token(self, name: str) -> int | None:
        settings = self.path.with_name(TOKENIZER_SETTINGS)
        named = read_json(settings).get(name) if settings.is_file() else None
        text = named.get("content") if isinstance(named, dict) else named
        return None if text is None else self._tokenizer.token_to_id(text)


def load_tokenizer(path: str | os.PathLike[str] = "bytes") -> ByteTokenizer | FileTokenizer:
    """A tokenizer by file, by the folder of a checkpoint that holds one, by its hub id, or ``bytes``.

    A folder that holds none is taken for one of bytes, unless its model embeds far more tokens than there are bytes.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the file is no tokenizer, or the folder's cannot be read.
    """
    name = os.fspath(path)
    if name == "bytes":
        return ByteTokenizer()
    found = Path(path)
    if not found.exists() and is_hub_id(name):
        found = locate_tokenizer(name)
    if found.is_dir():
        return _of_folder(found)
    if not found.is_file():
        raise FileNotFoundError(f"tokenizer: no file or folder {str(found)!r}; for bytes say 'bytes'")
    return FileTokenizer(found)


def _of_folder(folder: Path) -> ByteTokenizer | FileTokenizer:
    if (folder / TOKENIZER).is_file():
        return FileTokenizer(folder / TOKENIZER)
    if (folder / BYTES).is_file():
        return ByteTokenizer(read_json(folder / BYTES).get("specials", ()))
    others = [name for name in _OTHER_FILES if (folder / name).is_file()]
    if others:
        raise ValueError(
            f"tokenizer: {str(folder)!r} holds {', '.join(others)}, but no {TOKENIZER}, which alone is read; give the "
            "tokenizer by file, folder or hub id"
        )
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    fields = config["config"] if isinstance(config.get("config"), dict) else config
    tokens = fields.get("vocab_size", 0)
    if isinstance(tokens, int) and tokens > _MANY:
        raise ValueError(
            f"tokenizer: {str(folder)!r} holds none, and its model embeds {tokens:,} tokens, which are not bytes; give the "
            "one it was trained with by file, folder or hub id (models of the Pile: EleutherAI/gpt-neox-20b)"
        )
    return ByteTokenizer()


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
