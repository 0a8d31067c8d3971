"""A weighted sum of image classifiers that can be stopped after any of them. Progressive distillation makes such a chain:
Medina, Hadachi, Honeine and Bensrhair 2025, "Mamba base PKD for efficient knowledge compression", arXiv 2503.01727.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from statescan.models._model import build_config
from statescan.models._registry import Family, build_model, family
from statescan.models._vision import VisionConfig, VisionModel

_VIM = {"dim": 32, "patch": 8, "num_classes": 10, "image_size": 32}


@dataclass(frozen=True)
class AnytimeEnsembleConfig(VisionConfig):
    """A chain of classifiers.

    Arguments:
        members: of each its ``family`` and the fields of its ``config``; they read the same images and have the same
            classes as the chain.
    """

    members: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.members:
            raise ValueError("members: at least one, a dictionary of family and config each")
        if self.features_only:
            raise ValueError("features_only: a chain has no feature maps; ask one of its members")
        for index, member in enumerate(self.members):
            if set(member) != {"family", "config"}:
                raise ValueError(f"members: dictionaries of family and config, got {sorted(member)} at {index}")
            config = build_config(family(member["family"]).config, dict(member["config"]), name=member["family"])
            for name in ("in_channels", "num_classes"):
                found, expected = getattr(config, name, None), getattr(self, name)
                if found != expected:
                    raise ValueError(f"members: {name}={expected} as the chain has, got {found} at {index}")


class AnytimeEnsemble(VisionModel):
    """scores after k members: the sum of the first k members' scores, each times its weight.

    Arguments:
        config: an `AnytimeEnsembleConfig`.
    """

    family = "anytime_ensemble"
    weights: Tensor

    def __init__(self, config: AnytimeEnsembleConfig):
        super().__init__(config)
        members = [build_model(member["family"], dict(member["config"])) for member in config.members]
        self.members: Any = nn.ModuleList(members)
        self.register_buffer("weights", torch.ones(len(config.members)))
        self.feature_info = []
        self.least_size = max(member.least_size for member in members)

    def forward(self, images: Tensor, members: int | None = None) -> Tensor:
        """images (batch, channels, height, width) -> scores (batch, num_classes) of the first `members`, or of all.

        Only these members are computed.

        Raises:
            ValueError: other images, or a number of members below 1 or above all.
        """
        count = len(self.members) if members is None else members
        if not 1 <= count <= len(self.members):
            raise ValueError(f"members: from 1 to {len(self.members)}, got {members}")
        self.check_images(images)
        return torch.stack([self.weights[i] * self.members[i](images) for i in range(count)]).sum(0)

    def forward_each(self, images: Tensor) -> Tensor:
        """images -> the scores after each member, (members, batch, num_classes); the last are those of `forward`."""
        self.check_images(images)
        return torch.stack([w * member(images) for w, member in zip(self.weights, self.members, strict=True)]).cumsum(0)

    def forward_features(self, images: Tensor) -> Tensor:
        """The members' scores, each times its weight, (batch, members, num_classes)."""
        scores = [w * member(images) for w, member in zip(self.weights, self.members, strict=True)]
        return torch.stack(scores, 1)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Their sum (batch, num_classes); with `pre_logits` the scores as they came."""
        return features if pre_logits else features.sum(1)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """There are none."""
        raise NotImplementedError("an ensemble has no feature maps; ask one of its `members`")

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Of every member."""
        super().set_gradient_checkpointing(enabled)
        for member in self.members:
            member.set_gradient_checkpointing(enabled)


def _plain(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """No published code: the names are ours."""
    return dict(tensors)


FAMILY = Family(
    slug="anytime_ensemble",
    config=AnytimeEnsembleConfig,
    model=AnytimeEnsemble,
    variants={
        "anytime_ensemble_tiny": {
            "num_classes": 10,
            "image_size": 32,
            "members": tuple({"family": "vim", "config": {**_VIM, "depth": depth}} for depth in (1, 2)),
        }
    },
    from_published=_plain,
    to_published=_plain,
)
