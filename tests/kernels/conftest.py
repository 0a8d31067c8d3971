"""Where Triton kernels run: in the interpreter on a machine without a GPU, compiled on one with a GPU."""

import os

import pytest
import torch

from statescan import ops
from tests.kernels._interpreter import quicken
from tests.ops.conftest import _poisoned_memory  # noqa: F401 - what is not written must not pass for a result

if os.environ.get("TRITON_INTERPRET") == "1":
    quicken()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """A device on which Triton is pinned: forward and backward fail rather than run anything else."""
    pytest.importorskip("triton")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if request.param == "cpu" and not interpreted:
        pytest.skip("TRITON_INTERPRET is not 1: kernels are compiled, for the GPU")
    if request.param == "cuda" and (interpreted or not torch.cuda.is_available()):
        pytest.skip("there is no CUDA device, or TRITON_INTERPRET is 1")
    with ops.backend("triton"):
        yield torch.device(request.param)
