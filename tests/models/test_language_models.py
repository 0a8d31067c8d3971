"""What every language model promises, family by family."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import statescan
from statescan import ops
from statescan.layers import State
from tests.models._small import MODELS, VOCABULARY, build, tokens

#: float32 through a few layers, in another order of summation.
CLOSE = dict(atol=1e-4, rtol=1e-4)
models = pytest.mark.parametrize("key", list(MODELS))


@models
@torch.no_grad()
def test_prefill_and_steps_equal_one_call(key: str) -> None:
    model, x = build(key), tokens(2, 9)
    want, _ = model(x)
    for prefill in (0, 1, 5):
        logits, state = model(x[:, :prefill])
        parts = [logits]
        for t in range(prefill, 9):
            logits, state = model.step(x[:, t], state)
            assert logits.shape == (2, model.config.padded_vocab_size)
            parts.append(logits[:, None])
        torch.testing.assert_close(torch.cat(parts, 1), want, **CLOSE)
    logits, _ = model.step(x[:, 0], model.initial_state(2))
    torch.testing.assert_close(logits, want[:, 0], **CLOSE)


@models
@torch.no_grad()
def test_a_split_at_every_position(key: str) -> None:
    model, x = build(key), tokens(1, 8)
    want, _ = model(x)
    for cut in range(9):
        first, state = model(x[:, :cut])
        second, _ = model(x[:, cut:], state)
        torch.testing.assert_close(torch.cat([first, second], 1), want, **CLOSE)


@models
@torch.no_grad()
def test_packed_sequences(key: str) -> None:
    model = build(key)
    lengths = [3, 0, 5, 1]
    x = tokens(1, sum(lengths))
    bounds = [0, *itertools.accumulate(lengths)]
    offsets = torch.tensor(bounds)
    packed, state = model(x, offsets=offsets)
    following, _ = model(x[:, :4], state, offsets=torch.tensor([0, 1, 2, 3, 4]))
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        alone, own = model(x[:, start:end])
        torch.testing.assert_close(packed[:, start:end], alone, **CLOSE)
        torch.testing.assert_close(following[:, i], model.step(x[:, i], own)[0], **CLOSE)
    last, _ = model(x, offsets=offsets, last=1)
    assert last.shape[1] == 4
    for i in (0, 2, 3):
        torch.testing.assert_close(last[:, i], packed[:, bounds[i + 1] - 1], **CLOSE)
    two, _ = model(x[:, :5], offsets=torch.tensor([0, 2, 5, 5]), last=2)
    assert two.shape[1] == 6


@models
@torch.no_grad()
def test_left_padding_behind_a_reset_changes_nothing(key: str) -> None:
    model, prompts = build(key), [tokens(1, 6), tokens(1, 3)]
    padded = torch.cat([prompts[0], F.pad(prompts[1], (3, 0))])
    resets = torch.tensor([[False] * 6, [False, False, False, True, False, False]])
    got, state = model(padded, resets=resets, last=1)
    steps, _ = model.step(torch.tensor([1, 2]), state)
    for row, prompt in enumerate(prompts):
        want, own = model(prompt, last=1)
        torch.testing.assert_close(got[row], want[0], **CLOSE)
        torch.testing.assert_close(steps[row], model.step(torch.tensor([row + 1]), own)[0][0], **CLOSE)


@models
@torch.no_grad()
def test_hidden_last_and_state(key: str) -> None:
    model, x = build(key), tokens(2, 5)
    logits, state = model(x)
    hidden, _ = model.hidden(x)
    torch.testing.assert_close(model.head(hidden), logits)
    torch.testing.assert_close(model(x, last=2)[0], logits[:, -2:], **CLOSE)
    assert model(x, last=9)[0].shape == logits.shape
    assert isinstance(state, State)
    assert all(tensor.shape[0] == 2 for _, tensor in state.tensors())
    forked, _ = model.step(torch.tensor([3, 4]), state.select([1, 1]))
    alone = [model.step(torch.tensor([token]), state.select([1]))[0] for token in (3, 4)]
    torch.testing.assert_close(forked, torch.cat(alone), **CLOSE)
    joined = State.concatenate([model(x[:1])[1], model(x[1:])[1]])
    torch.testing.assert_close(model.step(x[:, 0], joined)[0], model.step(x[:, 0], state)[0], **CLOSE)


@models
def test_learns_a_batch_and_every_weight_has_a_gradient(key: str) -> None:
    model, x = build(key).train(), tokens(2, 12)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1), lr=1e-2)
    losses = []
    for _ in range(8):
        logits, _ = model(x[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()]
        assert not without
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@models
def test_checkpointed_gradients_are_equal(key: str) -> None:
    model, x = build(key), tokens(2, 6)
    results = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        logits, _ = model(x)
        results.append(torch.autograd.grad(logits.square().sum(), list(model.parameters())))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


@models
def test_parameter_groups(key: str) -> None:
    model = build(key)
    decayed, others = model.parameter_groups(0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    grouped = [names[id(p)] for group in (decayed, others) for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    free = {names[id(p)] for p in others["params"]}
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        is_norm = "norm" in name.rsplit(".", 2)[-2]
        rates = ("A_log", "D", "delta_bias", "bias", "shift_D", "A_real", "A_imag", "inverse_dt", "B")
        of_mamba3 = leaf in ("B_bias", "C_bias", "mimo_x", "mimo_z", "mimo_o")
        assert (name in free) == (leaf in rates or of_mamba3 or is_norm), (name, parameter.shape)


@models
def test_autocast_and_bfloat16_weights(key: str) -> None:
    model, x = build(key), tokens(2, 7)
    want, _ = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = model(x)
        model.step(x[:, 0], state)
        logits.float().square().mean().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    half, state = model.bfloat16()(x)
    assert half.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for n, t in state.tensors() if n.endswith("ssm"))
    stepped, _ = model.step(x[:, 0], state)
    assert stepped.dtype == torch.bfloat16
    for rough in (logits, half):
        # bfloat16 has 8 bits, and small weights make logits whose size is mostly the embedding's.
        assert (rough.float() - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize("key", ["mamba", "mamba2", "mamba3", "hybrid", "zamba2"])
def test_compiles_whole(key: str) -> None:
    model, x = build(key), tokens(2, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits, state = compiled(x)
    want, _ = model(x)
    torch.testing.assert_close(logits, want, **CLOSE)
    with torch.no_grad():
        stepped, _ = torch.compile(model.step, fullgraph=True, backend="aot_eager")(x[:, 0], state)
    torch.testing.assert_close(stepped, model.step(x[:, 0], state)[0], **CLOSE)
    grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
    for got, plain in zip(grads, torch.autograd.grad(want.square().sum(), list(model.parameters())), strict=True):
        torch.testing.assert_close(got, plain, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_compiles_to_machine_code(backend: str) -> None:
    """The default compiler believes what the operators say of their results' strides; a wrong word crashes it."""
    model, x = build("hybrid"), tokens(2, 6)
    with ops.backend(backend):
        compiled = torch.compile(model, fullgraph=True)
        for state in (None, model(x)[1].detach()):
            logits, _ = compiled(x, state)
            want, _ = model(x, state)
            torch.testing.assert_close(logits, want, **CLOSE)
            grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
            plain = torch.autograd.grad(want.square().sum(), list(model.parameters()))
            for got, theirs in zip(grads, plain, strict=True):
                torch.testing.assert_close(got, theirs, **CLOSE)
    torch.compiler.reset()


@models
def test_built_on_the_meta_device(key: str) -> None:
    with torch.device("meta"):
        model = build(key)
    assert all(parameter.is_meta for parameter in model.parameters())
    model = model.to_empty(device="cpu")
    filled = build(key)
    model.load_state_dict(filled.state_dict())
    torch.testing.assert_close(model(tokens(1, 4))[0], filled(tokens(1, 4))[0])


def test_wrong_tokens_are_named() -> None:
    model = build("mamba")
    padded = model.config.padded_vocab_size
    for call, error, message in (
        (lambda: model(tokens(3)), ValueError, r"expected \(batch, length\), got shape \(3,\)"),
        (lambda: model.step(tokens(1, 2), model.initial_state(1)), ValueError, r"expected \(batch,\)"),
        (lambda: model(tokens(1, 2).float()), TypeError, "tokens: int64 or int32, got float32"),
        (
            lambda: model(torch.tensor([[0, padded]])),
            ValueError,
            f"to {padded}, but the vocabulary is 0 to {padded - 1}",
        ),
        (lambda: model(torch.tensor([[-1]])), ValueError, "does the tokenizer belong to this model"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_vocabulary_is_padded() -> None:
    for name, multiple in (("mamba_tiny", 8), ("mamba2_tiny", 16), ("bamba_tiny", 1)):
        model = statescan.create_model(name, vocab_size=VOCABULARY)
        assert model.config.vocab_size == VOCABULARY
        assert model.embedding.num_embeddings == -(-VOCABULARY // multiple) * multiple


def test_state_of_a_state_space_model_does_not_grow() -> None:
    for key, grows in (("mamba", False), ("mamba2", False), ("transformer", True)):
        model = build(key)
        with torch.no_grad():
            sizes = [model(tokens(1, length))[1].nbytes for length in (4, 40)]
        assert (sizes[1] > sizes[0]) == grows
