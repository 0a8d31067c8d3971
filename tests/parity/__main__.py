"""``python -m tests.parity PATH…``: run parity fixtures and print a line each and the totals."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections import Counter

from tests.parity._fixture import find
from tests.parity._run import run


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if all fixtures passed, 1 if not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity",
        description="Does our model compute what the published code computes? Runs fixtures, a line each.",
        epilog="example: python -m tests.parity ../shared/parity --only 'mamba2__*' --backend cpu",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="fixtures (json files) or folders of them")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names to run, as a shell pattern")
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "reference", "cpu", "triton"),
        help="which implementation of the operators; a pinned one never falls back",
    )
    options = parser.parse_args(arguments)
    try:
        paths = [path for path in find(options.paths) if fnmatch.fnmatch(path.stem, options.only)]
    except FileNotFoundError as error:
        parser.error(str(error))
    if not paths:
        parser.error(f"no fixture matches {options.only!r} in {', '.join(options.paths)}")
    totals: Counter[str] = Counter()
    for path in paths:
        result = run(path, backend=options.backend)
        totals[result.verdict] += 1
        print(result, flush=True)
    print(f"\n{len(paths)} fixtures: " + ", ".join(f"{totals[v]} {v}" for v in ("pass", "fail", "no adapter")))
    return 0 if totals["pass"] == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main())
