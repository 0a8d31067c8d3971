"""How fast a model runs on this machine."""

from __future__ import annotations

from typing import Annotated

import tyro


def run(
    name: Annotated[tuple[str, ...], tyro.conf.Positional],
    *,
    length: int = 1024,
    batch: int = 1,
    repeats: int = 3,
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Time named models with random weights, side by side: training, prefill, generation.

    Examples:

      statescan bench mamba_tiny transformer_tiny --length 4096

    Args:
        name: one or more of `statescan models`.
        length: tokens a sequence.
        batch: sequences.
        repeats: how often each is run; medians are printed.
        threads: threads to use; by default torch's choice.
        json: print data instead of a table.
    """
    import dataclasses

    import torch

    from statescan import inspect
    from statescan.cli import _print

    if not name:
        raise ValueError("name: give one or more models; `statescan models` lists all")
    if threads is not None:
        torch.set_num_threads(threads)
    measured = {one: inspect.measure_speed(one, length=length, batch=batch, repeats=repeats) for one in name}
    if json:
        _print.as_json({one: dataclasses.asdict(speed) for one, speed in measured.items()})
        return
    rows = [
        (
            one,
            f"{speed.training_tokens_per_second:,.0f}",
            f"{speed.prefill_tokens_per_second:,.0f}",
            f"{speed.generation_tokens_per_second:,.0f}",
            f"{speed.state_bytes:,}",
        )
        for one, speed in measured.items()
    ]
    columns = ("model", "training, tokens/s", "prefill, tokens/s", "generation, tokens/s", "state, bytes")
    _print.table(f"{batch} x {length} tokens, {torch.get_num_threads()} threads", columns, rows)
