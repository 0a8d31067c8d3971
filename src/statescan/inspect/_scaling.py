"""What training and decoding cost on one machine to a thousand, on paper: floating-point operations, bytes, messages.

Every time is a number of operations, bytes or messages over a rate, so each can be checked by hand; docs/scaling.md derives
them. A machine here is one rank: a processor or an accelerator with memory of its own and a link to the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from statescan.inspect._flops import counter
from statescan.inspect._sizes import build_without_memory, measure_cost
from statescan.layers import Mamba, Mamba2

#: As in `parallel.sequence_parallel`, which may not be imported from here.
GATHERED = 8
Strategy = Literal["ddp", "fsdp", "sequence", "tensor"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
#: How often what is kept for the backward pass crosses the memory: written and read on the way forward, read on the way
#: back, and its gradient written and read.
CROSSINGS = 5
#: float32 weights, gradients and both means of AdamW; an update reads all four and writes all but the gradient.
TRAINED_BYTES, UPDATED_BYTES = 16, 28
#: Of a token, block and channel: the residual stream and its norm, which tensor parallelism does not divide.
RESIDUAL_BYTES = 8


@dataclass(frozen=True)
class Machine:
    """Rates of one machine, as reached, not as advertised.

    Arguments:
        flops: floating-point operations of matrix products a second.
        bandwidth: bytes of memory a second.
        memory: bytes of memory.
        scan: operations of scans a second, as `inspect` counts them; None: scans are as fast as the memory.
        network: bytes a second that a machine sends while it receives as many.
        latency: seconds of a message.
    """

    flops: float = 4e14
    bandwidth: float = 2.7e12
    memory: float = 80e9
    scan: float | None = None
    network: float = 40e9
    latency: float = 1e-5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")


@dataclass(frozen=True)
class Workload:
    """What a model asks for, a token where not said otherwise; all numbers in float32.

    Fields:
        name: of the model.
        parameters: of the whole model.
        block_parameters: of the largest block.
        depth: blocks.
        dim: channels of the residual stream.
        length: tokens of the sequence that it was counted for.
        flops: of matrix products in a forward pass.
        scan_operations: of scans and convolutions in a forward pass.
        activation_bytes: kept for the backward pass.
        state_bytes: of the state of one sequence, at that length.
        message_numbers: of what a part of a sequence tells the next ones, all layers together; None: it cannot be divided.
        messages: exchanges of a forward pass in which that is told.
        joined_numbers: that tensor parallelism adds up over machines in a forward pass; None: not for these layers.
        joins: in so many sums.
    """

    name: str
    parameters: int
    block_parameters: int
    depth: int
    dim: int
    length: int
    flops: float
    scan_operations: float
    activation_bytes: float
    state_bytes: int
    message_numbers: int | None
    messages: int
    joined_numbers: int | None
    joins: int


@dataclass(frozen=True)
class StepCost:
    """A training step (forward, backward, AdamW) on so many machines.

    Fields:
        strategy, machines: how it is divided.
        tokens: of all machines.
        compute: seconds of matrix products, scans and memory.
        optimiser: seconds of the update.
        communication: seconds of messages, were nothing computed meanwhile.
        exposed: of those, what computation does not hide.
        sent_bytes: that each machine sends.
        memory_bytes: that each machine holds at the peak.
        fits: whether its memory holds them.
    """

    strategy: str
    machines: int
    tokens: int
    compute: float
    optimiser: float
    communication: float
    exposed: float
    sent_bytes: float
    memory_bytes: float
    fits: bool

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.compute + self.optimiser + self.exposed

    @property
    def tokens_per_second(self) -> float:
        """Of all machines."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class DecodeCost:
    """A token of every sequence of a batch, on one machine that holds the model.

    Fields:
        batch: sequences.
        seconds: a step of all of them.
        read_bytes: weights and states that a step moves.
        bound: ``memory`` or ``arithmetic``.
        memory_bytes: weights and states.
        fits: whether the memory holds them.
    """

    batch: int
    seconds: float
    read_bytes: float
    bound: str
    memory_bytes: float
    fits: bool

    @property
    def tokens_per_second(self) -> float:
        """Of the batch."""
        return self.batch / self.seconds


def workload(name: str, *, length: int = 2048, **overrides: Any) -> Workload:
    """Count what a named language model asks for, from its shapes alone.

    Arguments:
        name: one of `models.list_models()`.
        length: tokens a sequence.
        overrides: fields of the model's config.

    Raises:
        ValueError: for a model that reads no tokens.
    """
    cost = measure_cost(name, length=length, **overrides)
    model = build_without_memory(name, **overrides)
    with counter() as count:
        model(torch.zeros(1, length, dtype=torch.int64, device="meta"))
    by_operator = count.get_flop_counts()["Global"]
    scans = sum(n for operator, n in by_operator.items() if "statescan" in str(operator))
    blocks = list(model.stack.blocks) if hasattr(model, "stack") else []
    mixers = [getattr(block, "mixer", None) for block in blocks]
    divided = bool(mixers) and all(type(mixer) in (Mamba, Mamba2) for mixer in mixers)
    return Workload(
        name=name,
        parameters=cost.parameters,
        block_parameters=max((sum(p.numel() for p in block.parameters()) for block in blocks), default=cost.parameters),
        depth=len(blocks),
        dim=model.config.dim,
        length=length,
        flops=(cost.flops_forward - scans) / length,
        scan_operations=scans / length,
        activation_bytes=cost.activation_bytes / length,
        state_bytes=cost.state_bytes,
        message_numbers=sum(map(_message_numbers, mixers)) if divided else None,
        messages=2 * len(blocks),
        joined_numbers=sum(_joined_numbers(mixer, model.config.dim) for mixer in mixers) if divided else None,
        joins=sum(2 if isinstance(mixer, Mamba) else 1 for mixer in mixers),
    )


def training_step(
    work: Workload, machine: Machine, machines: int = 1, strategy: Strategy = "ddp", *, batch: int = 1
) -> StepCost:
    """A step with `batch` times `work.length` tokens for every machine: a thousand machines do a thousand times the work.

    ``ddp``: every machine has the model and sequences of its own; gradients are added up. ``fsdp``: so, but weights,
    gradients and means lie in shards, and a block's weights are gathered when it is computed. ``sequence``: sequences of
    `machines` times `work.length` tokens, of which a machine has a part; states are handed on, gradients added up
    (`parallel.sequence_parallel`). ``tensor``: every machine has a part of each layer's channels and all the tokens.

    Arguments:
        work: of `workload`.
        machine: its rates.
        machines: how many there are.
        strategy: see above.
        batch: sequences, or parts of sequences, a machine.

    Raises:
        ValueError: numbers that are not positive, an unknown strategy, or one that the model's layers do not have.
    """
    if machines < 1 or batch < 1:
        raise ValueError(f"machines, batch: at least 1, got {machines} and {batch}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: one of {', '.join(STRATEGIES)}, got {strategy!r}")
    needed = {"sequence": work.message_numbers, "tensor": work.joined_numbers}
    if machines > 1 and strategy in needed and needed[strategy] is None:
        raise ValueError(f"strategy: {strategy} divides models of Mamba and Mamba-2 blocks alone, not {work.name!r}")
    tokens = batch * work.length
    matrix, scan = 3 * work.flops * tokens, 3 * work.scan_operations * tokens
    kept = work.activation_bytes * tokens
    if (
        strategy == "tensor"
    ):  # a part of everybody's channels is as much as all channels of its own tokens; but for this:
        kept += (machines - 1) * RESIDUAL_BYTES * work.dim * work.depth * tokens
    if strategy == "sequence" and machines > 1:
        scan *= 2  # the scan from zero, and what the arriving state adds
    compute = matrix / machine.flops + CROSSINGS * kept / machine.bandwidth
    if machine.scan is not None:
        compute += scan / machine.scan
    shards = machines if strategy in ("fsdp", "tensor") else 1
    optimiser = UPDATED_BYTES * work.parameters / shards / machine.bandwidth
    memory = TRAINED_BYTES * work.parameters / shards + kept
    if strategy == "fsdp" and machines > 1:
        memory += 2 * 2 * 4 * work.block_parameters  # weights and gradients of two blocks, one of them on its way
    sent, rounds, hidden = _messages(work, machines, strategy, batch)
    communication = sent / machine.network + rounds * machine.latency
    return StepCost(
        strategy=strategy,
        machines=machines,
        tokens=machines * tokens,
        compute=compute,
        optimiser=optimiser,
        communication=communication,
        exposed=max(0.0, communication - hidden * compute),
        sent_bytes=sent,
        memory_bytes=memory,
        fits=memory <= machine.memory,
    )


def decoding(work: Workload, machine: Machine, *, batch: int = 1, bytes_per_weight: float = 4.0) -> DecodeCost:
    """A token for every sequence of a batch: all weights are read once, all states read and written.

    Machines share nothing when they decode: `machines` of them make as many times the tokens. States do not grow with the
    context; a key-value cache counts as it is after `work.length` tokens.

    Arguments:
        work: of `workload`.
        machine: its rates.
        batch: sequences.
        bytes_per_weight: 4 for float32, 2 for bfloat16, 1 for int8, 0.5 for int4.
    """
    if batch < 1 or not bytes_per_weight > 0:
        raise ValueError(f"batch, bytes_per_weight: positive, got {batch} and {bytes_per_weight}")
    weights, states = bytes_per_weight * work.parameters, float(batch * work.state_bytes)
    moved = weights + 2 * states
    by_memory, by_arithmetic = moved / machine.bandwidth, batch * work.flops / machine.flops
    if machine.scan is not None:
        by_arithmetic += batch * work.scan_operations / machine.scan
    return DecodeCost(
        batch=batch,
        seconds=max(by_memory, by_arithmetic),
        read_bytes=moved,
        bound="memory" if by_memory >= by_arithmetic else "arithmetic",
        memory_bytes=weights + states,
        fits=weights + states <= machine.memory,
    )


def draw_machines(path: str | Path, title: str, steps: dict[str, list[StepCost]], limit: float) -> None:
    """Draw tokens a second and memory against the number of machines, a line a strategy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for number, (name, costs) in enumerate(steps.items()):
        machines = [cost.machines for cost in costs]
        style: dict[str, Any] = dict(marker="os^D"[number % 4], markersize=9 - 2 * (number % 4), label=name, alpha=0.8)
        (line,) = speed.plot(machines, [cost.tokens_per_second for cost in costs], **style)
        memory.plot(machines, [cost.memory_bytes / 1e9 for cost in costs], color=line.get_color(), **style)
    first = next(iter(steps.values()))[0]
    counts = sorted({cost.machines for costs in steps.values() for cost in costs})
    each = first.tokens_per_second / first.machines
    speed.plot(counts, [each * count for count in counts], color="grey", linestyle=":", label="no communication")
    memory.axhline(limit / 1e9, color="grey", linestyle=":", label="memory of a machine")
    speed.set(xscale="log", yscale="log", xlabel="machines", ylabel="tokens a second")
    memory.set(xscale="log", yscale="log", xlabel="machines", ylabel="GB a machine")
    for axes in (speed, memory):
        axes.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def _messages(work: Workload, machines: int, strategy: str, batch: int) -> tuple[float, float, float]:
    """Bytes that a machine sends in a step, rounds of messages, and the part of the computation that can hide them."""
    if machines == 1:
        return 0.0, 0.0, 0.0
    ring = (machines - 1) / machines
    weights = 4.0 * work.parameters
    steps = math.ceil(math.log2(machines))
    if strategy == "fsdp":  # gathered on the way forward and back, gradients scattered: rings of machines - 1 rounds
        return 3 * ring * weights, 3.0 * (work.depth + 1) * (machines - 1), 1.0
    if strategy == "tensor":
        joined = 4.0 * (work.joined_numbers or 0) * batch * work.length * machines
        return 2 * 2 * ring * joined, 2.0 * 2 * steps * work.joins, 0.0  # nothing can be done before the sum is there
    sent, rounds = 2 * ring * weights, 2.0 * steps  # gradients, added up in trees while the rest is computed
    if strategy == "sequence":
        copies = machines - 1 if machines <= GATHERED else steps  # all read all, or combine in rounds
        sent += 2 * 4.0 * (work.message_numbers or 0) * batch * copies
        rounds += 2 * work.messages * copies
    return sent, rounds, 2 / 3


def _message_numbers(mixer: Any) -> int:
    """Of one layer: the convolution's last inputs; the sums of steps and the state."""
    taps = mixer.convolution.channels * (mixer.convolution.width - 1)
    if isinstance(mixer, Mamba):
        return taps + mixer.inner_dim * (mixer.state_dim + 1)
    return taps + mixer.heads * (mixer.head_dim * mixer.state_dim + 1)


def _joined_numbers(mixer: Any, dim: int) -> int:
    """Of one token and layer: the output, and what Mamba selects from all channels (step, B and C)."""
    return dim + (mixer.dt_rank + 2 * mixer.state_dim if isinstance(mixer, Mamba) else 0)
