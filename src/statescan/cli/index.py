"""Make an index of documents for `statescan search`.

examples:
  statescan index runs/scifact scifact --out indexes/scifact
  statescan index runs/scifact more/corpus.jsonl --approximate --out indexes/more
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    documents: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    approximate: bool = False,
    length: int | None = None,
    batch_size: int = 32,
    chunk: int = 2048,
    tokenizer: str | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Encode documents and keep their embeddings in a folder.

    Args:
        model: folder or hub id of a trained encoder.
        documents: a folder with corpus.jsonl, or a file of JSON lines with _id, text and, if need be, title.
        out: folder of the index.
        approximate: make a graph for approximate search too (faiss).
        length: tokens of a document, at most; by default as in training, 0 for all.
        batch_size: documents at a time.
        chunk: tokens of them at a time: memory does not grow with the length of a document.
        tokenizer: bytes, or a tokenizer.json or a folder with one; by default the model's.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        json: print data instead of a table.
    """
    from statescan import checkpoints, data
    from statescan.cli import _print, _retrieval
    from statescan.tasks.dense_search import DenseIndex

    texts = data.read_texts(documents / "corpus.jsonl" if documents.is_dir() else documents)
    loaded, chosen = _retrieval.load(model, tokenizer, device=device)
    longest = loaded.config.passage_length if length is None else length or None
    index = DenseIndex.build(
        out,
        texts,
        loaded,
        chosen,
        source=str(Path(checkpoints.locate(model)).resolve()),
        approximate=approximate,
        length=longest,
        batch_size=batch_size,
        chunk=chunk,
    )
    made = {
        "index": str(out),
        "documents": len(index.ids),
        "dim": index.vectors.shape[1],
        "tokens a document": longest or "all",
        "approximate": approximate,
    }
    if json:
        _print.as_json(made)
    else:
        _print.table("index", ("what", "result"), [(name, str(value)) for name, value in made.items()])
