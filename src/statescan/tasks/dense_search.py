"""Dense search: embeddings of a collection in a folder, exact and approximate search, and how good a ranking is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statescan.data import Run
from statescan.tasks._run_folder import replacing

_TABLE, _VECTORS, _GRAPH = "index.json", "vectors.npy", "graph.faiss"


def text_tokens(tokenizer: Any, text: str, *, length: int | None, end_token: int | None) -> list[int]:
    """A text's tokens, cut to `length` with the end token counted, which is never cut.

    Raises:
        ValueError: for an empty text where there is no end token.
    """
    tokens = tokenizer.encode(text)
    if end_token is not None:
        return [*(tokens if length is None else tokens[: length - 1]), end_token]
    if not tokens:
        raise ValueError("text: an empty one has no embedding without an end token")
    return tokens if length is None else tokens[:length]


def pad_tokens(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens of several texts -> (texts, longest), zeros behind their ends, and their lengths."""
    lengths = torch.tensor([len(text) for text in texts])
    tokens = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return tokens, lengths


@torch.no_grad()
def encode_texts(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    length: int | None = None,
    batch_size: int = 32,
    chunk: int = 2048,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Embeddings of texts, (texts, dim) float32, in their order; texts of like lengths are read together.

    Arguments:
        model: a `models.retriever.Retriever`.
        tokenizer: of its language model.
        texts: the texts.
        length: tokens a text, at most; None: all of them.
        batch_size: texts at a time.
        chunk: tokens at a time, the state handed on: the memory does not grow with a text's length.
        out: an array to write to, for instance one in a file.

    Raises:
        ValueError: for a batch size below 1, or an embedding that is not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    model.eval()
    found = np.empty((len(texts), model.dim), np.float32) if out is None else out
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for first in range(0, len(order), batch_size):
        some = order[first : first + batch_size]
        end = model.config.end_token
        tokens, lengths = pad_tokens([text_tokens(tokenizer, texts[i], length=length, end_token=end) for i in some])
        vectors = model(tokens.to(model.device), lengths, chunk=chunk).float().cpu()
        if not bool(vectors.isfinite().all()):
            raise ValueError("model: an embedding is not finite; the weights are damaged or the precision too low")
        found[some] = vectors.numpy()
    return found


class DenseIndex:
    """Embeddings of documents.

    Arguments:
        ids: names of the documents.
        vectors: (documents, dim) float32; may be an array in a file.
        model: where the encoder is.
        graph: of the library faiss, for approximate search.
    """

    def __init__(self, ids: Sequence[str], vectors: np.ndarray, *, model: str = "", graph: Any = None) -> None:
        if vectors.ndim != 2 or len(ids) != len(vectors) or not len(ids):
            raise ValueError(f"vectors: expected one for each of {len(ids)} ids, got shape {vectors.shape}")
        self.ids, self.vectors, self.model, self.graph = list(ids), vectors, model, graph

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        documents: Mapping[str, str],
        model: Any,
        tokenizer: Any,
        *,
        source: str = "",
        approximate: bool = False,
        length: int | None = None,
        batch_size: int = 32,
        chunk: int = 2048,
    ) -> DenseIndex:
        """Encode documents into a folder; the embeddings go to their file as they come.

        Arguments:
            folder: to write to.
            documents: texts by id.
            model, tokenizer, length, batch_size, chunk: see `encode_texts`.
            source: where the model is, to be noted.
            approximate: make a graph for approximate search too; needs faiss.

        Raises:
            ValueError: where there are no documents.
        """
        if not documents:
            raise ValueError("documents: expected at least one")
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / _TABLE).unlink(missing_ok=True)  # the folder counts as an index when this is there
        (place / _GRAPH).unlink(missing_ok=True)
        shape = (len(documents), model.dim)
        vectors = np.lib.format.open_memmap(place / _VECTORS, "w+", np.float32, shape)
        texts = list(documents.values())
        encode_texts(model, tokenizer, texts, length=length, batch_size=batch_size, chunk=chunk, out=vectors)
        vectors.flush()
        graph = None
        if approximate:
            graph = make_graph(vectors)
            import faiss

            faiss.write_index(graph, str(place / _GRAPH))
        with replacing(place / _TABLE) as file:
            file.write(json.dumps({"model": source, "dim": model.dim, "ids": list(documents)}).encode())
        return cls(list(documents), vectors, model=source, graph=graph)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, approximate: bool = False) -> DenseIndex:
        """The index in a folder; its vectors stay in their file.

        Raises:
            ValueError: for a folder without an index, or without a graph where one is wanted.
        """
        place = Path(folder)
        if not (place / _TABLE).is_file():
            raise ValueError(f"index: {str(place)!r} holds none; make one with `statescan index`")
        table = json.loads((place / _TABLE).read_text(encoding="utf-8"))
        graph = None
        if approximate:
            if not (place / _GRAPH).is_file():
                raise ValueError(f"index: {str(place)!r} has no graph; make it with `statescan index --approximate`")
            import faiss

            graph = faiss.read_index(str(place / _GRAPH))
        return cls(table["ids"], np.load(place / _VECTORS, mmap_mode="r"), model=table["model"], graph=graph)

    def search(
        self, queries: np.ndarray, k: int = 10, *, block: int = 65536, breadth: int = 128
    ) -> list[dict[str, float]]:
        """The documents with the highest inner products, the best first.

        Without a graph all of them are compared, `block` at a time; with one only those that it leads to.

        Arguments:
            queries: (queries, dim).
            k: documents a query; fewer where there are fewer.
            block: documents at a time in exact search.
            breadth: of approximate search: the more, the nearer to exact, and the slower.

        Raises:
            ValueError: for queries of another width, or numbers below 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"queries: expected (queries, {self.vectors.shape[1]}), got {queries.shape}")
        for name, value in (("k", k), ("block", block), ("breadth", breadth)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        k = min(k, len(self.ids))
        if self.graph is None:
            scores, places = exact_search(self.vectors, queries, k, block=block)
        else:
            self.graph.hnsw.efSearch = max(k, breadth)
            scores, places = self.graph.search(np.ascontiguousarray(queries, np.float32), k)
        return [
            {self.ids[place]: float(score) for place, score in zip(*row, strict=True) if place >= 0}
            for row in zip(places, scores, strict=True)
        ]


def make_graph(vectors: np.ndarray, *, neighbours: int = 32, effort: int = 200) -> Any:
    """A hierarchical navigable small-world graph of faiss, for inner products (Malkov and Yashunin 2018)."""
    import faiss

    graph = faiss.IndexHNSWFlat(vectors.shape[1], neighbours, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = effort
    graph.add(np.ascontiguousarray(vectors, np.float32))
    return graph


def exact_search(
    vectors: np.ndarray, queries: np.ndarray, k: int, *, block: int = 65536, together: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The k highest inner products and their places, each (queries, k), by matrix products of blocks.

    Arguments:
        vectors: (documents, dim).
        queries: (queries, dim).
        k: documents a query, at most as many as there are.
        block: documents at a time.
        together: queries at a time.
    """
    wanted = torch.from_numpy(np.array(queries, np.float32)).split(together)
    best = [torch.empty(len(some), 0) for some in wanted]
    places = [torch.empty(len(some), 0, dtype=torch.int64) for some in wanted]
    for first in range(0, len(vectors), block):
        part = torch.from_numpy(np.array(vectors[first : first + block], np.float32)).mT
        for i, some in enumerate(wanted):
            here, at = (some @ part).topk(min(k, part.shape[1]))
            both, at = torch.cat([best[i], here], 1), torch.cat([places[i], at + first], 1)
            best[i], chosen = both.topk(min(k, both.shape[1]))
            places[i] = at.gather(1, chosen)
    return torch.cat(best).numpy(), torch.cat(places).numpy()


def retrieval_scores(
    run: Mapping[str, Mapping[str, float]], relevant: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """nDCG@10, MRR@10 and recall at 1, 10, 100 and 1000, as trec_eval computes them (needs pytrec-eval-terrier).

    A mean over the judged queries that have an answer; one that the run leaves out counts 0.

    Raises:
        ValueError: where no judged query has an answer.
    """
    import pytrec_eval

    asked = {query: dict(grades) for query, grades in relevant.items() if any(g > 0 for g in grades.values())}
    if not asked:
        raise ValueError("relevant: no query has a relevant document")
    found: Run = {query: {name: float(s) for name, s in run[query].items()} for query in asked if query in run}
    whole = pytrec_eval.RelevanceEvaluator(asked, {"ndcg_cut.10", "recall.1,10,100,1000"}).evaluate(found)
    first = pytrec_eval.RelevanceEvaluator(asked, {"recip_rank"}).evaluate(
        # Equal scores in trec_eval's order: the greater name first.
        {
            query: dict(sorted(each.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)[:10])
            for query, each in found.items()
        }
    )
    names = {"ndcg_cut_10": "nDCG@10", "recip_rank": "MRR@10"} | {f"recall_{k}": f"R@{k}" for k in (1, 10, 100, 1000)}
    return {
        shown: sum({**whole[query], **first[query]}[name] for query in found) / len(asked)
        for name, shown in names.items()
    }


def search_texts(
    index: DenseIndex, model: Any, tokenizer: Any, queries: Mapping[str, str], k: int = 10, **options: Any
) -> Run:
    """Encode queries and search: of each, by id, the documents found; `options` are those of `DenseIndex.search`."""
    texts = list(queries.values())
    vectors = encode_texts(model, tokenizer, texts, length=model.config.query_length)
    return dict(zip(queries, index.search(vectors, k, **options), strict=True))
