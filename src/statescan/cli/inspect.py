"""Look inside systems: pictures of memories, routes and image models, and how alike two encoders see."""

from __future__ import annotations

from pathlib import Path

from statescan.cli._alignment import alignment
from statescan.cli._memory import memory
from statescan.cli._pictures import activation, attention, receptive_field, time_steps
from statescan.cli._scaling import scaling


def hippo(*, measure: str = "legs", out: Path, state_dim: int = 64, length: int = 2000, seed: int = 0) -> None:
    """Draw what a HiPPO memory remembers: a signal, the signal read back from its coefficients, and the measure.

    Examples:

      statescan inspect hippo --measure legs --out picture.png

    Args:
        measure: legs, legt or fout.
        out: the picture; its suffix says the format.
        state_dim: coefficients.
        length: samples of the signal.
        seed: of the signal.
    """
    from statescan import inspect

    found = inspect.draw_memory(out, measure, state_dim=state_dim, length=length, seed=seed)
    print(f"{out}: relative error under the measure {found.error:.2%}")


def route(*, route: str | None = None, size: str = "8x8", out: Path | None = None, list: bool = False) -> None:
    """Show in which order a route walks a grid: as a picture, or without --out as numbers on the terminal.

    Examples:

      statescan inspect route --list
      statescan inspect route --route snake --size 8x8 --out route.png

    Args:
        route: its name, with numbers where the list has a capital N.
        size: rows x columns.
        out: the picture, a panel a walk; its suffix says the format.
        list: print the names of all routes.
    """
    from statescan import inspect, routes

    if list:
        print("\n".join([*routes.names(), *routes.patterns()]))
        return
    if route is None:
        raise ValueError("--route: which one? `statescan inspect route --list` prints their names")
    height, width = inspect.parse_size(size)
    if out is None:
        print(inspect.route_text(route, height, width))
        return
    inspect.draw_route(out, route, height, width)
    found = routes.get(route)
    print(f"{out}: {found.walks} {'walk' if found.walks == 1 else 'walks'} over {height} x {width} cells")


def pruning(
    model: str,
    *,
    prune_after: tuple[int, ...] = (),
    keep_ratio: float = 0.8,
    size: int | None = None,
) -> None:
    """Show what a plain image backbone costs whole and with tokens dropped: tokens of its blocks, operations.

    Examples:

      statescan inspect pruning --model vim_small --prune-after 5 10 15 --keep-ratio 0.8

    Args:
        model: name of a backbone of one resolution.
        prune_after: blocks after which tokens are dropped, counted from 1; at each quarter of the depth unless given.
        keep_ratio: part of the patches still there that is kept at each place.
        size: side of the images in pixels; that of the model's config unless given.
    """
    from statescan import inspect
    from statescan.cli import _print

    whole, pruned = inspect.pruning_costs(model, prune_after or None, keep_ratio, size=size)
    rows = []
    for what, before, after in (
        ("tokens of all blocks", sum(whole.tokens), sum(pruned.tokens)),
        ("tokens of the last block", whole.tokens[-1], pruned.tokens[-1]),
        ("multiply-adds", whole.cost.multiply_adds, pruned.cost.multiply_adds),
        ("operations of scans", whole.cost.scan_operations, pruned.cost.scan_operations),
    ):
        rows.append((what, f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}" if before else ""))
    _print.table(f"{model}, tokens dropped", ("what", "whole", "pruned", "fewer"), rows)
    print("tokens by block: " + " ".join(map(str, pruned.tokens)))


COMMANDS = {
    "hippo": hippo,
    "route": route,
    "pruning": pruning,
    "scaling": scaling,
    "alignment": alignment,
    "receptive-field": receptive_field,
    "attention": attention,
    "activation": activation,
    "time-steps": time_steps,
    "memory": memory,
}
