"""Compile every Triton kernel that some calls launch, for a GPU that need not be there.

Run as a program, not in Triton's interpreter: ``python -m tests.kernels._ahead_of_time [OPERATOR...]``. The calls are
made with launches recorded instead of run, and each distinct one is compiled to machine code for compute capability
9.0. Prints a line a kernel: its registers' worth of trouble is for the reader, a failure to compile is an error.
"""

from __future__ import annotations

import inspect

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def record() -> list[tuple[JITFunction, tuple, dict]]:
    """From now on launches are recorded in the list returned, and nothing runs."""
    launches = []

    def run(self, *args, grid, warmup, **kwargs):
        launches.append((self, args, kwargs))

    JITFunction.run = run
    return launches


def source(kernel: JITFunction, args: tuple, kwargs: dict) -> tuple[ASTSource, dict]:
    """What Triton would compile for this launch: types, constants, and which values 16 divides."""
    kwargs = dict(kwargs)
    options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
    signature, constants, divisible = {}, {}, []
    for index, parameter in enumerate(kernel.params):
        value, name = bound[parameter.name], parameter.name
        fixed = parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            divisible.append(index)
        elif parameter.is_constexpr or value is None or (value == 1 and not fixed and not isinstance(value, float)):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not fixed:
                divisible.append(index)
    if "constants" in inspect.signature(ASTSource).parameters:  # Triton 3.2
        signature = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        return ASTSource(kernel, signature, constants), options
    attributes = {(index,): [["tt.divisibility", 16]] for index in divisible}
    return ASTSource(kernel, signature, constants, attributes), options


def compile_all(launches: list) -> list[tuple[str, object]]:
    compiled = {}
    for kernel, args, kwargs in launches:
        program, options = source(kernel, args, kwargs)
        key = (kernel.__name__, str(program.signature), str(program.constants), str(program.attrs), str(options))
        if key not in compiled:
            compiled[key] = triton.compile(program, target=TARGET, options=options)
    return [(key[0], binary) for key, binary in compiled.items()]
