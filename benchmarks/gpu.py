"""Operators and decoding on a CUDA device, beside the packages that GPU users have, and beside the floor that memory sets.

python -m benchmarks.gpu

Tokens are decoded with a model of 1.4 billion random bfloat16 weights, 1 to 256 sequences at a time, one CUDA graph a token,
beside mamba-ssm's decoder with its graph and the same weights. (Its states are bfloat16; ours are float32, and
bfloat16 in a row of their own.) Then every operator runs in bfloat16 as a layer of a language model calls it, forward alone
and with its gradient, scans at lengths from 2k to 64k. What agrees with a peer is timed in turns with it: median of single
calls between CUDA events, for operators from an empty cache. The floor is the bytes of all inputs and outputs at the speed
of a copy, measured in the same run. Peers (mamba-ssm, causal-conv1d, flash-linear-attention) are compared where they can be
imported; where not, the reason is printed. Beside `ssd` stands attention of equal width
(`scaled_dot_product_attention`), which computes something else. Tables come last; results go to
``benchmarks/results/gpu.json`` and ``.md``.

Without a CUDA device nothing is measured, and that is said; ``--quick`` runs tiny sizes anywhere and writes nothing; on a
CPU with ``TRITON_INTERPRET=1`` the kernels run in Triton's interpreter, which takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure
from benchmarks._gpu import CUDA, DEVICE, bandwidth, decoding, milliseconds, problem_of
from statescan import ops, routes

LENGTHS = tuple(1 << power for power in range(11, 17))
BATCHES = (1, 16, 64, 256)
#: What our time is to be, as a part of the best peer's.
FASTER = {"selective_scan": (1.2, ("mamba-ssm",)), "ssd": (1.0, ("mamba-ssm", "flash-linear-attention"))}
DECODING = 1.3
#: Operators that memory bounds, and the part of a copy's speed that they are to reach forward.
MEMORY_BOUND = ("causal_conv1d", "gated_rms_norm", "linear_scan")
OF_COPY = 0.8

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
    same: bool = True  # whether it computes what we do


@dataclass(frozen=True)
class Case:
    """One operator at one size: our call, and the peers by name, each imported when it is made."""

    operator: str
    size: str
    tensors: Mapping[str, Tensor]
    ours: Callable[..., Tensor]
    peers: Mapping[str, Callable[[], Peer]] = field(default_factory=dict)


def random(*shape: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (scale * torch.randn(*shape, device=DEVICE) + shift).to(dtype)


# ---- cases: sizes of layers of the published 130m to 2.7b models -----------------------------------------------


def selective_scan(batch: int, length: int, channels: int, states: int = 16) -> Case:
    wide = torch.float32
    tensors = {
        "x": random(batch, length, channels),
        "delta": random(batch, length, channels, scale=0.5),
        "A": -torch.arange(1.0, states + 1, device=DEVICE).repeat(channels, 1),
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
    order = routes.get("cross").table(height, width).to(DEVICE)
    cells, walks = height * width, order.shape[0]
    wide = torch.float32
    tensors = {
        "x": random(batch, cells, channels),
        "delta": random(batch, cells, walks, channels, scale=0.5),
        "A": -torch.arange(1.0, states + 1, device=DEVICE).repeat(walks * channels, 1),
        "B": random(batch, cells, walks, states),
        "C": random(batch, cells, walks, states),
        "D": random(walks * channels, dtype=wide),
        "delta_bias": random(walks * channels, scale=0.5, shift=-4, dtype=wide),
    }

    def copies() -> Peer:
        """Every walk's cells copied in its order, one selective scan of all, the results put back."""
        there, back, which = order.mT, order.argsort(1).mT, torch.arange(walks, device=DEVICE)

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
        "A": -1 - 15 * torch.rand(heads, device=DEVICE),
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

    def attention() -> Peer:
        q, k, v = (random(batch, heads, length, head_dim) for _ in range(3))
        function = torch.nn.functional.scaled_dot_product_attention
        return Peer(lambda q, k, v: function(q, k, v, is_causal=True), {"q": q, "k": k, "v": v}, same=False)

    return Case(
        "ssd",
        f"{batch} x {length} x {heads} heads of {head_dim}, state {states}",
        tensors,
        lambda **t: ops.ssd(**t, delta_softplus=True, chunk_size=chunk_size),
        {"mamba-ssm": mamba_ssm, "flash-linear-attention": flash_linear_attention, "attention": attention},
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
        "a": torch.rand(batch, length, channels, device=DEVICE),
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
    exponents = torch.complex(-torch.rand(heads, states) / 100, torch.randn(heads, states)).to(DEVICE)
    tensors = {"weights": torch.randn(1, heads, states, dtype=torch.complex64, device=DEVICE), "exponents": exponents}

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
    z = 2j * torch.tan(torch.linspace(0, 1.57, nodes, dtype=torch.float64)).to(torch.complex64).to(DEVICE)
    tensors = {
        "v": torch.randn(4, heads, states, dtype=torch.complex64, device=DEVICE),
        "w": torch.complex(-torch.rand(heads, states), torch.randn(heads, states)).to(DEVICE),
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


def cases() -> list[Callable[[], Case]]:
    """Each makes its tensors when it is called."""
    return [
        *(lambda length=length: selective_scan(1, length, 1536) for length in LENGTHS),
        *(lambda length=length: ssd(1, length, 24) for length in LENGTHS),
        lambda: causal_conv1d(8, 2048, 1792),
        lambda: causal_conv1d(1, 16384, 5376),
        lambda: gated_rms_norm(16384, 1536),
        lambda: gated_rms_norm(16384, 5120),
        lambda: linear_scan(8, 2048, 1024),
        lambda: linear_scan(1, 65536, 1024),
        lambda: selective_scan(8, 2048, 1536),
        lambda: selective_scan(1, 16384, 5120),
        lambda: selective_scan(128, 196, 768),
        lambda: ssd(8, 2048, 24),
        lambda: ssd(1, 16384, 80),
        lambda: route_scan(32, 56, 56, 96, 1),
        lambda: route_scan(32, 14, 14, 384, 16),
        lambda: vandermonde(256, 32, 16384),
        lambda: cauchy(256, 32, 8193),
    ]


def quick_cases() -> list[Callable[[], Case]]:
    return [
        lambda: selective_scan(1, 20, 8, 2),
        lambda: ssd(1, 20, 2, 16, 16, 16),
        lambda: causal_conv1d(1, 20, 8),
        lambda: gated_rms_norm(4, 8),
        lambda: linear_scan(1, 20, 8),
        lambda: route_scan(1, 3, 3, 4, 2),
        lambda: vandermonde(2, 3, 20),
        lambda: cauchy(2, 3, 11),
    ]


# ---- measuring ---------------------------------------------------------------------------------------------------


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


def measure(case: Case, bytes_a_second: float, *, seconds: float = 0.5, least: int = 10) -> list[dict[str, Any]]:
    """The rows of a case: each direction, ours and every peer."""
    wanted = case.ours(**case.tensors)
    calls = {"statescan": directions(Peer(case.ours, case.tensors))}
    missing = []
    for name, make in case.peers.items():
        try:
            peer = make()
            found = peer.view(peer.function(**peer.tensors)).float()
            error = float((found - wanted).abs().max() / wanted.abs().max()) if peer.same else 0.0
            made = directions(peer)
            made["forward + backward"]()
        except Exception as problem:  # whatever a peer does wrong on this machine is its row's text
            missing.append((name, problem_of(problem)))
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
        times = milliseconds({name: made[direction] for name, made in calls.items()}, seconds=seconds, least=least)
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
    for row in rows:
        print({key: value for key, value in row.items() if value not in (None, "")}, flush=True)
    return rows


def targets(decoded: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached, of what was measured: a line a size."""
    found = [
        {
            "what": "decoding, as fast as mamba-ssm times",
            "size": f"{row['model']}, batch {row['batch']}",
            "reached": row["with the same state"],
            "target": DECODING,
        }
        for row in decoded
        if row["library"] == "mamba-ssm" and row["ms"]
    ]
    for operator, (wanted, peers) in FASTER.items():
        best: dict[str, float] = {}
        for row in rows:
            named = row["operator"] == operator and row["library"] in peers and row["direction"] != "forward"
            if named and row["ms"]:
                ratio = row["statescan is faster by"]
                best[row["size"]] = min(ratio, best.get(row["size"], ratio))
        what = f"{operator}, forward + backward, as fast as the best peer times"
        found += [{"what": what, "size": size, "reached": ratio, "target": wanted} for size, ratio in best.items()]
    found += [
        {
            "what": f"{row['operator']}, forward, of a copy's speed",
            "size": row["size"],
            "reached": row["fraction of floor"],
            "target": OF_COPY,
        }
        for row in rows
        if row["operator"] in MEMORY_BOUND and row["library"] == "statescan" and row["direction"] == "forward"
    ]
    return [row | {"held": "yes" if row["reached"] >= row["target"] else "no"} for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no operator begins (default: 8)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, here too; nothing written")
    options = parser.parse_args()
    if not (CUDA or options.quick):
        print("There is no CUDA device here: nothing was measured. --quick shows it at work.")
        return
    end = time.monotonic() + 60 * options.minutes
    torch.manual_seed(0)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and not CUDA
    with ops.backend("triton") if interpreted else contextlib.nullcontext():
        print("explain:", ops.explain("causal_conv1d", **causal_conv1d(1, 8, 8).tensors).replace("\n", "; "))
        bytes_a_second = bandwidth()
        if options.quick:
            decoded = decoding("mamba_tiny", (1, 2), bytes_a_second, seconds=0.0, dim=16, depth=1)
        else:
            decoded = decoding("mamba_1.4b", BATCHES, bytes_a_second, seconds=1.0)
        rows, late = [], 0
        for make in quick_cases() if options.quick else cases():
            if time.monotonic() > end:
                late += 1
                continue
            timing = dict(seconds=0.0, least=1) if options.quick else {}
            rows += measure(make(), bytes_a_second, **timing)
            if CUDA:
                torch.cuda.empty_cache()
    device = {"gpu": torch.cuda.get_device_name() if CUDA else "none", "copied bytes a second": bytes_a_second}
    tables = {
        f"Decoding, {device['gpu']}": decoded,
        f"Operators, {device['gpu']}": rows,
        "Targets": targets(decoded, rows),
    }
    if not options.quick:
        everything = {"device": device, "decoding": decoded, "operators": rows, "targets": tables["Targets"]}
        print(_measure.save("gpu", everything, tables=tables))
    for title, table in tables.items():
        _measure.show(title, table)
    print(f"copies run at {bytes_a_second / 1e9:,.0f} GB/s; {late} operators were left out for time")


if __name__ == "__main__":
    main()
