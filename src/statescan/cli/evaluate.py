"""Measure models: bits per byte of a text (`language`), tasks of the LM Evaluation Harness (`lm-eval`), images
(`classification`).

examples:
  statescan evaluate language runs/book --data held_out.txt
  statescan evaluate language runs/book --data "notes/*.md" --mode strided --window 512 --json
  statescan evaluate lm-eval runs/book --tasks lambada_openai piqa --limit 100
  statescan evaluate lm-eval runs/book --tasks my_task --include-path my_tasks
  statescan evaluate classification runs/photos --data other_photos
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


def language(
    model: Annotated[str, tyro.conf.Positional],
    *,
    data: tuple[str, ...],
    tokenizer: str | None = None,
    mode: Literal["stateful", "strided"] = "stateful",
    window: int = 1024,
    stride: int | None = None,
    chunk: int = 2048,
    batch_size: int = 8,
    long_context: str | None = None,
    decay_threshold: float = 0.05,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Print the bits per byte and the perplexity of text.

    For instance:

      statescan evaluate language runs/book --data held_out.txt

      statescan evaluate language runs/book --data "notes/*.md" --mode strided --window 512 --json

    Args:
        model: folder, file or hub id of a model.
        data: files, folders or glob patterns of text; they are read one after the other.
        tokenizer: folder or file of a tokenizer; by default the one beside the model, or bytes.
        mode: one pass with the state carried on, or overlapping windows.
        window: tokens of a window (strided).
        stride: tokens by which windows move on; by default half a window.
        chunk: tokens read at a time (stateful).
        batch_size: windows read at a time (strided).
        long_context: filter tokens as for a text far beyond the training length: auto for the calibration beside the
            model (`statescan calibrate longmamba`), or its file.
        decay_threshold: with it, channels are filtered of whose state more than this is left after the training length.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        json: print data instead of a table.
    """
    from statescan import tasks
    from statescan.cli import _language, _print
    from statescan.data import read_text

    text = "".join(piece.text for piece in read_text(data))
    loaded, chosen = _language.load(model, tokenizer, device=device)
    score = tasks.evaluate_language(
        loaded,
        text,
        tokenizer=chosen,
        mode=mode,
        window=window,
        stride=stride,
        chunk=chunk,
        batch_size=batch_size,
        long_context=_language.long_context(long_context, model, decay_threshold=decay_threshold),
        progress=True,
    )
    if json:
        _print.as_json({"model": model, "data": list(data), "mode": mode, **score.as_dict()})
        return
    rows = [
        ("bits per byte", f"{score.bits_per_byte:.4f}"),
        ("perplexity of a token", f"{score.perplexity:.4f}"),
        ("tokens scored", f"{score.tokens:,}"),
        ("bytes scored", f"{score.bytes:,}"),
        ("tokens a second", f"{score.tokens / score.seconds:,.0f}"),
    ]
    _print.table(f"{model}, {mode}", ("what", "result"), rows)


def lm_eval(
    model: Annotated[str, tyro.conf.Positional],
    *,
    tasks: tuple[str, ...],
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
    tokenizer: str | None = None,
    batch_size: int = 8,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Run tasks of the LM Evaluation Harness.

    For instance:

      statescan evaluate lm-eval runs/book --tasks lambada_openai piqa --limit 100

      statescan evaluate lm-eval runs/book --tasks my_task --include-path my_tasks

    Args:
        model: folder, file or hub id of a model.
        tasks: names of tasks or groups.
        include_path: a folder with further task files.
        num_fewshot: examples shown before each question; by default what the task says.
        limit: questions of each task; below 1, a fraction of them.
        tokenizer: folder or file of a tokenizer; by default the one beside the model, or bytes.
        batch_size: requests at a time.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        json: print data instead of a table.
    """
    from statescan.cli import _print
    from statescan.tasks.lm_eval import evaluate_tasks

    if include_path is not None and not include_path.is_dir():
        raise FileNotFoundError(f"include-path: there is no folder {str(include_path)!r}")
    results = evaluate_tasks(
        model,
        tasks,
        tokenizer=tokenizer,
        include_path=None if include_path is None else str(include_path),
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        device=device,
    )["results"]
    if json:
        _print.as_json({"model": model, "results": results})
        return
    _print.table(model, ("task", "measure", "value", "± standard error"), _rows(results))


def _rows(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """A row a measure of the harness's results, whose keys are "measure,filter" and "measure_stderr,filter"."""
    rows = []
    for task, measures in results.items():
        for key, value in measures.items():
            measure, _, chosen = key.partition(",")
            if not isinstance(value, int | float) or measure.endswith("_stderr") or not chosen:
                continue
            error = measures.get(f"{measure}_stderr,{chosen}")
            known = isinstance(error, int | float) and not math.isnan(error)
            name = measure if chosen == "none" else f"{measure} ({chosen})"
            rows.append((task, name, f"{value:.4f}", f"{error:.4f}" if known else ""))
    return rows


def classification(
    model: Annotated[str, tyro.conf.Positional],
    *,
    data: str,
    labels: Path | None = None,
    part: Literal["train", "validation", "test", "all"] | None = None,
    strict: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    device: str | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Print how well an image model names images: of all, of each class, and which classes it takes for which.

    For instance:

      statescan evaluate classification runs/photos --data other_photos

    Args:
        model: folder or hub id of a trained image model.
        data: a folder of images, a name, or datasets:NAME, as in training.
        labels: a .csv file of labels, as in training.
        part: of the data; by default the test's where the data are divided, else all.
        strict: an image that cannot be read is an error; else it is named, counted and left out.
        batch_size: images at a time.
        workers: processes that read images.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        out: a folder for the figures: evaluation.json, evaluation_classes.csv, confusion.csv.
        json: print data instead of tables.
    """
    from statescan.cli import _images, _print
    from statescan.data import images_to_try
    from statescan.models import compile_for_inference
    from statescan.tasks.classification import say_skipped, write_scores
    from statescan.tasks.image_scores import score_images

    loaded, preparation = _images.load(model, device=device)
    loaded = compile_for_inference(loaded, in_place=True)
    images, skipped = images_to_try(data, preparation.classes, part=part, labels=labels, strict=strict)
    say_skipped(skipped)
    score = score_images(loaded, preparation, images, batch_size=batch_size, workers=workers)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_scores(out, score, prefix="evaluation")
    if json:
        _print.as_json({"model": model, "data": data, "skipped": len(skipped), **score.as_dict()})
        return
    rows = [(name.replace("_", " "), f"{value:.4f}") for name, value in score.numbers.items()]
    rows += [("images", f"{score.images:,}"), ("images a second", f"{score.images / score.seconds:,.1f}")]
    _print.table(f"{model}, {data}", ("what", "result"), rows)
    heads = list(score.classes[0])
    lines = [[_cell(value) for value in row.values()] for row in score.classes]
    _print.table("each class", heads, lines)
    if score.confusion is not None and len(score.confusion) <= 20:
        names = [row["name"] for row in score.classes]
        table = [[name, *row] for name, row in zip(names, score.confusion, strict=True)]
        _print.table("images of (row) taken for (column)", ["", *names], table)


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else value


COMMANDS = {"language": language, "lm-eval": lm_eval, "classification": classification}
