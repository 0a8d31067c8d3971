"""Mixtures of experts: each token's chosen MLPs and no others, with the weights of three rules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from statescan.inspect._flops import counter
from statescan.layers import (
    Experts,
    GatedMLP,
    Mamba,
    MixtureOfExperts,
    MultiHeadMamba,
    ParallelMixer,
    Router,
    squared_relu,
)

DIM = 6


def one_by_one(experts, x, chosen, weights):
    """Every token through its experts alone, from the definition."""
    rows = []
    for token, picks, shares in zip(x, chosen, weights, strict=True):
        total = torch.zeros_like(token)
        for expert, share in zip(picks, shares, strict=True):
            hidden = experts.input_weight[expert] @ token
            if experts.gated:
                value, gate = hidden.chunk(2)
                hidden = value * F.silu(gate)
            else:
                hidden = squared_relu(hidden)
            total = total + share * (experts.output_weight[expert] @ hidden)
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("active", [1, 3])
def test_experts_equal_their_definition_and_so_do_gradients(gated, active):
    torch.manual_seed(0)
    experts = Experts(DIM, 5, 4, gated=gated, **({} if gated else {"activation": squared_relu})).double()
    x = torch.randn(9, DIM, dtype=torch.float64, requires_grad=True)
    chosen = torch.stack([torch.randperm(4)[:active] for _ in range(9)])
    weights = torch.rand(9, active, dtype=torch.float64, requires_grad=True)
    have, want = experts(x, chosen, weights), one_by_one(experts, x, chosen, weights)
    torch.testing.assert_close(have, want)
    inputs = [x, weights, *experts.parameters()]
    for one, other in zip(
        torch.autograd.grad(have.square().sum(), inputs), torch.autograd.grad(want.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_an_expert_that_nobody_chose_has_a_gradient_of_zero():
    experts = Experts(DIM, 5, 3)
    chosen = torch.zeros(4, 1, dtype=torch.int64)
    experts(torch.randn(4, DIM), chosen, torch.ones(4, 1)).sum().backward()
    assert experts.input_weight.grad[0].abs().sum() > 0
    assert torch.equal(experts.input_weight.grad[1:], torch.zeros(2, 10, DIM))


def test_one_expert_is_a_gated_mlp():
    mlp = GatedMLP(DIM, 5)
    experts = Experts(DIM, 5, 1)
    with torch.no_grad():
        experts.input_weight[0] = mlp.input_projection.weight
        experts.output_weight[0] = mlp.output_projection.weight
    x = torch.randn(2, 3, DIM)
    torch.testing.assert_close(MixtureOfExperts(Router(DIM, 1, 1), experts)(x), mlp(x))


def test_rules_of_routing():
    torch.manual_seed(0)
    x = torch.randn(7, DIM)
    softmax = Router(DIM, 5, 2)
    logits = x @ softmax.weight.T
    chosen, weights = softmax(x)
    want, order = logits.softmax(-1).topk(2)
    assert torch.equal(chosen, order)
    torch.testing.assert_close(weights, want)
    assert (weights.sum(-1) < 1).all()

    normalised = Router(DIM, 5, 2, routing="softmax_of_chosen")
    normalised.weight = softmax.weight
    again, shares = normalised(x)
    assert torch.equal(again, order)
    torch.testing.assert_close(shares, want / want.sum(-1, keepdim=True))

    sigmoid = Router(DIM, 5, 2, routing="sigmoid", scale=2.5)
    sigmoid.weight = softmax.weight
    sigmoid.correction += torch.tensor([0.0, 0, 10, 0, 0])
    picked, scores = sigmoid(x)
    assert (picked == 2).any(-1).all(), "the correction decides who is chosen"
    torch.testing.assert_close(scores.sum(-1), torch.full((7,), 2.5))
    raw = logits.sigmoid().gather(-1, picked)
    torch.testing.assert_close(scores, 2.5 * raw / raw.sum(-1, keepdim=True))  # and has no part in the weights


def test_experts_come_from_the_open_groups():
    router = Router(4, 6, 2, routing="sigmoid", groups=3, open_groups=1)
    with torch.no_grad():
        router.weight.zero_()
    router.correction += torch.tensor([0.9, 0.0, 0.5, 0.5, 0.1, 0.2])
    chosen, _ = router(torch.randn(3, 4))
    assert chosen.sort(-1).values.tolist() == [[2, 3]] * 3, "the best pair, though the best single one is elsewhere"


def test_every_token_pays_for_its_own_experts_alone():
    mixture = MixtureOfExperts(Router(DIM, 8, 2), Experts(DIM, 16, 8))
    counts = []
    for device in ("cpu", "meta"):
        moved = mixture.to(device)
        with counter() as count:
            moved(torch.zeros(1, 10, DIM, device=device))
        counts.append(count.get_total_flops())
    router, experts = 2 * 10 * DIM * 8, 2 * 10 * 2 * (DIM * 32 + 16 * DIM)
    assert counts == [router + experts] * 2


def test_shared_and_latent_parts_are_added_around_the_experts():
    torch.manual_seed(0)
    shared, down, up = GatedMLP(DIM, 4), nn.Linear(DIM, 3), nn.Linear(3, DIM)
    mixture = MixtureOfExperts(Router(DIM, 4, 2), Experts(3, 5, 4), shared=shared, latent=(down, up))
    x = torch.randn(2, 5, DIM)
    chosen, weights = mixture.router(x.flatten(0, 1))
    inner = one_by_one(mixture.experts, down(x.flatten(0, 1)), chosen, weights)
    torch.testing.assert_close(mixture(x), up(inner).view(2, 5, DIM) + shared(x))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((4, 3, 4), {}, "active: between 1 and the 3 experts, got 4"),
        ((4, 3, 1), {"routing": "hash"}, "routing: unknown 'hash'; known: softmax, softmax_of_chosen, sigmoid"),
        ((4, 6, 1), {"routing": "sigmoid", "groups": 4}, "groups: 4 groups of which 1 are open do not fit 6 experts"),
        ((4, 6, 3), {"routing": "sigmoid", "groups": 3}, "groups: 1 groups of 2 experts are too few for 3"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Router(*arguments, **options)


def test_heads_of_mamba_select_for_themselves():
    """With one head it is Mamba; with two, each head's output depends on the other's channels in no way."""
    torch.manual_seed(0)
    mamba, heads = Mamba(DIM, state_dim=4), MultiHeadMamba(DIM, heads=1, state_dim=4)
    tensors = mamba.state_dict()
    tensors["selection_weight"] = tensors.pop("selection_projection.weight")[None]
    tensors["delta_weight"] = tensors.pop("delta_projection.weight")[None]
    heads.load_state_dict(tensors)
    x = torch.randn(2, 9, DIM)
    torch.testing.assert_close(heads(x)[0], mamba(x)[0])
    with pytest.raises(ValueError, match="heads: 5 does not divide the 12 inner channels"):
        MultiHeadMamba(DIM, heads=5)


def test_parallel_mixers_are_summed():
    torch.manual_seed(0)
    one, two = Mamba(DIM, state_dim=2), Mamba(DIM, state_dim=3)
    both = ParallelMixer({"one": one, "two": two}, input_scales={"one": 2.0}, output_scales={"two": 0.5})
    x = torch.randn(2, 7, DIM)
    torch.testing.assert_close(both(x)[0], one(2 * x)[0] + 0.5 * two(x)[0])
    with pytest.raises(ValueError, match="input_scales: no mixer named 'three'; known: one, two"):
        ParallelMixer({"one": one, "two": two}, input_scales={"three": 1.0})
