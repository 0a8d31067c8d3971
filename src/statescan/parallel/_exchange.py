"""What all earlier ranks have to say to a rank, in one associative combination, with gradients that travel back.

An exchange is started early and awaited late: what is computed between the two hides it. Autograd runs backward in the
opposite order of what was recorded, so the gradient's way back is hidden behind the backward pass of the same computation.
Every rank must record the same exchanges in the same order, and use what comes of each: the first rank, too, to which
nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Messages of consecutive ranks (ranks, batch, numbers), oldest first, possibly none -> one message (batch, numbers).
Combine = Callable[[Tensor], Tensor]
Exchange = Literal["auto", "gather", "scan"]
#: Up to so many ranks every rank reads all messages at once; beyond it, they are combined in log2(ranks) rounds.
GATHERED = 8
#: Its newer name, where torch has that.
all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)


class Ranks:
    """The processes among which a sequence is divided, in the order of its parts.

    Arguments:
        group: a process group; None: all processes.
        exchange: ``gather``, ``scan`` (log-step), or ``auto``: by the number of ranks.
    """

    def __init__(self, group: Any = None, exchange: Exchange = "auto"):
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "sequence_parallel: no process group; call torch.distributed.init_process_group first, "
                "in processes that torchrun starts"
            )
        if exchange not in ("auto", "gather", "scan"):
            raise ValueError(f"exchange: 'auto', 'gather' or 'scan', got {exchange!r}")
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: this process is not in it")
        self.exchange = exchange if exchange != "auto" else "gather" if self.size <= GATHERED else "scan"

    def earlier(self, message: Tensor, combine: Combine) -> Callable[[], Tensor]:
        """Start to tell; calling what is returned waits, and gives the combination of all earlier ranks' messages.

        Arguments:
            message: (batch, numbers), of one shape on all ranks.
            combine: associative; of no messages it gives the neutral one.
        """
        if self.exchange == "gather":
            receive = _send(message, _Gather(self, self.rank))
            return lambda: combine(receive())
        receive = _send(message, _Shift(self, 1))

        def rounds() -> Tensor:
            # After the round of distance d, `mine` stands for the 2 d ranks up to this one, `before` for all but it.
            arriving, mine, before, distance = receive, message, message[None][:0], 1
            while distance < self.size:
                received = arriving()
                before = combine(torch.cat([received, before]))[None]
                distance *= 2
                if distance < self.size:
                    mine = combine(torch.cat([received, mine[None]]))
                    arriving = _send(mine, _Shift(self, distance))
            return before[0]

        return rounds

    def everyone(self, message: Tensor) -> Tensor:
        """All messages (ranks, *shape of one), differentiable."""
        return _send(message, _Gather(self, self.size))()


class _Transfer:
    """One exchange: who says something to whom, and what is under way."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._work: Any = None
        self._arrived: Any = None
        self._kept: Tensor | None = None  # a message on its way has to stay where it is

    def start(self, message: Tensor) -> None:
        raise NotImplementedError

    def start_back(self, grad: Tensor) -> None:
        raise NotImplementedError

    def finish(self) -> Tensor:
        """What has come."""
        self._work.wait()
        arrived, self._arrived, self._kept, self._work = self._arrived, None, None, None
        return arrived

    def finish_back(self) -> Tensor:
        """The gradient of the message: from all who read it."""
        return self.finish().sum(0)

    def _to_each(self, rows: Tensor, targets: range, sources: range) -> None:
        """Send a row to each target; a row comes of each source."""
        size = self._ranks.size
        self._kept = rows.flatten(1).contiguous()
        arrived = self._kept.new_empty(len(sources), self._kept.shape[1])
        self._arrived = arrived.view(len(sources), *rows.shape[1:])
        self._work = dist.all_to_all_single(
            arrived,
            self._kept,
            output_split_sizes=[int(rank in sources) for rank in range(size)],
            input_split_sizes=[int(rank in targets) for rank in range(size)],
            group=self._ranks.group,
            async_op=True,
        )


class _Gather(_Transfer):
    """Everyone says one thing to all; a rank reads what the first `count` have said: those before it, or all."""

    def __init__(self, ranks: Ranks, count: int):
        super().__init__(ranks)
        self._count = count

    def start(self, message: Tensor) -> None:
        size = self._ranks.size
        self._kept = message.reshape(1, -1).contiguous()
        arrived = self._kept.new_empty(size, self._kept.shape[1])
        self._arrived = arrived.view(size, *message.shape)[: self._count]
        self._work = all_gather(arrived, self._kept, group=self._ranks.group, async_op=True)

    def start_back(self, grad: Tensor) -> None:
        size, rank = self._ranks.size, self._ranks.rank
        later = range(size) if self._count == size else range(rank + 1, size)
        self._to_each(grad, range(self._count), later)


class _Shift(_Transfer):
    """Everyone says one thing to the rank so far behind it; the first ranks hear nothing."""

    def __init__(self, ranks: Ranks, distance: int):
        super().__init__(ranks)
        rank, size = ranks.rank, ranks.size
        self._next = range(rank + distance, rank + distance + 1) if rank + distance < size else range(0)
        self._previous = range(rank - distance, rank - distance + 1) if rank >= distance else range(0)

    def start(self, message: Tensor) -> None:
        self._to_each(message[None][: len(self._next)], self._next, self._previous)

    def start_back(self, grad: Tensor) -> None:
        self._to_each(grad, self._previous, self._next)


def _send(message: Tensor, transfer: _Transfer) -> Callable[[], Tensor]:
    token: Any = _Send.apply(message, transfer)
    return lambda: _Receive.apply(token, transfer)  # type: ignore[return-value]


class _Send(torch.autograd.Function):
    """Begins a transfer; in the backward pass waits for the gradient."""

    @staticmethod
    def forward(ctx: Any, message: Tensor, transfer: _Transfer) -> Tensor:  # type: ignore[override]
        ctx.transfer = transfer
        transfer.start(message)
        return message.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.transfer.finish_back(), None


class _Receive(torch.autograd.Function):
    """Waits for a transfer; in the backward pass sends the gradient off."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, transfer: _Transfer) -> Tensor:  # type: ignore[override]
        ctx.transfer = transfer
        return transfer.finish()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.transfer.start_back(grad)
        return grad.new_zeros(()), None
