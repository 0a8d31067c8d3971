"""Read text with a trained model to find settings it was not trained with: thresholds for long prompts (`longmamba`), and
for early exits (`exits`).

examples:
  statescan calibrate longmamba runs/book --data book.txt --train-length 512
  statescan generate runs/book --prompt-file long.txt --long-context auto
  statescan calibrate exits runs/exits --data book.txt --quality 0.99
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def longmamba(
    model: Annotated[str, tyro.conf.Positional],
    *,
    data: tuple[str, ...],
    train_length: int,
    sequences: int = 100,
    clamp_top: float = 0.1,
    lengths: tuple[int, ...] = (),
    out: Path | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Find the thresholds below which channels of long memory pass tokens by, and write them beside the model.

    For instance:

      statescan calibrate longmamba runs/book --data book.txt --train-length 512

      statescan generate runs/book --prompt-file long.txt --long-context auto

    Args:
        model: folder or hub id of a model with Mamba or Mamba-2 layers.
        data: files, folders or glob patterns of text like that of the training.
        train_length: tokens of a training sequence.
        sequences: how many of them are read, spread over the text; fewer where there is less text.
        clamp_top: steps are clamped to the value of this share of the largest.
        lengths: lengths of prompts to find thresholds for; by default half the training length to 96 times it.
        out: file to write; by default longmamba.safetensors in the model's folder.
        tokenizer: folder or file of a tokenizer; by default the one beside the model, or bytes.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        json: print data instead of a table.
    """
    import torch

    from statescan import checkpoints, generation
    from statescan.cli import _language, _print
    from statescan.data import read_text

    if train_length < 1 or sequences < 1:
        raise ValueError(f"train-length, sequences: at least 1, got {train_length} and {sequences}")
    folder = checkpoints.locate(model)
    target = folder if out is None else out
    if not (target if target.is_dir() else target.parent).is_dir():
        raise FileNotFoundError(f"out: there is no folder {str(target.parent)!r}")
    loaded, chosen = _language.load(model, tokenizer, device=device)
    tokens = torch.tensor(chosen.encode("".join(piece.text for piece in read_text(data))))
    room = len(tokens) - train_length
    if room < 0:
        raise ValueError(f"data: {len(tokens)} tokens; calibration needs a training length of them, {train_length}")
    count = min(sequences, room // train_length + 1)
    starts = torch.linspace(0, room, count).long().tolist()
    table = generation.calibrate_long_context(
        loaded,
        [tokens[start : start + train_length] for start in starts],
        lengths=lengths or None,
        clamp_top=clamp_top,
        progress=True,
    )
    written = table.save(target)
    context = generation.LongContext(table)
    longest = table.lengths[-1]
    rows = []
    for name, channels in table.mixers["average"].items():
        found = context.thresholds(name, longest)
        kept = channels.share[-1]
        filtered = torch.zeros(0) if found is None else kept[found >= 0]
        share = f"{float(filtered.mean()):.3f}" if filtered.numel() else "-"
        rows.append((name, len(channels.budget), filtered.numel(), share))
    if json:
        names = ("mixer", "channels", "global", "kept")
        listed = [dict(zip(names, row, strict=True)) for row in rows]
        _print.as_json({"file": str(written), "sequences": count, "longest": longest, "mixers": listed})
        return
    heading = ("mixer", "channels", "global", f"kept at {longest:,} tokens")
    _print.table(
        f"{written}, {count} sequences of {train_length:,} tokens", heading, [tuple(map(str, r)) for r in rows]
    )


def exits(
    model: Annotated[str, tyro.conf.Positional],
    *,
    data: tuple[str, ...],
    quality: float = 0.98,
    length: int = 128,
    prompt: int = 16,
    sequences: int = 16,
    thresholds: tuple[float, ...] = (),
    tokenizer: str | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Find the thresholds at which a model with exits saves most and still gives the tokens it gives without.

    They are written into the exits' file, and the curve of the trade is drawn beside it.

    For instance:

      statescan calibrate exits runs/exits --data book.txt --quality 0.99

      statescan generate runs/exits --prompt "In the beginning" --exits auto

    Args:
        model: folder of a model with exits beside it (`statescan train exits`).
        data: files, folders or glob patterns of text that the exits were not trained on.
        quality: share of tokens that shall be those of the whole model.
        length: tokens of a sequence.
        prompt: how many of them are read through all blocks first.
        sequences: how many sequences are read, spread over the text; fewer where there is less text.
        thresholds: those to try; by default some from 0.1 to 1.
        tokenizer: folder or file of a tokenizer; by default the one beside the model, or bytes.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        json: print data instead of a table.
    """
    import torch

    from statescan import checkpoints, generation, tasks
    from statescan.cli import _language, _print
    from statescan.data import read_text

    if length < 2 or sequences < 1:
        raise ValueError(f"length, sequences: at least 2 and 1, got {length} and {sequences}")
    folder = checkpoints.locate(model)
    loaded, chosen = _language.load(model, tokenizer, device=device)
    made = generation.EarlyExit.load(loaded, folder)
    tokens = torch.tensor(chosen.encode("".join(piece.text for piece in read_text(data))))
    room = len(tokens) - length
    if room < 0:
        raise ValueError(f"data: {len(tokens)} tokens; calibration needs a sequence of them, {length}")
    starts = torch.linspace(0, room, min(sequences, room // length + 1)).long().tolist()
    best, points = generation.calibrate_exits(
        made,
        [tokens[start : start + length] for start in starts],
        quality=quality,
        thresholds=thresholds or None,
        prompt=prompt,
        progress=True,
    )
    written = made.save(folder)
    picture = tasks.draw_exits(written.with_suffix(".png"), {made.exits.kind: points}, quality=quality)
    if json:
        measured = [
            {"threshold": p.thresholds[0], "saved_blocks": p.saved, "agreement": p.agreement, "tokens": p.tokens}
            for p in points
        ]
        found = {"file": str(written), "picture": picture, "threshold": best.thresholds[0], "points": measured}
        _print.as_json(found)
        return
    rows = [
        (f"{p.thresholds[0]:g}", f"{p.saved:.1%}", f"{p.agreement:.2%}", "chosen" if p is best else "") for p in points
    ]
    _print.table(f"{written}, {best.tokens:,} tokens", ("threshold", "blocks saved", "agreement", ""), rows)


COMMANDS = {"longmamba": longmamba, "exits": exits}
