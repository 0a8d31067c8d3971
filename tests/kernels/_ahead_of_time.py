"""Compile every Triton kernel that some calls launch, for a GPU that need not be there.

Run as a program, not in Triton's interpreter: ``python -m tests.kernels._ahead_of_time [--every]``. Operators are called
with launches recorded instead of run, once each in every way that there is to choose from, and each distinct launch is
compiled to machine code for compute capability 9.0.
Prints a line a kernel; a kernel that does not compile, or wants more shared memory than small GPUs have, is a failure.
"""

from __future__ import annotations

import inspect
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
#: What a block may have on the smallest of the current GPUs (compute capability 8.6 and 8.9).
SHARED_MEMORY = 99 * 1024
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def record() -> list[tuple[JITFunction, tuple, dict]]:
    """From now on launches are recorded in the list returned, and nothing runs."""
    from statescan.kernels.triton import _tuning

    launches = []

    def run(self, *args, grid, warmup, **kwargs):
        launches.append((self, args, kwargs))

    JITFunction.run = run
    _tuning.fastest = every_way
    return launches


def every_way(name, x, sizes, ways, run):
    results = [run(way) for way in ways]
    return results[0]


def first_way(name, x, sizes, ways, run):
    return run(ways[0])


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


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def call_selective_scan(
    dtype: torch.dtype,
    kind: torch.dtype,
    *,
    resets: bool,
    packed: bool,
    serial: bool,
    channels: int = 1536,
    states: int = 16,
) -> None:
    from statescan.kernels.triton import selective_scan as kernels

    kernels.SERIAL_FROM = 0 if serial else 1 << 30
    batch, length = 1 if packed else 2, 128
    offsets = torch.tensor([0, 5, 128]) if packed else None
    wide = torch.float32
    weights = (batch, length, 1, states) if not resets else (channels, states)
    row = dtype if not kind.is_complex and len(weights) == 4 else kind
    args = (
        empty(batch, length, channels, dtype=dtype),
        empty(batch, length, channels, dtype=dtype),
        empty(channels, states, dtype=kind),
        empty(*weights, dtype=row),
        empty(*weights, dtype=row),
        empty(channels, dtype=wide),
        empty(batch, length, channels, dtype=dtype),
        empty(channels, dtype=wide),
        empty(2, channels, states, dtype=kind),
        torch.zeros(batch, length, dtype=torch.bool) if resets else None,
        offsets,
        True,
        True,
    )
    y, last, states_kept = kernels.forward(*args)
    kernels.backward(y, last, states_kept, *args)


def call_route_scan(
    dtype: torch.dtype, *, serial: bool, extras: bool = True, batch: int = 2, channels: int = 192, states: int = 16
) -> None:
    from statescan.kernels.triton import route_scan as kernels
    from statescan.kernels.triton import selective_scan

    selective_scan.SERIAL_FROM = 0 if serial else 1 << 30
    cells, walks = 196, 4
    wide = torch.float32
    steps = empty(batch, cells, walks, channels, dtype=dtype)
    weights = empty(batch, cells, walks, states, dtype=dtype)
    vector = empty(walks * channels, dtype=wide) if extras else None
    args = (
        empty(batch, cells, channels, dtype=dtype),
        steps,
        empty(walks * channels, states, dtype=wide),
        weights,
        weights,
        vector,
        vector,
        torch.zeros(walks, cells, dtype=torch.int64),
        extras,
        True,
    )
    y, states_kept = kernels.forward(*args)
    kernels.backward(y, states_kept, *args)


def call_ssd(
    dtype: torch.dtype,
    *,
    head_dim: int,
    chunk_size: int,
    resets: bool,
    packed: bool,
    heads: int = 24,
    states: int = 128,
) -> None:
    from statescan.kernels.triton import ssd as kernels

    batch, length = 1 if packed else 2, 256
    wide = torch.float32
    args = (
        empty(batch, length, heads, head_dim, dtype=dtype),
        empty(batch, length, heads, dtype=wide),
        empty(heads, dtype=wide),
        empty(batch, length, 1, states, dtype=dtype),
        empty(batch, length, 1, states, dtype=dtype),
        empty(heads, head_dim, dtype=wide) if packed else empty(heads, dtype=wide),
        empty(2, heads, head_dim, states, dtype=wide),
        torch.zeros(batch, length, dtype=torch.bool) if resets else None,
        torch.tensor([0, 5, 256]) if packed else None,
        chunk_size,
    )
    y, last = kernels.forward(*args)
    kernels.backward(y, last, *args)


def call_causal_conv1d(dtype: torch.dtype, *, resets: bool, packed: bool, channels: int = 1536, width: int = 4) -> None:
    from statescan.kernels.triton import causal_conv1d as kernels

    batch, length = 1 if packed else 2, 128
    args = (
        empty(batch, length, channels, dtype=dtype),
        empty(channels, width, dtype=dtype),
        empty(channels, dtype=dtype),
        empty(2, max(1, width - 1), channels, dtype=dtype),
        torch.zeros(batch, length, dtype=torch.bool) if resets else None,
        torch.tensor([0, 5, 128]) if packed else None,
        not packed,
    )
    (y,) = kernels.forward(*args)
    kernels.backward(y, *args)


def call_linear_scan(kind: torch.dtype, *, resets: bool, packed: bool, serial: bool, channels: int = 1024) -> None:
    from statescan.kernels.triton import linear_scan as kernels

    kernels.SERIAL_FROM = 0 if serial else 1 << 30
    batch, length = 1 if packed else 2, 512
    args = (
        empty(channels, dtype=kind) if packed else empty(batch, length, channels, dtype=kind),
        empty(batch, length, channels, dtype=kind),
        empty(2, channels, dtype=kind),
        torch.zeros(batch, length, dtype=torch.bool) if resets else None,
        torch.tensor([0, 5, 512]) if packed else None,
        resets,
    )
    h, last = kernels.forward(*args)
    kernels.backward(h, last, *args)


def call_gated_rms_norm(dtype: torch.dtype, *, group_size: int, norm_before_gate: bool) -> None:
    from statescan.kernels.triton import gated_rms_norm as kernels

    x, gate = (empty(4, 64, 4096, dtype=dtype) for _ in range(2))
    args = (x, empty(4096, dtype=torch.float32), gate, 1e-5, group_size, norm_before_gate)
    kernels.backward(kernels.forward(*args)[0], *args)


def call_steps(dtype: torch.dtype, kind: torch.dtype) -> None:
    from statescan.kernels.triton import add_rms_norm, causal_conv1d_step, selective_state_step, ssd_step

    wide, row = torch.float32, kind if kind.is_complex else dtype
    x, z = (empty(8, 1536, dtype=dtype) for _ in range(2))
    vectors = [empty(1536, dtype=wide) for _ in range(2)]
    state, A = empty(8, 1536, 16, dtype=kind), empty(1536, 16, dtype=kind)
    B, C = (empty(8, 1, 16, dtype=row) for _ in range(2))
    selective_state_step.forward(state, x, x, A, B, C, vectors[0], z, vectors[1], True)
    if not kind.is_complex:
        selective_state_step.forward(state.to(dtype), x, x, A, B, C, vectors[0], z, vectors[1], True, True)
    weight = empty(1536, 4, dtype=dtype)
    causal_conv1d_step.forward(empty(8, 3, 1536, dtype=dtype), x, weight, weight[:, 0], True)
    for added in (None, x):
        add_rms_norm.forward(empty(8, 1536, dtype=wide), added, weight[:, 0], 1e-5)
    if not kind.is_complex:
        x, z = (empty(8, 24, 64, dtype=dtype) for _ in range(2))
        B, C = (empty(8, 1, 128, dtype=dtype) for _ in range(2))
        A, delta, state = empty(24, dtype=wide), empty(8, 24, dtype=wide), empty(8, 24, 64, 128, dtype=wide)
        ssd_step.forward(state, x, delta, A, B, C, A, z)
        ssd_step.forward(state, x, delta.to(dtype), A, B, C, A, z, A, (0.0, float("inf")), True)


def call_tree_scan(dtype: torch.dtype, *, nodes: int, heads: int = 24, columns: int = 64, states: int = 128) -> None:
    from statescan.kernels.triton import tree_scan as kernels

    wide = torch.float32
    kernels.forward(
        empty(2, nodes, heads, columns, dtype=dtype),
        empty(2, nodes, heads, dtype=wide),
        empty(heads, dtype=wide),
        empty(2, nodes, 1, states, dtype=dtype),
        empty(2, nodes, 1, states, dtype=dtype),
        empty(heads, dtype=wide),
        empty(2, heads, columns, states, dtype=wide),
        torch.ones(nodes, nodes, dtype=torch.bool).tril(),
    )


def call_kernel_products(rows: int, *, heads: int = 256, states: int = 32, count: int = 4096) -> None:
    from statescan.kernels.triton import cauchy, vandermonde

    kind = torch.complex64
    weights, poles = empty(rows, heads, states, dtype=kind), empty(heads, states, dtype=kind)
    vandermonde.backward(vandermonde.forward(weights, poles, count), weights, poles, count)
    nodes = empty(count // 2 + 1, dtype=kind)
    cauchy.backward(cauchy.forward(weights, nodes, poles), weights, nodes, poles)


def calls(every: bool) -> None:
    """What is compiled: each kernel once or twice, in every way there is; or in every type and with every option."""
    from statescan.kernels.triton import _tuning

    bfloat16, float32, complex64 = torch.bfloat16, torch.float32, torch.complex64
    call_selective_scan(bfloat16, float32, resets=False, packed=False, serial=False)
    call_route_scan(bfloat16, serial=False)
    call_ssd(bfloat16, head_dim=64, chunk_size=64, resets=True, packed=False)
    call_causal_conv1d(bfloat16, resets=False, packed=False)
    call_linear_scan(float32, resets=False, packed=False, serial=False)
    call_linear_scan(complex64, resets=False, packed=True, serial=True)
    call_gated_rms_norm(bfloat16, group_size=4096, norm_before_gate=False)
    call_steps(bfloat16, float32)
    call_tree_scan(bfloat16, nodes=16)
    call_kernel_products(4)
    if not every:
        return
    call_ssd(float32, head_dim=128, chunk_size=256, resets=False, packed=False)  # which takes most room
    call_ssd(bfloat16, head_dim=128, chunk_size=256, resets=False, packed=False)
    _tuning.fastest = first_way
    for dtype in (float32, torch.float16):
        call_selective_scan(dtype, float32, resets=True, packed=False, serial=True)
        call_selective_scan(dtype, float32, resets=False, packed=True, serial=True)
        call_selective_scan(dtype, complex64, resets=False, packed=True, serial=False)
        call_selective_scan(dtype, complex64, resets=True, packed=False, serial=True)
        call_route_scan(dtype, serial=True)
        call_route_scan(dtype, serial=False, extras=False, states=1, channels=37)
        call_ssd(dtype, head_dim=64, chunk_size=256, resets=False, packed=True)
        call_ssd(dtype, head_dim=128, chunk_size=256, resets=False, packed=False)
        call_ssd(dtype, head_dim=16, chunk_size=16, resets=False, packed=False)
        call_causal_conv1d(dtype, resets=True, packed=False)
        call_causal_conv1d(dtype, resets=False, packed=True)
        call_gated_rms_norm(dtype, group_size=64, norm_before_gate=True)
        call_steps(dtype, complex64)
        call_tree_scan(dtype, nodes=128)
    call_tree_scan(float32, nodes=1, heads=1, columns=1, states=1)
    call_kernel_products(1)
    call_kernel_products(40, heads=3, states=5, count=777)
    # Triton compiles a size of 1 as a constant, which takes other ways through the compiler.
    call_kernel_products(1, heads=1, states=1, count=1)
    ones = {"resets": True, "packed": False}
    call_ssd(float32, head_dim=1, chunk_size=64, heads=1, states=1, **ones)
    call_causal_conv1d(float32, channels=1, width=1, **ones)
    for kind in (float32, complex64):
        for serial in (False, True):
            call_selective_scan(float32, kind, channels=1, states=1, serial=serial, **ones)
            call_linear_scan(kind, channels=1, serial=serial, **ones)
            call_route_scan(float32, serial=serial, batch=1, channels=1, states=1)
        call_linear_scan(kind, resets=True, packed=False, serial=True)
        call_linear_scan(kind, resets=False, packed=True, serial=False)


def main() -> None:
    launches = record()
    calls(every="--every" in sys.argv[1:])
    failures = 0
    for name, binary in compile_all(launches):
        shared, cubin = binary.metadata.shared, len(binary.asm["cubin"])
        fits = shared <= SHARED_MEMORY
        failures += not fits
        print(f"{name}: {cubin} bytes of machine code, {shared} bytes of shared memory{'' if fits else ': too many'}")
    raise SystemExit(failures > 0)


if __name__ == "__main__":
    main()
