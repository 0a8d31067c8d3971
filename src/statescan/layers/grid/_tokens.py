"""From images to sequences of patches with class tokens and positions, and back to grids."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from statescan import routes
from statescan.layers.grid._parts import resize_grid
from statescan.layers.grid._patches import PatchEmbedding
from statescan.routes import Route

#: Where a class token stands among the patches.
ClassPlace = Literal["head", "middle", "tail", "double", "random", "spread"]


class PatchTokens(nn.Module):
    """Patches of an image as a sequence, class tokens among them, a learned position added to each.

    Positions of patches are interpolated bicubically where the image has another size than those of training; those of
    class tokens are their own.

    Arguments:
        embedding: a module from (batch, height, width, in_channels) to (batch, rows, columns, dim).
        dim: channels of the tokens.
        rows, columns: the grid of training.
        class_token: where it stands: ``head``, ``middle`` (at rows x columns // 2), ``tail``, ``double`` (one at either
            end), ``random`` (drawn at every call), ``spread`` (`class_tokens` of them, one after every rows x columns //
            (class_tokens + 1) patches, their positions in a table of their own), or None for none.
        class_tokens: how many there are, with ``spread``.
        position: whether tokens have positions.
        dropout: after the positions are added.
        route: the order of the patches, a route of one walk over every cell.
    """

    def __init__(
        self,
        embedding: nn.Module,
        dim: int,
        rows: int,
        columns: int,
        *,
        class_token: ClassPlace | None = None,
        class_tokens: int = 1,
        position: bool = True,
        dropout: float = 0.0,
        route: str | Route = "raster",
    ):
        super().__init__()
        if class_token is not None and class_token not in get_args(ClassPlace):
            raise ValueError(f"class_token: unknown {class_token!r}; known: {', '.join(get_args(ClassPlace))}, None")
        if class_tokens < 1 or (class_tokens > 1 and class_token != "spread"):
            raise ValueError(f"class_tokens: 1, or more with class_token='spread', got {class_tokens}")
        self.rows, self.columns, self.place, self.class_tokens = rows, columns, class_token, class_tokens
        self.route = routes.get(route)
        if self.route.walks != 1:
            raise ValueError(f"route: one walk over the grid, but {self.route.name!r} has {self.route.walks}")
        self.embedding = embedding
        self.class_token = nn.Parameter(torch.zeros(1, class_tokens, dim)) if class_token is not None else None
        self.class_token_tail = nn.Parameter(torch.zeros(1, 1, dim)) if class_token == "double" else None
        self.extra = len(self.class_indices(rows * columns))
        apart = position and class_token == "spread"
        self.class_position = nn.Parameter(torch.zeros(1, class_tokens, dim)) if apart else None
        length = rows * columns + (0 if apart else self.extra)
        self.position = nn.Parameter(torch.zeros(1, length, dim)) if position else None
        self.dropout = nn.Dropout(dropout)
        for parameter in (self.class_token, self.class_token_tail, self.position, self.class_position):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def class_indices(self, patches: int) -> list[int]:
        """Where class tokens stand in the sequence of so many patches; a ``random`` one is counted as at the head."""
        if self.place == "spread":
            between = patches // (self.class_tokens + 1)
            return [between + index * (between + 1) for index in range(self.class_tokens)]
        places = {"head": [0], "random": [0], "middle": [patches // 2], "tail": [patches], "double": [0, patches + 1]}
        return places[self.place] if self.place is not None else []

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int], list[int]]:
        """images (batch, height, width, in_channels) -> tokens (batch, length, dim), the grid's rows and columns, and
        where the class tokens stand."""
        grid = self.embedding(images)
        batch, rows, columns, dim = grid.shape
        tokens: list[Tensor] = [] if self.class_token is None else list(self.class_token.split(1, 1))
        tokens += [] if self.class_token_tail is None else [self.class_token_tail]
        if self.position is not None:
            table, extra = self._split(self.position)
            grid = grid + resize_grid(table, rows, columns)
            tokens = [token + extra[:, i : i + 1] for i, token in enumerate(tokens)]
        if self.route.name == "raster":
            sequence = grid.flatten(1, 2)
        else:
            sequence = self.route.walk(grid)[:, :, 0]
        indices = self.class_indices(rows * columns)
        if self.place == "random":
            indices = [int(torch.randint(rows * columns + 1, ()))]
        for index, token in zip(indices, tokens, strict=True):
            one = token.to(sequence.dtype).expand(batch, -1, -1)
            sequence = torch.cat([sequence[:, :index], one, sequence[:, index:]], 1)
        return self.dropout(sequence), (rows, columns), indices

    def grid(self, tokens: Tensor, shape: tuple[int, int], indices: list[int]) -> Tensor:
        """tokens (batch, length, dim) without those at `indices`, as a grid (batch, *shape, dim)."""
        tokens = _without(tokens, indices)
        if self.route.name == "raster":
            return tokens.unflatten(1, shape)
        return self.route.unwalk(tokens[:, :, None], *shape)[:, :, :, 0]

    def _split(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the patches as a grid of training (1, rows, columns, dim), and of the class tokens."""
        if self.class_position is not None:
            return table.unflatten(1, (self.rows, self.columns)), self.class_position
        indices = self.class_indices(self.rows * self.columns)
        return _without(table, indices).unflatten(1, (self.rows, self.columns)), table[:, indices]


def _without(sequence: Tensor, indices: list[int]) -> Tensor:
    """The sequence (batch, length, dim) without the positions `indices`, which rise."""
    for index in reversed(indices):
        sequence = torch.cat([sequence[:, :index], sequence[:, index + 1 :]], 1)
    return sequence


def embed_patches(in_channels: int, dim: int, patch: int, stride: int | None = None) -> PatchEmbedding:
    """The convolution that makes patches, first weights of variance 1 / fan in (LeCun), bias zero."""
    embedding = PatchEmbedding(in_channels, dim, patch, stride=stride)
    weight = embedding.projection.weight
    std = (weight[0].numel()) ** -0.5
    # A normal distribution cut at two deviations has a standard deviation of 0.8796 of the uncut one.
    nn.init.trunc_normal_(weight, std=std / 0.87962566103423978, a=-2 * std / 0.8796, b=2 * std / 0.8796)
    if embedding.projection.bias is not None:
        nn.init.zeros_(embedding.projection.bias)
    return embedding
