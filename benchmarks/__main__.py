"""Every benchmark of `make bench`, one after the other, each in a process of its own.

python -m benchmarks            # all
python -m benchmarks NAME ...   # some of them, such as operators or training_step

Each prints its tables, with its targets where it has some. ``python -m benchmarks.NAME --help`` tells a benchmark's options.
The decode engine and the contexts are compared with llama.cpp, and their results written, where the environment variable
``LLAMA_PYTHON`` names a Python that has `llama-cpp-python`.
"""

import argparse
import os
import subprocess
import sys

#: By name: what each is called with.
BENCHMARKS: dict[str, list[str]] = {
    "selective_scan": [],
    "operators": [],
    "structured_speed": [],
    "generation_step": [],
    "structured_matrices": [],
    "decode_engine": ["--transformers", *([] if os.environ.get("LLAMA_PYTHON") else ["--no-save"])],
    "contexts": [] if os.environ.get("LLAMA_PYTHON") else ["--no-save"],
    "training_step": [],
    "scaling": [],
    "images": ["--quick"],
}


def main() -> int:
    """Run them; the exit status is that of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    names = parser.parse_args().names
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r} here; there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}", *BENCHMARKS[name]]
        print(f"\n$ python {' '.join(command[1:])}", flush=True)
        status = subprocess.run(command, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
