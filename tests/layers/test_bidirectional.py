"""Bidirectional and locally bidirectional Mamba mixers."""

from __future__ import annotations

import pytest
import torch

from statescan.layers import BidirectionalMamba, LBMamba, Mamba
from statescan.layers.grid import DirectionalSS2D

DIM, LENGTH = 8, 11


def tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(0))


def tied(mixer: BidirectionalMamba) -> BidirectionalMamba:
    assert mixer.backwards is not None
    mixer.backwards.load_state_dict(mixer.forwards.state_dict())
    return mixer


@torch.no_grad()
def test_tied_directions_commute_with_reversal() -> None:
    torch.manual_seed(0)
    mixer = tied(BidirectionalMamba(DIM, state_dim=4))
    assert torch.allclose(mixer(tokens().flip(1))[0].flip(1), mixer(tokens())[0], atol=1e-6)
    free = BidirectionalMamba(DIM, state_dim=4)
    assert not torch.allclose(free(tokens().flip(1))[0].flip(1), free(tokens())[0], atol=1e-4)


@torch.no_grad()
def test_a_silent_way_back_leaves_half_a_mamba() -> None:
    torch.manual_seed(0)
    both, one = BidirectionalMamba(DIM, state_dim=4), Mamba(DIM, state_dim=4)
    own = one.state_dict()
    for name, value in both.state_dict().items():
        if name.startswith("forwards."):
            own[name.removeprefix("forwards.")].copy_(value)
        elif name in own:
            own[name].copy_(value)
    assert both.backwards is not None
    both.backwards.selection_projection.weight[-4:] = 0  # C
    both.backwards.D.zero_()
    assert torch.allclose(both(tokens())[0], one(tokens())[0] / 2, atol=1e-6)
    both.halve = False
    assert torch.allclose(both(tokens())[0], one(tokens())[0], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("backward", ["separate", "shared"])
def test_every_output_sees_every_token(backward: str) -> None:
    mixer = BidirectionalMamba(DIM, backward=backward, state_dim=4, layer_scale=0.5)  # type: ignore[arg-type]
    x = tokens()
    plain = mixer(x)[0]
    for place in (0, LENGTH - 1):
        moved = x.clone()
        moved[:, place] += 1
        assert ((mixer(moved)[0] - plain).abs().amax((0, 2)) > 0).all()


def test_what_a_bidirectional_mixer_cannot_do() -> None:
    mixer = BidirectionalMamba(DIM)
    with pytest.raises(ValueError, match="a bidirectional mixer reads one whole sequence a row"):
        mixer(tokens(), resets=torch.zeros(2, LENGTH, dtype=torch.bool))
    with pytest.raises(ValueError, match="backward: unknown 'both'; known: separate, shared"):
        BidirectionalMamba(DIM, backward="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window: only with backward='separate'"):
        BidirectionalMamba(DIM, backward="shared", window=4)


@torch.no_grad()
def test_chunks_of_whole_windows_are_the_whole() -> None:
    torch.manual_seed(0)
    mixer = LBMamba(DIM, state_dim=4, window=4)
    x = tokens(18)
    whole, after = mixer(x)
    state, parts = mixer.initial_state(2), []
    for start, end in ((0, 8), (8, 12), (12, 18)):
        y, state = mixer(x[:, start:end], state)
        parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert torch.allclose(state["ssm"], after["ssm"], atol=1e-5)
    assert state["position"].tolist() == [18, 18]


@torch.no_grad()
def test_window_1_is_mamba() -> None:
    torch.manual_seed(0)
    local, plain = LBMamba(DIM, state_dim=4, window=1), Mamba(DIM, state_dim=4)
    plain.load_state_dict(local.state_dict())
    assert torch.allclose(local(tokens())[0], plain(tokens())[0], atol=1e-6)


def test_what_a_local_mixer_cannot_do() -> None:
    mixer = LBMamba(DIM, window=4)
    _, state = mixer(tokens(6))
    with pytest.raises(ValueError, match="state: it ends within a window; all chunks but the last"):
        mixer(tokens(4), state)
    with pytest.raises(NotImplementedError, match="LBMamba has no step"):
        mixer.step(tokens()[:, 0], state)
    with pytest.raises(ValueError, match="window: 'auto' depends on the length of the whole sequence"):
        LBMamba(DIM)(tokens(), state)
    with pytest.raises(ValueError, match="resets, offsets: windows are counted from the start of a row"):
        mixer(tokens(), offsets=torch.tensor([0, 11]))
    with pytest.raises(ValueError, match="window: a positive whole number or 'auto', got 0"):
        LBMamba(DIM, window=0)


@torch.no_grad()
def test_directional_scan_against_one_walk_at_a_time() -> None:
    """Both orders, a walk by itself in a loop over cells."""
    torch.manual_seed(0)
    grid = torch.randn(1, 3, 4, DIM, generator=torch.Generator().manual_seed(0))
    for reorder in ("input", "all"):
        mixer = DirectionalSS2D(DIM, state_dim=2, bias=True, reorder=reorder, layer_scale=0.7).double()  # type: ignore[arg-type]
        x = grid.double()
        hidden, gate = mixer.input_projection(x).chunk(2, -1)
        hidden = torch.nn.functional.silu(mixer.convolution(hidden)).flatten(1, 2)[0]
        dt, B, C = mixer.selection_projection(hidden).split([mixer.dt_rank, 2, 2], -1)
        delta = torch.nn.functional.softplus(mixer.delta_projection(dt) + 2 * mixer.delta_bias)
        total = torch.zeros_like(hidden)
        for order, entered in zip(mixer.route.table(3, 4), mixer.route.directions(3, 4), strict=True):
            state = torch.zeros(hidden.shape[1], 2, dtype=torch.float64)
            for t, (cell, direction) in enumerate(zip(order.tolist(), entered.tolist(), strict=True)):
                at = t if reorder == "input" else cell
                added = (delta[at] * hidden[cell])[:, None] * (B[at] + mixer.direction_B[direction])
                state = torch.exp(delta[at][:, None] * -torch.exp(mixer.A_log)) * state + added
                total[cell] += (state * C[at]).sum(-1) + mixer.D * hidden[cell]
        wanted = mixer.output_projection(total.view(1, 3, 4, -1) * torch.nn.functional.silu(gate)) * 0.7
        assert torch.allclose(mixer(x), wanted, atol=1e-10)


def test_bad_directional_options_are_refused() -> None:
    with pytest.raises(ValueError, match="conv_kernel: odd, got 4"):
        DirectionalSS2D(DIM, conv_kernel=4)
    with pytest.raises(ValueError, match="reorder: unknown 'some'; known: input, all"):
        DirectionalSS2D(DIM, reorder="some")  # type: ignore[arg-type]


@torch.no_grad()
def test_parts_carry_the_way_forth_and_begin_the_way_back_anew() -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMamba(DIM, state_dim=4)
    x = tokens()
    assert torch.allclose(mixer.chunk(x)[0], mixer(x)[0], atol=1e-6), "of one part it is the whole"
    first, state = mixer.chunk(x[:, :6])
    second, _ = mixer.chunk(x[:, 6:], state)
    assert not torch.allclose(torch.cat([first, second], 1), mixer(x)[0], atol=1e-4)
    assert mixer.backwards is not None
    for parameter in mixer.backwards.parameters():
        parameter.zero_()  # a way back that says nothing
    first, state = mixer.chunk(x[:, :6])
    second, _ = mixer.chunk(x[:, 6:], state)
    assert torch.allclose(torch.cat([first, second], 1), mixer(x)[0], atol=1e-6)


def test_parts_need_two_ways_of_plain_scans() -> None:
    with pytest.raises(ValueError, match="backward: parts of a sequence need two ways"):
        BidirectionalMamba(DIM, state_dim=4, backward="shared").chunk(tokens())
    with pytest.raises(ValueError, match="window: a scan in windows carries no state, got 4"):
        BidirectionalMamba(DIM, state_dim=4, window=4).chunk(tokens())
