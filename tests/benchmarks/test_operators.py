"""Counts that the tables of `benchmarks.operators` stand beside."""

import torch

from benchmarks.operators import ssd_work


def test_multiply_adds_of_ssd_counted_by_hand():
    # 32 positions in chunks of 16 (states of 8), 4 heads of 2 channels in 2 groups.
    x, delta, A = torch.zeros(1, 32, 4, 2), torch.zeros(1, 32, 4), torch.zeros(4)
    B = C = torch.zeros(1, 32, 2, 8)
    triangle = 2 * sum(range(1, 17))
    forward = 4 * (2 * 32 * 2 * 8 + triangle * 2) + 2 * triangle * 8
    backward = 4 * (5 * 32 * 2 * 8 + 2 * triangle * 2) + 2 * 3 * triangle * 8
    assert ssd_work(x, delta, A, B, C)[0] == forward
    assert ssd_work(x, delta, A, B, C, backward=True)[0] == forward + backward


def test_bytes_of_ssd():
    x, delta, A, B = torch.zeros(1, 32, 4, 2), torch.zeros(1, 32, 4), torch.zeros(4), torch.zeros(1, 32, 2, 8)
    small = ssd_work(x, delta, A, B, B)[1]
    assert small == 4 * 32 * (2 * 4 * 2 + 4 + 2 * 2 * 8)
    assert ssd_work(x, delta, A, B, B, backward=True)[1] > 2 * small
