"""Search an index for texts that answer queries, and score the ranking.

examples:
  statescan search indexes/scifact --query "does vitamin D help bones?"
  statescan search indexes/scifact --queries scifact/queries.jsonl --qrels scifact/qrels/test.tsv --run runs/test.trec
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def run(
    index: Annotated[Path, tyro.conf.Positional],
    *,
    query: tuple[str, ...] = (),
    queries: Path | None = None,
    qrels: Path | None = None,
    run: Path | None = None,
    k: int | None = None,
    approximate: bool = False,
    breadth: int = 128,
    model: str | None = None,
    tokenizer: str | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Find the documents with the highest scores.

    Args:
        index: folder that `statescan index` made.
        query: texts to search for.
        queries: a file of JSON lines with _id and text, to search for all of them.
        qrels: judgements on these queries: prints nDCG@10, MRR@10 and recall; queries that were not judged are left out.
        run: a file to write what was found to, as TREC has it.
        k: documents a query; by default 10, or 1000 for a file of queries.
        approximate: by the index's graph instead of comparing all documents.
        breadth: of approximate search: the more, the nearer to exact, and the slower.
        model: folder or hub id of the encoder; by default the one that made the index.
        tokenizer: by default the model's.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        json: print data instead of a table.
    """
    from statescan import data
    from statescan.cli import _print, _retrieval
    from statescan.tasks.dense_search import DenseIndex, retrieval_scores, search_texts

    if bool(query) == (queries is not None):
        raise ValueError("query: give texts with --query, or a file with --queries")
    if qrels is not None and queries is None:
        raise ValueError("qrels: they judge the queries of a file; give it with --queries")
    asked = {str(number): text for number, text in enumerate(query, 1)}
    relevant = {}
    if queries is not None:
        asked = data.read_texts(queries)
    if qrels is not None:
        relevant = data.read_judgements(qrels)
        asked = {name: text for name, text in asked.items() if name in relevant}
        if not asked:
            raise ValueError(f"qrels: {str(qrels)!r} judges none of the queries in {str(queries)!r}")
    made = DenseIndex.load(index, approximate=approximate)
    loaded, chosen = _retrieval.load(model or made.model, tokenizer, device=device)
    found = search_texts(made, loaded, chosen, asked, k or (10 if query else 1000), breadth=breadth)
    if run is not None:
        data.write_run(run, found)
    scores = retrieval_scores(found, relevant) if relevant else {}
    if json:
        _print.as_json({"scores": scores, "found": found} if query else {"scores": scores, "queries": len(found)})
        return
    for name, best in found.items() if query else ():
        rows = [(rank, document, f"{score:.4f}") for rank, (document, score) in enumerate(best.items(), 1)]
        _print.table(asked[name], ("rank", "document", "score"), rows)
    if scores:
        rows_of = [(name, f"{value:.4f}") for name, value in scores.items()]
        _print.table(f"{len(relevant):,} judged queries", ("measure", "mean"), rows_of)
    elif not query:
        print(f"{len(found)} queries" + (f": {run}" if run else ""))
