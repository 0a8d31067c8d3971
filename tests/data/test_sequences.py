"""Reading labelled sequences, and what is said of files that are not what they should be."""

import numpy as np
import pytest
import torch

from statescan.data import LabelledSequences, read_sequences

TS = """@problemName Toy
@classLabel true left right
@data
1,2,3:10,20,30:left
4,5:40,50:right
6,7,8:60,70,80:left
"""


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_ts_files_give_channels_lengths_and_classes(tmp_path):
    path = write(tmp_path, "toy.ts", TS)
    learn, tried = read_sequences(path, test=path)
    assert learn.inputs.shape == (3, 3, 2) and learn.lengths.tolist() == [3, 2, 3]
    assert learn.inputs[1].tolist() == [[4, 40], [5, 50], [0, 0]]
    assert learn.classes == ("left", "right") and learn.targets.tolist() == [0, 1, 0]
    assert torch.equal(learn.inputs, tried.inputs)


def test_npz_files_hold_numbers_or_tokens(tmp_path):
    np.savez(tmp_path / "a.npz", inputs=np.arange(12.0).reshape(4, 3), targets=np.array([0, 1, 1, 2]))
    learn, tried = read_sequences(tmp_path / "a.npz", test_fraction=0.25)
    assert learn.inputs.shape == (3, 3, 1) and len(tried) == 1 and learn.classes == ("0", "1", "2")
    np.savez(
        tmp_path / "b.npz", inputs=np.array([[1, 5], [2, 0]]), targets=np.array([0.5, 1.5]), lengths=np.array([2, 1])
    )
    learn, _ = read_sequences(tmp_path / "b.npz", test=tmp_path / "b.npz")
    assert learn.vocab_size == 6 and learn.lengths.tolist() == [2, 1]
    assert learn.classes == () and learn.targets.tolist() == [[0.5], [1.5]]


def test_digits_are_real_images_pixel_by_pixel():
    learn, tried = read_sequences("digits", seed=1)
    assert len(learn) + len(tried) == 1797 and learn.inputs.shape[1:] == (64, 1)
    assert not torch.equal(read_sequences("digits", seed=2)[1].targets, tried.targets)


def test_standardised_by_the_positions_that_count():
    inputs = torch.tensor([[[1.0], [3.0]], [[5.0], [0.0]]])
    data = LabelledSequences(inputs, torch.tensor([2, 1]), torch.tensor([0, 1]), ("a", "b"))
    scaled = data.standardised(data).inputs
    counted = torch.stack([scaled[0, 0], scaled[0, 1], scaled[1, 0]])
    assert counted.mean().abs() < 1e-6 and abs(float(counted.std()) - 1) < 1e-6
    assert scaled[1, 1] == 0, "padding stays zero"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ts", "1,2:left\n", "no sequences after a line @data"),
        ("a.ts", "@data\n1,x:left\n", "line 2: expected channels of equally many numbers"),
        ("a.ts", "@data\n1,2:3:left\n", "line 2: expected channels of equally many numbers"),
        ("a.ts", "@data\n1:left\n1:2:left\n", "different numbers of channels"),
        ("a.npz", "not a zip file", "cannot be read"),
        ("a.npz", "", "cannot be read"),
        ("a.csv", "1", "neither a file ending in .ts or .npz nor a known name"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_sequences(write(tmp_path, name, text))


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_sequences(tmp_path / "none.ts")
    with pytest.raises(ValueError, match="nearest: 'digits'"):
        read_sequences("digit")
    first = write(tmp_path, "a.ts", TS)
    other = write(tmp_path, "b.ts", TS.replace("right", "up"))
    with pytest.raises(ValueError, match="label 'up' is not one of the training file's: left, right"):
        read_sequences(first, test=other)
    np.savez(tmp_path / "a.npz", inputs=np.array([[1.0, np.nan]]), targets=np.array([0]))
    with pytest.raises(ValueError, match="example 0 holds NaN"):
        read_sequences(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="no array 'inputs'; it has x"):
        read_sequences(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", inputs=np.zeros((3, 2)), targets=np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="3 inputs, 3 lengths and 2 targets"):
        read_sequences(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", inputs=np.zeros((1, 2)), targets=np.zeros(1, dtype=int))
    with pytest.raises(ValueError, match="cannot be split"):
        read_sequences(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", inputs=np.array([{}], dtype=object), targets=np.zeros(1))
    with pytest.raises(ValueError, match="cannot be read"):
        read_sequences(tmp_path / "e.npz")
