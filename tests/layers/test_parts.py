"""The smaller parts: norms, rotary positions, attention against its definition, gated MLPs, the residual stack."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from statescan.layers import (
    Attention,
    GatedMLP,
    GatedRMSNorm,
    Mamba,
    Mamba2,
    ResidualBlock,
    ResidualStack,
    RMSNorm,
    build_norm,
    initialise_language_model,
    rotate,
)


def test_norms_are_their_formulas() -> None:
    x, gate = torch.randn(3, 6), torch.randn(3, 6)
    norm = GatedRMSNorm(6, 1e-3, groups=2)
    nn.init.normal_(norm.weight)

    def rms(value: torch.Tensor) -> torch.Tensor:
        grouped = value.view(3, 2, 3)
        return (grouped / (grouped.square().mean(-1, keepdim=True) + 1e-3).sqrt()).view(3, 6)

    torch.testing.assert_close(norm(x, gate), rms(x * F.silu(gate)) * norm.weight)
    norm.norm_before_gate = True
    torch.testing.assert_close(norm(x, gate), rms(x) * norm.weight * F.silu(gate))
    plain = RMSNorm(6, 1e-3)
    torch.testing.assert_close(plain(x), F.rms_norm(x, (6,), plain.weight, 1e-3))
    assert not list(RMSNorm(6, weighted=False).parameters())
    assert isinstance(build_norm("layer", 6), nn.LayerNorm)
    with pytest.raises(ValueError, match="norm: unknown 'batch'; known: rms, layer"):
        build_norm("batch", 6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_scores_depend_on_distance_alone(interleaved: bool) -> None:
    q, k = torch.randn(1, 1, 1, 10), torch.randn(1, 1, 1, 10)

    def score(i: int, j: int) -> torch.Tensor:
        turned = [
            rotate(t, torch.tensor([[position]]), 6, base=100.0, interleaved=interleaved)
            for t, position in ((q, i), (k, j))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(5, 0))
    torch.testing.assert_close(score(3, 3), (q * k).sum())
    assert (score(9, 4) - score(9, 3)).abs() > 1e-3
    torch.testing.assert_close(rotate(q, torch.tensor([[7]]), 6, interleaved=interleaved)[..., 6:], q[..., 6:])


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_its_definition(causal: bool) -> None:
    attention = Attention(8, 4, kv_heads=2, head_dim=3, causal=causal)
    x = torch.randn(2, 5, 8)
    q, k, v = attention.input_projection(x).split([12, 6, 6], dim=-1)
    q = q.view(2, 5, 4, 3)
    k, v = (t.view(2, 5, 2, 3).repeat_interleave(2, dim=2) for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(3)
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    context = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)
    torch.testing.assert_close(attention(x)[0], attention.output_projection(context))


@torch.no_grad()
def test_attention_that_sees_all_leaves_padding_out() -> None:
    attention, x = Attention(8, 2, rotary_dim=4, causal=False), torch.randn(2, 6, 8)
    valid = torch.arange(6) < torch.tensor([[4], [6]])
    torch.testing.assert_close(attention(x, valid=valid)[0][:1, :4], attention(x[:1, :4])[0])
    with pytest.raises(ValueError, match="valid: only attention with causal=False leaves positions out"):
        Attention(8, 2)(x, valid=valid)


def test_attention_that_sees_all_takes_no_state() -> None:
    attention, x = Attention(8, 2, causal=False), torch.randn(1, 3, 8)
    with pytest.raises(ValueError, match="causal=False"):
        attention(x, Attention(8, 2)(x)[1])


@torch.no_grad()
def test_a_reset_everywhere_lets_the_cache_go() -> None:
    attention, x = Attention(8, 2), torch.randn(2, 6, 8)
    _, state = attention(x)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[0, 2] = resets[1, 4] = True
    _, state = attention(x, state, resets=resets)
    assert state["keys"].shape[2] == 4
    assert state["start"].tolist() == [0, 2]


def test_gated_mlp() -> None:
    mlp, x = GatedMLP(5, 7, multiple_of=4, activation=F.gelu), torch.randn(2, 5)
    value, gate = mlp.input_projection(x).split([8, 8], dim=-1)
    torch.testing.assert_close(mlp(x), mlp.output_projection(value * F.gelu(gate)))


def build_stack(*, in_float32: bool = True) -> ResidualStack:
    torch.manual_seed(0)
    mixers = [Mamba(6, state_dim=3), Mamba2(6, state_dim=3, head_dim=4), Attention(6, 2)]
    blocks = [ResidualBlock(mixer, RMSNorm(6), GatedMLP(6, 8), RMSNorm(6)) for mixer in mixers]
    return ResidualStack(
        [*blocks, ResidualBlock(None, None, GatedMLP(6, 8), RMSNorm(6))], residual_in_float32=in_float32
    )


def test_checkpointed_gradients_are_equal() -> None:
    stack = build_stack()
    x = torch.randn(2, 5, 6, requires_grad=True)
    resets = torch.rand(2, 5) < 0.3
    _, before = stack(torch.randn(2, 3, 6))
    results = []
    for checkpointing in (False, True):
        stack.gradient_checkpointing = checkpointing
        y, state = stack(x, before.detach(), resets=resets)
        loss = y.square().sum() + sum(t.square().sum() for _, t in state.tensors() if t.is_floating_point())
        results.append(torch.autograd.grad(loss, [x, *stack.parameters()]))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_residual_stream_keeps_float32() -> None:
    x = torch.randn(1, 4, 6).bfloat16()
    assert build_stack().bfloat16()(x)[0].dtype == torch.float32
    assert build_stack(in_float32=False).bfloat16()(x)[0].dtype == torch.bfloat16


def test_initialisation_is_the_published_one() -> None:
    """`_init_weights` and the constructors of the published code."""
    mamba = Mamba(64, state_dim=4)
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 5).expand(128, 4))
    assert mamba.D.eq(1).all()
    step = F.softplus(mamba.delta_bias)
    assert step.min() >= 1e-3 * 0.999
    assert step.max() <= 0.1 * 1.001
    assert mamba.delta_projection.weight.abs().max() <= 4**-0.5
    constant = Mamba(64, dt_init="constant", dt_scale=0.5).delta_projection.weight
    assert constant.eq(0.25).all()
    mamba2 = Mamba2(64, head_dim=2, conv_init=0.01, A_range=(2, 3))
    assert mamba2.convolution.weight.abs().max() <= 0.01
    assert mamba2.A_log.exp().min() >= 2
    assert mamba2.A_log.exp().max() <= 3
    floor = Mamba(64, dt_min=1e-6, dt_max=1e-5, dt_floor=1e-2).delta_bias
    torch.testing.assert_close(F.softplus(floor), torch.full_like(floor, 1e-2))


def test_residual_outputs_shrink_with_depth() -> None:
    stack = build_stack()
    before = stack.blocks[0].mixer.delta_bias.clone()
    initialise_language_model(stack, depth=16, residuals_per_layer=4)
    for block in stack.blocks:
        output = block.channel_mixer.output_projection.weight
        assert 0 < output.abs().max() <= 1 / math.sqrt(8) / 8  # kaiming_uniform(a=sqrt 5) is U(+-fan_in^-1/2)
    torch.testing.assert_close(stack.blocks[0].mixer.delta_bias, before)
