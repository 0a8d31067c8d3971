"""The gated SSM against its formulas, and what a prefix in both directions may and may not see."""

from __future__ import annotations

import pytest
import torch

from statescan.layers import GatedSSM, GatedSSMBlock, SplitRMSNorm


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def build(**options: object) -> GatedSSM:
    torch.manual_seed(0)
    return GatedSSM(6, **options).double()  # type: ignore[arg-type]


def marks(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "p" for letter in row] for row in rows])


def by_hand(mixer: GatedSSM, x: torch.Tensor, prefix: list[bool]) -> torch.Tensor:
    """One sequence (length, dim), a channel and a position at a time."""
    decay = torch.sigmoid(x @ mixer.decay_projection.weight.T)
    u, enter, read = (x @ mixer.input_projection.weight.T).chunk(3, dim=-1)
    driven = (1 - decay) * torch.sigmoid(enter) * u
    hidden = torch.zeros_like(driven)
    length, channels = driven.shape
    for channel in range(channels):
        if channel < mixer.forward_dim:
            for t in range(length):
                source = max(t - 1, 0) if mixer.gate == "previous" else t
                before = hidden[t - 1, channel] if t else 0.0
                hidden[t, channel] = decay[source, channel] * before + driven[t, channel]
        else:
            for t in reversed(range(length)):
                linked = t + 1 < length and prefix[t] and prefix[t + 1]
                hidden[t, channel] = driven[t, channel]
                if linked:
                    hidden[t, channel] += decay[t, channel] * hidden[t + 1, channel]
    return (torch.sigmoid(read) * hidden) @ mixer.output_projection.weight.T


@pytest.mark.parametrize(
    "options",
    [{}, {"gate": "previous"}, {"state_dim": 5}, {"bidirectional": True}, {"bidirectional": True, "state_dim": 2}],
)
@torch.no_grad()
def test_formulas(options: dict[str, object]) -> None:
    mixer, x = build(**options), noise(2, 8, 6)
    prefix = marks("pppppggg", "ppgggppp") if mixer.bidirectional else None
    y, _ = mixer(x, prefix=prefix)
    for row in range(2):
        want = by_hand(mixer, x[row], [False] * 8 if prefix is None else prefix[row].tolist())
        torch.testing.assert_close(y[row], want)


@torch.no_grad()
def test_generated_positions_are_causal() -> None:
    mixer, x = build(bidirectional=True), noise(1, 9, 6)
    prefix = marks("pppppgggg")
    want, _ = mixer(x, prefix=prefix)
    for place in range(5, 9):
        changed = x.clone()
        changed[:, place] += 1
        got, _ = mixer(changed, prefix=prefix)
        assert torch.equal(got[:, :place], want[:, :place])
        assert (got[:, place:] != want[:, place:]).any(-1).all()


@torch.no_grad()
def test_every_position_of_a_prefix_sees_all_of_it() -> None:
    mixer, x = build(bidirectional=True), noise(1, 9, 6)
    prefix = marks("pppppgggg")
    want, _ = mixer(x, prefix=prefix)
    for place in range(5):
        changed = x.clone()
        changed[:, place] += 1
        got, _ = mixer(changed, prefix=prefix)
        assert (got != want).any(-1).all()


@torch.no_grad()
def test_packed_prefixes_are_strangers() -> None:
    mixer, x = build(bidirectional=True), noise(1, 9, 6)
    prefix = marks("pppgpppgg")
    alone = torch.cat([mixer(x[:, :3], prefix=prefix[:, :3])[0], mixer(x[:, 3:], prefix=prefix[:, 3:])[0]], dim=1)
    resets = torch.zeros(1, 9, dtype=torch.bool)
    resets[0, 3] = True
    torch.testing.assert_close(mixer(x, prefix=prefix, resets=resets)[0], alone)
    torch.testing.assert_close(mixer(x, prefix=prefix, offsets=torch.tensor([0, 3, 3, 9]))[0], alone)
    touching = marks("ppppppggg")
    halves = [mixer(x[:, cut], prefix=touching[:, cut])[0] for cut in (slice(0, 3), slice(3, 9))]
    torch.testing.assert_close(mixer(x, prefix=touching, resets=resets)[0], torch.cat(halves, dim=1))
    torch.testing.assert_close(mixer(x, prefix=touching, offsets=torch.tensor([0, 3, 9]))[0], torch.cat(halves, dim=1))


@torch.no_grad()
def test_generation_goes_on_after_a_prefix() -> None:
    mixer, x = build(bidirectional=True), noise(2, 9, 6)
    prefix = marks("pppppgggg", "pppgggggg")
    want, last = mixer(x, prefix=prefix)
    y, state = mixer(x[:, :5], prefix=prefix[:, :5])
    parts = [y]
    for t in range(5, 9):
        y, state = mixer.step(x[:, t], state)
        parts.append(y[:, None])
    torch.testing.assert_close(torch.cat(parts, dim=1), want)
    torch.testing.assert_close(state["ssm"], last["ssm"])


def test_first_decays_cover_their_range_in_both_directions() -> None:
    mixer = build(bidirectional=True, initial_decay=(0.5, 0.992))
    assert mixer.decay_bias is not None
    remembered = 1 / (1 - torch.sigmoid(mixer.decay_bias.detach()))
    for half in remembered.chunk(2):
        torch.testing.assert_close(half[[0, -1]], torch.tensor([2.0, 125.0], dtype=torch.float64), rtol=1e-3, atol=0)
        ratios = half[1:] / half[:-1]
        torch.testing.assert_close(ratios, ratios[0].expand_as(ratios), rtol=1e-3, atol=0)
    decay, _, _ = mixer._project(torch.zeros(1, 1, 6, dtype=torch.float64))
    torch.testing.assert_close(decay[0, 0], torch.sigmoid(mixer.decay_bias))
    assert "decay_bias" not in dict(build().named_parameters())


def test_gradients() -> None:
    mixer, x = build(bidirectional=True, state_dim=4), noise(1, 6, 6).requires_grad_()
    prefix = marks("pppggg")
    assert torch.autograd.gradcheck(lambda x: mixer(x, prefix=prefix)[0], (x,))


@torch.no_grad()
def test_block_and_norm() -> None:
    torch.manual_seed(0)
    block, x = GatedSSMBlock(6).double(), noise(2, 5, 6)
    want = x + block.mixer(x / x.square().mean(-1, keepdim=True).sqrt() * 0.1)[0]
    torch.testing.assert_close(block(x)[0], want)
    assert torch.equal(SplitRMSNorm(4)(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="gate: unknown 'next'; known: current, previous"):
        GatedSSM(4, gate="next")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gate: 'previous' with bidirectional=True is not supported"):
        GatedSSM(4, gate="previous", bidirectional=True)
    with pytest.raises(ValueError, match="state_dim: expected an even number with bidirectional=True, got 5"):
        GatedSSM(4, state_dim=5, bidirectional=True)
    with pytest.raises(ValueError, match=r"initial_decay: expected 0 < lowest <= highest < 1, got \(0.5, 1.0\)"):
        GatedSSM(4, initial_decay=(0.5, 1.0))
    with pytest.raises(ValueError, match="state_dim: expected at least 1, got 0"):
        GatedSSM(4, state_dim=0)


def test_bad_prefixes() -> None:
    x = noise(1, 4, 6)
    with pytest.raises(ValueError, match="prefix: this layer walks in one direction; build it with bidirectional=True"):
        build()(x, prefix=marks("ppgg"))
    mixer = build(bidirectional=True)
    with pytest.raises(ValueError, match=r"prefix: expected bool of shape \(1, 4\), got torch.bool of \(1, 3\)"):
        mixer(x, prefix=marks("ppg"))
    with pytest.raises(ValueError, match=r"prefix: expected bool of shape \(1, 4\), got torch.float32"):
        mixer(x, prefix=torch.ones(1, 4))
    _, state = mixer(x, prefix=marks("ggpp"))
    with pytest.raises(ValueError, match="prefix: one goes on from an earlier call; a prefix must be read whole"):
        mixer(x, state, prefix=marks("pggg"))
    mixer(x, state, prefix=marks("gppp"))
    mixer(x, state, prefix=marks("pggg"), resets=torch.tensor([[True, False, False, False]]))
