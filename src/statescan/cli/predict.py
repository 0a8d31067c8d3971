"""Say what images show: files in, a table out.

examples:
  statescan predict runs/photos new/cat.jpg new/dog.jpg
  statescan predict runs/photos new --top 3 --format csv --out answers.csv
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    images: Annotated[tuple[str, ...], tyro.conf.Positional],
    *,
    top: int = 5,
    format: Literal["table", "csv", "json"] = "table",
    out: Path | None = None,
    strict: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    device: str | None = None,
) -> None:
    """Say what images show: the most probable classes of each file, with their probabilities.

    For instance:

      statescan predict runs/photos new/cat.jpg new/dog.jpg

      statescan predict runs/photos new --top 3 --format csv --out answers.csv

    Args:
        model: folder or hub id of a trained image model.
        images: files, folders or glob patterns.
        top: classes to name for each image; fewer where there are fewer.
        format: of what is written.
        out: a file to write to, instead of printing; a table becomes csv.
        strict: an image that cannot be read is an error; else it is named, counted and left out.
        batch_size: images at a time.
        workers: processes that read images.
        device: such as cpu or cuda:0; by default a GPU if there is one.
    """
    from statescan.cli import _images, _print
    from statescan.data import find_images
    from statescan.models import compile_for_inference
    from statescan.tasks import classification, prediction

    files = find_images(images)
    loaded, preparation = _images.load(model, device=device)
    loaded = compile_for_inference(loaded, in_place=True)
    answers, skipped = prediction.predict_images(
        loaded, preparation, files, top=top, strict=strict, batch_size=batch_size, workers=workers
    )
    classification.say_skipped(skipped)
    if out is not None:
        prediction.write_answers(out, answers, json=format == "json")
        print(f"{len(answers)} images: {out}")
    elif format == "json":
        _print.as_json([answer.as_dict() for answer in answers])
    elif format == "csv":
        print(prediction.answers_as_csv(answers), end="")
    else:
        rows = [(a.file, "  ".join(f"{name} {p:.3f}" for name, p in a.classes)) for a in answers]
        _print.table(model, ("image", "classes and their probabilities"), rows)
