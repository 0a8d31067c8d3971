"""Every Triton kernel compiles to machine code of a GPU, on a machine that has none."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("extent", ["some", pytest.param("--every", marks=pytest.mark.slow)])
def test_kernels_compile_for_a_gpu(extent, tmp_path):
    pytest.importorskip("triton")
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels._ahead_of_time", extent],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for kernel in (
        "outputs",
        "input_gradients",
        "chunk_states",
        "step_kernel",
        "vandermonde_products",
        "cauchy_gradients",
    ):
        assert f"{kernel}: " in result.stdout
