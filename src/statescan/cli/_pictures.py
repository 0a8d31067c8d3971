"""Pictures of image models: `statescan inspect receptive-field`, `attention`, `activation`, `time-steps`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


def receptive_field(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    *,
    out: Path,
    images: Path | None = None,
    count: int = 8,
    size: int | None = None,
    seed: int = 0,
) -> None:
    """Draw the effective receptive field of image models: on which pixels the middle of their last map depends.

    Examples:

      statescan inspect receptive-field vmamba_tiny vim_tiny --size 64 --out field.png
      statescan inspect receptive-field runs/flowers --images photographs --out field.png

    Args:
        models: folders of checkpoints, or names.
        out: the picture; its suffix says the format.
        images: a folder of images; photographs of scikit-image unless given.
        count: of the images, at most.
        size: side of the images in pixels; that of each model's config unless given.
        seed: of random weights.
    """
    import numpy as np

    from statescan import inspect

    if not models:
        raise ValueError("MODEL: at least one, a checkpoint's folder or a name")
    if count < 1:
        raise ValueError(f"count: at least 1, got {count}")
    files = inspect.sample_pictures() if images is None else inspect.picture_files(images)
    fields = []
    for name in models:
        model, shape, note = _model(name, size, seed)
        channels = model.config.in_channels
        pictures = np.stack([inspect.read_picture(file, shape, channels=channels) for file in files[:count]])
        found = inspect.receptive_field(model, inspect.as_input(pictures))
        fields.append((Path(name).name + (f", {note}" if note else ""), found))
        print(
            f"{name}: half of the gradient within {found.side(0.5)} pixels around the middle, 95 % within "
            f"{found.side(0.95)}, of {shape[0]} x {shape[1]}"
        )
    inspect.draw_receptive_field(out, fields)


def attention(
    model: Name,
    *,
    out: Path,
    image: Path | None = None,
    decision: str = "best",
    size: int | None = None,
    seed: int = 0,
) -> None:
    """Draw which parts of a picture spoke for a class through a model's scans: their implicit attention.

    Examples:

      statescan inspect attention vmamba_tiny --out attention.png
      statescan inspect attention runs/flowers --image rose.jpg --decision 3 --out attention.png

    Args:
        model: folder of a checkpoint, or a name.
        out: the picture; its suffix says the format.
        image: a photograph; an astronaut of scikit-image unless given.
        decision: the number of the class that is asked about, or best.
        size: side of the image in pixels; that of the model's config unless given.
        seed: of random weights.
    """
    from statescan import inspect

    if decision != "best" and not decision.isdigit():
        raise ValueError(f"decision: the number of a class, or best, got {decision!r}")
    built, picture, note = _both(model, image, size, seed)
    found = inspect.draw_attention(out, built, picture, decision=decision, note=note)
    assert found.chosen is not None
    score = float(found.scores[found.chosen])
    print(
        f"{out}: class {found.chosen}, score {score:.3f}, {len(inspect.scan_layers(found))} layers{_left(found.unknown)}"
    )


def activation(
    model: Name,
    *,
    out: Path,
    image: Path | None = None,
    layer: int | None = None,
    cell: str | None = None,
    size: int | None = None,
    seed: int = 0,
) -> None:
    """Draw what the scans of one layer carry along their walks, and what a cell has read on the way.

    Examples:

      statescan inspect activation vmamba_tiny --out walks.png
      statescan inspect activation runs/flowers --image rose.jpg --layer 1 --cell 5,9 --out walks.png

    Args:
        model: folder of a checkpoint, or a name.
        out: the picture; its suffix says the format.
        image: a photograph; an astronaut of scikit-image unless given.
        layer: which, from 1; the first unless given, whose grid is the finest.
        cell: row,column of the marked cell, from 0; the middle one unless given.
        size: side of the image in pixels; that of the model's config unless given.
        seed: of random weights.
    """
    from statescan import inspect

    parts = cell.split(",") if cell is not None else []
    if cell is not None and (len(parts) != 2 or not all(part.strip().isdigit() for part in parts)):
        raise ValueError(f"cell: row,column such as 5,9, got {cell!r}")
    built, picture, note = _both(model, image, size, seed)
    place = (int(parts[0]), int(parts[1])) if parts else None
    found = inspect.draw_activation(out, built, picture, layer=layer, cell=place, note=note)
    print(f"{out}: {found.name}, {found.shape[0]} x {found.shape[1]} cells")


def time_steps(model: Name, *, out: Path, image: Path | None = None, size: int | None = None, seed: int = 0) -> None:
    """Draw the step sizes that a model's scans chose for a picture, layer by layer.

    Examples:

      statescan inspect time-steps vmamba_tiny --out steps.png

    Args:
        model: folder of a checkpoint, or a name.
        out: the picture; its suffix says the format.
        image: a photograph; an astronaut of scikit-image unless given.
        size: side of the image in pixels; that of the model's config unless given.
        seed: of random weights.
    """
    import torch

    from statescan import inspect

    built, picture, note = _both(model, image, size, seed)
    layers = inspect.draw_time_steps(out, built, picture, note=note)
    values = torch.cat([site.delta.flatten() for layer in layers for site in layer.sites])
    print(f"{out}: {len(layers)} layers, step sizes from {float(values.min()):.2g} to {float(values.max()):.2g}")


def _model(name: str, size: int | None, seed: int) -> tuple[Any, tuple[int, int], str]:
    """An image model, the shape of its images, and what is said of it."""
    from statescan import inspect, models
    from statescan.cli._encoders import model_of, tell_of_random_weights

    fields: dict[str, Any] = {}
    if size is not None and size < 1:
        raise ValueError(f"size: at least 1, got {size}")
    if size is not None and not Path(name).exists() and hasattr(models.model_info(name).config, "image_size"):
        fields["image_size"] = size
    model, fresh = model_of(name, seed=seed, **fields)
    if not inspect.reads_images(model):
        raise ValueError(f"MODEL: {name!r} reads no images; `statescan models` lists all")
    if fresh:
        tell_of_random_weights(name)
    shape = model.config.image_shape if size is None else (size, size)
    return model, shape, "random weights" if fresh else ""


def _both(name: str, image: Path | None, size: int | None, seed: int) -> tuple[Any, Any, str]:
    """An image model, a picture as it reads it, and what is said of them."""
    from statescan import inspect

    model, shape, note = _model(name, size, seed)
    picture = inspect.read_picture(image, shape, channels=model.config.in_channels)
    return model, picture, f"{Path(name).name}" + (f", {note}" if note else "")


def _left(unknown: list[str]) -> str:
    return f"; left out: {len(unknown)} scans in {', '.join(sorted(set(unknown)))}" if unknown else ""
