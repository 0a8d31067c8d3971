"""Dense retrieval: a language model learns to put queries near the passages that answer them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from statescan import data
from statescan.models.retriever import Retriever, contrastive_loss
from statescan.tasks._run_folder import RunFolder, replacing
from statescan.tasks._settings import TrainingSettings, build, demand
from statescan.tasks.dense_search import encode_texts, exact_search, pad_tokens, retrieval_scores, text_tokens

if TYPE_CHECKING:
    from statescan.layers import State
    from statescan.tasks._fit import TrainingResult
    from statescan.tasks._module import Measure, Sums


@dataclass(frozen=True)
class RetrievalTraining(TrainingSettings):
    """Train an encoder for dense retrieval.

    Example: statescan train retrieval --data scifact --model mamba_tiny --out runs/scifact
    """

    #: A folder as BEIR has it: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.
    data: Path | None = None
    #: Judgements to learn from.
    split: str = "train"
    #: Judgements to validate with; none: a part of those to learn from.
    validation_split: str | None = None
    #: That part.
    validation_fraction: float = 0.1
    #: Judgements to be tried on, searching the whole collection; none: no test.
    test_split: str | None = None
    #: A TREC run of any retriever over the training queries: what it found and nobody judged relevant is a hard negative.
    negatives: Path | None = None
    #: Documents of each query in that run to choose from.
    negative_depth: int = 100
    #: Passages a query in a batch: one that answers, the others hard negatives, or any documents without a run.
    group: int = 1
    #: The embedding: the feature at the end of the text, or the mean of all.
    pooling: Literal["eos", "mean"] = "eos"
    #: Embeddings of length one: scores are cosines.
    normalise: bool = False
    #: Divides the scores.
    temperature: float = 1.0
    #: Passages look for their queries too.
    symmetric: bool = False
    #: Tokens of a query, at most.
    query_length: int = 32
    #: Tokens of a passage, at most.
    passage_length: int = 144
    #: bytes, or a tokenizer.json or a folder that holds one; none: that of init_from, or bytes.
    tokenizer: str | None = None
    #: Id of the token after each text; none: the tokenizer's, or 0.
    end_token: int | None = None
    #: Begin with the weights of a language model: its folder, or its name on the hub.
    init_from: str | None = None
    #: Optimiser steps.
    steps: int = 2000
    #: Queries of a batch, on each device; passages of other devices are no negatives.
    batch_size: int = 32
    #: Highest learning rate.
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("data", "negatives"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        for name, least in (("negative_depth", 1), ("group", 1), ("query_length", 1), ("passage_length", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction: expected between 0 and 1, got {self.validation_fraction}")
        if self.negatives is not None and self.group < 2:
            raise ValueError(f"group: expected at least 2 where negatives are given, got {self.group}")
        if self.init_from is not None and self.set:
            raise ValueError("set: a model that init_from names has its own config; leave one of the two out")


@dataclass(frozen=True)
class RetrievalBatch:
    """Queries and their passages.

    Fields:
        queries, query_lengths: (batch, length) int64 and (batch,).
        tokens, passage_lengths: passages, (batch * group, length) and (batch * group,), what answers a query first.
        excluded: (batch, batch * group) bool, True where a passage answers a query without being its own.
        targets: (batch,) places of the passages that answer.
    """

    queries: Tensor
    query_lengths: Tensor
    tokens: Tensor
    passage_lengths: Tensor
    excluded: Tensor
    targets: Tensor


class RetrievalBatches(IterableDataset):
    """The batches of one process, from batch `first` on; what batch n holds depends on the seed and n alone.

    Arguments:
        collection: documents, and queries to draw from.
        tokenizer, end_token, lengths: how texts become tokens; the lengths are those of queries and passages.
        group: passages a query.
        hard: of each query documents that are hard negatives; where there are too few, any others are added.
        batch_size: queries a batch, over all processes.
        seed: of the order and of the passages.
        rank, world: which process of how many.
        first: batch to begin with.
        once: stop after one pass in the given order.
    """

    def __init__(
        self,
        collection: data.RetrievalData,
        tokenizer: Any,
        *,
        end_token: int,
        lengths: tuple[int, int],
        group: int,
        hard: dict[str, list[str]],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
        once: bool = False,
    ) -> None:
        self._collection, self._tokenizer, self._end, self._lengths = collection, tokenizer, end_token, lengths
        self._group, self._hard, self._batch_size, self._seed = group, hard, batch_size, seed
        self._rank, self._world, self._first, self._once = rank, world, first, once
        self._names, self._documents = list(collection.queries), list(collection.documents)

    def __iter__(self) -> Any:
        count = len(self._names)
        size = min(self._batch_size, count)
        per_pass = count // size
        number = self._first
        while True:
            if self._once:
                start = number * size
                if start >= count:
                    return
                index = torch.arange(count)[start : start + size]
            else:
                seed = data.batch_seed(self._seed, "order", number // per_pass)
                order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
                start = number % per_pass * size
                index = order[start : start + size]
            yield self._take(index[self._rank :: self._world].tolist(), number)
            number += 1

    def _take(self, index: list[int], number: int) -> RetrievalBatch:
        generator = np.random.default_rng(data.batch_seed(self._seed, f"passages {self._rank}", number))
        names = [self._names[i] for i in index]
        passages = [name for query in names for name in self._passages(query, generator)]
        grades = self._collection.relevant
        answers = [[grades[query].get(name, 0) > 0 for name in passages] for query in names]
        targets = torch.arange(len(names)) * self._group
        excluded = torch.tensor(answers).reshape(len(names), len(passages))
        excluded[torch.arange(len(names)), targets] = False
        queries = self._tokens([self._collection.queries[name] for name in names], self._lengths[0])
        found = self._tokens([self._collection.documents[name] for name in passages], self._lengths[1])
        return RetrievalBatch(*queries, *found, excluded, targets)

    def _passages(self, query: str, generator: np.random.Generator) -> list[str]:
        grades = self._collection.relevant[query]
        answers = [name for name, grade in grades.items() if grade > 0]
        chosen = [answers[generator.integers(len(answers))]]
        hard = self._hard.get(query, [])
        take = min(len(hard), self._group - 1)
        chosen += [hard[i] for i in generator.choice(len(hard), take, replace=False)] if take else []
        while len(chosen) < self._group:
            other = self._documents[generator.integers(len(self._documents))]
            if grades.get(other, 0) <= 0:
                chosen.append(other)
        return chosen

    def _tokens(self, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        if not texts:  # a share of a last batch
            return torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        return pad_tokens([text_tokens(self._tokenizer, text, length=length, end_token=self._end) for text in texts])


def contrast(*, symmetric: bool) -> Measure:
    """The contrastive loss of a batch, and how many queries score their own passage highest."""

    def measure(model: Any, batch: dict[str, Any], state: State | None) -> tuple[Tensor, Tensor, State | None]:
        wide = torch.float32 if batch["targets"].device.type == "mps" else torch.float64
        if not len(batch["targets"]):
            return torch.zeros(()), torch.zeros(3, dtype=wide, device=batch["targets"].device), None
        queries = model(batch["queries"], batch["query_lengths"])
        passages = model(batch["tokens"], batch["passage_lengths"])
        each, scores = contrastive_loss(
            queries,
            passages,
            temperature=model.config.temperature,
            symmetric=symmetric,
            excluded=batch["excluded"],
        )
        loss, right = each.sum(), (scores.argmax(-1) == batch["targets"]).sum()
        count = torch.tensor(float(len(each)), device=loss.device)
        return loss, torch.stack([loss.detach().to(wide), count.to(wide), right.to(wide)]), None

    return measure


def train_retrieval(settings: RetrievalTraining) -> TrainingResult:
    """Train an encoder and leave it in the folder ``settings.out``; with a test split its scores too.

    Raises:
        FileNotFoundError: for a collection that is not there.
        ValueError: for one that holds too little, a tokenizer that does not fit the model, or a folder that cannot be
            written or that holds another run.
    """
    folder = RunFolder(settings.out)
    settings = folder.settle(settings)
    if settings.data is None:
        raise ValueError("data: expected a folder with corpus.jsonl, queries.jsonl and qrels")
    learning = _answered(data.read_retrieval(settings.data, settings.split), settings.split)
    if settings.validation_split is None:
        learning, validating = _parted(learning, settings)
    else:
        validating = _answered(data.read_retrieval(settings.data, settings.validation_split), settings.validation_split)
    tried = None if settings.test_split is None else data.read_retrieval(settings.data, settings.test_split)
    model, tokenizer = _model(settings)
    batch_size = settings.batch_size * settings.world_size
    common: dict[str, Any] = dict(
        end_token=model.config.end_token,
        lengths=(settings.query_length, settings.passage_length),
        group=settings.group,
        hard=_hard(settings, learning),
        batch_size=batch_size,
        seed=settings.seed,
    )

    def batches(first: int, rank: int, world: int) -> RetrievalBatches:
        return RetrievalBatches(learning, tokenizer, rank=rank, world=world, first=first, **common)

    def validation(first: int, rank: int, world: int) -> RetrievalBatches:
        return RetrievalBatches(validating, tokenizer, rank=rank, world=world, once=True, **(common | {"hard": {}}))

    def describe(sums: Sums) -> dict[str, float]:
        return {"validation_loss": sums.mean_loss, "validation_accuracy": sums.accuracy}

    from statescan.tasks._fit import Objective, fit

    objective = Objective(
        batches,
        validation,
        targets=1,
        columns=("validation_loss", "validation_accuracy"),
        describe=describe,
        measure=contrast(symmetric=settings.symmetric),
    )
    training = fit(model, settings, folder, objective, tokenizer=tokenizer)
    if tried is None:
        return training
    test = score_collection(model, tokenizer, tried, batch_size=settings.batch_size)
    with replacing(folder.path / "test.json") as file:
        file.write(json.dumps(test, indent=2).encode() + b"\n")
    return dataclasses.replace(training, test=test)


def score_collection(
    model: Any, tokenizer: Any, collection: data.RetrievalData, *, k: int = 1000, batch_size: int = 32
) -> dict[str, float]:
    """Search a whole collection, exactly, for each of its queries; see `dense_search.retrieval_scores`."""
    ids, names = list(collection.documents), list(collection.queries)
    texts = (list(collection.documents.values()), list(collection.queries.values()))
    lengths = (model.config.passage_length, model.config.query_length)
    vectors, queries = (
        encode_texts(model, tokenizer, each, length=length, batch_size=batch_size)
        for each, length in zip(texts, lengths, strict=True)
    )
    scores, places = exact_search(vectors, queries, min(k, len(ids)))
    run = {
        name: {ids[place]: float(score) for place, score in zip(at, best, strict=True)}
        for name, at, best in zip(names, places, scores, strict=True)
    }
    return retrieval_scores(run, collection.relevant)


def _answered(collection: data.RetrievalData, split: str) -> data.RetrievalData:
    """The queries that have an answer."""
    kept = [name for name in collection.queries if any(grade > 0 for grade in collection.relevant[name].values())]
    if not kept:
        raise ValueError(f"data: no query of the split {split!r} has a relevant document")
    return _of(collection, kept)


def _of(collection: data.RetrievalData, names: list[str]) -> data.RetrievalData:
    return data.RetrievalData(
        collection.documents,
        {name: collection.queries[name] for name in names},
        {name: collection.relevant[name] for name in names},
    )


def _parted(
    collection: data.RetrievalData, settings: RetrievalTraining
) -> tuple[data.RetrievalData, data.RetrievalData]:
    names = list(collection.queries)
    if len(names) < 2:
        raise ValueError(f"data: expected at least two queries with an answer, got {len(names)}")
    order = np.random.default_rng(data.batch_seed(settings.seed, "validation", 0)).permutation(len(names))
    count = min(len(names) - 1, max(1, round(len(names) * settings.validation_fraction)))
    shuffled = [names[i] for i in order]
    return _of(collection, shuffled[count:]), _of(collection, shuffled[:count])


def _hard(settings: RetrievalTraining, collection: data.RetrievalData) -> dict[str, list[str]]:
    """Of each query what a run found that does not answer it."""
    if settings.group > 1:
        for query, grades in collection.relevant.items():
            if len(collection.documents) <= sum(grade > 0 for grade in grades.values()):
                raise ValueError(f"group: every document answers the query {query!r}; there are no negatives")
    if settings.negatives is None:
        return {}
    run = data.read_run(settings.negatives)
    hard = {}
    for query, grades in collection.relevant.items():
        best = sorted(run.get(query, {}).items(), key=lambda pair: -pair[1])[: settings.negative_depth]
        unknown = [name for name, _ in best if name not in collection.documents]
        if unknown:
            raise ValueError(f"negatives: {str(settings.negatives)!r} has {unknown[0]!r}, which is no document here")
        hard[query] = [name for name, _ in best if grades.get(name, 0) <= 0]
    if not any(hard.values()):
        raise ValueError(f"negatives: {str(settings.negatives)!r} has none for any query to learn from")
    return hard


def _model(settings: RetrievalTraining) -> tuple[Retriever, Any]:
    from statescan.checkpoints import check_tokenizer, load, load_tokenizer

    if settings.init_from is None:
        demand(settings, "padded_vocab_size", "language model", "mamba_tiny")
        tokenizer = load_tokenizer(settings.tokenizer or "bytes")
        language = build(settings, vocab_size=tokenizer.vocab_size)
    else:
        beside = settings.init_from if Path(settings.init_from).is_dir() else "bytes"
        tokenizer = load_tokenizer(settings.tokenizer or beside)
        language = load(settings.init_from)
        check_tokenizer(tokenizer, language)
    end = settings.end_token
    if end is None:  # 0 is a byte that no text has
        end = tokenizer.end_of_text if tokenizer.end_of_text is not None else 0
    model = Retriever.of(
        language,
        pooling=settings.pooling,
        end_token=end,
        normalise=settings.normalise,
        temperature=settings.temperature,
        query_length=settings.query_length,
        passage_length=settings.passage_length,
    )
    return model.train(), tokenizer
