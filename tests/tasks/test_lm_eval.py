"""The adapter to the LM Evaluation Harness, on tasks made here whose answers are known."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from statescan.checkpoints import ByteTokenizer
from statescan.tasks.lm_eval import StatescanLM, evaluate_tasks
from tests.generation import _models
from tests.tasks.test_evaluation import nats_of

DOCUMENTS = [
    {"question": "What is it?", "choices": [" a", " no way, sir", " yes"], "answer": 0, "text": "one two"},
    {"question": "And", "choices": [" x", " y"], "answer": 1, "text": "three, and a longer text of it"},
    {"question": "What is it, then, and why?", "choices": [" yes", " no", " a"], "answer": 2, "text": "ä"},
]


@pytest.fixture(params=_models.NAMES)
def model(request):
    return _models.build(request.param)


def request(kind: str, *arguments) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def harness(model, **settings) -> StatescanLM:
    return StatescanLM(model, ByteTokenizer(), **settings)


PAIRS = [
    ("a question?", " yes"),
    ("a question?", " no"),
    ("a question?", " perhaps"),
    ("", "without context"),
    ("x", "y"),
    ("another, longer question with spaces after it  ", "answer"),
    ("a question?", " yes"),
    ("", "!"),
]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_log_likelihoods_are_those_of_one_forward_each(model, batch_size):
    results = harness(model, batch_size=batch_size).loglikelihood(
        [request("loglikelihood", *pair) for pair in PAIRS], disable_tqdm=True
    )
    for (context, continuation), (log_likelihood, greedy) in zip(PAIRS, results, strict=True):
        given = list((context.rstrip() or "\n").encode())  # the harness counts trailing spaces to the answer
        tokens = list(((context or "\n") + continuation).encode())
        assert log_likelihood == pytest.approx(-sum(nats_of(model, tokens)[len(given) - 1 :]), rel=1e-4)
        with torch.no_grad():
            best = model(torch.tensor([tokens]))[0][0, :-1].argmax(-1)[len(given) - 1 :]
        assert greedy == (best.tolist() == tokens[len(given) :])


def test_the_most_probable_continuation_is_greedy(model):
    lm = harness(model)
    context = "go on: "
    (answer,) = lm.generate_until([request("generate_until", context, {"until": ["\n\n"], "max_gen_toks": 5})], True)
    tokens = list(context.encode())
    for _ in range(5):
        tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
    assert answer == bytes(tokens[len(context) :]).decode(errors="replace")
    pairs = [(("", ""), list(context.encode()), tokens[len(context) :])]
    assert lm._loglikelihood_tokens(pairs, disable_tqdm=True)[0][1] is True


def test_rolling_scores_whole_texts_with_the_state_carried(model):
    texts = ["short", "a longer text, by far, than the others " * 4, "another"]
    results = harness(model, batch_size=2).loglikelihood_rolling(
        [request("loglikelihood_rolling", text) for text in texts], disable_tqdm=True
    )
    for text, result in zip(texts, results, strict=True):
        assert result == pytest.approx(-sum(nats_of(model, list(f"\n{text}".encode()))), rel=1e-4)


def test_contexts_are_cut_on_the_left_to_the_length_asked_for(model):
    (result,) = harness(model, max_length=6).loglikelihood(
        [request("loglikelihood", "a long context", "tail")], disable_tqdm=True
    )
    assert result[0] == pytest.approx(-sum(nats_of(model, list(b"exttail"))[2:]), rel=1e-4)


def test_answers_stop_at_their_strings_whatever_their_neighbours(model):
    lm = harness(model, batch_size=3)
    free = {"until": [], "max_gen_toks": 12, "do_sample": False}
    contexts = ["one", "a longer one", "and the third of them", "4"]
    full = lm.generate_until([request("generate_until", context, free) for context in contexts], True)
    stops = [text[3:5] for text in full]
    answers = lm.generate_until(
        [
            request("generate_until", context, {**free, "until": [stop]})
            for context, stop in zip(contexts, stops, strict=True)
        ],
        True,
    )
    assert answers == [text[: text.index(stop)] for text, stop in zip(full, stops, strict=True)]


@pytest.fixture
def local_tasks(tmp_path):
    """Three tasks in a folder: multiple choice, free answer, rolling perplexity."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    tasks = {
        "local_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "local_answer": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{text}}",
            "generation_kwargs": {"until": ["\x00"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
        },
        "local_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    }
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))
    return folder


def test_the_harness_runs_local_tasks(local_tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = _models.build("mock")
    results = evaluate_tasks(
        model,
        ["local_choice", "local_answer", "local_rolling"],
        tokenizer=ByteTokenizer(),
        include_path=str(local_tasks),
        batch_size=4,
    )["results"]
    right = 0
    nats, size = 0.0, 0
    for document in DOCUMENTS:
        scores = []
        for choice in document["choices"]:
            tokens = list((document["question"] + choice).encode())
            scores.append(-sum(nats_of(model, tokens)[len(document["question"]) - 1 :]))
        right += scores.index(max(scores)) == document["answer"]
        nats += sum(nats_of(model, list(f"\n{document['text']}".encode())))
        size += len(document["text"].encode())
    assert results["local_choice"]["acc,none"] == pytest.approx(right / 3)
    assert results["local_answer"]["exact_match,none"] == 0
    assert results["local_rolling"]["bits_per_byte,none"] == pytest.approx(nats / size / 0.6931471805599453, rel=1e-4)


def test_unknown_tasks_are_named(local_tasks, monkeypatch):
    # The harness takes ten seconds to list its own tasks.
    monkeypatch.setattr(
        "statescan.tasks.lm_eval.TaskManager",
        lambda include_path, **_: TaskManager(include_path=include_path, include_defaults=False),
    )
    with pytest.raises(ValueError, match="tasks: unknown task 'local_choise'; nearest: 'local_choice'"):
        evaluate_tasks(
            _models.build("mock"), ["local_choise"], tokenizer=ByteTokenizer(), include_path=str(local_tasks)
        )
    with pytest.raises(ValueError, match="tasks: none given"):
        evaluate_tasks(_models.build("mock"), [], tokenizer=ByteTokenizer())


def test_bad_batch_sizes_are_named():
    with pytest.raises(ValueError, match="batch_size: expected at least 1 or 'auto', got 0"):
        harness(_models.build("mock"), batch_size=0)


def test_models_come_from_folders_with_their_tokenizers(tmp_path):
    _models.build("mamba_tiny").save(tmp_path)
    lm = StatescanLM.create_from_arg_string(f"pretrained={tmp_path},batch_size=2,dtype=float64")
    assert next(lm.model.parameters()).dtype == torch.float64
    (answer,) = lm.generate_until([request("generate_until", "go", {"until": ["x"], "max_gen_toks": 3})], True)
    assert isinstance(answer, str)
    with pytest.raises(ValueError, match=r"dtype: expected a floating-point type .* got 'int8'"):
        StatescanLM(str(tmp_path), dtype="int8")


def test_importing_registers_and_the_entry_point_leads_here():
    from lm_eval.api.registry import get_model

    assert get_model("statescan") is StatescanLM
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["lm_eval.models"].items()
    assert name == "statescan"
    assert EntryPoint(name, target, "lm_eval.models").load() is StatescanLM
