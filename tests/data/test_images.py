"""Reading labelled images."""

import numpy as np
import pytest
import torch
from PIL import Image

from statescan import data
from statescan.data._image_sources import PHOTOGRAPHS, _photographs, _places, textures


def picture(path, value, size=(12, 10), mode="RGB"):
    """A file of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images."""
    for number in range(10):
        picture(tmp_path / "cats" / f"{number}.png", 10 * number)
        picture(tmp_path / "dogs" / f"{number}.jpg", 200)
    return tmp_path


def names(images):
    return [path.name for path in images.images]


def test_a_folder_is_divided_class_by_class_and_always_alike(folder):
    parts = data.read_images(folder, seed=3)
    assert parts.train.classes == ("cats", "dogs")
    assert [part.counts.tolist() for part in (parts.train, parts.validation, parts.test)] == [[7, 7], [1, 1], [2, 2]]
    assert names(parts.test) == names(data.read_images(folder, seed=3).test)
    assert names(parts.test) != names(data.read_images(folder, seed=4).test)
    everything = [path for part in (parts.train, parts.validation, parts.test) for path in part.images]
    assert len(set(everything)) == 20, "no image is in two parts"


def test_parts_that_are_there_are_used(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("divided")
    for part in ("train", "val"):
        for kind in ("a", "b"):
            picture(root / part / kind / "1.png", 50)
    parts = data.read_images(root)
    assert len(parts.train) == 2 and len(parts.validation) == 2
    assert names(parts.test) == names(parts.validation), "one held-out part serves for both"
    picture(root / "c" / "1.png", 50)
    with pytest.raises(ValueError, match="holds 'train' and beside it 'c'; expected parts"):
        data.read_images(root)


def test_tables_of_labels(folder):
    table = folder / "labels.csv"
    table.write_text(
        "image,label,split\n" + "".join(f"cats/{i},{'odd' if i % 2 else 'even'},train\n" for i in range(8))
    )
    table.write_text(table.read_text() + "cats/8.png,even,test\ncats/9.png,odd,val\n")
    parts = data.read_images(folder, labels=table)
    assert parts.train.classes == ("even", "odd") and names(parts.test) == ["8.png"] and len(parts.train) == 8
    table.write_text("file,tags\n" + "".join(f"cats/{i}.png,{'x;y' if i % 2 else 'y'}\n" for i in range(10)))
    parts = data.read_images(folder, labels=table)
    assert parts.train.multilabel and parts.train.classes == ("x", "y")
    assert set(map(tuple, parts.train.targets.tolist())) == {(1.0, 1.0), (0.0, 1.0)}
    table.write_text("path,x,y\n" + "".join(f"cats/{i}.png,{i % 2},1\n" for i in range(10)))
    flags = data.read_images(folder, labels=table)
    assert torch.equal(flags.train.targets, parts.train.targets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name;label\n1;2\n", "needs a column 'image' and one 'label'"),
        ("image,label\n", "has no rows"),
        ("image,label\ncats/1.png,a\nbirds/1.png,b\n", r"1 of the 2 images .* are not in .*'birds/1.png' \(line 3\)"),
        ("image,label\ncats/1.png,a\ncats/1.png,b\n", "names 1 images more than once"),
        ("image,label\ncats/1.png,\n", "line 2: no label"),
        ("image,label,split\ncats/1.png,a,dev\n", "line 2: split 'dev'; known: train, val, test"),
        ("image,size\ncats/1.png,12\n", "neither a column 'label' or 'labels' nor columns of 0 and 1"),
        ("image,label\ncats/1.png,a\ncats/2.png,a\n", "has one class only, 'a'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder, text, message):
    table = folder / "labels.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        data.read_images(folder, labels=table)


def test_what_cannot_be_read_is_named_and_left_out_or_refused(folder):
    whole = (folder / "cats" / "3.png").read_bytes()
    (folder / "cats" / "3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dogs" / "4.jpg").write_text("not an image")
    parts = data.read_images(folder)
    assert sorted(name.rsplit("/", 1)[1] for name, _ in parts.skipped) == ["3.png", "4.jpg"]
    assert "cannot identify image file" in dict(parts.skipped)[str(folder / "dogs" / "4.jpg")]
    assert sum(len(part) for part in (parts.train, parts.validation, parts.test)) == 18
    with pytest.raises(ValueError, match=r"3.png' cannot be read .*mend it or leave --strict out"):
        data.read_images(folder, strict=True)


def test_folders_that_cannot_be_learnt_from_are_refused(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    with pytest.raises(ValueError, match="holds no subfolders with images but 0 images; it is empty"):
        data.read_images(root)
    picture(root / "1.png", 0)
    with pytest.raises(ValueError, match="but 1 images; give each class a subfolder"):
        data.read_images(root)
    for number in range(3):
        picture(root / "only" / f"{number}.png", 0)
    with pytest.raises(ValueError, match="has one class only, 'only'; a classifier needs two or more"):
        data.read_images(root)
    (root / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"class 'nothing' in .* has no images; fill its folder or remove it"):
        data.read_images(root)
    with pytest.raises(FileNotFoundError, match="there is no folder 'texturs'; nearest name: 'textures'"):
        data.read_images("texturs")
    for path in (root / "only").iterdir():
        path.write_text("no")
    picture(root / "nothing" / "1.png", 0)
    with pytest.raises(ValueError, match="no image of class 'only' that can be read is left to learn from"):
        data.read_images(root)


def test_files_become_tensors_of_the_channels_that_are_wanted(tmp_path):
    picture(tmp_path / "grey.png", 7, mode="L")
    assert data.read_image(tmp_path / "grey.png").shape == (3, 10, 12)
    assert data.read_image(tmp_path / "grey.png", channels=1).unique().tolist() == [7]
    wide = np.full((4, 5), 65535, dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert data.read_image(tmp_path / "wide.png").unique().tolist() == [1.0], "16 bits are not cut off at 255"
    Image.fromarray(np.full((4, 5), np.nan, dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match=r"nan.tif' holds NaN or infinity"):
        data.read_image(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match="1, 3 or 4 channels, the model was made for in_channels=7"):
        data.read_image(tmp_path / "grey.png", channels=7)
    spectra = data.LabelledImages([np.ones((4, 4, 7), dtype=np.float32)], torch.zeros(1), ("a", "b"))
    assert spectra.spectrum == 7 and spectra.read(0, channels=7).shape == (7, 4, 4)


def test_datasets_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"picture": [Image.new("RGB", (6, 6), (i, i, i)) for i in range(8)], "kind": [i % 2 for i in range(8)]}
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["even", "odd"])})
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made, "test": made.select(range(2))}).save_to_disk(str(tmp_path / "saved"))
    parts = data.read_images(f"datasets:{tmp_path / 'saved'}")
    assert parts.train.classes == ("even", "odd") and len(parts.test) == 2
    assert parts.test.read(1, channels=3).unique().tolist() == [1]
    with pytest.raises(ValueError, match="has no column 'x'; it has picture, kind"):
        data.read_images(f"datasets:{tmp_path / 'saved'}?label=x")


def test_crops_of_photographs_share_no_pixel_between_parts():
    taken = {part: set(_places(part)) for part in ("train", "validation", "test")}
    assert sum(map(len, taken.values())) == len(set.union(*taken.values())) == 16
    train, _, test = textures(0, size=16, counts={"train": 4, "validation": 1, "test": 2})
    assert len(train[0]) == 48 and test[1].tolist() == [c for c in range(12) for _ in range(2)]
    assert train[2] == PHOTOGRAPHS and train[0][0].shape == (16, 16, 3)
    again = textures(0, size=16, counts={"train": 4, "validation": 1, "test": 2})[0]
    assert all(np.array_equal(a, b) for a, b in zip(train[0], again[0], strict=True))
    assert all(min(p.shape) // 4 >= 72 for p in _photographs().values()), "the largest crop fits into every block"


def test_batches_are_a_function_of_seed_and_number():
    arrays = [np.full((6, 8, 3), i, dtype=np.uint8) for i in range(10)]
    images = data.LabelledImages(arrays, torch.arange(10), tuple(map(str, range(10))))
    views = data.Views((4, 4))

    def targets(count, **options):
        batches = iter(data.ImageBatches(images, views, channels=3, batch_size=4, **options))
        return [next(batches).targets.tolist() for _ in range(count)]

    assert targets(5)[2:] == targets(3, first=2)
    assert targets(2) != targets(2, seed=1)
    assert not set.intersection(*map(set, targets(2))), "a pass takes each image once"
    shares = [targets(2, rank=rank, world=2) for rank in range(2)]
    assert sorted(shares[0][0] + shares[1][0]) == sorted(targets(1)[0])
    (first,) = targets(1, repeats=2)
    assert len(set(first)) == 2, "each image stands there twice"
    once = data.ImageBatches(images, views, channels=3, batch_size=4, once=True)
    assert [batch.targets.tolist() for batch in once] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    batch = next(iter(once))
    assert batch.images.shape == (4, 3, 4, 4) and batch.images[2].unique().tolist() == [2]


def test_views():
    image = torch.arange(24, dtype=torch.uint8).reshape(1, 4, 6)
    middle = data.Views((4, 4)).test(image)
    assert torch.equal(middle, image[:, :, 1:5])
    assert data.Views((2, 2), crop=0.5).test(image).tolist() == image[:, 1:3, 2:4].tolist()
    whole = data.Views((4, 6), scale=(1.0, 1.0), ratio=(1.5, 1.5), flip=1.0, vertical_flip=1.0)
    assert torch.equal(whole.train(image, np.random.default_rng(0)), image.flip(1, 2))
    with pytest.raises(ValueError, match="scale: least and greatest part of the area"):
        data.Views((4, 4), scale=(0.5, 0.2))
