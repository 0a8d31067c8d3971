"""`statescan inspect scaling`: what training and decoding would cost on one machine to a thousand."""

from __future__ import annotations

from pathlib import Path


def scaling(
    model: str,
    *,
    machines: tuple[int, ...] = (1, 8, 64, 1000),
    strategies: tuple[str, ...] = (),
    length: int = 2048,
    batch: int = 1,
    decode_batch: int = 1,
    flops: float = 4e14,
    bandwidth: float = 2.7e12,
    memory: float = 80e9,
    scan: float | None = None,
    network: float = 40e9,
    latency: float = 1e-5,
    out: Path | None = None,
) -> None:
    """Predict time and memory of a training step and of a decoded token, from a model's shapes and a machine's rates.

    Rates are those that a machine reaches, not those of its data sheet; `python -m benchmarks.scaling` measures them on this
    one. The defaults stand for an accelerator with 400 TFLOP/s. Every machine does the same work: N of them do N times it.

    Examples:

      statescan inspect scaling --model mamba_130m --machines 1 8 64 1000 --length 4096 --out scaling.png

    Args:
        model: name of a language model.
        machines: how many there are.
        strategies: ddp, fsdp, sequence, tensor; those that the model has, unless given.
        length: tokens of a sequence; with `sequence`, of a machine's part of it.
        batch: sequences on each machine.
        decode_batch: sequences that are continued at once.
        flops: floating-point operations of matrix products a second.
        bandwidth: bytes of memory a second.
        memory: bytes of memory.
        scan: operations of scans a second; as fast as the memory allows unless given.
        network: bytes a second that a machine sends to others.
        latency: seconds of a message.
        out: a picture, if wanted; its suffix says the format.
    """
    from statescan import inspect
    from statescan.cli import _print

    work = inspect.workload(model, length=length)
    rates = inspect.Machine(flops, bandwidth, memory, scan, network, latency)
    chosen = strategies or (("ddp", "fsdp") if work.message_numbers is None else inspect.STRATEGIES)
    steps = {
        strategy: [inspect.training_step(work, rates, count, strategy, batch=batch) for count in sorted(set(machines))]  # type: ignore[arg-type]
        for strategy in chosen
    }
    alone = inspect.training_step(work, rates, 1, "ddp", batch=batch)
    rows = [
        (
            strategy,
            f"{cost.machines:,}",
            _short(1e3 * cost.seconds),
            _short(1e3 * cost.exposed),
            _short(cost.tokens_per_second / 1e3),
            f"{cost.tokens_per_second / cost.machines / alone.tokens_per_second:.0%}",
            _short(cost.sent_bytes / 1e9),
            _short(cost.memory_bytes / 1e9) + ("" if cost.fits else " !"),
        )
        for strategy, costs in steps.items()
        for cost in costs
    ]
    heads = ("name", "N", "ms", "waiting", "k tokens/s", "of one", "GB sent", "GB held")
    _print.table(f"A training step of {model} on N machines, {batch} x {length:,} tokens each, float32", heads, rows)
    tokens = []
    for name, width in (("float32", 4.0), ("bfloat16", 2.0), ("int8", 1.0), ("int4", 0.5)):
        token = inspect.decoding(work, rates, batch=decode_batch, bytes_per_weight=width)
        tokens.append(
            (
                name,
                f"{1e3 * token.seconds:,.3f}",
                token.bound,
                f"{token.tokens_per_second:,.0f}",
                f"{max(machines) * token.tokens_per_second:,.0f}",
                _short(token.memory_bytes / 1e9) + ("" if token.fits else " !"),
            )
        )
    _print.table(
        f"Decoding with {model}, batch {decode_batch}",
        ("name", "ms", "bound by", "tokens/s", f"of {max(machines):,} machines", "GB held"),
        tokens,
    )
    if not all(cost.fits for costs in steps.values() for cost in costs):
        print(f"! more than a machine's {memory / 1e9:,.0f} GB")
    if out is not None:
        inspect.draw_machines(out, f"{model}, {batch} x {length:,} tokens a machine", steps, memory)
        print(out)


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
