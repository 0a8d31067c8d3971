"""A sequence in parts gives what it gives whole: outputs, states, gradients; with two and three processes."""

import json

import pytest
import torch
import torch.multiprocessing

from statescan.parallel import sequence_parallel
from statescan.parallel._messages import incoming_inputs, incoming_state
from tests.parallel import _ranks


@pytest.fixture(scope="module", params=[2, 3], ids=["two ranks", "three ranks"])
def found(request, tmp_path_factory):
    """Failures by rank and case; all cases are run by the same processes."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_ranks.run, args=(request.param, str(folder)), nprocs=request.param)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("name", [*_ranks.CASES, *_ranks.OTHERS])
def test_parts_give_what_the_whole_gives(found, name):
    for rank, cases in enumerate(found):
        assert cases.get(name, "not reached") == "", f"rank {rank}:\n{cases.get(name)}"


class Told:
    """Keeps what a rank tells, and hands it what the others have told."""

    def __init__(self, rank, size):
        self.rank, self.size, self.arrived = rank, size, None

    def earlier(self, message, combine):
        self.message, self.combine = message, combine
        return lambda: self.arrived


LENGTHS = [3, 1, 1, 4, 1, 2, 5]


def begins():
    resets = torch.zeros(2, sum(LENGTHS), dtype=torch.bool)
    resets[0, [3, 10]] = True
    resets[1, 16] = True
    return resets


def in_any_grouping(ranks):
    """What each rank is told, combined at once, one after the other, and in a tree: always the same."""
    messages = torch.stack([told.message for told in ranks])
    for rank, told in enumerate(ranks):
        at_once = told.combine(messages[:rank])
        serial = told.combine(messages[:0])
        for message in messages[:rank]:
            serial = told.combine(torch.stack([serial, message]))
        middle = rank // 2
        halves = [told.combine(messages[:middle]), told.combine(messages[middle:rank])]
        torch.testing.assert_close(serial, at_once)
        torch.testing.assert_close(told.combine(torch.stack(halves)), at_once)
        told.arrived = at_once


@pytest.mark.parametrize("resets", [None, begins()], ids=["one sequence", "several"])
def test_states_of_seven_ranks_combine_associatively(resets):
    torch.manual_seed(0)
    steps, inputs = torch.rand(2, sum(LENGTHS), 3).double(), torch.randn(2, sum(LENGTHS), 3, 2).double()
    rates, initial = -torch.rand(3, 2).double(), torch.randn(2, 3, 2).double()

    def scan(part, state):
        for t in range(part.start, part.stop):
            if resets is not None:
                state = torch.where(resets[:, t, None, None], 0.0, state)
            state = torch.exp(steps[:, t, :, None] * rates) * state + inputs[:, t]
        return state

    starts = [sum(LENGTHS[:rank]) for rank in range(len(LENGTHS))]
    ranks, waits = [], []
    for rank, (start, length) in enumerate(zip(starts, LENGTHS, strict=True)):
        part = slice(start, start + length)
        ranks.append(Told(rank, len(LENGTHS)))
        waits.append(
            incoming_state(
                ranks[-1],
                steps[:, part].sum(1),
                scan(part, torch.zeros_like(initial)),
                lambda total: torch.exp(total[..., None] * rates),
                initial=initial,
                resets=None if resets is None else resets[:, part],
            )
        )
    in_any_grouping(ranks)
    for start, wait in zip(starts, waits, strict=True):
        torch.testing.assert_close(wait(), scan(slice(0, start), initial))


@pytest.mark.parametrize("resets", [None, begins()], ids=["one sequence", "several"])
@pytest.mark.parametrize("width", [1, 3, 6])
def test_inputs_before_each_of_seven_ranks(resets, width):
    torch.manual_seed(0)
    x, initial = torch.randn(2, sum(LENGTHS), 4), torch.randn(2, width, 4)
    starts = [sum(LENGTHS[:rank]) for rank in range(len(LENGTHS))]
    ranks, waits = [], []
    for rank, (start, length) in enumerate(zip(starts, LENGTHS, strict=True)):
        ranks.append(Told(rank, len(LENGTHS)))
        last = x[:, start + length - min(length, width) : start + length]
        marks = None if resets is None else resets[:, start : start + length]
        waits.append(incoming_inputs(ranks[-1], last, width, initial=initial, resets=marks))
    in_any_grouping(ranks)
    whole = torch.cat([initial, x], dim=1)
    for start, wait in zip(starts, waits, strict=True):
        wanted = whole[:, start : start + width].clone()
        if resets is not None:
            for row in range(2):
                marks = [t for t in range(start) if resets[row, t]]
                if marks:  # nothing from before the last sequence that begins before this part
                    wanted[row, : max(0, marks[-1] - (start - width))] = 0
        torch.testing.assert_close(wait(), wanted)


def test_without_a_process_group_the_error_says_what_to_do():
    with pytest.raises(ValueError, match="init_process_group first, in processes that torchrun starts"):
        sequence_parallel(_ranks.model("mamba_tiny")())
