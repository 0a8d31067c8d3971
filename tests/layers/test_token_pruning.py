"""Importance of tokens, and which are kept."""

from __future__ import annotations

import pytest
import torch

from statescan.layers import KeptTokens, kept_patches, select_tokens, token_importance


def test_importance_is_a_sum_over_channels() -> None:
    y = torch.tensor([[[1.0, -2.0, 3.0], [-1.0, -1.0, 0.5]]])
    assert token_importance(y).tolist() == [[4.0, 0.5]]
    assert token_importance(y, "sum").tolist() == [[2.0, -1.5]]
    assert token_importance(y, "l1").tolist() == [[6.0, 2.5]]
    assert torch.allclose(token_importance(y, "l2"), torch.tensor([[14.0, 2.25]]).sqrt())
    with pytest.raises(ValueError, match="importance: unknown 'max'; known: clip, sum, l1, l2"):
        token_importance(y, "max")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("patches", "ratio", "middle", "kept"),
    [
        (196, 0.8, False, 157),
        (196, 0.8, True, 156),  # with its class token 157, which is odd
        (156, 0.8, True, 124),
        (49, 0.8, True, 40),
        (7, 1.0, True, 7),
        (3, 0.01, False, 1),
        (2, 0.1, True, 1),
    ],
)
def test_numbers_of_patches(patches: int, ratio: float, middle: bool, kept: int) -> None:
    assert kept_patches(patches, ratio, middle=middle) == kept


@pytest.mark.parametrize("ratio", [0.0, 1.1, -0.5])
def test_ratios_are_checked(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"keep_ratio: in \(0, 1\], got"):
        kept_patches(10, ratio)


@pytest.mark.parametrize("levels", [2, 1000])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_order_class_tokens_and_ties(levels: int, count: int) -> None:
    """Whatever the scores, ties among them: kept tokens rise, class tokens are there, the best patches are taken."""
    generator = torch.Generator().manual_seed(levels + count)
    for _ in range(20):
        batch, length = 3, 17 + count
        scores = torch.randint(levels, (batch, length), generator=generator).float()
        rows = [torch.randperm(length, generator=generator)[:count].sort().values for _ in range(batch)]
        classes = torch.stack(rows)
        kept = select_tokens(scores, 0.6, classes)
        assert kept.shape == (batch, 11 + count)
        assert bool((kept.diff(dim=1) > 0).all())
        for row in range(batch):
            chosen, special = kept[row].tolist(), classes[row].tolist()
            assert set(special) <= set(chosen)
            patches = [index for index in range(length) if index not in special]
            best = sorted(patches, key=lambda index: (-float(scores[row, index]), index))[:11]
            assert sorted(set(chosen) - set(special)) == sorted(best)


def test_a_class_token_may_be_put_into_the_middle() -> None:
    scores = torch.tensor([[9.0, 8.0, 0.0, 1.0, 2.0, 3.0, 4.0]])
    kept = select_tokens(scores, 0.7, torch.tensor([[2]]), middle=True)
    assert kept.tolist() == [[0, 1, 2, 5, 6]]
    with pytest.raises(ValueError, match="middle: for sequences with one class token, got 0"):
        select_tokens(scores, 0.5, middle=True)


def test_what_is_kept_is_followed() -> None:
    kept = KeptTokens.whole(2, 6, [2, 5])
    taken = kept.take(torch.tensor([[0, 2, 4, 5], [1, 2, 3, 5]]))
    assert taken.positions.tolist() == [[0, 2, 4, 5], [1, 2, 3, 5]]
    assert taken.classes.tolist() == [[1, 3], [1, 3]]
    back = taken.flip()
    assert back.classes.tolist() == [[2, 0], [2, 0]]
    assert back.positions[0].tolist() == [5, 4, 2, 0]
    assert taken.arranged([0, 1]).tolist() == [[1, 3, 0, 2], [1, 3, 0, 2]]
    again = taken.take(torch.tensor([[1, 2, 3], [1, 2, 3]]))
    assert again.positions.tolist() == [[2, 4, 5], [2, 3, 5]]
    assert again.classes.tolist() == [[0, 2], [0, 2]]
    assert KeptTokens.whole(1, 3, []).take(torch.tensor([[0, 2]])).arranged([]).tolist() == [[0, 1]]
