"""`statescan train retrieval`, `index` and `search`, one after another."""

import json

import pytest

from statescan import data
from statescan.cli import main


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.make_retrieval("made", documents=30, length=8, keys=8, noise=10)
    return tmp_path


def test_train_index_and_search(made, capsys):
    shape = ["--set", "dim=16", "depth=1", "--query-length", "3", "--passage-length", "9"]
    steps = ["--steps", "3", "--batch-size", "8", "--no-progress", "--accelerator", "cpu", "--json"]
    assert main(["train", "retrieval", "--data", "made", "--test-split", "test", "--out", "run", *shape, *steps]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert main(["index", "run", "made", "--out", "index", "--approximate", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 30
    asked = ["--queries", "made/queries.jsonl", "--qrels", "made/qrels/test.tsv", "--device", "cpu"]
    assert main(["search", "index", *asked, "--run", "run.trec", "--json"]) == 0
    searched = json.loads(capsys.readouterr().out)
    assert searched["scores"] == pytest.approx(trained["test"])
    assert {len(found) for found in data.read_run("run.trec").values()} == {30}
    assert main(["search", "index", *asked]) == 0
    assert "nDCG@10" in capsys.readouterr().out
    for more in ([], ["--approximate"]):
        assert main(["search", "index", "--query", "!#", "--k", "3", "--device", "cpu", "--json", *more]) == 0
        assert len(json.loads(capsys.readouterr().out)["found"]["1"]) == 3
    assert main(["search", "index", "--query", "!#", "--device", "cpu"]) == 0
    assert "document" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere"], "query: give texts with --query, or a file with --queries"),
        (["search", "nowhere", "--query", "a", "--qrels", "b"], "qrels: they judge the queries of a file"),
        (["search", "nowhere", "--query", "a"], "index: 'nowhere' holds none; make one with `statescan index`"),
        (["index", "language", "made", "--out", "index"], "model: 'language' is no encoder but a mamba"),
        (["train", "retrieval"], "data: expected a folder with corpus.jsonl, queries.jsonl and qrels"),
    ],
)
def test_one_line_says_what_is_wrong(made, capsys, arguments, message):
    import statescan

    statescan.create_model("mamba_tiny", dim=8, depth=1).save("language")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
