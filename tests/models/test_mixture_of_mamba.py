"""Mixture-of-Mamba: models of several vocabularies, text with patches, and what modalities of their own are good for."""

import pytest
import torch
import torch.nn.functional as F

import statescan
from statescan.inspect import measure_cost
from statescan.layers import add_noise, denoise, signal_fraction


def interleaved(batch, length, generator):
    """Two vocabularies of 12 tokens whose tokens follow by different rules, in turns of random length."""
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    kind = torch.randint(0, 2, (batch,), generator=generator)
    last = torch.randint(0, 12, (2, batch), generator=generator)
    for t in range(length):
        kind = torch.where(torch.rand(batch, generator=generator) < 0.2, 1 - kind, kind)
        now = torch.where(kind == 0, (5 * last[0] + 1) % 12, (7 * last[1] + 4) % 12)
        for k in (0, 1):
            last[k] = torch.where(kind == k, now, last[k])
        tokens[:, t] = now + 12 * kind
    return tokens


def learn(split, steps=120):
    torch.manual_seed(0)
    model = statescan.create_model("mixture_of_mamba_tiny", dim=16, depth=2, vocabularies=(12, 12), split=split)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for step in range(steps):
        tokens = interleaved(16, 33, torch.Generator().manual_seed(step))
        logits, _ = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


def test_at_equal_steps_a_split_model_knows_more():
    assert learn(("input", "selection", "delta", "output")) < learn(()) - 0.02


def test_modality_is_read_off_the_token():
    model = statescan.create_model("mixture_of_mamba_speech_tiny", vocabularies=(10, 5, 3))
    tokens = torch.tensor([[0, 9, 10, 14, 15, 17]])
    assert model.modality(tokens).tolist() == [[0, 0, 1, 1, 2, 2]]


def test_it_generates_and_continues_like_any_language_model():
    model = statescan.create_model("mixture_of_mamba_tiny", dim=16, depth=2).eval()
    result = statescan.generate(model, [[1, 2, 3]], max_new_tokens=5, temperature=0)[0]
    tokens = torch.tensor([[1, 2, 3, *result.tokens]])
    with torch.no_grad():
        assert model(tokens)[0][0, 2:-1].argmax(-1).tolist() == list(result.tokens)


def test_active_cost_is_that_of_a_dense_model():
    costs = [measure_cost("mixture_of_mamba_tiny", length=64, split=split) for split in (("input", "output"), ())]
    assert abs(costs[0].flops_forward / costs[1].flops_forward - 1) < 0.02
    assert costs[0].parameters > costs[1].parameters


def test_checkpoints_and_published_names(tmp_path):
    for name in ("mixture_of_mamba_tiny", "transfusion_mamba_tiny"):
        model = statescan.create_model(name, dim=16, depth=2)
        model.save(tmp_path / name)
        back = statescan.load(tmp_path / name)
        assert back.config == model.config
        assert all(torch.equal(back.state_dict()[n], t) for n, t in model.state_dict().items())
    published = statescan.models.family("mixture_of_mamba").to_published(model.state_dict(), model.config)
    assert "backbone.layers.1.mixer.local_experts_in_proj.1.weight" in published


def transfusion():
    torch.manual_seed(0)
    return statescan.create_model("transfusion_mamba_tiny", dim=16, depth=2, patch_dim=3).eval()


@torch.no_grad()
def test_tokens_and_patches_in_pieces_equal_the_whole():
    model = transfusion()
    tokens, patches = torch.randint(0, 258, (2, 9)), torch.randn(2, 9, 3)
    is_patch = torch.zeros(2, 9, dtype=torch.bool)
    is_patch[:, 4:8] = True
    times = torch.full((2, 9), 30.0)
    logits, noise, _ = model(tokens, patches, times, is_patch)
    first, state = model.read(tokens[:, :4])
    _, second, state = model(tokens[:, 4:8], patches[:, 4:8], times[:, 4:8], is_patch[:, 4:8], state)
    third, _ = model.read(tokens[:, 8:], state)
    torch.testing.assert_close(torch.cat([first, third], 1), logits[:, [0, 1, 2, 3, 8]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(second, noise[:, 4:8], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_times_and_patches_matter_where_patches_stand_alone():
    model = transfusion()
    tokens, patches = torch.randint(0, 258, (1, 5)), torch.randn(1, 5, 3)
    is_patch = torch.tensor([[False, False, True, True, False]])
    before = model(tokens, patches, torch.zeros(1, 5), is_patch)[0]
    assert torch.equal(before[:, :2], model(tokens, patches + 1, torch.ones(1, 5), is_patch)[0][:, :2])
    assert not torch.equal(before[:, 2:], model(tokens, patches, torch.full((1, 5), 9.0), is_patch)[0][:, 2:])
    changed = torch.where(is_patch, 7, tokens)
    assert torch.equal(before, model(changed, patches, torch.zeros(1, 5), is_patch)[0])


def test_drawing_is_reproducible_and_leaves_the_state():
    model = transfusion()
    _, state = model.read(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    kept = {name: tensor.clone() for name, tensor in state.tensors()}
    one, after = model.draw(4, state, evaluations=3, seed=1)
    again, _ = model.draw(4, state, evaluations=3, seed=1)
    assert torch.equal(one, again) and one.shape == (2, 4, 3)
    assert not torch.equal(one, model.draw(4, state, evaluations=3, seed=2)[0])
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.tensors())
    assert [name for name, _ in after.tensors()] == list(kept)
    with pytest.raises(ValueError, match="evaluations: 1 to 1000 diffusion steps, got 0"):
        model.draw(4, state, evaluations=0)


def test_noise_schedule():
    share = signal_fraction(torch.arange(1000), 1000)
    assert (share.diff() <= 0).all() and share[0] > 0.99 and share[-1] < 1e-3
    clean, noise = torch.randn(4000, 2), torch.randn(4000, 2)
    noised = add_noise(clean, noise, torch.full((4000,), 500), 1000)
    assert abs(noised.var().item() - 1) < 0.1


@pytest.mark.parametrize("stochastic", [False, True])
def test_denoising_with_a_perfect_predictor_gives_the_data(stochastic):
    """Of a Gaussian N(m, s^2) the expected noise is known in closed form."""
    mean, spread, steps = 3.0, 0.5, 1000

    def predict(x, times):
        share = signal_fraction(times, steps)[..., None]
        variance = share * spread**2 + 1 - share
        return (1 - share).sqrt() * (x - share.sqrt() * mean) / variance

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4000, 1, 1, generator=generator)
    drawn = denoise(predict, start, steps=steps, evaluations=100, generator=generator, stochastic=stochastic)
    assert abs(drawn.mean().item() - mean) < 0.05
    assert abs(drawn.std().item() - spread) < 0.05


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixture_of_mamba_tiny", dict(vocabularies=()), "vocabularies: a positive whole number a modality"),
        ("mixture_of_mamba_tiny", dict(vocab_size=9), "vocab_size: the vocabularies have 322 tokens, got 9"),
        ("mixture_of_mamba_tiny", dict(split=("gate",)), "split: unknown projection 'gate'"),
        ("mixture_of_mamba_tiny", dict(mlp_dim=8), "a Mixture-of-Mamba has neither attention nor MLPs"),
        ("transfusion_mamba_tiny", dict(patch_dim=0), "patch_dim: at least 1, got 0"),
    ],
)
def test_configs_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        statescan.create_model(name, **options)


def test_patches_of_another_width_are_refused():
    model = transfusion()
    with pytest.raises(ValueError, match=r"patches: expected \(1, 2, 3\) beside tokens \(1, 2\), got \(1, 2, 4\)"):
        model(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, 4), torch.zeros(1, 2), torch.ones(1, 2).bool())
