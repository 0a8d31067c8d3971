"""How well an image model names images: accuracy of all and of each class, confusions, AUROC and AUPRC, speed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from statescan.data import ImageBatches, LabelledImages
from statescan.tasks._image_preparation import ImagePreparation


@dataclass(frozen=True)
class ImageScore:
    """What a model came to on labelled images.

    Fields:
        numbers: of all images: ``accuracy``, ``top_5`` (with more than five classes), ``balanced_accuracy``, ``f1`` (mean
            over classes) and ``loss``; where an image can show several classes ``auroc``, ``auprc``, ``f1`` and ``loss``,
            means over the classes that some images show and others do not.
        classes: for each class its ``name``, ``images``, ``recall`` (its accuracy), ``precision`` and ``f1``; or ``auroc``,
            ``auprc`` and ``f1``. None where there was nothing to measure.
        confusion: [i][j]: how many images of class i were taken for class j; None with several classes an image.
        images: how many were seen.
        seconds: that took, reading included.
    """

    numbers: dict[str, float]
    classes: list[dict[str, Any]]
    confusion: list[list[int]] | None
    images: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data, and images a second."""
        return {
            **self.numbers,
            "images": self.images,
            "images_per_second": self.images / self.seconds,
            "classes": self.classes,
            "confusion": self.confusion,
        }


def score_images(
    model: Any,
    preparation: ImagePreparation,
    images: LabelledImages,
    *,
    batch_size: int = 32,
    workers: int = 0,
) -> ImageScore:
    """Try a model on labelled images.

    Arguments:
        model: an image classifier; put into evaluation mode.
        preparation: how images are brought to it.
        images: with the model's classes.
        batch_size: images at a time.
        workers: processes that read images.

    Raises:
        ValueError: no images, or scores that are not finite.
    """
    if not len(images):
        raise ValueError("images: there are none to try the model on")
    if images.multilabel != preparation.multilabel:
        one, several = "one class an image", "several classes an image"
        raise ValueError(
            f"data: labelled with {several if images.multilabel else one}, the model learnt "
            f"{several if preparation.multilabel else one}; give a table of labels of that kind"
        )
    began = time.perf_counter()
    scores = torch.cat([s for s, _ in class_scores(model, preparation, images, batch_size=batch_size, workers=workers)])
    seconds = time.perf_counter() - began
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("model: it gave scores that are not finite; were its weights trained to the end?")
    rate: Any = _several if images.multilabel else _one
    numbers, classes, confusion = rate(scores, images)
    return ImageScore(numbers, classes, confusion, len(images), seconds)


@torch.no_grad()
def class_scores(
    model: Any, preparation: ImagePreparation, images: LabelledImages, *, batch_size: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores before the softmax, (batch, classes), and targets, batch by batch, on the CPU."""
    model.eval()
    batches = ImageBatches(images, preparation.views, channels=preparation.channels, batch_size=batch_size, once=True)
    for batch in DataLoader(batches, batch_size=None, collate_fn=vars, num_workers=workers):
        outputs = model(preparation.apply(batch["images"].to(model.device)))
        yield outputs.float().cpu(), batch["targets"]


def _one(scores: Tensor, images: LabelledImages) -> tuple[dict[str, float], list[dict[str, Any]], list[list[int]]]:
    from torchmetrics.functional import classification as metrics

    targets, count = images.targets, len(images.classes)
    options: dict[str, Any] = {"num_classes": count, "validate_args": False}
    confusion = metrics.multiclass_confusion_matrix(scores, targets, **options)
    recall = metrics.multiclass_recall(scores, targets, average="none", **options)
    precision = metrics.multiclass_precision(scores, targets, average="none", **options)
    f1 = metrics.multiclass_f1_score(scores, targets, average="none", **options)
    there = images.counts > 0
    numbers = {"accuracy": float(metrics.multiclass_accuracy(scores, targets, average="micro", **options))}
    if count > 5:
        numbers["top_5"] = float(metrics.multiclass_accuracy(scores, targets, average="micro", top_k=5, **options))
    numbers["balanced_accuracy"] = float(recall[there].mean())
    numbers["f1"] = float(f1[there].mean())
    numbers["loss"] = float(torch.nn.functional.cross_entropy(scores, targets))
    rows = [
        {
            "name": name,
            "images": int(images.counts[i]),
            "recall": float(recall[i]) if there[i] else None,
            "precision": float(precision[i]) if confusion[:, i].sum() else None,
            "f1": float(f1[i]) if there[i] else None,
        }
        for i, name in enumerate(images.classes)
    ]
    return numbers, rows, confusion.tolist()


def _several(scores: Tensor, images: LabelledImages) -> tuple[dict[str, float], list[dict[str, Any]], None]:
    from torchmetrics.functional import classification as metrics

    targets = images.targets.long()
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(images.classes):
        shown = int(targets[:, i].sum())
        row: dict[str, Any] = {"name": name, "images": shown, "auroc": None, "auprc": None, "f1": None}
        if 0 < shown < len(targets):
            column = scores[:, i].sigmoid(), targets[:, i]
            row |= {
                "auroc": float(metrics.binary_auroc(*column)),
                "auprc": float(metrics.binary_average_precision(*column)),
                "f1": float(metrics.binary_f1_score(*column)),
            }
        rows.append(row)
    numbers = {name: _mean([row[name] for row in rows]) for name in ("auroc", "auprc", "f1")}
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, images.targets.float())
    return numbers | {"loss": float(loss)}, rows, None


def _mean(values: list[float | None]) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else math.nan
