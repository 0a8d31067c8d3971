"""A continuation that is stored and goes on elsewhere is the continuation that never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from statescan.checkpoints import ByteTokenizer
from statescan.generation import GenerationState, generate, stream
from statescan.layers import State
from tests.generation import _models
from tests.generation._mock import MockModel

SETTINGS = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1, "stop": ["@@@@"]}

RESUME = """
import json, sys
from statescan.checkpoints import ByteTokenizer
from statescan.generation import GenerationState, generate
from tests.generation import _models
name, path, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
state = GenerationState.load(path)
(result,) = generate(_models.build(name), state=state, tokenizer=ByteTokenizer(), max_new_tokens=20, **settings)
print(json.dumps([result.tokens, result.text]))
"""


@pytest.fixture(params=_models.NAMES)
def name(request):
    return request.param


@pytest.mark.parametrize("name", ["mamba_tiny", "hybrid_tiny"])
def test_a_stored_state_goes_on_identically_in_a_new_process(name, tmp_path):
    model = _models.build(name)
    whole = list(stream(model, "Wörter: ", tokenizer=ByteTokenizer(), max_new_tokens=43, seed=3, **SETTINGS))
    pieces = stream(model, "Wörter: ", tokenizer=ByteTokenizer(), max_new_tokens=43, seed=3, **SETTINGS)
    first = [next(pieces) for _ in range(23)]
    assert first == whole[:23]
    pieces.state_of().save(tmp_path / "session.safetensors")
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", RESUME, name, str(tmp_path / "session.safetensors"), json.dumps(SETTINGS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])},
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    tokens, text = json.loads(answer.stdout)
    assert tokens == [piece.token for piece in whole[23:]]
    assert text == "".join(piece.text for piece in whole[23:])


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, SETTINGS], ids=["greedy", "sampled"])
def test_stopping_anywhere_changes_nothing(name, settings):
    model = _models.build(name)
    settings = {**settings, "tokenizer": ByteTokenizer()}
    whole = list(stream(model, "ab", max_new_tokens=12, seed=9, **settings))
    pieces = stream(model, "ab", max_new_tokens=12, seed=9, **settings)
    for taken in range(1, 12):
        next(pieces)
        rest = list(stream(model, state=pieces.state_of(), max_new_tokens=12 - taken, **settings))
        assert rest == whole[taken:]


def test_text_held_back_comes_after_the_resumption():
    model = _models.build("mock")
    heart = "♥".encode()
    pieces = stream(model, [1], tokenizer=ByteTokenizer(), max_new_tokens=5, stop="END")
    next(pieces)
    pieces._running[0].text.flush()
    text = "".join(pieces._running[0].text.push(token) for token in b"xEN")
    pieces._running[0].recent.extend(b"xEN")
    assert text == "x"
    state = pieces.state_of()
    resumed = stream(model, state=state, tokenizer=ByteTokenizer(), max_new_tokens=5, stop="END")
    assert resumed._running[0].text.push(ord("!")) == "EN!"
    ended = stream(model, state=state, tokenizer=ByteTokenizer(), max_new_tokens=5, stop="END")
    assert ended._running[0].text.push(ord("D")) == ""
    assert ended._running[0].text.stopped
    pieces._running[0].recent.extend(heart[:2])
    resumed = stream(model, state=pieces.state_of(), tokenizer=ByteTokenizer(), max_new_tokens=5)
    assert resumed._running[0].text.push(heart[2]).endswith("♥")


def test_a_conversation_goes_on_with_new_prompts_of_unequal_lengths(name):
    model = _models.build(name)
    turns = [[[1, 2, 3], [4, 5, 6, 7]], [[8], [9, 10, 11]]]
    first = generate(model, turns[0], max_new_tokens=4, temperature=0, keep_states=True)
    states = [result.state for result in first]
    for index in range(2):
        (second,) = generate(model, [turns[1][index]], state=states[index], max_new_tokens=6, temperature=0)
        history = turns[0][index] + first[index].tokens + turns[1][index]
        (fresh,) = generate(model, history, max_new_tokens=6, temperature=0)
        assert second.tokens == fresh.tokens


def test_several_states_go_on_together():
    model = _models.build("mock")
    first = generate(model, [[1, 2, 3], [4]], max_new_tokens=4, seed=2, keep_states=True)
    state = GenerationState.concatenate([result.state for result in first])
    whole = generate(model, [[1, 2, 3], [4]], max_new_tokens=10, seed=2)
    rest = generate(model, state=state, max_new_tokens=6)
    assert [a.tokens + b.tokens for a, b in zip(first, rest, strict=True)] == [r.tokens for r in whole]
    following = generate(model, [[7], [8, 9]], state=state, max_new_tokens=3)
    alone = [
        generate(model, [prompt], state=result.state, max_new_tokens=3)[0]
        for prompt, result in zip([[7], [8, 9]], first, strict=True)
    ]
    assert following == alone


def test_forks_go_their_own_ways_with_their_own_seeds():
    model = _models.build("mock")
    (first,) = generate(model, [1, 2], max_new_tokens=4, seed=2, keep_states=True)
    forks = first.state.select([0, 0, 0])
    assert len(forks) == 3
    same = generate(model, state=forks, max_new_tokens=8)
    assert same[0] == same[1] == same[2]
    apart = generate(model, state=forks, max_new_tokens=8, seed=0)
    assert apart[0].tokens != apart[1].tokens != apart[2].tokens


def test_a_snapshot_is_not_touched_by_later_steps_and_may_be_trained_through(name):
    model = _models.build(name)
    pieces = stream(model, [1, 2, 3], max_new_tokens=10, seed=0)
    next(pieces)
    state = pieces.state_of()
    again = state.clone()
    for _ in pieces:
        pass
    torch.testing.assert_close(dict(flat(state.as_state())), dict(flat(again.as_state())))
    logits, _ = model(torch.tensor([[1, 2]]), state.model)
    logits.sum().backward()  # inference tensors would refuse


def flat(state, prefix=""):
    for name, value in state.items():
        if isinstance(value, State):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_what_is_missing_is_said(tmp_path):
    model = _models.build("mock")
    results = generate(model, [[1, 2], [3]], max_new_tokens=2, keep_states=True, seed=0)
    with pytest.raises(ValueError, match="state: it holds 1 sequences for 2 prompts"):
        generate(model, [[1], [2]], state=results[0].state)
    with pytest.raises(ValueError, match="repetition_penalty: the state was made without one"):
        generate(model, state=results[0].state, repetition_penalty=1.5)
    both = GenerationState.concatenate([result.state for result in results])
    with pytest.raises(ValueError, match="batching: left padding would run through the states given"):
        generate(model, [[1], [2, 3]], state=both, batching="left")
    with pytest.raises(ValueError, match=r"state: it is another model's \(h: expected \(1, 8\), got \(1, 16\)\)"):
        generate(MockModel(width=8), state=results[0].state)
    with pytest.raises(ValueError, match=r"state: it is another model's \(0.conv: it has none\)"):
        generate(_models.build("mamba_tiny"), state=results[0].state)
    results[0].state.model.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="state: this is not a generation state, it lacks model, last"):
        GenerationState.load(tmp_path / "model.safetensors")
    pieces = stream(model, [[1], [2]], max_new_tokens=2, seed=0)
    with pytest.raises(ValueError, match="state_of: nothing has been generated yet"):
        pieces.state_of(0)
    list(pieces)
    with pytest.raises(ValueError, match=r"state_of: sequence 1 is not running; .* keep_states=True"):
        pieces.state_of(1)
