"""Maps of four resolutions from the one of a plain backbone. Li et al. 2022, "ViTDet", arXiv 2203.16527."""

from __future__ import annotations

from torch import Tensor, nn

from statescan.layers.grid._parts import GridBatchNorm


class GridTransposedConvolution(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on channels-last grids."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, height, width, channels in) -> (batch, new height, new width, channels out)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class GridMaxPool(nn.MaxPool2d):
    """`torch.nn.MaxPool2d` on channels-last grids."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) -> (batch, new height, new width, channels)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SimplePyramid(nn.Module):
    """Grids of strides 4, 8, 16 and 32 from four grids of stride `patch`: transposed convolutions up, max pooling down.

    Arguments:
        dim: channels of all grids.
        patch: 8 or 16, pixels of the image for a cell of the given grids.
    """

    def __init__(self, dim: int, patch: int):
        super().__init__()
        if patch not in (8, 16):
            raise ValueError(f"patch: 8 or 16 for a pyramid of strides 4 to 32, got {patch}")

        def up() -> nn.Module:
            return GridTransposedConvolution(dim, dim, 2, stride=2)

        levels: list[nn.Module]
        if patch == 16:
            twice = nn.Sequential(up(), GridBatchNorm(dim), nn.GELU(), up())
            levels = [twice, nn.Sequential(up()), nn.Identity(), GridMaxPool(2)]
        else:
            levels = [nn.Sequential(up()), nn.Identity(), GridMaxPool(2), GridMaxPool(4)]
        self.levels = nn.ModuleList(levels)

    def forward(self, grids: list[Tensor]) -> list[Tensor]:
        """One grid (batch, rows, columns, dim) for all levels, or up to four, one a level from the finest."""
        if len(grids) == 1:
            grids = grids * len(self.levels)
        return [level(grid) for level, grid in zip(self.levels, grids, strict=False)]
