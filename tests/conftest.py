"""What all tests share: seeds, hypothesis without clocks, Triton's interpreter where there is no GPU."""

import os
import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

settings.register_profile(
    "statescan",
    deadline=None,  # the first call of an operator compiles or loads it
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("statescan")


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - some published generators draw from the global state
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:  # what other tests compiled would make sizes symbols in this one
        torch.compiler.reset()
