"""The example under torchrun: two processes lose what one does."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "sequence_parallel.py"
SMALL = ["--steps", "3", "--length", "33", "--set", "dim=16", "depth=2", "state_dim=4"]


def losses(launcher, *options):
    command = [sys.executable, *launcher, str(EXAMPLE), *SMALL, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [float(number) for number in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(found) == 3
    return found


def test_losses_do_not_depend_on_the_processes():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone = losses([])
    assert alone[2] < alone[0]
    for options in ([], ["--shard"], ["--parts", "1"]):
        for one, two in zip(alone, losses(torchrun, *options), strict=True):
            assert abs(one - two) < 2e-4, options
