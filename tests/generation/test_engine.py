"""The decoding loop: what a prompt gets does not depend on its neighbours, on chunks, or on how it is handed over."""

from __future__ import annotations

import pytest
import torch

from statescan.checkpoints import ByteTokenizer
from statescan.generation import Piece, SamplingConfig, generate, prefill, stream
from tests.generation import _models

PROMPTS = [[3], list(b"a longer prompt, of many tokens"), [9, 8, 7, 6], list(b"another"), [9, 8, 7, 6]]
SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}
GREEDY = {"temperature": 0.0}


@pytest.fixture(params=_models.NAMES)
def model(request):
    return _models.build(request.param)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batching", ["packed", "left"])
def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(model, batching, settings):
    together = generate(model, PROMPTS, max_new_tokens=12, seed=5, batching=batching, **settings)
    for index, prompt in enumerate(PROMPTS):
        (alone,) = generate(model, prompt, max_new_tokens=12, seed=5 + index, **settings)
        assert together[index].tokens == alone.tokens


@pytest.mark.parametrize("batching", ["packed", "left"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_reading_in_chunks_gives_the_logits_and_state_of_one_reading(model, batching, chunk):
    with torch.no_grad():
        logits, state = prefill(model, PROMPTS, chunk=chunk, batching=batching)
        next_logits, _ = model.step(torch.tensor([1, 2, 3, 4, 5]), state)
        for index, prompt in enumerate(PROMPTS):
            expected, one_state = model(torch.tensor([prompt]))
            # float32, the same sums in another order
            torch.testing.assert_close(logits[index], expected[0, -1], rtol=1e-4, atol=1e-4)
            expected, _ = model.step(torch.tensor([index + 1]), one_state)
            torch.testing.assert_close(next_logits[index], expected[0], rtol=1e-4, atol=1e-4)


def test_greedy_is_the_argmax_of_the_whole_forward(model):
    tokens = list(PROMPTS[1])
    for _ in range(8):
        with torch.no_grad():
            logits, _ = model(torch.tensor([tokens]))
        tokens.append(int(logits[0, -1].argmax()))
    (result,) = generate(model, PROMPTS[1], temperature=0, max_new_tokens=8)
    assert result.tokens == tokens[len(PROMPTS[1]) :]


def test_equal_seeds_repeat_and_others_differ(model):
    first, second, third = (generate(model, PROMPTS[1], max_new_tokens=20, seed=seed)[0].tokens for seed in (1, 1, 2))
    assert first == second != third


def test_without_a_seed_torch_decides(model):
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append(generate(model, PROMPTS, max_new_tokens=5))
    assert results[0] == results[1]


def test_a_sample_does_not_use_the_global_generator(model):
    before = torch.get_rng_state()
    generate(model, PROMPTS, max_new_tokens=5, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_may_be_given_one_by_one(model):
    together = generate(model, [PROMPTS[2]] * 3, max_new_tokens=10, seed=[7, 8, 7])
    assert together[0] == together[2] != together[1]


def test_sequences_leave_the_batch_at_their_stop(model):
    full = generate(model, PROMPTS, max_new_tokens=30, seed=0)
    stop = full[1].tokens[4]
    stopped = generate(model, PROMPTS, max_new_tokens=30, seed=0, stop=stop)
    for whole, part in zip(full, stopped, strict=True):
        if stop in whole.tokens:
            assert part.tokens == whole.tokens[: whole.tokens.index(stop) + 1]
            assert part.finish_reason == "stop"
        else:
            assert part == whole
            assert part.finish_reason == "length"


def test_finished_sequences_are_not_computed_any_more():
    model = _models.build("mock")
    sizes = []
    step = model.step
    model.step = lambda tokens, state: sizes.append(len(tokens)) or step(tokens, state)
    full = generate(model, PROMPTS, max_new_tokens=10, seed=0)
    stop = full[1].tokens[3]
    lengths = [len(r.tokens[: r.tokens.index(stop) + 1] if stop in r.tokens else r.tokens) for r in full]
    assert len(set(lengths)) > 1
    sizes.clear()
    generate(model, PROMPTS, max_new_tokens=10, seed=0, stop=stop)
    assert sizes == [sum(length > done for length in lengths) for done in range(1, max(lengths))]


def test_stop_strings_cut_the_text_and_span_tokens(model):
    (full,) = generate(model, "Once", tokenizer=ByteTokenizer(), max_new_tokens=40, seed=4)
    string = full.text[6:8]
    (cut,) = generate(model, "Once", tokenizer=ByteTokenizer(), max_new_tokens=40, seed=4, stop=["never there", string])
    assert cut.text == full.text[: full.text.index(string)]
    assert cut.finish_reason == "stop"
    assert cut.tokens == full.tokens[: len(cut.tokens)]


def test_a_stop_token_gives_no_text(model):
    (full,) = generate(model, "Once", tokenizer=ByteTokenizer(), max_new_tokens=10, seed=4)
    stop = full.tokens[-1]
    (cut,) = generate(model, "Once", tokenizer=ByteTokenizer(), max_new_tokens=10, seed=4, stop=stop)
    assert cut.text == bytes(cut.tokens[:-1]).decode(errors="replace")


class Ending(ByteTokenizer):
    """Bytes of which one ends a text, and of which the highest do not exist."""

    vocab_size = 200

    def __init__(self, end_of_text):
        self.end_of_text = end_of_text


def test_the_end_of_text_stops_unless_told_otherwise(model):
    (full,) = generate(model, "Once", tokenizer=Ending(None), max_new_tokens=20, seed=4)
    end = full.tokens[5]
    (ended,) = generate(model, "Once", tokenizer=Ending(end), max_new_tokens=20, seed=4)
    assert ended.tokens == full.tokens[: full.tokens.index(end) + 1]
    assert generate(model, "Once", tokenizer=Ending(end), max_new_tokens=20, seed=4, stop=[]) == [full]


def test_tokens_that_cannot_be_spelled_are_not_drawn(model):
    results = generate(model, ["Once"] * 5, tokenizer=Ending(None), max_new_tokens=40, seed=4, temperature=5.0)
    assert max(token for result in results for token in result.tokens) < 200


def test_streaming_gives_the_same_tokens_and_text(model):
    settings = {"tokenizer": ByteTokenizer(), "max_new_tokens": 25, "seed": 1, "stop": ["\x00"]}
    prompts = ["one", "the second prompt"]
    whole = generate(model, prompts, **settings)
    tokens, texts, ends = [[], []], ["", ""], {}
    for piece in stream(model, prompts, **settings):
        assert isinstance(piece, Piece)
        tokens[piece.sequence].append(piece.token)
        texts[piece.sequence] += piece.text
        if piece.finish_reason:
            ends[piece.sequence] = piece.finish_reason
    assert tokens == [result.tokens for result in whole]
    assert texts == [result.text for result in whole]
    assert ends == {index: result.finish_reason for index, result in enumerate(whole)}


def test_nothing_runs_before_the_first_piece_is_taken():
    model = _models.build("mock")
    model.forward = None
    pieces = stream(model, [1, 2, 3])
    with pytest.raises(TypeError):
        next(pieces)


def test_tensors_and_lists_of_tokens_are_one_thing(model):
    expected = generate(model, [[1, 2, 3], [4, 5, 6]], max_new_tokens=4, seed=0)
    assert generate(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), max_new_tokens=4, seed=0) == expected
    assert generate(model, [torch.tensor([1, 2, 3]), [4, 5, 6]], max_new_tokens=4, seed=0) == expected
    assert generate(model, torch.tensor([1, 2, 3]), max_new_tokens=4, seed=0) == expected[:1]


def test_a_strong_repetition_penalty_repeats_nothing(model):
    prompt = list(range(0, 40))
    (result,) = generate(model, prompt, max_new_tokens=60, temperature=0, repetition_penalty=1e9)
    assert len({*prompt, *result.tokens}) == 100


def test_settings_are_a_value():
    assert SamplingConfig(temperature=0).greedy
    with pytest.raises(AttributeError):
        SamplingConfig().temperature = 2


class Larger(ByteTokenizer):
    """Has more tokens than the model."""

    vocab_size = 1000


BAD = [
    ({"prompts": ""}, ValueError, r"prompts\[0\]: empty prompt; a continuation starts from at least one token"),
    ({"prompts": []}, ValueError, "prompts: the list is empty; expected at least one prompt"),
    ({"prompts": [[1], []]}, ValueError, r"prompts\[1\]: empty prompt"),
    ({"prompts": None}, ValueError, "prompts: give prompts, or the state of a continuation to go on from"),
    ({"prompts": 3.5}, TypeError, "prompts: expected text, tokens or a list of either, got float"),
    ({"prompts": [[1.5]]}, TypeError, r"prompts\[0\]: expected text or a sequence of integer tokens, got \[1.5\]"),
    ({"prompts": torch.zeros(3)}, ValueError, r"prompts: expected integer tokens .* got torch.float32 of shape \(3,\)"),
    (
        {"prompts": [[1, 2, 256]]},
        ValueError,
        r"prompts\[0\]: token 256 at position 2 is outside the model's vocabulary of 256",
    ),
    ({"prompts": [-1]}, ValueError, r"prompts\[0\]: token -1 at position 0 is outside"),
    (
        {"prompts": "a", "tokenizer": None},
        ValueError,
        r"prompts\[0\]: a text prompt needs a tokenizer; pass tokenizer=, or tokens",
    ),
    ({"temperature": -1.0}, ValueError, "temperature: expected a finite number >= 0"),
    ({"top_p": 1.1}, ValueError, r"top_p: expected a probability in \(0, 1\], got 1.1"),
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected at least 1, got 0"),
    ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens: expected an int, got 2.0"),
    ({"stop": 3.5}, TypeError, r"stop: expected strings or token ids, got 3.5 \(float\)"),
    ({"stop": ["x", None]}, TypeError, r"stop: expected strings or token ids, got None \(NoneType\)"),
    ({"stop": ""}, ValueError, "stop: an empty string would stop before the first character"),
    ({"stop": 256}, ValueError, "stop: token 256 is outside the model's vocabulary of 256"),
    (
        {"prompts": [1], "tokenizer": None, "stop": "x"},
        ValueError,
        "stop: the string 'x' needs a tokenizer; pass tokenizer=, or stop by token ids",
    ),
    ({"seed": [1, 2]}, ValueError, "seed: expected an int or one for each of 1 prompts, got 2"),
    ({"seed": -1}, ValueError, r"seed: expected an int in \[0, 2\*\*63\), got -1"),
    ({"seed": "x"}, ValueError, "seed: expected an int or one for each|seed: expected an int in"),
    ({"prefill_chunk": 0}, ValueError, "prefill_chunk: expected at least 1 token, got 0"),
    ({"tokenizer": Larger()}, ValueError, "tokenizer: it has 1,000 tokens, the model embeds 256; give the tokenizer"),
    ({"batching": "right"}, ValueError, "batching: expected one of packed, left, got 'right'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_input_is_named(arguments, error, message):
    model = _models.build("mock")
    arguments = {"prompts": "a", "tokenizer": ByteTokenizer(), **arguments}
    with pytest.raises(error, match=message):
        generate(model, **arguments)
