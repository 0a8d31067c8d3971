"""What a trained image model says of files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json as plain_json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from statescan.data import LabelledImages, usable
from statescan.tasks._image_preparation import ImagePreparation
from statescan.tasks._run_folder import write_atomically
from statescan.tasks.image_scores import class_scores


@dataclass(frozen=True)
class ImageAnswer:
    """The most probable classes of an image.

    Fields:
        file: its name.
        classes: names and probabilities, the most probable first; where an image can show several classes, each
            probability is by itself.
    """

    file: str
    classes: tuple[tuple[str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self) | {"classes": [{"name": n, "probability": p} for n, p in self.classes]}


def predict_images(
    model: Any,
    preparation: ImagePreparation,
    files: Sequence[Path],
    *,
    top: int = 5,
    strict: bool = False,
    batch_size: int = 32,
    workers: int = 0,
) -> tuple[list[ImageAnswer], list[tuple[str, str]]]:
    """What images show, in the order of the files; and the files that cannot be read, and why.

    Arguments:
        model: an image classifier.
        preparation: how images are brought to it.
        files: images.
        top: classes of each.
        strict: raise for a file that cannot be read.
        batch_size: images at a time.
        workers: processes that read images.

    Raises:
        ValueError: no file that can be read.
    """
    if top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    if not files:
        raise ValueError("images: none given; name files, folders or patterns")
    good, skipped = usable(files, strict=strict)
    kept = [path for path, fine in zip(files, good, strict=True) if fine]
    if not kept:
        raise ValueError(f"images: none of {len(files)} files can be read as an image; the first: {skipped[0][1]}")
    unlabelled = LabelledImages(kept, torch.zeros(len(kept), dtype=torch.int64), preparation.classes)
    answers: list[ImageAnswer] = []
    for scores, _ in class_scores(model, preparation, unlabelled, batch_size=batch_size, workers=workers):
        probabilities = scores.sigmoid() if preparation.multilabel else scores.softmax(-1)
        values, numbers = probabilities.topk(min(top, len(preparation.classes)))
        for some, which in zip(values.tolist(), numbers.tolist(), strict=True):
            named = tuple((preparation.classes[number], value) for value, number in zip(some, which, strict=True))
            answers.append(ImageAnswer(str(kept[len(answers)]), named))
    return answers, skipped


def answers_as_csv(answers: Sequence[ImageAnswer]) -> str:
    """A line an image: its file, then classes and probabilities in turn."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    count = len(answers[0].classes)
    heads = [name for i in range(1, count + 1) for name in (f"class_{i}", f"probability_{i}")]
    writer.writerow(["image", *heads])
    for answer in answers:
        writer.writerow([answer.file, *(cell for name, p in answer.classes for cell in (name, f"{p:.6g}"))])
    return text.getvalue()


def write_answers(path: Path, answers: Sequence[ImageAnswer], *, json: bool = False) -> None:
    """Write answers to a file, as csv or JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = plain_json.dumps([a.as_dict() for a in answers], indent=2) + "\n" if json else answers_as_csv(answers)
    write_atomically(path, text.encode())
