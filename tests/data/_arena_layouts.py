"""Small files in the published layouts of the Long Range Arena."""

import pickle

import numpy as np
from PIL import Image

REVIEWS = {"pos": "what a fine film, truly good. " * 3, "neg": "a bad film, dull and long. " * 3}


def listops(folder, rows=12):
    for part in ("train", "val", "test"):
        lines = ["Source\tTarget"]
        for number in range(rows):
            digit = number % 10
            lines.append(f"( ( ( [MAX {digit} ) 0 ) ] )\t{digit}" if digit % 2 else f"( ( [SM 1 ) ] )\t{1}")
        (folder / f"basic_{part}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def reviews(folder, each=8):
    for part in ("train", "test"):
        for label, text in REVIEWS.items():
            place = folder / "aclImdb" / part / label
            place.mkdir(parents=True)
            for number in range(each):
                (place / f"{number}_7.txt").write_text(text + "é" * (number == 0))
    return folder


def review_tables(folder, end=".csv"):
    comma = "," if end == ".csv" else "\t"
    for part in ("train", "test"):
        rows = [f'"{text}"{comma}{label}' for label, text in REVIEWS.items() for _ in range(8)]
        (folder / f"{part}{end}").write_text("\n".join([f"review{comma}sentiment", *rows]) + "\n")
    return folder


def pairs(folder, rows=8):
    for part in ("train", "eval", "test"):
        lines = [
            f"{float(number % 2)}\tid{number}\tid{number + 1}\tb'On trees.'\tb'On {'trees' if number % 2 else 'the sea'}!'"
            for number in range(rows)
        ]
        (folder / f"new_aan_pairs.{part}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def cifar_arrays(seed, count=20):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3072), dtype=np.uint8), generator.integers(0, 10, count)


def cifar_binary(folder):
    place = folder / "cifar-10-batches-bin"
    place.mkdir()
    for name, seed in (("data_batch_1", 1), ("data_batch_2", 2), ("test_batch", 3)):
        images, labels = cifar_arrays(seed)
        np.concatenate([labels.astype(np.uint8)[:, None], images], axis=1).tofile(place / f"{name}.bin")
    return folder


def cifar_python(folder):
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    (place / "batches.meta").write_bytes(b"")
    for name, seed in (("data_batch_1", 1), ("data_batch_2", 2), ("test_batch", 3)):
        images, labels = cifar_arrays(seed)
        content = {b"batch_label": b"part", b"data": images, b"labels": labels.tolist(), b"filenames": [b"a.png"]}
        (place / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def pathfinder(folder, count=20, side=32):
    level = folder / f"pathfinder{side}" / "curv_contour_length_14"
    (level / "metadata").mkdir(parents=True)
    (level / "imgs" / "0").mkdir(parents=True)
    lines = []
    for number in range(count):
        name = f"sample_{number}.png"
        Image.fromarray(np.full((side, side), number, dtype=np.uint8)).save(level / "imgs" / "0" / name)
        lines.append(f"imgs/0 {name} {number} {number % 2} 6 14")
    (level / "metadata" / "0.npy").write_text("\n".join(lines) + "\n")
    return folder
