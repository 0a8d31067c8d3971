"""Mamba with projections by modality: the identities of the paper's block, and any way of walking a sequence."""

import itertools

import pytest
import torch

from statescan.inspect._flops import counter
from statescan.layers import PROJECTIONS, Mamba, MixtureOfMamba, ModalityGroups
from statescan.models._modality_names import modality_mixer_from_published, modality_mixer_to_published

DIM = 12
NAMES = {"input": "input_projection", "selection": "selection_projection", "delta": "delta_projection"}
NAMES |= {"output": "output_projection"}


def tokens(batch=2, length=11, modalities=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, DIM, generator=generator)
    return x, torch.randint(0, modalities, (batch, length), generator=generator)


def copied(dense, modalities, split=PROJECTIONS):
    """A mixture all of whose copies are the dense block's projections."""
    mixture = MixtureOfMamba(DIM, modalities, split=split, state_dim=5, bias=True)
    tensors = dict(dense.state_dict())
    for name in split:
        for leaf in ("weight", "bias"):
            key = f"{NAMES[name]}.{leaf}"
            if key in tensors:
                tensors[key] = torch.stack([tensors[key]] * modalities)
        if name == "delta":
            tensors["delta_bias"] = torch.stack([tensors["delta_bias"]] * modalities)
    mixture.load_state_dict(tensors)
    return mixture


@pytest.mark.parametrize("split", [*[tuple(c) for n in range(5) for c in itertools.combinations(PROJECTIONS, n)]])
@torch.no_grad()
def test_equal_copies_are_the_dense_block(split):
    torch.manual_seed(0)
    dense = Mamba(DIM, state_dim=5, bias=True)
    x, modality = tokens()
    torch.testing.assert_close(copied(dense, 3, split)(x, modality=modality)[0], dense(x)[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_one_modality_is_the_dense_block():
    torch.manual_seed(0)
    dense = Mamba(DIM, state_dim=5, bias=True)
    x, _ = tokens()
    mixture = copied(dense, 1)
    torch.testing.assert_close(mixture(x, modality=torch.zeros(2, 11, dtype=torch.int64))[0], dense(x)[0])


@torch.no_grad()
def test_permuting_labels_with_weights_changes_nothing():
    torch.manual_seed(0)
    one, other = (MixtureOfMamba(DIM, 3, state_dim=5, bias=True) for _ in range(2))
    order = torch.tensor([2, 0, 1])
    split = ("input_projection", "selection_projection", "delta_projection", "output_projection", "delta_bias")
    other.load_state_dict({n: t[order] if n.startswith(split) else t for n, t in one.state_dict().items()})
    x, modality = tokens()
    torch.testing.assert_close(other(x, modality=order.argsort()[modality])[0], one(x, modality=modality)[0])


@torch.no_grad()
def test_each_token_passes_its_own_copy():
    """Another copy's weights change only what comes from its tokens on."""
    torch.manual_seed(0)
    mixer = MixtureOfMamba(DIM, 2, state_dim=5)
    x, _ = tokens()
    modality = torch.zeros(2, 11, dtype=torch.int64)
    modality[:, 6] = 1
    before, _ = mixer(x, modality=modality)
    mixer.input_projection.weight[1] += 1
    after, _ = mixer(x, modality=modality)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).all(-1).all()


@pytest.mark.parametrize("split", [PROJECTIONS, ("input", "output"), ()])
@torch.no_grad()
def test_steps_and_chunks_equal_one_call(split):
    torch.manual_seed(0)
    mixer = MixtureOfMamba(DIM, 3, split=split, state_dim=5)
    x, modality = tokens()
    whole, last = mixer(x, modality=modality)
    state, parts = None, []
    for start, end in ((0, 4), (4, 5), (5, 11)):
        y, state = mixer(x[:, start:end], state, modality=modality[:, start:end])
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(state["ssm"], last["ssm"], atol=2e-5, rtol=1e-4)
    state, parts = mixer.initial_state(2), []
    for t in range(11):
        y, state = mixer.step(x[:, t], state, modality=modality[:, t])
        parts.append(y)
    torch.testing.assert_close(torch.stack(parts, 1), whole, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_resets_and_packing_part_sequences():
    torch.manual_seed(0)
    mixer = MixtureOfMamba(DIM, 3, state_dim=5)
    x, modality = tokens(batch=1)
    alone = torch.cat([mixer(x[:, a:b], modality=modality[:, a:b])[0] for a, b in ((0, 4), (4, 11))], 1)
    resets = torch.zeros(1, 11, dtype=torch.bool)
    resets[0, 4] = True
    torch.testing.assert_close(mixer(x, modality=modality, resets=resets)[0], alone, atol=2e-5, rtol=1e-4)
    packed, _ = mixer(x, modality=modality, offsets=torch.tensor([0, 4, 11]))
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


def test_gradients():
    torch.manual_seed(0)
    mixer = MixtureOfMamba(4, 2, state_dim=2, bias=True).double()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    modality = torch.tensor([[0, 1, 1, 0, 1]])
    names = [name for name, _ in mixer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,), {"modality": modality})[0]

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()), fast_mode=True)


def test_a_modality_that_is_absent_has_gradients_of_zero():
    mixer = MixtureOfMamba(DIM, 2, state_dim=5)
    x, _ = tokens()
    mixer(x, modality=torch.zeros(2, 11, dtype=torch.int64))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in mixer.parameters())
    assert mixer.input_projection.weight.grad[1].abs().sum() == 0


def test_the_bias_of_a_shared_delta_projection_counts_unless_told_otherwise():
    x, modality = tokens()
    outputs = []
    for ignore in (False, True):
        torch.manual_seed(0)
        mixer = MixtureOfMamba(DIM, 3, split=("input",), state_dim=5, ignore_shared_delta_bias=ignore)
        before, _ = mixer(x, modality=modality)
        with torch.no_grad():
            mixer.delta_bias += 1
        outputs.append(torch.equal(before, mixer(x, modality=modality)[0]))
    assert outputs == [False, True]


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_parameters_of_the_published_table(modalities):
    table = {768: (3_770_880, 7_507_968, 11_245_056), 1024: (6_666_240, 13_287_424, 19_908_608)}
    table |= {1536: (14_914_560, 29_761_536, 44_608_512), 2048: (26_439_680, 52_789_248, 79_138_816)}
    for dim, counts in table.items():
        with torch.device("meta"):
            mixer = MixtureOfMamba(dim, modalities)
        assert sum(p.numel() for p in mixer.parameters()) == counts[modalities - 1]


def test_a_token_costs_what_it_costs_in_the_dense_block():
    counts = []
    with torch.device("meta"):
        dense, mixture = Mamba(256), MixtureOfMamba(256, 3)
        x, modality = torch.zeros(1, 64, 256), torch.zeros(1, 64, dtype=torch.int64)
    for call in (lambda: dense(x), lambda: mixture(x, modality=modality)):
        with counter() as count:
            call()
        counts.append(count.get_total_flops())
    assert abs(counts[1] / counts[0] - 1) < 0.02


@pytest.mark.parametrize("split", [PROJECTIONS, ("delta",), ("selection", "output"), ()])
def test_published_names_both_ways(split):
    mixer = MixtureOfMamba(DIM, 2, split=split, bias=True)
    published = modality_mixer_to_published(mixer.state_dict())
    back = modality_mixer_from_published(published)
    assert back.keys() == mixer.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in mixer.state_dict().items())
    assert ("local_experts_dt_proj.1.bias" in published) == ("delta" in split)
    assert ("dt_proj.bias" in published) == ("delta" not in split)


@pytest.mark.parametrize(
    ("modality", "error", "message"),
    [
        (torch.full((2, 11), 3), ValueError, "from 3 to 3, but there are 3 modalities"),
        (torch.full((2, 11), -1), ValueError, "from -1 to -1, but there are 3 modalities"),
        (torch.zeros(2, 11), TypeError, "modality: whole numbers, got float32"),
        (torch.zeros(2, 10, dtype=torch.int64), ValueError, r"modality: expected shape \(2, 11\), one number a token"),
    ],
)
def test_modalities_that_do_not_fit_are_refused(modality, error, message):
    with pytest.raises(error, match=message):
        MixtureOfMamba(DIM, 3)(tokens()[0], modality=modality)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="split: unknown projection 'gate'; known: input, selection, delta, output"):
        MixtureOfMamba(DIM, 2, split=("gate",))
    with pytest.raises(ValueError, match="modalities: at least 1, got 0"):
        MixtureOfMamba(DIM, 0)


def test_groups_are_sorted_once():
    groups = ModalityGroups(torch.tensor([[1, 0], [1, 1]]), 3)
    assert groups.counts == [1, 3, 0]
    assert groups.order[groups.back].tolist() == [0, 1, 2, 3]
