"""Readers of text: what is found, what is refused, and that pieces joined are the files."""

from __future__ import annotations

import re

import pytest

from statescan.data import HubSource, _text, read_text, text_files


def documents(*sources, **settings) -> list[str]:
    found: list[str] = []
    for piece in read_text(list(sources), **settings):
        if piece.begins:
            found.append("")
        found[-1] += piece.text
    return found


@pytest.fixture
def folder(tmp_path):
    for name, text in {
        "b.txt": "bee\r\n",
        "a.md": "é",
        "deep/c.txt": "sea",
        ".hidden/d.txt": "no",
        "e.txt": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path


def test_files_folders_and_patterns(folder):
    assert documents(folder) == ["é", "bee\r\n", "sea"]
    assert documents(folder, pattern="**/*.txt") == ["bee\r\n", "sea"]
    assert documents(folder / "b.txt", str(folder / "*.md")) == ["bee\r\n", "é"]
    assert [path.name for path in text_files([folder, folder / "b.txt"])] == ["a.md", "b.txt", "c.txt", "e.txt"]


@pytest.mark.parametrize("separator", ["<end>", "\n\n", "\n--\n", "x"])
@pytest.mark.parametrize("chunk", [7, 64, 1 << 22])
def test_a_separator_divides_a_file_wherever_it_is_cut(tmp_path, monkeypatch, separator, chunk):
    monkeypatch.setattr(_text, "_CHUNK", chunk)
    monkeypatch.setattr(_text, "_LONGEST", 4 * chunk)
    texts = ["one\ntwo\n", "näïve " * 40, "a", "b\n" * 50 + "tail"]
    joined = separator.join(texts)
    (tmp_path / "a.txt").write_text(joined, newline="")
    assert documents(tmp_path / "a.txt", separator=separator) == joined.split(separator)


def test_large_files_come_in_pieces_cut_at_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(_text, "_CHUNK", 100)
    text = "".join(f"line {number} €\n" for number in range(200))
    (tmp_path / "a.txt").write_text(text)
    pieces = list(read_text([tmp_path / "a.txt"]))
    assert len(pieces) > 5
    assert all(piece.text.endswith("\n") for piece in pieces)
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert "".join(piece.text for piece in pieces) == text


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert documents(tmp_path / "a.txt") == ["hello"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'a.txt' holds no text"),
        (b"abc\0def", "'a.txt' is not UTF-8 text (a NUL byte at position 3); give text files"),
        (b"abc\xff", "'a.txt' is not UTF-8 text (byte 0xff at position 3); give text files"),
        (b"x" * 10 + b"\xe2\x82", "'a.txt' is not UTF-8 text (byte 0xe2 at position 10); give text files"),
        (b"x" * 6 + b"\xe2\x28", "'a.txt' is not UTF-8 text (byte 0xe2 at position 6); give text files"),
    ],
)
@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_what_is_no_text_is_refused(tmp_path, monkeypatch, content, message, chunk):
    monkeypatch.setattr(_text, "_CHUNK", chunk)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        documents("a.txt")


@pytest.mark.parametrize("source", ["missing.txt", "missing/", "*.nothing", "/nowhere/**/*.txt"])
def test_missing_sources_are_named(folder, monkeypatch, source):
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match=re.escape(f"data: no file, folder or pattern {source!r}")):
        documents("b.txt", source)


def test_a_folder_without_a_match_is_named(folder):
    with pytest.raises(FileNotFoundError, match=re.escape("has no file that matches '*.rst'")):
        documents(folder, pattern="*.rst")


def test_no_source_and_empty_separator_are_refused(folder):
    with pytest.raises(ValueError, match="no source given"):
        documents()
    with pytest.raises(ValueError, match="separator: expected some text"):
        documents(folder, separator="")


def test_sources_of_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "", "two"], "body": ["1", "2", "3"]})
    rows.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "parts")
    assert documents(f"datasets:{tmp_path}/plain") == ["one", "two"]
    assert documents(f"datasets:{tmp_path}/plain?column=body") == ["1", "2", "3"]
    assert documents(f"datasets:{tmp_path}/parts?split=test") == ["two"]
    with pytest.raises(ValueError, match="has no column 'txt'; it has text, body"):
        documents(f"datasets:{tmp_path}/plain?column=txt")
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        documents(f"datasets:{tmp_path}/parts?split=dev")


def test_names_of_the_datasets_library():
    assert HubSource.parse("datasets:org/name?config=small&split=test") == HubSource("org/name", "small", "test")
    with pytest.raises(ValueError, match="unknown setting 'splits'"):
        HubSource.parse("datasets:org/name?splits=test")
    with pytest.raises(ValueError, match="no name"):
        HubSource.parse("datasets:?split=test")
