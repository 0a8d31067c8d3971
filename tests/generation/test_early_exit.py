"""Tokens that leave at intermediate layers: what must stay the same, what becomes of skipped states, what is counted."""

from __future__ import annotations

import pytest
import torch

import statescan
from statescan.generation import (
    EarlyExit,
    ExitConfig,
    GenerationState,
    NGramDraft,
    calibrate_exits,
    generate,
    measure_exits,
    stream,
)
from statescan.layers import State
from tests.generation._models import VOCABULARY, build

PROMPTS = [[1, 2, 3, 4], [9, 8, 7], [5, 5, 6, 200, 17, 3]]
NAMES = ["mamba_tiny", "mamba2_tiny", "mamba3_mimo_tiny", "transformer_tiny", "hybrid_tiny"]


def exiting(name: str, threshold: float = 0.5, depth: int = 4, **options) -> EarlyExit:
    model = build(name) if name == "hybrid_tiny" else build(name, depth=depth)
    layers = options.pop("layers", (1, 3))
    made = EarlyExit(model, ExitConfig(layers=layers, thresholds=(threshold,), **options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in made.heads.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def middling(made: EarlyExit) -> EarlyExit:
    """Thresholds at which some tokens leave and others do not."""
    tokens = torch.randint(0, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, _ = made.outputs(tokens)
        sure = [
            head.confidence(features, logits, made.exits.confidence, VOCABULARY).median().item()
            for head, (features, logits) in zip(made.heads, found, strict=True)
        ]
    made.thresholds = sure
    return made


def same(one: State, other: State, **tolerance) -> None:
    first, second = dict(one.tensors()), dict(other.tensors())
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["linear", "ffn", "mamba"])
def test_without_exits_tokens_and_states_are_the_models(name, kind):
    made = exiting(name, 1.0, kind=kind)
    settings = dict(max_new_tokens=6, temperature=0.0, keep_states=True)
    plain, ours = generate(made.model, PROMPTS, **settings), generate(made, PROMPTS, **settings)
    assert [one.tokens for one in ours] == [one.tokens for one in plain]
    for one, other in zip(ours, plain, strict=True):
        same(one.state.model["model"], other.state.model, rtol=0, atol=0)
    assert made.counts.saved == 0
    assert made.counts.layers == {4: 15}  # the first token of each comes of the prompt


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["linear", "mamba"])
@pytest.mark.parametrize("skipped", ["propagate", "skip"])
def test_a_sequence_in_a_batch_gets_what_it_gets_alone(name, kind, skipped):
    made = middling(exiting(name, kind=kind, skipped_states=skipped))
    settings = dict(max_new_tokens=8, temperature=0.0)
    together = [one.tokens for one in generate(made, PROMPTS, **settings)]
    assert set(made.counts.layers) > {4}, "some leave early, some do not"
    assert together == [generate(made, [prompt], **settings)[0].tokens for prompt in PROMPTS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["ffn", "mamba"])
@pytest.mark.parametrize("skipped", ["propagate", "skip"])
def test_whole_sequences_with_given_exits_are_steps_with_given_exits(name, kind, skipped):
    made = exiting(name, kind=kind, skipped_states=skipped)
    source = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (3, 9), generator=source)
    layers = torch.tensor([1, 3, 4])[torch.randint(0, 3, (3, 9), generator=source)]
    with torch.no_grad():
        _, start = made(tokens[:, :2])
        whole, after = made(tokens[:, 2:], start, layers=layers[:, 2:])
        state, rows = start, []
        for place in range(2, 9):
            logits, state = made.step(tokens[:, place], state, layers=layers[:, place])
            rows.append(logits)
    torch.testing.assert_close(torch.stack(rows, 1), whole, rtol=1e-4, atol=1e-4)
    same(state, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_advancing_is_the_state_update_of_a_step(name):
    made = exiting(name)
    with torch.no_grad():
        _, state = made.model(torch.tensor(PROMPTS[0]).expand(3, -1))
        hidden = torch.randn(3, 32)
        for index, block in enumerate(made.model.stack.blocks):
            _, stepped = block.step(hidden, state[str(index)])
            same(block.advance(hidden, state[str(index)]), stepped, rtol=1e-5, atol=1e-6)


def test_skipped_recurrent_states_stay_and_caches_get_the_last_key_and_value():
    made = exiting("hybrid_tiny", skipped_states="skip", layers=(1, 2))
    tokens = torch.tensor(PROMPTS[0])[None]
    with torch.no_grad():
        _, state = made(tokens)
        _, after = made.step(torch.tensor([7]), state, layers=torch.tensor([2]))
        same(after["model"]["3"], state["model"]["3"], rtol=0, atol=0)
        _, after = made.step(torch.tensor([7]), state, layers=torch.tensor([1]))
    same(after["model"]["3"], state["model"]["3"], rtol=0, atol=0)
    assert after["model"]["1"]["keys"].shape[2] == 5, "a token without a key would be one without a place"
    made = exiting("transformer_tiny", skipped_states="skip")
    with torch.no_grad():
        _, state = made(tokens)
        made.reset_counts()
        _, after = made.step(torch.tensor([7]), state, layers=torch.tensor([1]))
    for index in (1, 2, 3):
        for name in ("keys", "values"):
            torch.testing.assert_close(
                after["model"][str(index)][name][:, :, -1], after["model"]["0"][name][:, :, -1], rtol=0, atol=0
            )
    assert made.counts.advanced == 0


def test_an_exit_hears_only_of_tokens_that_come_to_it():
    made = exiting("mamba_tiny", kind="mamba")
    with torch.no_grad():
        _, state = made(torch.tensor(PROMPTS[0])[None].expand(2, -1))
        _, after = made.step(torch.tensor([7, 7]), state, layers=torch.tensor([1, 4]))
    assert after["layers"].tolist() == [1, 4]
    first, second = after["exits"]["1"]["ssm"], state["exits"]["1"]["ssm"]
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_counts_are_the_blocks_that_were_computed(monkeypatch):
    made = middling(exiting("mamba_tiny"))
    computed = [0]
    for block in made.model.stack.blocks:

        def counted(residual, state, step=block.step):
            computed[0] += residual.shape[0]
            return step(residual, state)

        monkeypatch.setattr(block, "step", counted)
    generate(made, PROMPTS, max_new_tokens=8, temperature=0.0)
    counts = made.counts
    assert counts.blocks == computed[0] == sum(layer * tokens for layer, tokens in counts.layers.items())
    assert counts.blocks + counts.advanced == 4 * counts.tokens == 4 * 21
    assert counts.saved == pytest.approx(1 - computed[0] / 84)
    assert 0 < counts.saved < 1


def test_streams_are_stored_and_go_on(tmp_path):
    made = middling(exiting("mamba2_tiny", kind="mamba"))
    settings = dict(temperature=0.9, seed=5)
    whole = [piece.token for piece in stream(made, [PROMPTS[0]], max_new_tokens=10, **settings)]
    begun = generate(made, [PROMPTS[0]], max_new_tokens=4, keep_states=True, **settings)[0]
    begun.state.save(tmp_path / "state")
    rest = generate(made, state=GenerationState.load(tmp_path / "state"), max_new_tokens=6, temperature=0.9)[0]
    assert begun.tokens + rest.tokens == whole


@pytest.mark.parametrize("kind", ["linear", "ffn", "mamba"])
@pytest.mark.parametrize("shared", [True, False])
def test_exits_begin_as_the_models_own_head(kind, shared):
    model = build("mamba_tiny", depth=3)
    made = EarlyExit(model, ExitConfig(layers=(2,), kind=kind, shared_head=shared))
    hidden = torch.randn(2, 5, 32)
    features, _ = made.heads[0].features(hidden)
    torch.testing.assert_close(made.heads[0].logits(features, model), model._logits(model._finish(hidden)))


@pytest.mark.parametrize("kind", ["linear", "ffn", "mamba"])
@pytest.mark.parametrize("confidence", ["probability", "margin", "learned"])
def test_exits_are_saved_and_loaded(kind, confidence, tmp_path):
    made = middling(exiting("mamba_tiny", kind=kind, confidence=confidence, shared_head=False))
    written = made.save(tmp_path)
    assert written == tmp_path / "exits.safetensors"
    again = EarlyExit.load(made.model, tmp_path)
    assert again.exits == ExitConfig(**{**vars(made.exits), "thresholds": made.thresholds})
    assert generate(again, PROMPTS, max_new_tokens=5, temperature=0)[1].tokens == (
        generate(made, PROMPTS, max_new_tokens=5, temperature=0)[1].tokens
    )


def test_margin_is_the_gap_of_the_two_most_probable():
    made = exiting("mamba_tiny")
    logits = torch.tensor([[2.0, 1.0, 0.0, 50.0]])  # the last stands for no token
    first, second, _ = logits[0, :3].softmax(0).tolist()
    head = made.heads[0]
    assert head.confidence(logits, logits, "probability", 3).item() == pytest.approx(first)
    assert head.confidence(logits, logits, "margin", 3).item() == pytest.approx(first - second)


def test_gradients_reach_the_exits_alone():
    made = exiting("mamba_tiny", kind="mamba", confidence="learned")
    found, whole = made.outputs(torch.tensor([PROMPTS[0]]))
    sum(
        logits.square().mean() + head.sureness_logit(features).mean()
        for head, (features, logits) in zip(made.heads, found, strict=True)
    ).backward()
    assert not whole.requires_grad
    assert all(parameter.grad is not None for parameter in made.heads.parameters())
    assert all(block.mixer.A_log.grad is None for block in made.model.stack.blocks)


def test_calibration_keeps_the_quality_and_saves_what_it_can():
    made = exiting("mamba_tiny", depth=4)
    source = torch.Generator().manual_seed(2)
    sequences = [torch.randint(0, VOCABULARY, (12,), generator=source) for _ in range(4)]
    before = made.counts
    best, points = calibrate_exits(made, sequences, quality=0.9, thresholds=(0.5, 0.01, 0.0), prompt=2)
    assert [point.thresholds for point in points] == [(1.0, 1.0), (0.5, 0.5), (0.01, 0.01), (0.0, 0.0)]
    assert (points[0].saved, points[0].agreement, points[0].tokens) == (0, 1, 40)
    assert points[-1].saved == 0.75, "at 0 all leave at the first exit"
    assert best.agreement >= 0.9
    assert all(point.saved <= best.saved for point in points if point.agreement >= 0.9)
    assert made.thresholds == best.thresholds
    assert made.counts is before
    assert measure_exits(made, sequences, prompt=2) == best
    everything, _ = calibrate_exits(made, sequences, quality=0.0, thresholds=(0.0,))
    assert everything.saved == 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layers=()), "layers: expected at least one exit"),
        (dict(layers=(0, 1)), "layers: expected numbers of blocks from 1 on"),
        (dict(layers=(2, 1)), "layers: expected rising"),
        (dict(layers=(1, 4)), "layers: an exit after block 4 of 4; the last can be 3"),
        (dict(layers=(1,), kind="rnn"), "kind: expected one of linear, ffn, mamba, got 'rnn'"),
        (dict(layers=(1,), confidence="luck"), "confidence: expected one of"),
        (dict(layers=(1,), skipped_states="drop"), "skipped_states: expected one of propagate, skip"),
        (dict(layers=(1, 2), thresholds=(0.1, 0.2, 0.3)), "thresholds: expected 1 or 2, one an exit, got 3"),
        (dict(layers=(1,), thresholds=(float("nan"),)), "thresholds: expected numbers from 0 on"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyExit(build("mamba_tiny", depth=4), ExitConfig(**options))


def test_what_cannot_be_done_is_said(tmp_path):
    made = exiting("mamba_tiny")
    with pytest.raises(TypeError, match="early exits need a language model of residual blocks, got Linear"):
        EarlyExit(torch.nn.Linear(2, 2), ExitConfig(layers=(1,)))
    with pytest.raises(NotImplementedError, match="leave the draft out"):
        generate(made, [PROMPTS[0]], draft=NGramDraft(), max_new_tokens=8)
    _, state = made(torch.tensor([PROMPTS[0]]))
    with pytest.raises(ValueError, match="layers: expected exits, 1, 3, 4, got 2"):
        made.step(torch.tensor([1]), state, layers=torch.tensor([2]))
    with pytest.raises(ValueError, match="layers: expected shape"):
        made.step(torch.tensor([1]), state, layers=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="without resets, offsets and last"):
        made(torch.tensor([[1]]), layers=torch.tensor([[1]]), last=1)
    with pytest.raises(FileNotFoundError, match="statescan train exits"):
        EarlyExit.load(made.model, tmp_path)
    made.model.save(tmp_path)
    with pytest.raises(ValueError, match="holds no exits"):
        EarlyExit.load(made.model, tmp_path / "model.safetensors")
    made.save(tmp_path)
    other = statescan.create_model("mamba_tiny", dim=16, depth=4, vocab_size=VOCABULARY)
    with pytest.raises(ValueError, match="is another model's"):
        EarlyExit.load(other, tmp_path)
    for options, message in [
        (dict(quality=1.5), "quality: expected an agreement from 0 to 1"),
        (dict(quality=0.9, prompt=4), "prompt: expected at least 1 token"),
    ]:
        with pytest.raises(ValueError, match=message):
            calibrate_exits(made, [torch.tensor(PROMPTS[0])], **options)
    with pytest.raises(ValueError, match="sequences: expected some of one length, got 3 of 3 lengths"):
        measure_exits(made, [torch.tensor(prompt) for prompt in PROMPTS])
