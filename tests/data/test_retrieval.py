"""Collections of BEIR and runs of TREC."""

import json

import pytest

from statescan import data


def write(folder, corpus, queries, qrels):
    (folder / "qrels").mkdir(exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "qrels" / "test.tsv").write_text(qrels)


def test_a_collection_is_read(tmp_path):
    corpus = [{"_id": "a", "title": "On cats", "text": "they purr"}, {"_id": "b", "title": "", "text": "dogs bark"}]
    queries = [{"_id": "1", "text": "who purrs"}, {"_id": "2", "text": "never judged"}]
    write(tmp_path, corpus, queries, "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n")
    found = data.read_retrieval(tmp_path)
    assert found.documents == {"a": "On cats they purr", "b": "dogs bark"}
    assert found.queries == {"1": "who purrs"}
    assert found.relevant == {"1": {"a": 2, "b": 0}}
    (tmp_path / "trec.txt").write_text("1 0 a 2\n1 0 b 0\n")
    assert data.read_judgements(tmp_path / "trec.txt") == found.relevant
    (tmp_path / "spaces.tsv").write_text("query-id\tcorpus-id\tscore\r\n1\ta b\t1\r\n")
    assert data.read_judgements(tmp_path / "spaces.tsv") == {"1": {"a b": 1}}


def test_runs_go_out_and_in(tmp_path):
    run = {"1": {"b": 0.25, "a": 1.5}, "2": {"c": -3.0}}
    data.write_run(tmp_path / "run.trec", run, tag="ours")
    assert (tmp_path / "run.trec").read_text() == "1 Q0 a 1 1.5 ours\n1 Q0 b 2 0.25 ours\n2 Q0 c 1 -3 ours\n"
    assert data.read_run(tmp_path / "run.trec") == run
    assert [path.name for path in tmp_path.iterdir()] == ["run.trec"]


def test_every_made_document_has_its_own_pair(tmp_path):
    data.make_retrieval(tmp_path, documents=60, length=9, keys=10, noise=20)
    learned, tried = (data.read_retrieval(tmp_path, split) for split in ("train", "test"))
    assert (len(learned.queries), len(tried.queries)) == (45, 15)
    for collection in (learned, tried):
        for name, pair in collection.queries.items():
            holding = [document for document, text in collection.documents.items() if pair in text]
            assert holding == list(collection.relevant[name])
    assert not {*learned.queries.values()} & {*tried.queries.values()}
    assert {len(text) for text in learned.documents.values()} == {9}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("{", '{"_id": "1", "text": "q"}', "1\ta\t1\n"), "corpus.jsonl: line 1 is no JSON object with _id and text"),
        (("", '{"_id": "1", "text": "q"}', "1\ta\t1\n"), "corpus.jsonl: there are no texts in it"),
        (('{"_id": "a", "text": "t"}\n' * 2, "{}", "1\ta\t1\n"), "line 2: the id 'a' comes twice"),
        (('{"_id": "a", "text": "t"}', '{"_id": "1", "text": "q"}', "1\tb\t1\n"), "judges document 'b', which is not"),
        (('{"_id": "a", "text": "t"}', '{"_id": "1", "text": "q"}', "2\ta\t1\n"), "judges query '2', which is not"),
        (('{"_id": "a", "text": "t"}', '{"_id": "1", "text": "q"}', "1\ta\n"), "line 1: expected query, document and"),
        (('{"_id": "a", "text": "t"}', '{"_id": "1", "text": "q"}', "\n"), "there are no judgements in it"),
    ],
)
def test_collections_that_are_none(tmp_path, files, message):
    (tmp_path / "qrels").mkdir()
    for name, text in zip(("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"), files, strict=True):
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.read_retrieval(tmp_path)


def test_other_bad_input(tmp_path):
    (tmp_path / "run").write_text("1 a 3\n")
    with pytest.raises(ValueError, match="line 1: expected query Q0 document rank score tag"):
        data.read_run(tmp_path / "run")
    (tmp_path / "run").write_text("1 Q0 a 1 nan x\n")
    with pytest.raises(ValueError, match="line 1: the score nan is no finite number"):
        data.read_run(tmp_path / "run")
    with pytest.raises(ValueError, match="run: the id 'a b' is empty or has white space in it"):
        data.write_run(tmp_path / "run", {"1": {"a b": 1.0}})
    with pytest.raises(ValueError, match="documents: 3 keys make 6 pairs, not 7"):
        data.make_retrieval(tmp_path, documents=7, keys=3)
    with pytest.raises(ValueError, match="length: expected at least 2, got 1"):
        data.make_retrieval(tmp_path, length=1)
    with pytest.raises(ValueError, match="keys, noise: together at most 94, got 100"):
        data.make_retrieval(tmp_path, keys=50, noise=50)
