"""Language models that read a prefix in both directions: what sees what, packed rows, steps, and what refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import statescan
from statescan.generation import EarlyExit, ExitConfig, generate, prefill
from statescan.tasks._module import next_token

LENGTH, CUT = 11, 6
LAYOUTS = {"gated_ssm": ("gated_ssm",), "hybrid": ("gated_ssm", "mamba", "mlp", "gated_ssm")}
layouts = pytest.mark.parametrize("layout", list(LAYOUTS))


def build(layout: str = "gated_ssm", **changes: Any) -> Any:
    torch.manual_seed(0)
    fields: dict[str, Any] = dict(dim=12, depth=4, vocab_size=32, layout=LAYOUTS[layout], mlp_layer_dim=8)
    fields |= dict(mixers={"gated_ssm": {"state_dim": 10, "initial_decay": (0.5, 0.9)}, "mamba": {"state_dim": 3}})
    model = statescan.create_model("hybrid_tiny", **(fields | {"bidirectional_prefix": True} | changes))
    return model.double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(sum(shape)))


def marks(*rows: str) -> Tensor:
    return torch.tensor([[letter == "p" for letter in row] for row in rows])


def changed_at(x: Tensor, place: int) -> Tensor:
    other = x.clone()
    other[:, place] = (other[:, place] + 1) % 32
    return other


def two_passes(model: Any, x: Tensor, cut: int) -> Tensor:
    """Logits of one row by the definition: forward channels scan everything, backward ones turn the prefix alone around.

    Each layer is computed twice: its causal half over the whole row, and its other half over the reversed prefix by a
    layer whose channels all walk forwards.
    """
    residual = model.embedding(x)
    for block in model.stack.blocks:
        inputs = block.norm(residual)
        mixer = block.mixer
        decay, driven, read = mixer._project(inputs)
        ahead = mixer.forward_dim
        hidden = torch.zeros_like(driven)
        h = torch.zeros_like(driven[:, 0])
        for t in range(x.shape[1]):
            h = decay[:, t] * h + driven[:, t]
            hidden[:, t] = h
        turned = driven.clone()
        h = torch.zeros_like(driven[:, 0])
        for t in reversed(range(cut)):
            h = (decay[:, t] if t < cut - 1 else 0) * h + driven[:, t]
            turned[:, t] = h
        both = torch.cat([hidden[..., :ahead], turned[..., ahead:]], -1)
        residual = residual + mixer.output_projection(both * read)
    return model.head(model.norm(residual))


@pytest.mark.parametrize("cut", [1, CUT, LENGTH])
@torch.no_grad()
def test_outputs_are_those_of_two_passes(cut: int) -> None:
    model, x = build(), tokens(2, LENGTH)
    prefix = torch.zeros(2, LENGTH, dtype=torch.bool)
    prefix[:, :cut] = True
    torch.testing.assert_close(model(x, prefix=prefix)[0], two_passes(model, x, cut))


@layouts
@torch.no_grad()
def test_a_continuation_goes_on_from_the_state_of_the_prefix(layout: str) -> None:
    model, x = build(layout), tokens(2, LENGTH)
    prefix = marks("p" * CUT + "g" * (LENGTH - CUT)).expand(2, -1)
    want, last = model(x, prefix=prefix)
    _, state = model(x[:, :CUT], prefix=prefix[:, :CUT])
    rest, after = model(x[:, CUT:], state)
    torch.testing.assert_close(rest, want[:, CUT:])
    for (name, a), (_, b) in zip(after.tensors(), last.tensors(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    _, state = model(x[:, :CUT], prefix=prefix[:, :CUT])
    for t in range(CUT, LENGTH):
        logits, state = model.step(x[:, t], state)
        torch.testing.assert_close(logits, want[:, t])


@layouts
@torch.no_grad()
def test_who_sees_whom(layout: str) -> None:
    model, x = build(layout), tokens(1, LENGTH)
    prefix = marks("p" * CUT + "g" * (LENGTH - CUT))
    want, _ = model(x, prefix=prefix)
    for place in range(LENGTH):
        differs = (model(changed_at(x, place), prefix=prefix)[0] != want).any(-1)[0]
        if place < CUT:
            assert differs.all()
        else:
            assert not differs[:place].any() and differs[place:].all()


@layouts
@torch.no_grad()
def test_packed_sequences_are_strangers(layout: str) -> None:
    model, x = build(layout), tokens(1, LENGTH)
    prefix, begins = marks("pppgppppggg"), [0, 4, LENGTH]
    alone = [model(x[:, a:b], prefix=prefix[:, a:b])[0] for a, b in ((0, 4), (4, LENGTH))]
    resets = torch.zeros(1, LENGTH, dtype=torch.bool)
    resets[0, 4] = True
    torch.testing.assert_close(model(x, prefix=prefix, resets=resets)[0], torch.cat(alone, 1))
    torch.testing.assert_close(model(x, prefix=prefix, offsets=torch.tensor(begins))[0], torch.cat(alone, 1))
    touching = marks("ppppppppggg")
    alone = [model(x[:, a:b], prefix=touching[:, a:b])[0] for a, b in ((0, 4), (4, LENGTH))]
    torch.testing.assert_close(model(x, prefix=touching, resets=resets)[0], torch.cat(alone, 1))
    torch.testing.assert_close(model(x, prefix=touching, offsets=torch.tensor(begins))[0], torch.cat(alone, 1))


def test_checkpointed_gradients_are_equal() -> None:
    model, x = build("hybrid"), tokens(2, LENGTH)
    prefix = marks("p" * CUT + "g" * (LENGTH - CUT)).expand(2, -1)
    results = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        logits, _ = model(x, prefix=prefix, return_state=False)
        results.append(torch.autograd.grad(logits.square().sum(), list(model.parameters())))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


@torch.no_grad()
def test_training_hands_the_prefix_to_models_that_read_it() -> None:
    x, prefix = tokens(2, LENGTH), marks("p" * CUT + "g" * (LENGTH - CUT)).expand(2, -1)
    batch = {"tokens": x, "targets": x.roll(-1, 1), "resets": None, "prefix": prefix}
    measure = next_token(count_correct=False)
    for fields, given in (({}, {"prefix": prefix}), ({"bidirectional_prefix": False}, {})):
        model = build(**fields)
        want = torch.nn.functional.cross_entropy(
            model(x, **given)[0].flatten(0, 1), batch["targets"].flatten(), reduction="sum"
        )
        torch.testing.assert_close(measure(model, batch, None)[0].double(), want, rtol=1e-5, atol=0)


PROMPTS = [[3], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6], [5, 5]]


@layouts
@pytest.mark.parametrize("batching", ["packed", "left"])
@torch.no_grad()
def test_prompts_are_read_in_both_directions_and_whole(layout: str, batching: Any) -> None:
    model = build(layout)
    logits, state = prefill(model, PROMPTS, chunk=3, batching=batching)
    following, _ = model.step(torch.tensor([1, 2, 3, 4]), state)
    for row, prompt in enumerate(PROMPTS):
        x = torch.tensor([prompt])
        want, own = model(x, prefix=torch.ones_like(x, dtype=torch.bool))
        torch.testing.assert_close(logits[row], want[0, -1])
        torch.testing.assert_close(following[row], model.step(torch.tensor([row + 1]), own)[0][0])
    torch.testing.assert_close(prefill(model, [PROMPTS[1]] * 2, chunk=3)[0], logits[[1, 1]])
    forwards = model(torch.tensor([PROMPTS[1]]))[0][0, -1]
    assert not torch.allclose(forwards, logits[1])


@torch.no_grad()
def test_generation_goes_on_forwards_and_from_states() -> None:
    model, prompt = build(), PROMPTS[1]
    x = torch.tensor([prompt])
    logits, state = model(x, prefix=torch.ones_like(x, dtype=torch.bool), last=1)
    want, logits = [], logits[:, 0]
    for _ in range(8):
        want.append(int(logits.argmax(-1)))
        logits, state = model.step(torch.tensor(want[-1:]), state)
    (whole,) = generate(model, prompt, max_new_tokens=8, temperature=0)
    assert whole.tokens == want
    (first,) = generate(model, prompt, max_new_tokens=3, temperature=0, keep_states=True)
    (rest,) = generate(model, state=first.state, max_new_tokens=5, temperature=0)
    assert first.tokens + rest.tokens == want
    (begun,) = generate(model, prompt, max_new_tokens=1, temperature=0, keep_states=True)
    (more,) = generate(model, [want[1:3]], state=begun.state, max_new_tokens=5, temperature=0)
    assert more.tokens == want[3:]


def test_the_flag_is_kept_with_the_model(tmp_path: Any) -> None:
    model = build().float()
    model.save(tmp_path)
    loaded = statescan.load(tmp_path)
    assert loaded.reads_prompts_as_prefix and loaded.takes_prefix
    x = torch.tensor([PROMPTS[1]])
    prefix = torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(loaded(x, prefix=prefix)[0], model(x, prefix=prefix)[0])


def test_what_cannot_read_a_prefix_says_so() -> None:
    x = tokens(1, 4)
    prefix = torch.ones(1, 4, dtype=torch.bool)
    for name, fields in (
        ("mamba_tiny", dict(dim=12, depth=1)),
        ("zamba2_tiny", dict(dim=20, depth=2, hybrid_layers=(1,), heads=2, head_dim=10, state_dim=3)),
        ("hybrid_tiny", dict(dim=12, depth=1, layout=("gated_ssm",))),
    ):
        model = statescan.create_model(name, vocab_size=32, **fields)
        assert not model.takes_prefix
        with pytest.raises(
            ValueError, match="prefix: no mixer here reads in both directions; one that does is gated_ssm"
        ):
            model(x, prefix=prefix)
    with pytest.raises(
        ValueError, match="bidirectional_prefix: no layer of mamba, mlp reads in both directions; use gated"
    ):
        statescan.create_model("hybrid_tiny", depth=2, layout=("mamba", "mlp"), bidirectional_prefix=True)
    with pytest.raises(ValueError, match="bidirectional_prefix: expected True or False, got 'yes'"):
        build(bidirectional_prefix="yes")
    with pytest.raises(ValueError, match="early exits read prompts forwards"):
        EarlyExit(build(), ExitConfig(layers=(1,)))
