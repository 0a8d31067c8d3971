"""The tasks of the Long Range Arena: generated, read from the published layouts, and what is said of other files."""

import os
import pickle

import numpy as np
import pytest
import torch

from statescan.data import ARENA, LISTOPS_VOCABULARY, arena_task, evaluate_listops, read_arena
from tests.data import _arena_layouts as layouts


def words(sequences, row):
    ids = sequences.inputs[row, : sequences.lengths[row]].tolist()
    return [LISTOPS_VOCABULARY[i] for i in ids]


def test_generated_listops_are_expressions_with_their_values():
    found = read_arena("listops", length=64, examples=20, test_examples=5)
    assert [len(part) for part in (found.learn, found.validation, found.test)] == [20, 5, 5]
    for row in range(20):
        *tokens, end = words(found.learn, row)
        assert end == "<eos>" and 16 < len(tokens) < 64
        assert evaluate_listops(tokens) == found.learn.targets[row]
    again = read_arena("listops", length=64, examples=20, test_examples=5)
    assert torch.equal(found.learn.inputs, again.learn.inputs)
    assert found.learn.vocab_size == 18 and len(found.learn.classes) == 10


def test_published_listops(tmp_path):
    found = read_arena("listops", layouts.listops(tmp_path))
    assert words(found.learn, 1) == ["[MAX", "1", "0", "X", "<eos>"] and found.learn.targets[1] == 1
    assert len(read_arena("listops", tmp_path, examples=3, test_examples=2).test) == 2


def test_reviews_from_folders_and_tables_are_the_same(tmp_path):
    folders = read_arena("text", layouts.reviews(tmp_path), length=60)
    for end in (".csv", ".tsv"):
        place = tmp_path / end
        place.mkdir()
        table = read_arena("text", layouts.review_tables(place, end), length=60)
        assert sorted(map(tuple, table.test.inputs.tolist())) == sorted(map(tuple, folders.test.inputs.tolist()))
    assert folders.learn.classes == ("negative", "positive") and folders.learn.targets.tolist() == [0] * 8 + [1] * 8
    assert int(folders.learn.lengths.max()) == 60, "cut, with the end in place"
    assert folders.validation is folders.test, "as in the published experiments"


def test_characters_are_numbered_by_how_often_they_occur(tmp_path):
    found = read_arena("text", layouts.reviews(tmp_path), length=200)
    text = "".join(layouts.REVIEWS.values())
    counts = {character: 8 * text.count(character) for character in set(text)}
    known = [c for c in sorted(counts, key=lambda c: (-counts[c], c)) if counts[c] >= 15]
    assert found.learn.vocab_size == 3 + len(known)
    ids = found.learn.inputs[0, : found.learn.lengths[0]].tolist()
    assert ids[:5] == [3 + known.index(c) for c in layouts.REVIEWS["neg"][:5]]
    assert ids[-2:] == [1, 2], "é is not among them, and then the end"


def test_bytes_in_place_of_characters(tmp_path):
    found = read_arena("text", layouts.reviews(tmp_path), level="bytes", examples=4, test_examples=2)
    assert found.learn.vocab_size == 259 and len(found.learn) == 4 and len(found.test) == 2
    whole = read_arena("text", tmp_path, level="bytes").learn
    assert bytes(i - 3 for i in whole.inputs[1, : whole.lengths[1] - 1].tolist()).decode() == layouts.REVIEWS["neg"]


def test_pairs_keep_both_texts(tmp_path):
    found = read_arena("retrieval", layouts.pairs(tmp_path), length=20)
    assert found.learn.paired and found.learn.inputs.shape[:2] == (8, 2) and found.learn.lengths.shape == (8, 2)
    assert found.learn.targets.tolist() == [0, 1] * 4
    one, two = found.learn.inputs[1]
    assert found.learn.lengths[1].tolist() == [len("b'On trees.'") + 1] * 2
    assert (one[:11] == two[:11]).sum() == 10, "b'On trees.' and b'On trees!'"


def test_images_of_both_versions_are_the_same(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    binary = read_arena("image", layouts.cifar_binary(tmp_path / "a"))
    python = read_arena("image", layouts.cifar_python(tmp_path / "b"))
    assert torch.equal(binary.learn.inputs, python.learn.inputs) and torch.equal(
        binary.test.targets, python.test.targets
    )
    assert [len(part) for part in (binary.learn, binary.validation, binary.test)] == [36, 4, 20]
    images, labels = layouts.cifar_arrays(3)
    red, green, blue = images[0].reshape(3, -1)[:, 0].astype(float)
    grey = round(0.299 * red + 0.587 * green + 0.114 * blue)
    assert binary.test.inputs[0, 0, 0].item() == pytest.approx((grey - 122.6) / 61, abs=0.02)
    assert binary.test.targets.tolist() == labels.tolist()
    small = read_arena("image", tmp_path / "a", length=64)
    assert small.learn.inputs.shape == (36, 64, 1)
    assert small.learn.inputs.mean() == pytest.approx(binary.learn.inputs.mean().item(), abs=1e-5)


def test_pathfinder_is_drawn_or_read(tmp_path):
    drawn = read_arena("pathfinder", examples=8)
    assert drawn.learn.inputs.shape == (8, 1024, 1) and len(drawn.test) == 1
    assert float(drawn.learn.inputs.min()) >= 0 and float(drawn.learn.inputs.max()) <= 1
    read = read_arena("pathfinder", layouts.pathfinder(tmp_path))
    assert [len(part) for part in (read.learn, read.validation, read.test)] == [16, 2, 2]
    values = torch.cat([read.learn.inputs, read.validation.inputs, read.test.inputs])[:, 0, 0] * 255
    labels = torch.cat([read.learn.targets, read.validation.targets, read.test.targets])
    assert sorted(values.round().int().tolist()) == list(range(20)), "each image once"
    assert torch.equal(values.round().long() % 2, labels)


def test_an_empty_picture_is_left_out(tmp_path):
    layouts.pathfinder(tmp_path, count=21)
    (tmp_path / "pathfinder32" / "curv_contour_length_14" / "imgs" / "0" / "sample_3.png").write_bytes(b"")
    found = read_arena("pathfinder", tmp_path)
    assert sum(map(len, (found.learn, found.validation, found.test))) == 20


class Runs:
    """Unpickled by anything less careful, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_in_it_is_refused_before_it_runs(tmp_path):
    layouts.cifar_python(tmp_path)
    content = {b"data": Runs(tmp_path / "made"), b"labels": [1]}
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_1: names posix\.mkdir, which is no array; refused"):
        read_arena("image", tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="pathfindr"), "task: unknown name 'pathfindr'; nearest: 'pathfinder'; known: listops"),
        (dict(name="text"), "data: the task 'text' is read from files; give a folder that holds aclImdb"),
        (dict(name="retrieval"), "new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv"),
        (dict(name="image"), "cifar-10-batches-bin or cifar-10-batches-py"),
        (dict(name="pathfinder"), "examples: drawing an image takes a tenth of a second at 32 x 32"),
        (dict(name="pathx", examples=1, length=100), "length: pathx can be had at 16384, 4096 or 1024, got 100"),
        (dict(name="listops", length=4), "length: listops can be had at 8 or more, got 4"),
        (dict(name="listops", examples=0), "examples: expected at least 1, got 0"),
        (dict(name="listops", level="words"), "level: expected characters or bytes, got 'words'"),
    ],
)
def test_what_cannot_be(arguments, message):
    with pytest.raises(ValueError) as error:
        read_arena(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ARENA)
def test_folders_that_are_not_there_or_hold_other_things(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*; expected ") as error:
        read_arena(name, tmp_path / "none")
    assert arena_task(name).files in str(error.value)
    with pytest.raises(FileNotFoundError, match="holds no "):
        read_arena(name, tmp_path)


def _write(name, text):
    return lambda folder: next(folder.rglob(name)).write_text(text)


def _remove(name):
    return lambda folder: next(folder.rglob(name)).unlink()


def _images(name, label=None, cut=0):
    def change(folder):
        path = next(folder.rglob(name))
        content = bytearray(path.read_bytes())
        if label is not None:
            content[0] = label
        path.write_bytes(content[: len(content) - cut])

    return change


@pytest.mark.parametrize(
    ("task", "layout", "spoil", "kind", "message"),
    [
        ("listops", layouts.listops, _write("basic_val.tsv", ""), ValueError, "basic_val.tsv: is empty"),
        ("listops", layouts.listops, _remove("basic_test.tsv"), FileNotFoundError, "there is no file"),
        (
            "listops",
            layouts.listops,
            _write("basic_train.tsv", "Source\tTarget\n1\t2\t3\n"),
            ValueError,
            "line 2: expected 2 columns, Source and Target, got 3",
        ),
        (
            "listops",
            layouts.listops,
            _write("basic_train.tsv", "Source\tTarget\n1\t11\n"),
            ValueError,
            "line 2: label '11' is not one of 0 to 9",
        ),
        (
            "listops",
            layouts.listops,
            _write("basic_train.tsv", "Source\tTarget\n1\tone\n"),
            ValueError,
            "line 2: label 'one' is no number",
        ),
        ("listops", layouts.listops, _write("basic_train.tsv", "Source\tTarget\n"), ValueError, "holds no examples"),
        (
            "text",
            layouts.review_tables,
            _write("train.csv", "words,label\nx,1\n"),
            ValueError,
            "train.csv: no column text or review; it has words, label",
        ),
        (
            "text",
            layouts.review_tables,
            _write("train.csv", "text,label\nx,5\n"),
            ValueError,
            "train.csv, line 2: label '5' is none of 0, 1, neg",
        ),
        (
            "text",
            layouts.review_tables,
            _write("train.csv", "text,label\nx\n"),
            ValueError,
            "train.csv, line 2: expected 2 columns, got 1",
        ),
        ("text", layouts.review_tables, _write("train.csv", ""), ValueError, "it has none"),
        ("text", layouts.review_tables, _write("train.csv", "text,label\n"), ValueError, "holds no examples"),
        ("text", layouts.review_tables, _remove("test.csv"), FileNotFoundError, "nor a file test.csv or test.tsv"),
        (
            "retrieval",
            layouts.pairs,
            _write("new_aan_pairs.eval.tsv", "1\ta\tb\tc\n"),
            ValueError,
            "line 1: expected 5 columns (label, two names, two texts), got 4",
        ),
        (
            "retrieval",
            layouts.pairs,
            _write("new_aan_pairs.test.tsv", "2.0\ta\tb\tc\td\n"),
            ValueError,
            "line 1: label '2.0' is not one of 0 to 1",
        ),
        ("image", layouts.cifar_binary, _images("data_batch_1.bin", cut=5), ValueError, "expected rows of 3,073 bytes"),
        (
            "image",
            layouts.cifar_binary,
            _images("data_batch_2.bin", label=10),
            ValueError,
            "data_batch_2.bin: label 10 is not one of 0 to 9",
        ),
        ("image", layouts.cifar_binary, _remove("test_batch.bin"), FileNotFoundError, "but no test_batch.bin"),
        ("image", layouts.cifar_python, _images("data_batch_1", cut=9), ValueError, "cannot be read as a pickle"),
        (
            "image",
            layouts.cifar_python,
            lambda folder: next(folder.rglob("data_batch_1")).write_bytes(pickle.dumps({"fine_labels": [1]})),
            ValueError,
            "expected a dictionary with data and labels; is this CIFAR-10 (not 100)?",
        ),
        (
            "pathfinder",
            layouts.pathfinder,
            _write("0.npy", "imgs/0 sample_0.png 0\n"),
            ValueError,
            "expected folder, file, number, label and more, got 3 columns",
        ),
        (
            "pathfinder",
            layouts.pathfinder,
            _write("0.npy", "imgs/0 sample_0.png 0 7\n"),
            ValueError,
            "label '7' is not one of 0 to 1",
        ),
        ("pathfinder", layouts.pathfinder, _write("sample_4.png", "x"), ValueError, "cannot be read as a picture"),
        ("pathfinder", layouts.pathfinder, _remove("sample_4.png"), FileNotFoundError, "which the metadata name"),
        (
            "pathfinder",
            lambda folder: layouts.pathfinder(folder, side=16),
            lambda folder: None,
            ValueError,
            "expected 32 x 32 pixels, got 16 x 16",
        ),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, task, layout, spoil, kind, message):
    spoil(layout(tmp_path))
    with pytest.raises(kind) as error:
        read_arena(task, tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_arrays_of_either_numpy_are_let_in(tmp_path):
    layouts.cifar_python(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    content = path.read_bytes()
    for old, new in ((b"numpy._core.multiarray", b"numpy.core.multiarray"),):
        path.write_bytes(content.replace(old, new))
    assert np.isfinite(read_arena("image", tmp_path).learn.inputs.numpy()).all()
