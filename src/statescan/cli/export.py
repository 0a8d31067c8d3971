"""Write a trained image model as a program: ONNX, or a file of torch.export.

examples:
  statescan export runs/photos --out photos.onnx
  statescan export runs/photos --out photos.pt2 --batch 1
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    out: Path,
    batch: int | None = None,
    plain: bool = False,
    json: bool = False,
) -> None:
    """Write a trained image model as a program, run it again and compare its outputs with the model's.

    For instance:

      statescan export runs/photos --out photos.onnx

    Args:
        model: folder or hub id of a trained image model.
        out: the file; its ending, .onnx or .pt2, says what it is.
        batch: images that the program takes at a time; by default any number.
        plain: of .pt2, in torch's own operators alone: runs where this library is not installed, but slower.
        json: print data instead of a table.
    """
    import dataclasses

    from statescan.bridges.export import export_model
    from statescan.cli import _images, _print

    loaded, preparation = _images.load(model, device="cpu")
    found = export_model(loaded, out, batch=batch, plain=plain)
    preparation.save(out.parent, name=f"{out.stem}.images.json")
    if json:
        _print.as_json(dataclasses.asdict(found))
        return
    shape = " x ".join(map(str, found.shape if batch is not None else ("any", *found.shape[1:])))
    rows = [
        ("file", found.path),
        ("megabytes", f"{found.bytes / 1e6:.1f}"),
        ("images", f"{shape}, normalised as {out.stem}.images.json says"),
        ("largest difference", f"{found.difference:.3g} of outputs up to {found.largest:.3g}"),
    ]
    _print.table(f"{model} as {found.kind}, run again and compared", ("what", "result"), rows)
