"""Dilation and erosion of grids, and what stands in their place in published code."""

from __future__ import annotations

import pytest
import scipy.ndimage
import torch

from statescan.layers.grid import ConvolvedMorphology, Morphology, dilation, erosion


def grid(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_they_enclose_the_grid_and_are_dual(size: int, spectral: bool) -> None:
    x = grid(2, 6, 7, 9)
    wide, narrow = (kind(x, size, spectral=spectral) for kind in (dilation, erosion))
    assert bool((wide >= x).all()) and bool((x >= narrow).all())
    assert torch.equal(narrow, -dilation(-x, size, spectral=spectral))
    if size == 1:
        assert torch.equal(wide, x) and torch.equal(narrow, x)
    both = Morphology(size, spectral=spectral)(x)
    assert torch.equal(both, torch.cat([narrow, wide], -1))


@pytest.mark.parametrize("size", [3, 5])
def test_they_are_scipys(size: int) -> None:
    x = grid(1, 6, 7, 4)
    for spectral, shape in ((False, (1, size, size, 1)), (True, (1, 1, 1, size))):
        for ours, theirs in ((dilation, scipy.ndimage.grey_dilation), (erosion, scipy.ndimage.grey_erosion)):
            # Beyond its border scipy repeats the grid there, which adds no new value.
            wanted = theirs(x.numpy(), size=shape, mode="nearest")
            assert torch.equal(ours(x, size, spectral=spectral), torch.from_numpy(wanted))


def test_gradients_reach_the_greatest_cells() -> None:
    x = grid(1, 3, 3, 1).requires_grad_()
    dilation(x, 3)[0, 1, 1, 0].backward()
    assert x.grad is not None
    assert int(x.grad.flatten().argmax()) == int(x.flatten().argmax()) and float(x.grad.sum()) == 1


@pytest.mark.parametrize("spectral", [False, True])
def test_convolutions_begin_as_one_blur_with_both_signs(spectral: bool) -> None:
    x = grid(2, 5, 4, 6)
    first, second = ConvolvedMorphology(4 if spectral else 6, 3, spectral=spectral)(x).chunk(2, -1)
    assert torch.equal(first, -second)
    # Spectral: sums of 3 channels x 3 rows of one column; else of 3 x 3 cells of one channel.
    wanted = x[0, 1:4, 2, 2:5].sum() if spectral else x[0, 1:4, 1:4, 3].sum()
    assert torch.allclose(second[0, 2, 2, 3], wanted, atol=1e-5)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="size: an odd number of at least 1, got 4"):
        dilation(grid(1, 4, 4, 2), 4)
    with pytest.raises(ValueError, match="size: an odd number of at least 1, got 0"):
        Morphology(0)
    with pytest.raises(ValueError, match="x: a grid of 3 columns, got shape"):
        ConvolvedMorphology(3, 3, spectral=True)(grid(1, 4, 4, 2))
