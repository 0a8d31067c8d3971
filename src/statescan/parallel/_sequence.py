"""A language model or a mixer on one sequence that is divided among the ranks of a process group."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from statescan.layers import Mamba, Mamba2, ResidualBlock, ResidualStack, State
from statescan.parallel._exchange import Exchange, Ranks, all_gather
from statescan.parallel._mixers import join, mamba2_part, mamba_part, whole

Part = Callable[[Any, Ranks, Tensor, State | None, Tensor | None], tuple[Tensor, State]]
_PARTS: dict[type[nn.Module], Part] = {Mamba: mamba_part, Mamba2: mamba2_part}


def sequence_parallel(
    model: nn.Module,
    group: Any = None,
    *,
    exchange: Exchange = "auto",
    others: Literal["refuse", "gather"] = "refuse",
) -> SequenceParallel:
    """Have a model read one sequence in parts, one a rank, as one process would read the whole.

    Each rank calls the model with its part, as `SequenceParallel.split` gives it, and calls backward on its share of the
    loss; `SequenceParallel.sum_gradients` then adds up the gradients. Parts need not be equally long. The mixers' scans
    run from zero at the same time on all ranks; what each leaves, decay and state, is combined associatively and added.

    Arguments:
        model: a `layers.Mamba` or `layers.Mamba2`, or a language model of such blocks, with equal weights on all ranks.
        group: a process group, its ranks in the order of the parts; None: all processes.
        exchange: ``gather``: all ranks read all messages, in one round; ``scan``: log2(ranks) rounds of one message each;
            ``auto``: the first for up to 8 ranks.
        others: other mixers (attention in hybrids) are refused, or (``gather``) read the whole sequence on every rank,
            which saves them neither time nor memory.

    Raises:
        ValueError: without a process group, or for a model that cannot be divided.

    Sequence parallelism of state-space models: Dao and Gu 2024, arXiv 2405.21060, section 8.2. The associative
    combination over ranks: Blelloch 1990; Martin and Cundy 2018.
    """
    if others not in ("refuse", "gather"):
        raise ValueError(f"others: 'refuse' or 'gather', got {others!r}")
    ranks = Ranks(group, exchange)
    return SequenceParallel(model, ranks, _mixers(model, others))


class SequenceParallel:
    """What `sequence_parallel` gives: the sequence's division, and the way back. A context manager that ends it, too.

    Forward and backward passes belong into the context, or before `remove`.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, mixers: list[nn.Module]):
        self.model = model
        self._ranks = ranks
        self._mixers = mixers if ranks.size > 1 else []
        for mixer in self._mixers:
            if "forward" in vars(mixer):
                self._mixers = []
                raise ValueError("model: it is divided already; `remove` the earlier division first")
        for mixer in self._mixers:
            mixer.forward = functools.partial(_forward, mixer, ranks)  # type: ignore[method-assign]

    @property
    def rank(self) -> int:
        """The number of this part."""
        return self._ranks.rank

    @property
    def size(self) -> int:
        """How many parts there are."""
        return self._ranks.size

    def __enter__(self) -> SequenceParallel:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()

    def remove(self) -> None:
        """Have the model read whole sequences again."""
        for mixer in self._mixers:
            del mixer.forward
        self._mixers = []

    def split(self, x: Tensor, dim: int = 1, *, lengths: Sequence[int] | None = None) -> Tensor:
        """This rank's part of what all ranks have whole.

        Arguments:
            x: tokens, targets, resets, inputs.
            dim: the axis of time.
            lengths: of all parts; None: as equal as can be.

        Raises:
            ValueError: lengths that are not positive, one a rank, with the right sum.
        """
        length = x.shape[dim]
        if lengths is None:
            short, longer = divmod(length, self.size)
            lengths = [short + (rank < longer) for rank in range(self.size)]
        if len(lengths) != self.size or min(lengths) < 1 or sum(lengths) != length:
            raise ValueError(
                f"lengths: one for each of {self.size} ranks, at least 1, {length} together; got {list(lengths)}"
            )
        starts = [0, *itertools.accumulate(lengths)]
        return x.narrow(dim, starts[self.rank], lengths[self.rank])

    def gather(self, x: Tensor, dim: int = 1) -> Tensor:
        """All ranks' parts as one, on every rank; differentiable. For outputs; the inputs are there whole before."""
        if self.size == 1:
            return x
        lengths = _lengths(self._ranks, x.shape[dim], x.device)
        return join(self._ranks, x.movedim(dim, 1) if dim != 1 else x, lengths).movedim(1, dim)

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Add up the gradients of all ranks, so that each has those of the whole sequence.

        A wrapper that averages gradients over the same ranks (DDP, FSDP2) takes the place of this: multiply the loss by
        their number then.
        """
        if self.size == 1:
            return
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            return
        # A parameter may count for one part alone, such as a learned first state.
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=self._ranks.group)
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter, known in zip(parameters, used.tolist(), strict=True):
            if known:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter)
        for same in by_dtype.values():
            grads = [p.grad for p in same if p.grad is not None]
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat, group=self._ranks.group)
            for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(summed.view_as(grad))

    @torch.no_grad()
    def last_state(self, state: State) -> State:
        """The state after the last part, on every rank and without history: to go on with, after a sequence of parts."""
        if self.size == 1:
            return state.detach()
        group: Any = self._ranks.group or dist.group.WORLD
        last = dist.get_global_rank(group, self.size - 1)

        def shared(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(tensor, src=last, group=self._ranks.group)
            return tensor

        return pytree.tree_map(shared, state)


def _forward(
    mixer: nn.Module,
    ranks: Ranks,
    x: Tensor,
    state: State | None = None,
    *,
    resets: Tensor | None = None,
    offsets: Tensor | None = None,
    positions: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, State]:
    """Stands in for a mixer's own. Of the states given, the first rank's counts: that before the whole sequence."""
    for name, given in (("offsets", offsets), ("positions", positions)):
        if given is not None:
            raise ValueError(f"{name}: not within sequence_parallel; mark where sequences begin with resets")
    if x.ndim != 3 or not x.shape[1]:
        raise ValueError(f"x: sequence_parallel needs (batch, length, dim) with a length of 1 or more, got {x.shape}")
    part = _PARTS.get(type(mixer))
    if part is None:
        if state:
            raise ValueError(f"state: {type(mixer).__name__} reads the whole sequence at once and continues none")
        own = functools.partial(type(mixer).forward, mixer)
        return whole(own, ranks, x, _lengths(ranks, x.shape[1], x.device), resets)
    if getattr(mixer, "token_filter", None) is not None:
        raise ValueError("token_filter: not within sequence_parallel: it would see one part alone")
    return part(mixer, ranks, x, state, resets)


def _lengths(ranks: Ranks, length: int, device: torch.device) -> list[int]:
    """Lengths of all parts."""
    found = torch.empty(ranks.size, dtype=torch.int64, device=device)
    all_gather(found, torch.tensor([length], device=device), group=ranks.group)
    return found.tolist()


def _mixers(model: nn.Module, others: str) -> list[nn.Module]:
    """The modules of a model that mix positions."""
    if type(model) in _PARTS:
        return [model]
    blocks = [module for module in model.modules() if type(module) is ResidualBlock]
    stack = getattr(model, "stack", None)
    if type(stack) is not ResidualStack or {type(block) for block in stack.blocks} != {ResidualBlock}:
        raise ValueError(
            f"model: sequence_parallel divides layers.Mamba, layers.Mamba2 and language models whose blocks "
            f"are layers.ResidualBlock, not {type(model).__name__}"
        )
    mixers = list(dict.fromkeys(block.mixer for block in blocks if block.mixer is not None))  # blocks may share one
    unknown = sorted({type(mixer).__name__ for mixer in mixers if type(mixer) not in _PARTS})
    if unknown and others == "refuse":
        raise ValueError(
            f"model: its {', '.join(unknown)} cannot be divided, only Mamba and Mamba2 can; "
            "others='gather' has such mixers read the whole sequence on every rank"
        )
    return mixers
