"""Tokens to text while they come: whole characters only, and stop strings found across token boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
#: A character of UTF-8 has at most four bytes, so at most three of them can be waiting for the rest.
_INCOMPLETE = 3
#: Tokens kept as context for decoding the next one (a character may span several, and a tokenizer may treat the
#: first token of a text differently from the others).
CONTEXT = 16


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer. Its tokens are 0 to vocab_size - 1."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; bytes that are no character become U+FFFD."""
        ...


class TextStream:
    """Turns one sequence's tokens into text, piece by piece.

    `push` returns what is certain: bytes that are not yet a character and text that may be the beginning of a stop
    string are held back; `flush` gives them at the end. Joined, the pieces are the decoded text up to the stop
    string. Memory is constant: a window of tokens and the text held back.

    Arguments:
        stop: strings that end the text; they are not part of it.
        context: the last tokens before the first one pushed, which give no text of their own.
        held: text already decoded from `context` and held back because it may begin a stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), context: Sequence[int] = (), held: str = ""
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens = list(context)[-CONTEXT:]
        self._held = held
        self._read = len(self._complete(self._decoded()))
        self.stopped = False

    @property
    def context(self) -> list[int]:
        """The last tokens, enough to go on from (see the constructor)."""
        return self._tokens[-CONTEXT:]

    @property
    def held(self) -> str:
        """Text held back because it may begin a stop string."""
        return self._held

    def push(self, token: int) -> str:
        """The text that is certain after one more token, possibly empty."""
        self._tokens.append(token)
        complete = self._complete(self._decoded())
        self._held += complete[self._read :]
        self._read = max(self._read, len(complete))
        self._shorten()
        return self._release()

    def flush(self) -> str:
        """The text held back, at the end; an incomplete character becomes U+FFFD."""
        if self.stopped:
            return ""
        decoded = self._decoded()
        text = self._held + decoded[self._read :]
        self._held, self._read = "", max(self._read, len(decoded))
        return text

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._tokens)

    @staticmethod
    def _complete(text: str) -> str:
        """Without the trailing replacement characters that later bytes may still turn into a character."""
        for _ in range(_INCOMPLETE):
            if not text.endswith(_REPLACEMENT):
                break
            text = text[:-1]
        return text

    def _shorten(self) -> None:
        if len(self._tokens) < 2 * CONTEXT:
            return
        waiting = len(self._decoded()) - self._read
        self._tokens = self._tokens[-CONTEXT:]
        self._read = len(self._decoded()) - waiting

    def _release(self) -> str:
        found = [at for string in self._stop if (at := self._held.find(string)) >= 0]
        if found:
            text, self._held, self.stopped = self._held[: min(found)], "", True
            return text
        keep = max((_overlap(self._held, string) for string in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, string: str) -> int:
    """Length of the longest proper beginning of `string` that ends `text`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
