"""What every sequence mixer promises: any way of walking a sequence gives what one call gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statescan.layers import Attention, Mamba, Mamba2, State
from tests.layers._mixers import DIM, MIXERS, WITHOUT_RESETS, assert_same_state, build

#: float32 sums of some ten products in another order.
CLOSE = dict(atol=2e-5, rtol=1e-4)
ALL = [*MIXERS, *WITHOUT_RESETS]
QUICK = settings(max_examples=6, deadline=None)

mixers = pytest.mark.parametrize("name", ALL)
resettable = pytest.mark.parametrize("name", list(MIXERS))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@mixers
@given(cuts=st.lists(st.integers(0, 11), max_size=4))
@QUICK
@torch.no_grad()
def test_chunks_of_any_size(name: str, cuts: list[int]) -> None:
    mixer, x = build(name), noise(2, 11, DIM)
    want, last = mixer(x)
    bounds = [0, *sorted(cuts), 11]
    parts, state = [], None
    for start, end in itertools.pairwise(bounds):
        y, state = mixer(x[:, start:end], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), want, **CLOSE)
    assert_same_state(state, last)


@mixers
@torch.no_grad()
def test_steps(name: str) -> None:
    mixer, x = build(name), noise(2, 7, DIM)
    want, last = mixer(x)
    state, outputs = mixer.initial_state(2), []
    for t in range(7):
        y, state = mixer.step(x[:, t], state)
        assert y.shape == (2, DIM)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), want, **CLOSE)
    assert_same_state(state, last)


@mixers
@torch.no_grad()
def test_initial_state_is_that_of_no_state(name: str) -> None:
    mixer, x = build(name), noise(3, 4, DIM)
    y, state = mixer(x, mixer.initial_state(3))
    want, last = mixer(x)
    torch.testing.assert_close(y, want, **CLOSE)
    assert_same_state(state, last)


@resettable
@given(marks=st.lists(st.booleans(), min_size=18, max_size=18), warm=st.booleans())
@QUICK
@torch.no_grad()
def test_resets_separate_sequences(name: str, marks: list[bool], warm: bool) -> None:
    mixer, x = build(name), noise(2, 9, DIM)
    resets = torch.tensor(marks).view(2, 9)
    before = mixer(noise(2, 3, DIM))[1] if warm else None
    got, state = mixer(x, before, resets=resets)
    for row in range(2):
        bounds = [0, *(t for t in range(9) if resets[row, t]), 9]
        parts = []
        for start, end in itertools.pairwise(bounds):
            fresh = before is None or start > 0 or bool(resets[row, 0])
            own = None if fresh else before.select([row])
            if parts and end == start:
                continue
            y, last = mixer(x[row : row + 1, start:end], own)
            parts.append(y)
        torch.testing.assert_close(got[row : row + 1], torch.cat(parts, 1), **CLOSE)
        assert_same_state(state.select([row]), last)


@mixers
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), warm=st.booleans())
@QUICK
@torch.no_grad()
def test_offsets_pack_sequences(name: str, lengths: list[int], warm: bool) -> None:
    mixer, x = build(name), noise(1, sum(lengths), DIM)
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    before = mixer(noise(len(lengths), 2, DIM))[1] if warm else None
    got, state = mixer(x, before, offsets=offsets)
    for index, (start, end) in enumerate(itertools.pairwise(offsets.tolist())):
        own = before.select([index]) if before is not None else None
        want, last = mixer(x[:, start:end], own)
        torch.testing.assert_close(got[:, start:end], want, **CLOSE)
        assert_same_state(state.select([index]), last)


@mixers
@torch.no_grad()
def test_sequences_of_a_batch_are_strangers(name: str) -> None:
    mixer, x = build(name), noise(4, 6, DIM)
    y, state = mixer(x)
    order = torch.tensor([2, 0, 3, 3])
    shuffled, after = mixer(x[order])
    torch.testing.assert_close(shuffled, y[order], **CLOSE)
    assert_same_state(after, state.select(order))
    joined = State.concatenate([mixer(x[:1])[1], mixer(x[1:])[1]])
    assert_same_state(joined, state)


@mixers
@torch.no_grad()
def test_later_inputs_do_not_matter(name: str) -> None:
    mixer, x = build(name), noise(1, 8, DIM)
    changed = x.clone()
    changed[:, 5:] = 100
    got = mixer(changed)[0]
    # A Fourier transform rounds by a share of the largest value.
    close = dict(CLOSE, atol=max(CLOSE["atol"], 1e-7 * float(got.abs().max())))
    torch.testing.assert_close(got[:, :5], mixer(x)[0][:, :5], **close)


@mixers
def test_gradients_pass_through_the_state(name: str) -> None:
    mixer, x = build(name), noise(2, 8, DIM).requires_grad_()
    weight = noise(2, 8, DIM)
    wanted = [x, *mixer.parameters()]
    want = torch.autograd.grad((mixer(x)[0] * weight).sum(), wanted)
    first, state = mixer(x[:, :3])
    second, _ = mixer(x[:, 3:], state)
    got = torch.autograd.grad((torch.cat([first, second], 1) * weight).sum(), wanted)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@mixers
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (1, 1)])
@torch.no_grad()
def test_empty_and_short(name: str, batch: int, length: int) -> None:
    mixer = build(name)
    y, state = mixer(noise(batch, length, DIM))
    assert y.shape == (batch, length, DIM)
    assert state.batch_size == batch
    if length == 0:
        assert_same_state(state, mixer.initial_state(batch))


@mixers
@torch.no_grad()
def test_bfloat16_stays_near_float32(name: str) -> None:
    mixer, x = build(name), noise(2, 9, DIM)
    want, _ = mixer(x)
    half = build(name).bfloat16()
    y, state = half(x.bfloat16())
    assert y.dtype == torch.bfloat16
    # bfloat16 has 8 bits: about 0.4 % a rounding, and a few of them in a row.
    assert (y.float() - want).abs().max() < 0.05 * want.abs().max()
    if "ssm" in state:
        assert state["ssm"].dtype == torch.float32
    stepped, _ = half.step(x[:, 0].bfloat16(), half.initial_state(2))
    assert stepped.dtype == torch.bfloat16


@mixers
def test_float64_stays_float64(name: str) -> None:
    mixer = build(name).double()
    y, state = mixer(noise(1, 5, DIM).double())
    assert y.dtype == torch.float64
    assert all(t.dtype == torch.float64 for _, t in state.tensors() if t.is_floating_point())
    want, _ = build(name)(noise(1, 5, DIM))
    torch.testing.assert_close(y.float(), want, **CLOSE)


@mixers
def test_every_projection_is_called_as_a_module(name: str) -> None:
    """Adapters (LoRA), quantisers and hooks replace or wrap modules: reading `.weight` instead would pass them by."""
    mixer = build(name)
    called: set[str] = set()
    for key, module in mixer.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_, key=key: called.add(key))
    linear = {key for key, module in mixer.named_modules() if isinstance(module, torch.nn.Linear)}
    for run in (lambda: mixer(noise(1, 3, DIM)), lambda: mixer.step(noise(1, DIM), mixer.initial_state(1))):
        called.clear()
        run()
        assert called == linear


@pytest.mark.parametrize(
    "name",
    [
        "mamba",
        "mamba2",
        "mamba3",
        "mamba3-mimo",
        "attention-convolved",
        "s5",
        "s5-block",
        "taylor",
        "sliding-grouped",
        "base-conv",
    ],
)
def test_compiles_whole(name: str) -> None:
    mixer, x = build(name), noise(2, 6, DIM)
    want, state = mixer(x)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    got, after = compiled(x)
    torch.testing.assert_close(got, want, **CLOSE)
    assert_same_state(after, state)
    want_next, _ = mixer(x, state)
    torch.testing.assert_close(compiled(x, after)[0], want_next, **CLOSE)


def test_learned_state_cannot_be_reset_to_inside_a_row() -> None:
    with pytest.raises(ValueError, match="pass offsets"):
        build("mamba2-learned-state")(noise(1, 3, DIM), resets=torch.zeros(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (lambda: Mamba2(DIM, head_dim=5), "head_dim: 5 does not divide the 24 channels"),
        (lambda: Mamba2(DIM, head_dim=8, groups=2), "groups: 2 does not divide 3 heads"),
        (lambda: Mamba2(DIM, head_dim=4, ssm_dim=28), "ssm_dim: between 1 and the 24 inner channels, got 28"),
        (lambda: Mamba(DIM, conv_kernel=0), "width: at least 1 tap, got 0"),
        (lambda: Attention(DIM, 5), "heads: 5 does not divide 12 channels; give head_dim"),
        (lambda: Attention(DIM, 4, kv_heads=3), "kv_heads: 3 does not divide 4 heads"),
        (lambda: Attention(DIM, 2, rotary_dim=3), "rotary_dim: even and at most head_dim 6, got 3"),
    ],
)
def test_wrong_options_are_named(build_it: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_it()  # type: ignore[operator]
