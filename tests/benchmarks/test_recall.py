"""The recall benchmark's machinery, at sizes that take seconds: what it trains, counts, keeps and draws."""

import json

import pytest
import torch

from benchmarks import _measure, recall

SIZES = [(family, size) for family, sizes in recall.FAMILIES.items() for size in sizes]


@pytest.mark.parametrize(("family", "size"), SIZES, ids=lambda name: name.replace(" ", "_"))
def test_every_size_answers_and_says_its_bytes(family, size):
    model = recall.create(recall.FAMILIES[family][size])
    assert 0 <= recall.accuracy(model, 32, 4, examples=2, stream="test") <= 1
    assert recall.state_bytes(model, 64) > 0


def bytes_of(family):
    return [recall.state_bytes(recall.create(fields), 64) for fields in recall.FAMILIES[family].values()]


@pytest.mark.parametrize("family", recall.FAMILIES)
def test_sizes_differ_in_what_they_remember(family):
    assert bytes_of(family) == sorted(set(bytes_of(family)))


def test_only_attention_grows_with_the_sequence():
    grows = {}
    for family, sizes in recall.FAMILIES.items():
        model = recall.create(next(iter(sizes.values())))
        grows[family] = recall.state_bytes(model, 64) > recall.state_bytes(model, 32)
    assert {family for family, grew in grows.items() if grew} == {"attention"}


def test_bytes_are_those_of_a_cache_of_keys_and_values():
    """64 positions of 16 channels of keys and as many of values, the convolution's last two inputs, one counter."""
    model = recall.create(recall.FAMILIES["attention"]["head 16"])
    assert recall.state_bytes(model, 64) == 4 * (2 * 64 * 16 + 2 * 128) + 8


def test_training_learns_and_is_the_same_again(monkeypatch):
    monkeypatch.setattr(recall, "TASKS", ((16, 1), (16, 2)))
    monkeypatch.setattr(recall, "HARDEST", (16, 2))
    fields = recall.FAMILIES["attention"]["head 16"]
    short = [recall.train(fields, 1e-2, steps=3)["accuracy"] for _ in range(2)]
    assert short[0] == short[1]
    found = recall.train(fields, 1e-2, steps=60)
    assert found["accuracy"]["1"] > short[0]["1"] + 0.1
    assert set(found["accuracy"]) == {"1", "2"} and found["steps"] <= 60 and found["parameters"] > 0


def test_the_best_rate_is_that_of_the_hardest_task():
    hardest = str(recall.HARDEST[1])
    found = recall.best({1e-3: {"accuracy": {"2": 1.0, hardest: 0.1}}, 1e-2: {"accuracy": {"2": 0.5, hardest: 0.2}}})
    assert found["rate"] == 1e-2


def test_the_command_goes_on_where_it_was_and_writes_table_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recall, "ROOT", tmp_path)
    monkeypatch.setattr(_measure, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    families = {"Based": {"features 2": recall.FAMILIES["Based"]["features 2"]}}
    monkeypatch.setattr(recall, "FAMILIES", recall.FAMILIES | families)
    words = [
        "recall",
        "--out",
        str(tmp_path / "runs"),
        "--families",
        "Based",
        "--rates",
        "1e-3",
        "1e-2",
        "--steps",
        "1",
    ]
    monkeypatch.setattr("sys.argv", words)
    recall.main()
    assert "1 steps" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results" / "recall.json").read_text())["rows"]
    assert [row["size"] for row in rows] == ["features 2"]
    assert (tmp_path / "docs" / "assets" / "recall.png").stat().st_size > 1000

    def forbidden(*args, **settings):
        raise AssertionError("trained again")

    monkeypatch.setattr(recall, "train", forbidden)
    recall.main()
    assert json.loads((tmp_path / "results" / "recall.json").read_text())["rows"] == rows
