"""Training of encoders, indices and search, scores of rankings."""

import json
import math

import numpy as np
import pytest
import torch

import statescan
from statescan import data, tasks
from statescan.checkpoints import ByteTokenizer
from statescan.models import build_model
from statescan.tasks.dense_search import (
    DenseIndex,
    encode_texts,
    exact_search,
    retrieval_scores,
    search_texts,
    text_tokens,
)
from statescan.tasks.retrieval import RetrievalBatches


@pytest.fixture
def collection(tmp_path):
    data.make_retrieval(tmp_path / "made", documents=60, length=8, keys=12, noise=20)
    return tmp_path / "made"


def settings(collection, **changes):
    base = dict(
        data=collection,
        out=collection / "run",
        set=("dim=16", "depth=1", "state_dim=4"),
        steps=6,
        batch_size=8,
        warmup=2,
        query_length=3,
        passage_length=9,
        log_every=2,
        validate_every=3,
        checkpoint_every=3,
        accelerator="cpu",
        progress=False,
    )
    return tasks.RetrievalTraining(**(base | changes))


def small(**options):
    torch.manual_seed(0)
    return build_model("retriever", {"language_model": {"dim": 16, "depth": 1, "vocab_size": 256}, **options})


def test_an_encoder_learns_and_says_how_well(collection):
    result = tasks.train_retrieval(
        settings(collection, steps=60, batch_size=40, learning_rate=2e-2, test_split="train", symmetric=True)
    )
    assert result.test["R@10"] > 0.5, "10 of 60 documents by chance are 0.17"
    assert json.loads((collection / "run" / "test.json").read_text()) == result.test
    model = statescan.load(collection / "run")
    assert (model.config.query_length, model.config.passage_length, model.config.end_token) == (3, 9, 0)


def test_an_interrupted_run_goes_on_the_same(collection):
    tasks.train_retrieval(settings(collection, out=collection / "whole", group=2))
    first = settings(collection, out=collection / "parts", group=2)
    with pytest.MonkeyPatch.context() as patch:
        from statescan.tasks._callbacks import Recorder

        until = Recorder.on_train_batch_end

        def stop(self, trainer, *args):
            until(self, trainer, *args)
            if trainer.global_step == 4:
                raise KeyboardInterrupt

        patch.setattr(Recorder, "on_train_batch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            tasks.train_retrieval(first)
    tasks.train_retrieval(settings(collection, out=collection / "parts", group=2, resume=True))
    whole, parts = (statescan.load(collection / name).state_dict() for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, msg=name)


def test_training_begins_with_a_language_model(collection):
    language = statescan.create_model("mamba2_tiny", dim=16, depth=1, state_dim=8, head_dim=8)
    statescan.checkpoints.save(language, collection / "language", tokenizer=ByteTokenizer())
    tasks.train_retrieval(
        settings(collection, set=(), init_from=str(collection / "language"), steps=1, learning_rate=1e-12, warmup=0)
    )
    model = statescan.load(collection / "run")
    assert model.config.backbone == "mamba2"
    torch.testing.assert_close(model.backbone.embedding.weight, language.embedding.weight)


def test_hard_negatives_come_from_a_run_and_answers_are_none(collection):
    found = data.read_retrieval(collection, "train")
    names = list(found.queries)
    relevant = {name: dict(grades) for name, grades in found.relevant.items()}
    relevant[names[1]] = {**relevant[names[0]]}  # the first two have one answer
    found = data.RetrievalData(found.documents, found.queries, relevant)
    hard = {name: ["d50"] for name in names}
    (batch, *_) = RetrievalBatches(
        found, ByteTokenizer(), end_token=0, lengths=(3, 9), group=3, hard=hard, batch_size=4, once=True
    )
    assert batch.queries.shape == (4, 3) and batch.tokens.shape == (12, 9)
    assert batch.targets.tolist() == [0, 3, 6, 9]
    assert batch.excluded.nonzero().tolist()[:2] == [[0, 3], [1, 0]]
    texts = [bytes(row[: n - 1].tolist()).decode() for row, n in zip(batch.tokens, batch.passage_lengths, strict=True)]
    assert texts[0] == texts[3] == found.documents["d0"]
    assert [texts[place] for place in (1, 4, 7, 10)] == [found.documents["d50"]] * 4
    halves = [
        next(
            iter(
                RetrievalBatches(
                    found,
                    ByteTokenizer(),
                    end_token=0,
                    lengths=(3, 9),
                    group=1,
                    hard={},
                    batch_size=4,
                    rank=rank,
                    world=2,
                )
            )
        )
        for rank in range(2)
    ]
    assert [len(half.targets) for half in halves] == [2, 2]


def test_long_documents_are_read_piece_by_piece():
    model, texts = small(), ["a" * 300, "bc", "long " * 40]
    found = encode_texts(model, ByteTokenizer(), texts, chunk=16, batch_size=2)
    whole = encode_texts(model, ByteTokenizer(), texts, chunk=10_000, batch_size=1)
    np.testing.assert_allclose(found, whole, atol=1e-5, rtol=1e-4)
    seen = []
    hidden = model.backbone.hidden
    model.backbone.hidden = lambda tokens, *more, **options: (
        seen.append(tokens.shape[1]) or hidden(tokens, *more, **options)
    )
    encode_texts(model, ByteTokenizer(), texts, chunk=16)
    assert max(seen) == 16


def test_tokens_of_a_text():
    tokenizer = ByteTokenizer()
    assert text_tokens(tokenizer, "abc", length=3, end_token=0) == [97, 98, 0]
    assert text_tokens(tokenizer, "abc", length=None, end_token=0) == [97, 98, 99, 0]
    assert text_tokens(tokenizer, "", length=2, end_token=0) == [0]
    assert text_tokens(tokenizer, "abc", length=2, end_token=None) == [97, 98]
    with pytest.raises(ValueError, match="text: an empty one has no embedding without an end token"):
        text_tokens(tokenizer, "", length=2, end_token=None)


def test_exact_search_in_blocks_is_sorting():
    generator = np.random.default_rng(0)
    vectors, queries = (generator.standard_normal((n, 6)).astype(np.float32) for n in (50, 4))
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :7]
    for block, together in ((1, 3), (8, 1), (1000, 256)):
        scores, places = exact_search(vectors, queries, 7, block=block, together=together)
        assert (places == expected).all()
        np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, expected, 1), rtol=1e-5)


def test_an_index_is_kept_and_its_graph_finds_the_same(tmp_path):
    model, tokenizer = small(normalise=True), ByteTokenizer()
    documents = {f"d{i}": f"document number {i * i}" for i in range(40)}
    made = DenseIndex.build(tmp_path / "index", documents, model, tokenizer, source="here", approximate=True)
    asked = {"q": "document number 49", "r": "document number 100"}
    exact = search_texts(DenseIndex.load(tmp_path / "index"), model, tokenizer, asked, 5)
    assert [next(iter(found)) for found in exact.values()] == ["d7", "d10"]
    approximate = search_texts(DenseIndex.load(tmp_path / "index", approximate=True), model, tokenizer, asked, 5)
    assert [list(found) for found in approximate.values()] == [list(found) for found in exact.values()]
    assert made.model == "here" and len(exact["q"]) == 5
    assert len(made.search(made.vectors[:1], 1000)[0]) == 40
    DenseIndex.build(tmp_path / "index", documents, model, tokenizer)
    with pytest.raises(ValueError, match="has no graph; make it with `statescan index --approximate`"):
        DenseIndex.load(tmp_path / "index", approximate=True)


def test_scores_by_hand():
    relevant = {"a": {"x": 1, "y": 1}, "b": {"z": 1, "x": 0}, "c": {"x": 1}, "none": {"x": 0}}
    run = {"a": {"x": 3, "n": 2, "y": 1}, "b": {f"n{i}": 20 - i for i in range(10)} | {"z": 1}}
    scores = retrieval_scores(run, relevant)
    ideal = 1 + 1 / math.log2(3)
    assert scores["nDCG@10"] == pytest.approx((1 + 1 / math.log2(4)) / ideal / 3, abs=1e-6)
    assert scores["MRR@10"] == pytest.approx(1 / 3, abs=1e-6), "z is the eleventh, c was not searched for"
    assert scores["R@1"] == pytest.approx(0.5 / 3, abs=1e-6)
    assert scores["R@10"] == pytest.approx(1 / 3, abs=1e-6)
    assert scores["R@100"] == pytest.approx(2 / 3, abs=1e-6)
    with pytest.raises(ValueError, match="relevant: no query has a relevant document"):
        retrieval_scores(run, {"none": {"x": 0}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"group": 0}, "group: expected at least 1, got 0"),
        ({"query_length": 0}, "query_length: expected at least 1, got 0"),
        ({"validation_fraction": 1.0}, "validation_fraction: expected between 0 and 1, got 1.0"),
        ({"negatives": "run.trec"}, "group: expected at least 2 where negatives are given, got 1"),
        ({"init_from": "run"}, "set: a model that init_from names has its own config"),
        ({"data": None}, "data: expected a folder with corpus.jsonl, queries.jsonl and qrels"),
        ({"model": "vim_micro"}, "model: 'vim_micro' is no language model; try --model mamba_tiny"),
    ],
)
def test_settings_that_make_no_run(collection, changes, message):
    with pytest.raises(ValueError, match=message):
        tasks.train_retrieval(settings(collection, **changes))


def test_negatives_that_are_none(collection):
    for content, message in (
        ("q1 Q0 zz 1 2.0 x\n", "has 'zz', which is no document here"),
        ("q1 Q0 d1 1 2.0 x\n", "none"),
    ):
        (collection / "run.trec").write_text(content)
        with pytest.raises(ValueError, match=message):
            tasks.train_retrieval(
                settings(collection, negatives=collection / "run.trec", group=2, validation_split="train")
            )


def test_searches_that_cannot_be(tmp_path):
    index = DenseIndex(["a", "b"], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match=r"queries: expected \(queries, 2\), got \(1, 3\)"):
        index.search(np.ones((1, 3)))
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        index.search(np.ones((1, 2)), 0)
    with pytest.raises(ValueError, match="vectors: expected one for each of 1 ids"):
        DenseIndex(["a"], np.eye(2))
    with pytest.raises(ValueError, match="holds none; make one with `statescan index`"):
        DenseIndex.load(tmp_path)
    with pytest.raises(ValueError, match="documents: expected at least one"):
        DenseIndex.build(tmp_path, {}, small(), ByteTokenizer())
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        encode_texts(small(), ByteTokenizer(), ["a"], batch_size=0)
    broken = small()
    torch.nn.init.constant_(broken.backbone.norm.weight, math.nan)
    with pytest.raises(ValueError, match="model: an embedding is not finite"):
        encode_texts(broken, ByteTokenizer(), ["a"])
