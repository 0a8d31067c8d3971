"""Dense retrieval with a language model. Zhang et al. 2024, "Mamba Retriever: Utilizing Mamba for Effective and Efficient
Dense Retrieval" (CIKM).

A text's embedding is the last feature, after the final norm, at the token that ends it; queries and passages share the
weights, and a score is an inner product. Peculiar: the token that pads is the one that ends, so the end is found by
length, never by search; the language model's head is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from statescan.models import _state_spaces
from statescan.models._language_model import LanguageModel
from statescan.models._model import Model, build_config
from statescan.models._registry import Family, Tensors, build_model, config_dict, family

POOLINGS = ("eos", "mean")


def language_config(slug: str, fields: dict[str, Any], *, owner: str) -> Any:
    """The config of the language model that another model wraps.

    Raises:
        ValueError: for a family of other models, or fields that it does not have.
    """
    found = family(slug)
    if not issubclass(found.model, LanguageModel):
        raise ValueError(
            f"{owner}: expected a family of language models, got {slug!r}; for instance 'mamba' or 'mamba2'"
        )
    return build_config(found.config, dict(fields), name=slug)


@dataclass(frozen=True)
class RetrieverConfig:
    """An encoder of texts.

    Arguments:
        backbone: family of the language model: mamba, mamba2, hybrid, …
        language_model: fields of its config.
        pooling: ``eos``, the feature at a text's last token; ``mean``, the mean of them all.
        end_token: put after every text; None: the model was trained without one.
        normalise: divide embeddings by their length, so that scores are cosines.
        temperature: divides the scores while learning.
        query_length, passage_length: tokens of either, the end token included, that were used in learning; longer ones
            are cut there. None: as long as they come.
    """

    backbone: str = "mamba"
    language_model: dict[str, Any] = field(default_factory=dict)
    pooling: str = "eos"
    end_token: int | None = 0
    normalise: bool = False
    temperature: float = 1.0
    query_length: int | None = 32
    passage_length: int | None = 144

    def __post_init__(self) -> None:
        inner = language_config(self.backbone, self.language_model, owner="backbone")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        if self.end_token is not None and not 0 <= self.end_token < inner.padded_vocab_size:
            raise ValueError(f"end_token: expected from 0 to {inner.padded_vocab_size - 1}, got {self.end_token}")
        for name in ("query_length", "passage_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, or None, got {value}")


class Retriever(Model):
    """tokens -> features of a language model -> one embedding a text.

    Arguments:
        config: a `RetrieverConfig`.
    """

    family = "retriever"

    def __init__(self, config: RetrieverConfig):
        super().__init__(config)
        inner = dict(config.language_model) | {"tie_embeddings": True}
        self.backbone: Any = build_model(config.backbone, inner)
        del self.backbone.head  # nothing is predicted
        self.undecayed = self.backbone.undecayed  # type: ignore[misc]

    @classmethod
    def of(cls, model: LanguageModel, **options: Any) -> Retriever:
        """An encoder with the weights of a language model; `options` are those of `RetrieverConfig`.

        Raises:
            TypeError: for a model of another kind.
        """
        if not isinstance(model, LanguageModel):
            raise TypeError(f"model: expected a language model, got {type(model).__name__}")
        made = cls(RetrieverConfig(backbone=model.family, language_model=config_dict(model), **options))
        weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
        made.backbone.load_state_dict(weights, strict=True)
        return made.to(model.device)

    @property
    def dim(self) -> int:
        """Channels of an embedding."""
        return self.backbone.config.dim

    def forward(self, tokens: Tensor, lengths: Tensor | None = None, *, chunk: int | None = None) -> Tensor:
        """Embeddings of texts.

        Arguments:
            tokens: (batch, length) int64, padded behind with anything: what follows a text's end changes nothing.
            lengths: (batch,) int64 tokens of each text, its end token included; None: all of them.
            chunk: read so many tokens at a time and hand on the state: without gradients the memory then does not grow
                with the length.

        Returns:
            (batch, dim), of length one if the config says so.

        Raises:
            ValueError: for lengths below 1 or above that of the tokens, or a chunk below 1.
        """
        batch, longest = tokens.shape
        if lengths is None:
            lengths = torch.full((batch,), longest, device=tokens.device)
        if lengths.shape != (batch,) or (batch and not 1 <= int(lengths.min()) <= int(lengths.max()) <= longest):
            raise ValueError(f"lengths: expected {batch} numbers from 1 to {longest}, got {lengths.tolist()}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk: expected at least 1, got {chunk}")
        lengths = lengths.to(tokens.device)
        if chunk is None or chunk >= longest:
            features, _ = self.backbone.hidden(tokens, return_state=False)
            pooled = self._pool(features, lengths, 0)
        else:
            pooled, state = tokens.new_zeros(()), None
            for first in range(0, longest, chunk):
                features, state = self.backbone.hidden(tokens[:, first : first + chunk], state)
                pooled = pooled + self._pool(features, lengths, first)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.config.normalise else pooled

    def _pool(self, features: Tensor, lengths: Tensor, first: int) -> Tensor:
        """What the features from position `first` on add to the embeddings."""
        place = torch.arange(first, first + features.shape[1], device=features.device)
        if self.config.pooling == "mean":
            inside = place < lengths[:, None]
            return torch.where(inside[..., None], features, 0).sum(1) / lengths[:, None].to(features.dtype)
        last = (lengths - 1 - first).clamp(0, features.shape[1] - 1)
        here = ((lengths - 1 >= first) & (lengths - 1 < first + features.shape[1]))[:, None]
        found = features.gather(1, last[:, None, None].expand(-1, 1, features.shape[2]))[:, 0]
        return torch.where(here, found, 0)

    def score(self, queries: Tensor, passages: Tensor) -> Tensor:
        """Inner products: (queries, dim) and (passages, dim) -> (queries, passages)."""
        return queries @ passages.mT

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping what it computed."""
        self.backbone.set_gradient_checkpointing(enabled)


def contrastive_loss(
    queries: Tensor,
    passages: Tensor,
    *,
    temperature: float = 1.0,
    symmetric: bool = False,
    excluded: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE with the batch's other passages as negatives.

    Arguments:
        queries: (batch, dim).
        passages: (batch * group, dim): of each query its passage first, then group - 1 hard negatives.
        temperature: divides the scores.
        symmetric: the mean of this loss and of that in which each query's passage looks for its query.
        excluded: (batch, batch * group) bool, True where a passage is no negative for a query: it answers it as well.

    Returns:
        the loss of each query (batch,), and the scores (batch, batch * group) over the temperature.

    Raises:
        ValueError: where the passages are not the same number for each query, or the temperature is not positive.
    """
    count = len(queries)
    if not count or len(passages) % count or not len(passages):
        raise ValueError(f"passages: expected as many for each of {count} queries, got {len(passages)}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    scores = queries.float() @ passages.float().mT / temperature
    targets = torch.arange(0, len(passages), len(passages) // count, device=scores.device)
    if excluded is not None:
        own = torch.nn.functional.one_hot(targets, len(passages)).bool()
        scores = scores.masked_fill(excluded & ~own, -torch.inf)
    loss = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    if symmetric:
        back = torch.nn.functional.cross_entropy(
            scores[:, targets].mT, torch.arange(count, device=scores.device), reduction="none"
        )
        loss = (loss + back) / 2
    return loss, scores


def _inner(config: RetrieverConfig) -> tuple[Family, Any]:
    return family(config.backbone), language_config(config.backbone, config.language_model, owner="backbone")


def _bare(found: Family) -> bool:
    """Whether the published encoder has the names of state-spaces' `MixerModel`: those of a language model's backbone."""
    return found.from_published is _state_spaces.from_published


def from_published(tensors: Tensors, config: RetrieverConfig) -> Tensors:
    """Names of the published encoder to ours."""
    found, inner = _inner(config)
    if _bare(found):
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    return {f"backbone.{name}": tensor for name, tensor in found.from_published(tensors, inner).items()}


def to_published(tensors: Tensors, config: RetrieverConfig) -> Tensors:
    """The inverse of `from_published`."""
    found, inner = _inner(config)
    theirs = found.to_published({name.removeprefix("backbone."): t for name, t in tensors.items()}, inner)
    return {name.removeprefix("backbone."): t for name, t in theirs.items()} if _bare(found) else theirs


def upgrade(tensors: Tensors) -> Tensors:
    """A language model's file is that of an encoder whose head is left out."""
    return {n.removeprefix("backbone."): t for n, t in tensors.items() if n not in ("lm_head.weight", "head.weight")}


VARIANTS: dict[str, dict[str, Any]] = {
    "mamba_retriever_tiny": dict(language_model=dict(dim=64, depth=2, vocab_size=256)),
    "mamba_retriever_130m": dict(language_model=dict(dim=768, depth=24)),
    "mamba_retriever_370m": dict(language_model=dict(dim=1024, depth=48)),
    "mamba_retriever_790m": dict(language_model=dict(dim=1536, depth=48)),
    "mamba2_retriever_130m": dict(backbone="mamba2", language_model=dict(dim=768, depth=24)),
}

FAMILY = Family("retriever", RetrieverConfig, Retriever, VARIANTS, from_published, to_published, upgrade)
