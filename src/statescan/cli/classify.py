"""Classify with a trained run: every pixel of a hyperspectral cube (`cube`), an electrocardiogram of any length (`record`).

examples:
  statescan classify cube runs/pavia --data Other.mat --out other.png
  statescan classify record runs/ecg --data holter/100
  statescan classify record runs/ecg --data holter/100 --out parts.csv --json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def cube(
    run: Annotated[str, tyro.conf.Positional],
    *,
    data: str,
    out: Path,
    variable: str | None = None,
    drop_bands: tuple[int, ...] = (),
    batch: int = 512,
    progress: bool = True,
) -> None:
    """Classify every pixel of a cube, and draw the map; beside the picture the labels go to a .npy file.

    For instance:

      statescan classify cube runs/pavia --data Other.mat --out other.png

    Args:
        run: folder that `train hyperspectral` left.
        data: the cube (rows, columns, bands): a .mat, .npy or ENVI .hdr file, of as many bands as the one learnt from.
        out: the picture; its suffix says the format.
        variable: name of the cube in a .mat file that holds several.
        drop_bands: bands to leave out, counted from 0.
        batch: pixels at a time.
        progress: show a bar on a terminal.
    """
    import dataclasses

    import numpy as np

    from statescan.cli import _print
    from statescan.data import read_cube
    from statescan.tasks import classify_cube, draw_map

    read = read_cube(data, variable=variable, drop_bands=drop_bands)
    found, classes = classify_cube(run, read, batch=batch, progress=progress)
    labels = out.with_suffix(".npy")
    np.save(labels, found)
    drawn = draw_map(out, dataclasses.replace(read, classes=classes), found)
    counts = np.bincount(found.ravel(), minlength=len(classes) + 1)[1:]
    rows = [(name, f"{count:,}", f"{count / found.size:.1%}") for name, count in zip(classes, counts, strict=True)]
    _print.table(f"{drawn or 'no picture without matplotlib'}, {labels}", ("class", "pixels", "part"), rows)


def record(
    run: Annotated[str, tyro.conf.Positional], *, data: str, out: Path | None = None, json: bool = False
) -> None:
    """Read one record of any length in constant memory, and say what it shows.

    For instance:

      statescan classify record runs/ecg --data holter/100 --out parts.csv

    Args:
        run: folder that `train records` left.
        data: the record's files, with or without .hea.
        out: a .csv file for the probabilities of each part.
        json: print data instead of a table.
    """
    from statescan.cli import _print
    from statescan.tasks import classify_record

    found = classify_record(run, data)
    if out is not None:
        lines = [",".join(["seconds", *found.classes])]
        lines += [
            ",".join([f"{time:g}", *(f"{value:.6f}" for value in part)])
            for time, part in zip(found.times, found.parts, strict=True)
        ]
        out.write_text("\n".join(lines) + "\n")
    if json:
        probabilities = dict(zip(found.classes, found.probabilities, strict=True))
        _print.as_json(
            {
                "answers": list(found.answers),
                "probabilities": probabilities,
                "parts": len(found.times),
                "held_bytes": found.held_bytes,
            }
        )
        return
    rows = [
        (name, f"{probability:.3f}", "yes" if name in found.answers else "no")
        for name, probability in zip(found.classes, found.probabilities, strict=True)
    ]
    _print.table(
        f"{data}: {len(found.times)} parts, {found.held_bytes:,} bytes carried",
        ("class", "probability", "answer"),
        rows,
    )


COMMANDS = {"cube": cube, "record": record}
