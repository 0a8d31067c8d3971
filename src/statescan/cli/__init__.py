"""The command line: `statescan COMMAND …`. One thin file a command, found by name and imported on use.

How a command plugs in: a file ``cli/NAME.py`` with a docstring (its first line is the summary in ``statescan --help``), and

* either a function ``run(...)`` whose annotated arguments are the flags (its docstring is the help), or
* a dictionary ``COMMANDS`` of such functions for sub-commands (``statescan train language``).

`tyro` turns signatures and dataclasses into flags. A command parses, calls and prints; what it does lives in another room.
Whatever it raises as ValueError, TypeError, OSError or ModuleNotFoundError is the user's to mend: one line on standard error
and exit status 2. Set ``STATESCAN_TRACEBACK=1`` to see where it came from.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: Packages that come with an extra of ours.
_EXTRAS = {
    "pytorch_lightning": "train",
    "matplotlib": "train",
    "transformers": "hf",
    "lm_eval": "eval",
    "datasets": "eval",
    "gymnasium": "rl",
    "scipy": "signals",
    "h5py": "signals",
    "spectral": "signals",
    "wfdb": "signals",
    "kornia": "images",
    "PIL": "images",
    "skimage": "images",
    "torchmetrics": "images",
    "faiss": "retrieval",
    "pytrec_eval": "retrieval",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
}

_USAGE = """usage: statescan COMMAND [OPTIONS]

State-space models: train, load, generate, evaluate, inspect.

commands:
{commands}

examples:
  statescan models "mamba*"
  statescan train language --data book.txt --model mamba_tiny --out runs/book
  statescan generate runs/book --prompt "In the beginning"
  statescan info mamba_130m --length 2048

`statescan COMMAND --help` tells more; `statescan completion bash` prints shell completion.
"""


def commands() -> dict[str, str]:
    """Names of the commands and their one-line summaries, read without importing them."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem.replace("_", "-")] = docstring.splitlines()[0] if docstring else ""
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    known = commands()
    if not given or given[0] in ("-h", "--help", "help"):
        width = max(map(len, known))
        print(_USAGE.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in known.items())))
        return 0
    if given[0] in ("-V", "--version"):
        from statescan import __version__

        print(f"statescan {__version__}")
        return 0
    name, rest = given[0], given[1:]
    if name not in known:
        from statescan.cli import _parse

        return _fail(_parse.unknown("command", name, list(known)))
    try:
        module = importlib.import_module(f"statescan.cli.{name.replace('-', '_')}")
        return int(_call(module, f"statescan {name}", rest) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("STATESCAN_TRACEBACK"):
            raise
        return _fail(_one_line(error))


def _call(module: Any, program: str, arguments: list[str]) -> Any:
    from statescan.cli import _parse

    if not hasattr(module, "COMMANDS"):
        return _parse.parse(module.run, program, arguments)()
    table: dict[str, Callable[..., Any]] = module.COMMANDS
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, table))
        lines = [f"usage: {program} SUBCOMMAND [OPTIONS]", "", (module.__doc__ or "").strip(), "", "subcommands:"]
        for name, function in table.items():
            lines.append(f"  {name:<{width}}  {(function.__doc__ or '').strip().splitlines()[0]}")
        print("\n".join(lines))
        return 0
    name = arguments[0]
    if name not in table:
        raise ValueError(_parse.unknown("subcommand", name, list(table)))
    return _parse.parse(table[name], f"{program} {name}", arguments[1:])()


def _one_line(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = _EXTRAS.get(error.name.partition(".")[0])
        remedy = f"pip install 'statescan[{extra}]'" if extra else f"pip install {error.name}"
        return f"this command needs the package {error.name!r}; {remedy}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str) -> int:
    print(f"statescan: {message}", file=sys.stderr)
    return 2
