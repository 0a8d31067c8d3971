"""Operators on a CUDA device, beside the packages that GPU users have, and beside the floor that memory sets.

python -m benchmarks.gpu

Every operator runs in bfloat16 as a layer of a language model calls it, forward alone and with its gradient. What agrees
with a peer is timed in turns with it: median of single calls between CUDA events, the cache emptied before each. The
floor is the bytes of all inputs and outputs at the speed of a copy, measured in the same run. Peers (mamba-ssm,
causal-conv1d, flash-linear-attention) are compared where they can be imported; where not, the reason is printed.
Results go to ``benchmarks/results/gpu.json`` and ``.md``. Without a CUDA device nothing is measured, and that is said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure
from statescan import ops, routes

#: Results of two bfloat16 kernels, in units of the largest value.
TOLERANCE = 3e-2


def as_is(y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True)
class Peer:
    """Another package's function, the tensors it takes in its own layout, and its result seen in ours."""

    function: Callable[..., Tensor]
    tensors: Mapping[str, Tensor]
    view: Callable[[Tensor], Tensor] = as_is


@dataclass(frozen=True)
class Case:
    """One operator at one size: our call, and the peers by name, each imported when it is made."""

    operator: str
    size: str
    tensors: Mapping[str, Tensor]
    ours: Callable[..., Tensor]
    peers: Mapping[str, Callable[[], Peer]] = field(default_factory=dict)


def random(*shape: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (scale * torch.randn(*shape, device="cuda") + shift).to(dtype)


# ---- cases: sizes of layers of the published 130m to 2.7b models -----------------------------------------------


def selective_scan(batch: int, length: int, channels: int, states: int = 16) -> Case:
    wide = torch.float32
    tensors = {
        "x": random(batch, length, channels),
        "delta": random(batch, length, channels, scale=0.5),
        "A": -torch.arange(1.0, states + 1, device="cuda").repeat(channels, 1),
        "B": random(batch, length, states),
        "C": random(batch, length, states),
        "D": random(channels, dtype=wide),
        "z": random(batch, length, channels),
        "delta_bias": random(channels, scale=0.5, shift=-4, dtype=wide),
    }

    def mamba_ssm() -> Peer:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        def call(x, delta, A, B, C, D, z, delta_bias):
            return selective_scan_fn(x, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True)

        own = {n: t.mT.contiguous() if n in ("x", "delta", "B", "C", "z") else t for n, t in tensors.items()}
        return Peer(call, own, lambda y: y.mT)  # its layout has time innermost

    return Case(
        "selective_scan",
        f"{batch} x {length} x {channels}, state {states}",
        tensors,
        lambda **t: ops.selective_scan(**t, delta_softplus=True),
        {"mamba-ssm": mamba_ssm},
    )


def route_scan(batch: int, height: int, width: int, channels: int, states: int) -> Case:
    order = routes.get("cross").table(height, width).cuda()
    cells, walks = height * width, order.shape[0]
    wide = torch.float32
    tensors = {
        "x": random(batch, cells, channels),
        "delta": random(batch, cells, walks, channels, scale=0.5),
        "A": -torch.arange(1.0, states + 1, device="cuda").repeat(walks * channels, 1),
        "B": random(batch, cells, walks, states),
        "C": random(batch, cells, walks, states),
        "D": random(walks * channels, dtype=wide),
        "delta_bias": random(walks * channels, scale=0.5, shift=-4, dtype=wide),
    }

    def copies() -> Peer:
        """Every walk's cells copied in its order, one selective scan of all, the results put back."""
        there, back, which = order.mT, order.argsort(1).mT, torch.arange(walks, device="cuda")

        def call(x, delta, A, B, C, D, delta_bias):
            delta, B, C = (t[:, there, which] for t in (delta, B, C))
            y = ops.selective_scan(
                x[:, there].flatten(2), delta.flatten(2), A, B, C, D, delta_bias=delta_bias, delta_softplus=True
            )
            assert isinstance(y, Tensor)
            return y.view(batch, cells, walks, channels)[:, back, which]

        return Peer(call, tensors)

    return Case(
        "route_scan",
        f"{batch} x {height} x {width} x {channels}, {walks} walks, state {states}",
        tensors,
        lambda **t: ops.route_scan(**t, order=order, delta_softplus=True),
        {"a copy for each walk": copies},
    )


def ssd(batch: int, length: int, heads: int, head_dim: int = 64, states: int = 128, chunk_size: int = 128) -> Case:
    wide = torch.float32
    tensors = {
        "x": random(batch, length, heads, head_dim),
        "delta": random(batch, length, heads, scale=0.5),
        "A": -1 - 15 * torch.rand(heads, device="cuda"),
        "B": random(batch, length, 1, states),
        "C": random(batch, length, 1, states),
        "D": random(heads, dtype=wide),
        "delta_bias": random(heads, scale=0.5, shift=-4, dtype=wide),
    }

    def mamba_ssm() -> Peer:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        def call(x, delta, A, B, C, D, delta_bias):
            return mamba_chunk_scan_combined(x, delta, A, B, C, 256, D=D, dt_bias=delta_bias, dt_softplus=True)

        return Peer(call, tensors)

    def flash_linear_attention() -> Peer:
        from fla.ops.simple_gla import chunk_simple_gla

        def call(x, delta, A, B, C, D, delta_bias):
            step = torch.nn.functional.softplus(delta.float() + delta_bias)
            q, k = (w.expand(*x.shape[:3], -1) for w in (C, B))
            y, _ = chunk_simple_gla(q, k, (x * step[..., None]).to(x.dtype), g=step * A, scale=1.0)
            return y + D[:, None].to(x.dtype) * x

        return Peer(call, tensors)

    return Case(
        "ssd",
        f"{batch} x {length} x {heads} heads of {head_dim}, state {states}",
        tensors,
        lambda **t: ops.ssd(**t, delta_softplus=True, chunk_size=chunk_size),
        {"mamba-ssm": mamba_ssm, "flash-linear-attention": flash_linear_attention},
    )


def causal_conv1d(batch: int, length: int, channels: int, width: int = 4) -> Case:
    tensors = {
        "x": random(batch, length, channels),
        "weight": random(channels, width, scale=0.5),
        "bias": random(channels, scale=0.1),
    }

    def published() -> Peer:
        from causal_conv1d import causal_conv1d_fn

        def call(x, weight, bias):
            return causal_conv1d_fn(x.mT, weight, bias, activation="silu").mT

        return Peer(call, tensors)

    def flash_linear_attention() -> Peer:
        from fla.modules.convolution import causal_conv1d as function

        def call(x, weight, bias):
            found = function(x, weight, bias, activation="silu")
            return found[0] if isinstance(found, tuple) else found

        return Peer(call, tensors)

    return Case(
        "causal_conv1d",
        f"{batch} x {length} x {channels}, width {width}",
        tensors,
        lambda **t: ops.causal_conv1d(**t, activation="silu"),
        {"causal-conv1d": published, "flash-linear-attention": flash_linear_attention},
    )


def linear_scan(batch: int, length: int, channels: int) -> Case:
    tensors = {
        "a": torch.rand(batch, length, channels, device="cuda"),
        "b": random(batch, length, channels, dtype=torch.float32),
    }

    def flash_linear_attention() -> Peer:
        from fla.ops.hgrn import chunk_hgrn

        return Peer(lambda a, b: chunk_hgrn(b, a.log())[0], tensors)

    return Case(
        "linear_scan",
        f"{batch} x {length} x {channels}, float32",
        tensors,
        lambda **t: ops.linear_scan(**t),
        {"flash-linear-attention": flash_linear_attention},
    )


def gated_rms_norm(rows: int, channels: int) -> Case:
    tensors = {
        "x": random(rows, channels),
        "weight": random(channels, shift=1.0, dtype=torch.float32),
        "gate": random(rows, channels),
    }

    def mamba_ssm() -> Peer:
        from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn

        def call(x, weight, gate):
            return rmsnorm_fn(x, weight, None, z=gate, eps=1e-5, norm_before_gate=False)

        return Peer(call, tensors)

    return Case(
        "gated_rms_norm",
        f"{rows} x {channels}",
        tensors,
        lambda **t: ops.gated_rms_norm(**t),
        {"mamba-ssm": mamba_ssm},
    )


def vandermonde(heads: int, states: int, length: int) -> Case:
    exponents = torch.complex(-torch.rand(heads, states) / 100, torch.randn(heads, states)).cuda()
    tensors = {"weights": torch.randn(1, heads, states, dtype=torch.complex64, device="cuda"), "exponents": exponents}

    def formula() -> Peer:
        return Peer(lambda weights, exponents: ops.vandermonde_reference(weights, exponents, length), tensors)

    return Case(
        "vandermonde",
        f"{heads} x {length}, {states} states, complex64",
        tensors,
        lambda **t: ops.vandermonde(**t, length=length),
        {"formula": formula},
    )


def cauchy(heads: int, states: int, nodes: int) -> Case:
    z = 2j * torch.tan(torch.linspace(0, 1.57, nodes, dtype=torch.float64)).to(torch.complex64).cuda()
    tensors = {
        "v": torch.randn(4, heads, states, dtype=torch.complex64, device="cuda"),
        "w": torch.complex(-torch.rand(heads, states), torch.randn(heads, states)).cuda(),
    }

    def formula() -> Peer:
        return Peer(lambda v, w: torch.view_as_real(ops.cauchy_reference(v, z, w)), tensors)

    return Case(
        "cauchy",
        f"4 x {heads} x {nodes}, {states} states, complex64",
        tensors,
        lambda v, w: torch.view_as_real(ops.cauchy(v, z, w)),
        {"formula": formula},
    )


def cases() -> list[Case]:
    return [
        selective_scan(8, 2048, 1536),
        selective_scan(1, 512, 1536),
        selective_scan(1, 16384, 5120),
        selective_scan(128, 196, 768),
        route_scan(32, 56, 56, 96, 1),
        route_scan(32, 14, 14, 384, 16),
        ssd(8, 2048, 24),
        ssd(1, 512, 24),
        ssd(1, 16384, 80),
        causal_conv1d(8, 2048, 1792),
        causal_conv1d(1, 16384, 5376),
        linear_scan(8, 2048, 1024),
        linear_scan(1, 65536, 1024),
        gated_rms_norm(16384, 1536),
        gated_rms_norm(16384, 5120),
        vandermonde(256, 32, 16384),
        cauchy(256, 32, 8193),
    ]


# ---- measuring ---------------------------------------------------------------------------------------------------


def milliseconds(candidates: Mapping[str, Callable[[], Any]], *, seconds: float = 1.0) -> dict[str, float]:
    """The median time of a single call of each, in turns, from a cold cache."""
    cache = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for call in candidates.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 10:
        for name, call in candidates.items():
            cache.zero_()
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            after.synchronize()
            times[name].append(before.elapsed_time(after))
    return {name: statistics.median(taken) for name, taken in times.items()}


def bandwidth() -> float:
    """Bytes a second read and written by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (milliseconds({"copy": lambda: target.copy_(source)})["copy"] / 1e3)


def directions(peer: Peer) -> dict[str, Callable[[], Any]]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in peer.tensors.items()}

    def forward() -> Tensor:
        with torch.no_grad():
            return peer.function(**peer.tensors)

    grad = torch.randn_like(forward())
    return {
        "forward": forward,
        "forward + backward": lambda: torch.autograd.grad(peer.function(**leaves), list(leaves.values()), grad),
    }


def measure(case: Case, bytes_a_second: float) -> list[dict[str, Any]]:
    wanted = case.ours(**case.tensors)
    calls = {"statescan": directions(Peer(case.ours, case.tensors))}
    missing = []
    for name, make in case.peers.items():
        try:
            peer = make()
            found = peer.view(peer.function(**peer.tensors)).float()
            error = float((found - wanted).abs().max() / wanted.abs().max())
            made = directions(peer)
            made["forward + backward"]()
        except Exception as problem:  # whatever a peer does wrong on this machine is its row's text
            missing.append((name, f"{type(problem).__name__}: {problem}".splitlines()[0][:60]))
            continue
        if error > TOLERANCE:
            missing.append((name, f"differs by {error:.1e} of the largest value"))
        else:
            calls[name] = made
    read = sum(t.nbytes for t in case.tensors.values())
    rows = []
    for direction, moved in (
        ("forward", read + wanted.nbytes),
        ("forward + backward", 3 * read + 2 * wanted.nbytes),
    ):
        times = milliseconds({name: made[direction] for name, made in calls.items()})
        floor = 1e3 * moved / bytes_a_second
        rows += [
            {
                "operator": case.operator,
                "size": case.size,
                "direction": direction,
                "library": name,
                "ms": taken,
                "statescan is faster by": taken / times["statescan"],
                "floor, ms": floor,
                "fraction of floor": floor / taken,
                "note": "",
            }
            for name, taken in times.items()
        ]
        rows += [
            dict.fromkeys(rows[0], None)
            | {"operator": case.operator, "size": case.size, "direction": direction, "library": name, "note": why}
            for name, why in missing
        ]
    return rows


def main() -> None:
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured.")
        return
    torch.manual_seed(0)
    print("explain:", ops.explain("linear_scan", **linear_scan(1, 8, 8).tensors).replace("\n", "; "))
    bytes_a_second = bandwidth()
    rows = []
    for case in cases():
        found = measure(case, bytes_a_second)
        _measure.show(f"{case.operator}, {case.size}", [{k: v for k, v in r.items() if k != "size"} for r in found])
        rows += found
        torch.cuda.empty_cache()
    device = {"gpu": torch.cuda.get_device_name(), "copied bytes a second": bytes_a_second}
    path = _measure.save("gpu", [device, *rows], tables={f"{device['gpu']}": rows})
    print(f"copies run at {bytes_a_second / 1e9:,.0f} GB/s; {path}")


if __name__ == "__main__":
    main()
