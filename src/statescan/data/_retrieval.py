"""Retrieval collections as BEIR keeps them, runs as TREC does."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Of each query the documents found and their scores.
Run = dict[str, dict[str, float]]


@dataclass(frozen=True)
class RetrievalData:
    """Documents, queries and which answers which.

    Fields:
        documents: texts by id, a title before its text.
        queries: texts by id: those that were judged.
        relevant: of each query the grades of the documents judged; above 0 it answers.
    """

    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]


def read_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """Texts by id, of a file of JSON lines with ``_id``, ``text`` and, if need be, ``title``.

    Raises:
        ValueError: for a line that is none, or an id that comes twice.
    """
    texts: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, text, title = str(row["_id"]), str(row["text"]), str(row.get("title") or "")
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{path}: line {number} is no JSON object with _id and text") from None
            if name in texts:
                raise ValueError(f"{path}: line {number}: the id {name!r} comes twice")
            texts[name] = f"{title} {text}" if title else text
    if not texts:
        raise ValueError(f"{path}: there are no texts in it")
    return texts


def read_judgements(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Grades by query and document, of a table query, document, grade (BEIR), or query, 0, document, grade (TREC).

    Raises:
        ValueError: for a line of another form.
    """
    grades: dict[str, dict[str, int]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\n").split("\t") if "\t" in line else line.split()
            if not line.strip() or (number == 1 and cells[-1].strip() == "score"):
                continue
            try:
                query, document, grade = cells if len(cells) == 3 else (cells[0], cells[2], cells[3])
                grades.setdefault(query, {})[document] = int(grade)
            except (ValueError, IndexError):
                raise ValueError(f"{path}: line {number}: expected query, document and grade") from None
    if not grades:
        raise ValueError(f"{path}: there are no judgements in it")
    return grades


def read_retrieval(folder: str | os.PathLike[str], split: str = "test") -> RetrievalData:
    """A collection: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for one of another form, or judgements on queries or documents that are not there.
    """
    place = Path(folder)
    documents, queries = read_texts(place / "corpus.jsonl"), read_texts(place / "queries.jsonl")
    relevant = read_judgements(place / "qrels" / f"{split}.tsv")
    for query, grades in relevant.items():
        unknown = [name for name in grades if name not in documents]
        if query not in queries or unknown:
            what = f"query {query!r}" if query not in queries else f"document {unknown[0]!r}"
            raise ValueError(f"{place}: qrels/{split}.tsv judges {what}, which is not there")
    return RetrievalData(documents, {name: queries[name] for name in relevant}, relevant)


def write_run(path: str | os.PathLike[str], run: Mapping[str, Mapping[str, float]], *, tag: str = "statescan") -> None:
    """Write a run as TREC has it (query Q0 document rank score tag), the best first; the file is replaced as a whole.

    Raises:
        ValueError: for an id with white space in it, which the format cannot hold.
    """
    for name in (name for query, found in run.items() for name in (query, *found)):
        if not name or name.split() != [name]:
            raise ValueError(f"run: the id {name!r} is empty or has white space in it, which a TREC run cannot hold")
    place = Path(path)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for query, found in run.items():
                ordered = sorted(found.items(), key=lambda pair: -pair[1])
                file.writelines(
                    f"{query} Q0 {document} {rank} {score:.9g} {tag}\n"
                    for rank, (document, score) in enumerate(ordered, 1)
                )
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def read_run(path: str | os.PathLike[str]) -> Run:
    """A run as TREC has it.

    Raises:
        ValueError: for a line of another form.
    """
    run: Run = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            cells = line.split()
            try:
                query, _, document, _, score, _ = cells
                value = float(score)
            except ValueError:
                raise ValueError(f"{path}: line {number}: expected query Q0 document rank score tag") from None
            if not math.isfinite(value):
                raise ValueError(f"{path}: line {number}: the score {score} is no finite number")
            run.setdefault(query, {})[document] = value
    return run


def make_retrieval(
    folder: str | os.PathLike[str],
    *,
    documents: int = 400,
    length: int = 12,
    keys: int = 40,
    noise: int = 40,
    held_out: float = 0.25,
    seed: int = 0,
) -> None:
    """Write a generated collection: in the noise of every document stand two keys, its own pair; the query is this pair.

    Keys and noise are letters, so that the texts have one byte a token; the pair's order counts.

    Arguments:
        folder: to write to, as `read_retrieval` reads it, with the splits ``train`` and ``test``.
        documents: how many; those of the test's queries answer none of the training's.
        length: characters of a document.
        keys, noise: how many different characters serve as either.
        held_out: part of the queries that is the test.
        seed: of all.

    Raises:
        ValueError: for more documents than there are pairs, or documents too short for one.
    """
    if documents > keys * (keys - 1):
        raise ValueError(f"documents: {keys} keys make {keys * (keys - 1)} pairs, not {documents}")
    if length < 2:
        raise ValueError(f"length: expected at least 2, got {length}")
    generator = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(keys) for b in range(keys) if a != b]
    alphabet = [chr(code) for code in range(33, 127)]
    if keys + noise > len(alphabet):
        raise ValueError(f"keys, noise: together at most {len(alphabet)}, got {keys + noise}")
    place = Path(folder)
    (place / "qrels").mkdir(parents=True, exist_ok=True)
    corpus, queries = [], []
    for number, index in enumerate(generator.permutation(len(pairs))[:documents]):
        pair = "".join(alphabet[key] for key in pairs[index])
        around = "".join(alphabet[keys + i] for i in generator.integers(0, noise, length - 2))
        cut = int(generator.integers(0, length - 1))
        corpus.append({"_id": f"d{number}", "title": "", "text": around[:cut] + pair + around[cut:]})
        queries.append({"_id": f"q{number}", "text": pair})
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    learned = documents - round(documents * held_out)
    for split, numbers in (("train", range(learned)), ("test", range(learned, documents))):
        _write_judgements(place / "qrels" / f"{split}.tsv", ((f"q{n}", f"d{n}") for n in numbers))


def _write_judgements(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    lines = ["query-id\tcorpus-id\tscore\n", *(f"{query}\t{document}\t1\n" for query, document in pairs)]
    path.write_text("".join(lines), encoding="utf-8")
