"""python -m benchmarks: every benchmark of operators, one after the other, each in a process of its own."""

import importlib.util
import subprocess
import sys

MODULES = ("selective_scan", "operators", "structured_speed", "generation_step", "structured_matrices")

for module in MODULES:
    if importlib.util.find_spec(f"benchmarks.{module}"):
        status = subprocess.run([sys.executable, "-m", f"benchmarks.{module}"], check=False).returncode
        if status:
            sys.exit(status)
