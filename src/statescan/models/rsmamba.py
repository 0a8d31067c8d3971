"""RSMamba: scenes from above, by one Mamba that reads the patches along several paths. Chen et al. 2024, arXiv 2403.19654.

Peculiar: every layer reads the sequence forwards, backwards and shuffled with the same weights, and a gate mixes the three;
one norm serves all layers. The published model shuffles anew at every call; ours does so in training alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers import Mamba
from statescan.layers.grid import PatchEmbedding, PatchTokens, corner_cells
from statescan.models._names import CAUSAL, Names, Rule, prefixed
from statescan.models._plain import PlainConfig, check_choice, linear_head
from statescan.models._registry import Family
from statescan.models._vision import FeatureInfo, VisionModel

PATHS = (
    "forward",
    "forward_reverse_mean",
    "forward_reverse_gate",
    "forward_reverse_shuffle_gate",
    "forward_reverse_shuffle_mean",
)


@dataclass(frozen=True)
class RSMambaConfig(PlainConfig):
    """An RSMamba.

    Arguments:
        inner_dim: channels within a mixer, 2 dim unless given.
        stride: distance of neighbouring patches; that of `patch` unless given.
        patch_bias: whether the convolution that makes patches has a bias.
        path: ``forward``, or which paths there are and how they are mixed: ``forward_reverse_mean``,
            ``forward_reverse_gate``, ``forward_reverse_shuffle_gate``, ``forward_reverse_shuffle_mean``.
        class_token: ``head``, ``middle``, ``tail``, ``double`` (both ends), or None.
        pool: what the head reads: the ``mean`` of the patches, or the ``class`` token.
        pool_norm: whether that mean is normalised.
        exact_middle: read a ``middle`` class token where it is; the published code reads the token after it if the
            number of patches is odd.
        final_norm: whether a norm follows the last layer.
        norm_eps: of all norms.
        state_dim, conv_kernel, conv_bias, dt_rank, bias: of the mixers.
        shuffle_seed: of the permutations in evaluation.
    """

    inner_dim: int | None = None
    stride: int | None = 8
    patch_bias: bool = False
    path: str = "forward_reverse_shuffle_gate"
    class_token: Literal["head", "middle", "tail", "double"] | None = None
    pool: Literal["mean", "class"] = "mean"
    pool_norm: bool = True
    exact_middle: bool = False
    final_norm: bool = True
    norm_eps: float = 1e-6
    state_dim: int = 16
    conv_kernel: int = 4
    conv_bias: bool = True
    dt_rank: int | Literal["auto"] = "auto"
    bias: bool = False
    shuffle_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step < 1:
            raise ValueError(f"stride: at least 1, got {self.stride}")
        if self.drop_path_rate:
            raise ValueError(f"drop_path_rate: RSMamba has none, got {self.drop_path_rate}")
        check_choice("path", self.path, PATHS)
        check_choice("pool", self.pool, ("mean", "class"))
        if self.pool == "class" and self.class_token is None:
            raise ValueError("pool: 'class' needs a class_token: head, middle, tail or double")

    @property
    def step(self) -> int:
        """Distance of neighbouring patches."""
        return self.patch if self.stride is None else self.stride

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in training."""
        rows, columns = (corner_cells(size, self.step) for size in self.image_shape)
        return rows, columns


class MultiPath(nn.Module):
    """x plus the mean, or the gated sum, of one mixer's outputs along several orders of x.

    The gate is a softmax over the paths of W [means of the paths' outputs over their positions].

    Arguments:
        mixer: a sequence mixer, shared by the paths.
        dim: channels.
        path: one of `PATHS`.
    """

    def __init__(self, mixer: nn.Module, dim: int, path: str):
        super().__init__()
        self.mixer = mixer
        self.backward = "reverse" in path
        self.shuffled = "shuffle" in path
        paths = 1 + self.backward + self.shuffled
        self.gate = nn.Linear(paths * dim, paths, bias=False) if path.endswith("gate") else None

    def forward(self, x: Tensor, norm: nn.Module, permutation: Tensor | None = None) -> Tensor:
        """x (batch, length, dim) to the same shape; `permutation` (length,) orders the shuffled path."""
        orders = [x]
        if self.backward:
            orders.append(x.flip(1))
        if permutation is not None:
            orders.append(x[:, permutation])
        out, _ = self.mixer(norm(torch.cat(orders)))
        # not chunk: a program for any number of images is traced without knowing it
        parts = list(out.unflatten(0, (len(orders), x.shape[0])).unbind(0))
        if self.backward:
            parts[1] = parts[1].flip(1)
        if permutation is not None:
            parts[2] = parts[2][:, permutation.argsort()]
        if self.gate is None:
            mixed = parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)
        else:
            weights = self.gate(torch.cat([part.mean(1) for part in parts], -1)).softmax(-1)  # (batch, paths)
            mixed = torch.einsum("bp,pbld->bld", weights, torch.stack(parts))
        return x + mixed


class RSMamba(VisionModel):
    """Overlapping patches with positions, layers of `MultiPath`, norm, mean, norm, linear head.

    Arguments:
        config: an `RSMambaConfig`.
    """

    family = "rsmamba"
    undecayed: ClassVar[tuple[str, ...]] = VisionModel.undecayed

    def __init__(self, config: RSMambaConfig):
        super().__init__(config)
        embedding = PatchEmbedding(
            config.in_channels, config.dim, config.patch, stride=config.step, bias=config.patch_bias, corner=True
        )
        nn.init.kaiming_normal_(embedding.projection.weight, nonlinearity="linear")
        self.tokens = PatchTokens(
            embedding,
            config.dim,
            *config.grid,
            class_token=config.class_token,
            position=config.position,
            dropout=config.dropout,
            route=config.route,
        )
        inner = 2 * config.dim if config.inner_dim is None else config.inner_dim
        self.layers = nn.ModuleList(
            MultiPath(
                Mamba(
                    config.dim,
                    expand=(inner + 0.5) / config.dim,
                    state_dim=config.state_dim,
                    conv_kernel=config.conv_kernel,
                    conv_bias=config.conv_bias,
                    dt_rank=config.dt_rank,
                    bias=config.bias,
                ),
                config.dim,
                config.path,
            )
            for _ in range(config.depth)
        )
        self.layer_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.final_norm else nn.Identity()
        self.feature_info = [FeatureInfo(config.dim, config.step, f"layers.{i}") for i in config.map_layers]
        if not config.features_only:
            pools = config.pool == "mean" and config.pool_norm
            self.pool_norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if pools else nn.Identity()
            self.head = linear_head(config, 0.01)

    def forward(
        self, images: Tensor, *, permutations: Sequence[Tensor] | Tensor | None = None, seed: int | None = None
    ) -> Any:
        """Class scores (batch, num_classes); with `features_only` the list of feature maps `out_indices`.

        Arguments:
            images: (batch, channels, height, width).
            permutations: (depth, length), the order of the shuffled path in each layer.
            seed: of the permutations, where those are not given. In evaluation `shuffle_seed` unless given, so that a
                model says the same of an image twice; in training they are drawn anew.

        Raises:
            ValueError: images that do not fit, or permutations that are none.
        """
        self.check_images(images)
        if self.config.features_only:
            maps = self.forward_maps(images, permutations=permutations, seed=seed)
            return [maps[index] for index in self.out_indices]
        return self.forward_head(self.forward_features(images, permutations=permutations, seed=seed))

    def run_layers(
        self, images: Tensor, permutations: Sequence[Tensor] | Tensor | None = None, seed: int | None = None
    ) -> tuple[list[Tensor], tuple[int, int]]:
        """Tokens (batch, length, dim) after every layer, the last after the last norm, and the grid's rows and columns."""
        x, shape, _ = self.tokens(images.permute(0, 2, 3, 1))
        orders = self._orders(x.shape[1], permutations, seed)
        kept = []
        for index, layer in enumerate(self.layers):
            order = None if orders is None else orders[index].to(x.device)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, self.layer_norm, order, use_reentrant=False)  # type: ignore[assignment]
            else:
                x = layer(x, self.layer_norm, order)
            kept.append(x)
        kept[-1] = self.norm(x)
        return kept, shape

    def forward_features(
        self, images: Tensor, *, permutations: Sequence[Tensor] | Tensor | None = None, seed: int | None = None
    ) -> Tensor:
        """images (batch, channels, height, width) -> tokens after the last norm (batch, length, dim)."""
        return self.run_layers(images, permutations, seed)[0][-1]

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Tokens (batch, length, dim) -> scores (batch, num_classes), or with `pre_logits` what the head reads."""
        indices = self.class_indices(features.shape[1])
        if self.config.pool == "class":
            pooled = features[:, indices].mean(1)
        else:
            pooled = self.pool_norm(self.patches(features).mean(1))
        return pooled if pre_logits else self.head(pooled)

    def forward_maps(
        self, images: Tensor, *, permutations: Sequence[Tensor] | Tensor | None = None, seed: int | None = None
    ) -> list[Tensor]:
        """Maps (batch, dim, rows, columns) of `feature_layers`."""
        kept, shape = self.run_layers(images, permutations, seed)
        return [self.map_of(kept[index], shape) for index in self.config.map_layers]

    def map_of(self, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """Tokens (batch, length, dim) as a map (batch, dim, rows, columns)."""
        return self.tokens.grid(tokens, shape, self.class_indices(tokens.shape[1])).permute(0, 3, 1, 2)

    def class_indices(self, length: int) -> list[int]:
        """Where class tokens are read in a sequence of so many tokens."""
        if self.config.class_token == "middle" and not self.config.exact_middle:
            return [length // 2]
        return self.tokens.class_indices(length - self.tokens.extra)

    def patches(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, length, dim) without class tokens."""
        drop = self.class_indices(tokens.shape[1])
        if not drop:
            return tokens
        return tokens[:, [index for index in range(tokens.shape[1]) if index not in drop]]

    def _orders(
        self, length: int, permutations: Sequence[Tensor] | Tensor | None, seed: int | None
    ) -> Sequence[Tensor] | Tensor | None:
        if not self.layers[0].shuffled:
            return None
        depth = self.config.depth
        if permutations is not None:
            if len(permutations) != depth or any(len(order) != length for order in permutations):
                sizes = [len(order) for order in permutations]
                raise ValueError(f"permutations: {depth} of {length} positions each, got {len(sizes)} of {sizes}")
            whole = torch.arange(length)
            if any(not torch.equal(order.cpu().sort().values, whole) for order in permutations):
                raise ValueError(f"permutations: each must hold 0 to {length - 1} once")
            return permutations
        if self.training and seed is None:
            return [torch.randperm(length) for _ in range(depth)]
        return _permutations(self.config.shuffle_seed if seed is None else seed, depth, length)


@torch.compiler.assume_constant_result
def _permutations(seed: int, depth: int, length: int) -> Tensor:
    """(depth, length) permutations that the seed alone determines."""
    return _drawn(seed, depth, length)


@lru_cache(maxsize=64)
def _drawn(seed: int, depth: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=generator) for _ in range(depth)])


def names(config: Any) -> Names:
    """The table of names for a config."""
    mixer: list[Rule] = [
        ("A_log", "A_log"),
        ("D", "D"),
        ("conv1d.weight", "convolution.weight", CAUSAL),
        ("conv1d.bias", "convolution.bias"),
        ("in_proj.*", "input_projection.*"),
        ("x_proj.*", "selection_projection.*"),
        ("dt_proj.weight", "delta_projection.weight"),
        ("dt_proj.bias", "delta_bias"),
        ("out_proj.*", "output_projection.*"),
    ]
    table: list[Rule] = [
        ("pos_embed", "tokens.position"),
        ("cls_token", "tokens.class_token"),
        ("cls_token_tail", "tokens.class_token_tail"),
        ("patch_embed.projection.*", "tokens.embedding.projection.*"),
        ("gate_layers.{}.0.weight", "layers.{}.gate.weight"),
        ("pre_norm.*", "layer_norm.*"),
        ("ln1.*", "norm.*"),
        ("ln2.*", "pool_norm.*"),
        *prefixed(mixer, "layers.{}.", "layers.{}.mixer."),
    ]
    if not config.features_only:
        table = [*prefixed(table, "backbone.", ""), ("head.fc.*", "head.*")]
    return Names(table)


def from_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Tensors under our names: those of a classifier (``backbone.…``, ``head.fc``), or with features_only a backbone's."""
    return names(config).from_published(tensors, config)


def to_published(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The inverse."""
    return names(config).to_published(tensors, config)


VARIANTS: dict[str, dict[str, Any]] = {
    "rsmamba_tiny": dict(dim=64, depth=4, patch=8, stride=4, image_size=64, num_classes=10),
    "rsmamba_small": dict(dim=192, depth=16, num_classes=30),
    "rsmamba_base": dict(dim=192, depth=24, num_classes=30),
    "rsmamba_large": dict(dim=256, depth=36, num_classes=30),
    "rsmamba_huge": dict(dim=320, depth=48, num_classes=30),
}

FAMILY = Family("rsmamba", RSMambaConfig, RSMamba, VARIANTS, from_published, to_published)
