"""Tokenisers: bytes, files of the `tokenizers` library, and those that do not fit."""

import pytest
import tokenizers

from statescan import checkpoints
from statescan.checkpoints import ByteTokenizer, check_tokenizer, load_tokenizer
from tests.checkpoints._folders import small


def write_words(path, count):
    """A tokenizer of so many single characters."""
    words = {chr(0x4E00 + i): i for i in range(count)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=chr(0x4E00)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(path))


def test_bytes():
    tokenizer = load_tokenizer()
    assert tokenizer.vocab_size == 256 and tokenizer.end_of_text is None
    assert tokenizer.encode("é\n") == [0xC3, 0xA9, 10]
    assert tokenizer.decode(tokenizer.encode("Größe 大")) == "Größe 大"
    assert tokenizer.decode([0xC3]) == tokenizer.decode([300]) == "\ufffd"


def test_bytes_with_special_tokens(tmp_path):
    tokenizer = ByteTokenizer(["<end>", "<pad>"])
    assert tokenizer.vocab_size == 258 and tokenizer.end_of_text == 256
    assert tokenizer.decode([0xC3, 0xA9, 256, 97, 257]) == "é<end>a<pad>"
    assert max(tokenizer.encode("<end>")) < 256  # what users write is never a special token
    checkpoints.save(small(vocab_size=258), tmp_path, tokenizer=tokenizer)
    assert load_tokenizer(tmp_path).specials == ("<end>", "<pad>")


def test_a_file_travels_with_the_model(tmp_path):
    write_words(tmp_path / "words.json", 200)
    tokenizer = load_tokenizer(tmp_path / "words.json")
    checkpoints.save(small(), tmp_path / "m", tokenizer=tokenizer)
    again = load_tokenizer(tmp_path / "m")
    assert again.vocab_size == 200
    assert again.encode("一丁") == [0, 1]


def test_a_tokenizer_that_does_not_fit(tmp_path):
    write_words(tmp_path / "tokenizer.json", 300)
    check_tokenizer(load_tokenizer(), small())
    with pytest.raises(
        ValueError, match="it has 300 tokens, the model embeds 256; give the tokenizer that the model was"
    ):
        check_tokenizer(load_tokenizer(tmp_path), small())
    with pytest.raises(ValueError, match="it has 258 tokens, the model embeds 256"):
        check_tokenizer(ByteTokenizer("ab"), small())


def test_files_that_are_none(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json' is no tokenizer file"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .* for bytes say 'bytes'"):
        load_tokenizer(tmp_path / "none")


def test_a_folder_whose_tokens_are_not_bytes(tmp_path):
    model = small(vocab_size=50277)
    model.save(tmp_path / "large")
    checkpoints.save(model, tmp_path / "published", layout="state-spaces")
    for folder in ("large", "published"):
        with pytest.raises(ValueError, match=r"holds none, and its model embeds 50,277 tokens, which are not bytes"):
            load_tokenizer(tmp_path / folder)
    (tmp_path / "large" / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(ValueError, match=r"holds tokenizer\.model, but no tokenizer\.json, which alone is read"):
        load_tokenizer(tmp_path / "large")
    small().save(tmp_path / "small")
    assert load_tokenizer(tmp_path / "small").vocab_size == 256
