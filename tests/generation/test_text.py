"""Text as it comes: whole characters, stop strings across tokens, no matter how the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from statescan.checkpoints import ByteTokenizer
from statescan.generation import TextStream


class Fallback:
    """Words with a leading-space mark and single bytes for the rest, as in SentencePiece vocabularies."""

    def __init__(self) -> None:
        words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "s"]
        vocabulary = {word: index for index, word in enumerate(words)}
        self.inner = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
        self.inner.pre_tokenizer = pre_tokenizers.Metaspace()
        self.inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )

    def decode(self, tokens) -> str:
        return self.inner.decode(list(tokens))


def pieces_of(text_stream: TextStream, tokens) -> list[str]:
    pieces = []
    for token in tokens:
        pieces.append(text_stream.push(token))
        if text_stream.stopped:
            return pieces
    return [*pieces, text_stream.flush()]


def test_a_character_comes_whole():
    pieces = pieces_of(TextStream(ByteTokenizer()), ByteTokenizer().encode("a中é"))
    assert pieces == ["a", "", "", "中", "", "é", ""]


@given(st.binary(max_size=80))
def test_pieces_join_to_the_decoded_text(data):
    assert "".join(pieces_of(TextStream(ByteTokenizer()), data)) == data.decode(errors="replace")


@given(st.text(max_size=40), st.integers(0, 40))
def test_a_continuation_joins_its_context(text, cut):
    tokens = ByteTokenizer().encode(text)
    before, after = tokens[:cut], tokens[cut:]
    joined = "".join(pieces_of(TextStream(ByteTokenizer(), context=before), after))
    whole_characters = bytes(before).decode(errors="ignore")
    assert whole_characters + joined == text


@given(st.text("abX", max_size=60), st.lists(st.text("abX", min_size=1, max_size=5), min_size=1, max_size=3))
def test_stop_strings_end_the_text_wherever_tokens_end(text, stop):
    text_stream = TextStream(ByteTokenizer(), stop=stop)
    pieces = pieces_of(text_stream, ByteTokenizer().encode(text))
    assert text_stream.stopped == any(string in text for string in stop)
    ends = [text.find(string) + len(string) for string in stop if string in text]
    if ends:  # the string that is complete first ends the text
        first = min(ends)
        begins = min(first - len(string) for string in stop if text[:first].endswith(string))
        assert "".join(pieces) == text[:begins]
    else:
        assert "".join(pieces) == text


def test_text_that_may_begin_a_stop_is_held_back_and_then_released():
    text_stream = TextStream(ByteTokenizer(), stop=["END"])
    assert [text_stream.push(ord(letter)) for letter in "aENx"] == ["a", "", "", "ENx"]
    text_stream.push(ord("E"))
    assert text_stream.held == "E"
    assert text_stream.flush() == "E"


def test_words_keep_their_spaces_and_bytes_of_a_character_wait():
    tokenizer = Fallback()
    the, cat, s = (tokenizer.inner.token_to_id(word) for word in ("▁the", "▁cat", "s"))
    heart = [1 + byte for byte in "♥".encode()]
    assert pieces_of(TextStream(tokenizer, context=[the]), [cat, s, *heart, the]) == [
        " cat",
        "s",
        "",
        "",
        "♥",
        " the",
        "",
    ]


@pytest.mark.parametrize("length", [100, 5_000])
def test_memory_does_not_grow_with_the_text(length):
    text_stream = TextStream(ByteTokenizer(), stop=["never"])
    for index in range(length):
        text_stream.push(0x80 if index % 3 else ord("n"))
    assert len(text_stream._tokens) <= 32
    assert len(text_stream.held) <= 4
