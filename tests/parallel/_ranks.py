"""What each process of the tests does: every case by parts, against the whole sequence in this process alone."""

from __future__ import annotations

import dataclasses
import datetime
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import statescan
from statescan.layers import Mamba, Mamba2, State
from statescan.parallel import SequenceParallel, sequence_parallel

BATCH, LENGTH = 2, 13


@dataclasses.dataclass(frozen=True)
class Case:
    """One model, one division; parts for two and for three ranks."""

    build: Callable[[], nn.Module]
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9
    lengths: dict[int, list[int]] | None = None
    exchange: str = "auto"
    others: str = "refuse"
    resets: bool = False
    state: bool = False
    checkpointing: bool = False
    wrap: str = ""


def mamba(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Mamba(6, state_dim=3, **options)


def mamba2(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Mamba2(8, **(dict(state_dim=4, head_dim=4, chunk_size=4) | options))


def model(name: str, **options: Any) -> Callable[[], nn.Module]:
    sizes = dict(dim=16, depth=2, vocab_size=32, state_dim=4) | ({"head_dim": 8} if "2" in name else {})
    return lambda: statescan.create_model(name, **(sizes | options))


UNEVEN = {2: [9, 4], 3: [2, 8, 3]}
#: Shorter than the three inputs that the convolution's taps reach back.
SHORT = {2: [1, 12], 3: [10, 1, 2]}
SHORTEST = {2: [12, 1], 3: [1, 1, 11]}
HYBRID = dict(attention_layers=(1,), attention=dict(heads=2, rotary_dim=4))

CASES = {
    "mamba": Case(mamba()),
    "mamba, uneven parts": Case(mamba(), lengths=UNEVEN),
    "mamba, parts shorter than the taps reach": Case(mamba(), lengths=SHORT, state=True),
    "mamba, shortest parts in rounds": Case(mamba(), lengths=SHORTEST, state=True, exchange="scan"),
    "mamba, in rounds": Case(mamba(), lengths=UNEVEN, exchange="scan"),
    "mamba, sequences begin within": Case(mamba(), lengths=UNEVEN, resets=True, state=True),
    "mamba, sequences begin within short parts": Case(mamba(), lengths=SHORT, resets=True, state=True),
    "mamba, begin within, in rounds": Case(mamba(), lengths=SHORTEST, resets=True, state=True, exchange="scan"),
    "mamba, constant system": Case(mamba(selective=False), lengths=UNEVEN, state=True),
    "mamba, inner norms": Case(mamba(inner_norm="weighted", bias=True), lengths=UNEVEN),
    "mamba, one tap": Case(mamba(conv_kernel=1), lengths=UNEVEN),
    "mamba, float32": Case(mamba(), torch.float32, 1e-5, UNEVEN, state=True),
    "mamba2": Case(mamba2()),
    "mamba2, uneven parts": Case(mamba2(groups=2), lengths=UNEVEN, state=True),
    "mamba2, parts shorter than the taps reach": Case(mamba2(), lengths=SHORT, state=True),
    "mamba2, in rounds": Case(mamba2(groups=2), lengths=SHORTEST, state=True, exchange="scan"),
    "mamba2, sequences begin within": Case(mamba2(), lengths=UNEVEN, resets=True, state=True),
    "mamba2, begin within short parts": Case(mamba2(), lengths=SHORT, resets=True, state=True, exchange="scan"),
    "mamba2, gate on the scan": Case(mamba2(gated_norm=False, D_per_channel=True), lengths=UNEVEN),
    "mamba2, an MLP beside": Case(mamba2(ssm_dim=8, dt_limit=(0.01, 0.05)), lengths=UNEVEN),
    "mamba2, learned first state": Case(mamba2(learned_initial_state=True), lengths=UNEVEN),
    "mamba2, float32": Case(mamba2(), torch.float32, 1e-5, UNEVEN, state=True),
    "model mamba": Case(model("mamba_tiny"), lengths=UNEVEN),
    "model mamba, float32": Case(model("mamba_tiny"), torch.float32, 1e-5, UNEVEN),
    "model mamba, sequences begin within": Case(model("mamba_tiny"), lengths=SHORT, resets=True),
    "model mamba, blocks recomputed": Case(model("mamba_tiny"), lengths=UNEVEN, checkpointing=True),
    "model mamba, DDP": Case(model("mamba_tiny"), lengths=UNEVEN, wrap="ddp"),
    "model mamba, FSDP2": Case(model("mamba_tiny"), lengths=UNEVEN, wrap="fsdp"),
    "model mamba2": Case(model("mamba2_tiny", mlp_dim=8, mlp_multiple_of=8), lengths=UNEVEN),
    "model mamba2, float32": Case(model("mamba2_tiny"), torch.float32, 1e-5, UNEVEN),
    "model mamba2, blocks recomputed, in rounds": Case(
        model("mamba2_tiny"), lengths=SHORT, checkpointing=True, exchange="scan"
    ),
    "hybrid, whole attention": Case(model("mamba_tiny", **HYBRID), lengths=UNEVEN, resets=True, others="gather"),
}


def run(rank: int, size: int, folder: str) -> None:
    """A process: writes what failed, by the names of cases."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    found = {}
    try:
        for name, case in CASES.items():
            found[name] = ""
            check(case, rank, size)
        for name, test in OTHERS.items():
            found[name] = ""
            test(rank, size)
    except Exception:
        found[name] = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def near(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    scale = max(1.0, float(wanted.detach().abs().max())) if wanted.numel() else 1.0
    torch.testing.assert_close(
        found, wanted, rtol=0, atol=tolerance * scale, msg=lambda text: f"{what}: {text}", check_dtype=True
    )


def check(case: Case, rank: int, size: int) -> None:
    torch.manual_seed(0)
    module: Any = case.build().to(case.dtype)
    with torch.no_grad():  # first weights are small: what a state does has to show
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    is_model = hasattr(module, "embedding")
    if is_model:
        x = torch.randint(0, 32, (BATCH, LENGTH))
    else:
        x = torch.randn(BATCH, LENGTH, module.dim, dtype=case.dtype).requires_grad_()
    resets = None
    if case.resets:
        resets = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
        resets[0, [3, 9]] = True
        resets[1, 11] = True
    state = None
    if case.state:
        state = module.initial_state(BATCH, dtype=case.dtype)._map(lambda t: torch.randn_like(t).requires_grad_())
    options = {"resets": resets} if case.resets else {}
    y, last = module(x, state, **options)
    on_y = torch.randn_like(y)
    on_last = [torch.randn_like(tensor) for _, tensor in last.tensors()] if case.others == "refuse" else []

    def loss(y: Tensor, on_y: Tensor, after: State, share: float) -> Tensor:
        ends = [(t * weight).sum() for (_, t), weight in zip(after.tensors(), on_last, strict=bool(on_last))]
        return (y * on_y).sum() + share * sum(ends)

    loss(y, on_y, last, 1.0).backward()
    wanted = {name: p.grad for name, p in module.named_parameters()}
    of_x, of_state = x.grad, None if state is None else [t.grad for _, t in state.tensors()]
    module.zero_grad()

    lengths = None if case.lengths is None else case.lengths[size]
    if case.checkpointing:
        module.set_gradient_checkpointing(True)
    with sequence_parallel(module, exchange=case.exchange, others=case.others) as parts:
        mine = parts.split(x.detach(), lengths=lengths)
        if not is_model:
            mine = mine.clone().requires_grad_()
        if case.resets:
            options = {"resets": parts.split(resets, lengths=lengths)}
        again = None if state is None else state._map(lambda t: t.detach().clone().requires_grad_())
        wrapped = wrap(module, case.wrap)
        y_part, after = wrapped(mine, again, **options)
        near(parts.gather(y_part.detach()), y.detach(), case.tolerance, "y")
        scale = size if case.wrap else 1
        (scale * loss(y_part, parts.split(on_y, lengths=lengths), after, float(rank == size - 1))).backward()
        if not case.wrap:
            parts.sum_gradients()
        if case.others == "refuse":
            for (name, found), (_, tensor) in zip(parts.last_state(after).tensors(), last.tensors(), strict=True):
                near(found, tensor.detach(), case.tolerance, f"state {name}")
        for name, parameter in module.named_parameters():
            grad: Any = parameter.grad
            near(
                grad.full_tensor() if case.wrap == "fsdp" else grad, wanted[name], case.tolerance, f"gradient of {name}"
            )
        if not is_model:
            near(parts.gather(mine.grad), of_x, case.tolerance, "gradient of x")
    if again is not None and rank == 0:
        for (name, tensor), grad in zip(again.tensors(), of_state, strict=True):
            near(tensor.grad, grad, case.tolerance, f"gradient of the first state's {name}")
    elif again is not None:
        assert all(tensor.grad is None for _, tensor in again.tensors())
    assert "forward" not in vars(module)


def wrap(module: nn.Module, how: str) -> nn.Module:
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(module)
    if how == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in module.stack.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(module, mesh=mesh)
    return module


# ---- what is no comparison of gradients ----------------------------------------------------------------------------


def _raises(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError) as found:
        call()
    assert message in str(found.value), str(found.value)


def chunks_after_each_other(rank: int, size: int) -> None:
    """Rounds of parts, the last rank's state handed to the first: as one long sequence."""
    torch.manual_seed(0)
    module: Any = model("mamba2_tiny")().double()
    tokens = torch.randint(0, 32, (1, 24))
    with torch.no_grad():
        wanted, _ = module(tokens)
        state = None
        with sequence_parallel(module) as parts:
            for start in (0, 12):
                y, state = module(parts.split(tokens[:, start : start + 12]), state)
                state = parts.last_state(state)
                near(parts.gather(y), wanted[:, start : start + 12], 1e-9, "y")


def a_group_of_its_own(rank: int, size: int) -> None:
    """Two of the ranks, in another order than all, share a sequence; one alone has it whole."""
    pair, single = dist.new_group([0, 1]), dist.new_group([size - 1])
    torch.manual_seed(0)
    module: Any = model("mamba_tiny")().double()
    tokens = torch.randint(0, 32, (1, 8))
    wanted, _ = module(tokens)
    if rank < 2:
        with sequence_parallel(module, pair) as parts:
            near(parts.gather(module(parts.split(tokens))[0].detach()), wanted.detach(), 1e-9, "y")
    if rank == size - 1:
        with sequence_parallel(module, single) as parts:
            near(module(parts.split(tokens))[0], wanted, 0.0, "y")
            assert parts.size == 1
    dist.barrier()


def refusals(rank: int, size: int) -> None:
    plain: Any = model("mamba_tiny")()
    other = statescan.create_model("hybrid_tiny", dim=8, depth=1, layout=("s4d",))
    _raises("its Attention cannot be divided", lambda: sequence_parallel(model("mamba_tiny", **HYBRID)()))
    _raises("its S4D cannot be divided", lambda: sequence_parallel(other))
    _raises("not Linear", lambda: sequence_parallel(nn.Linear(2, 2)))
    _raises("others: 'refuse' or 'gather', got 'skip'", lambda: sequence_parallel(plain, others="skip"))  # type: ignore
    _raises("exchange: 'auto', 'gather' or 'scan', got 'ring'", lambda: sequence_parallel(plain, exchange="ring"))  # type: ignore
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    with sequence_parallel(plain) as parts:
        assert isinstance(parts, SequenceParallel) and (parts.rank, parts.size) == (rank, size)
        _raises("it is divided already", lambda: sequence_parallel(plain))
        _raises("offsets: not within", lambda: plain(tokens, offsets=torch.tensor([0, 2, 6])))
        _raises(f"one for each of {size} ranks", lambda: parts.split(tokens, lengths=[6]))
        _raises("at least 1", lambda: parts.split(tokens[:, :1]))
    with torch.no_grad():
        plain(tokens)  # whole again


OTHERS = {
    "chunks after each other": chunks_after_each_other,
    "a group of its own": a_group_of_its_own,
    "refusals": refusals,
}
