"""Classifiers of any mixer."""

import pytest
import torch

import statescan
from statescan.layers import MIXERS

#: Options that make a mixer small; padding must not reach those that read the future or average over batches.
SMALL = {
    "mamba2": {"state_dim": 4, "head_dim": 8},
    "mamba3": {"state_dim": 4, "head_dim": 8},
    "based": {"heads": 2, "feature_dim": 2},
    "seqboat": {"qk_dim": 4, "window": 4, "max_length": 16},
    "sliding_attention": {"heads": 2, "window": 4},
}


@pytest.mark.parametrize(
    ("mixer", "options"),
    [*((mixer, SMALL.get(mixer, {})) for mixer in sorted(MIXERS)), ("attention", {"causal": False, "heads": 2})],
)
def test_every_mixer_classifies_and_ignores_padding(mixer, options):
    torch.manual_seed(0)
    model = statescan.create_model(
        "classifier_tiny", mixer=mixer, options=options, dim=16, vocab_size=11, classes=3, mlp_dim=8
    ).eval()
    tokens = torch.randint(0, 11, (2, 12))
    lengths = torch.tensor([7, 12])
    with torch.no_grad():
        both = model(tokens, lengths=lengths)
        alone = model(tokens[:1, :7], lengths=lengths[:1])
    assert both.shape == (2, 3)
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    model.train()(tokens, lengths=lengths).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["classifier_tiny", "s4_tiny", "s4d_tiny", "long_conv_tiny"])
def test_pairs_are_compared(name):
    torch.manual_seed(0)
    model = statescan.create_model(name, dim=16, depth=1, vocab_size=11, classes=2, retrieval=True).eval()
    one, two = torch.randint(0, 11, (2, 3, 9))
    with torch.no_grad():
        scores = model(torch.cat([one, two]))
        assert scores.shape == (3, 2)
        torch.testing.assert_close(scores[1:2], model(torch.stack([one[1], two[1]])), rtol=1e-4, atol=1e-5)
        pooled = model.hidden(torch.cat([one, two])).mean(1)
        a, b = pooled.chunk(2)
        features = model.comparison(torch.cat([a, b, a - b, a * b], 1))
        torch.testing.assert_close(scores, model.decoder(torch.nn.functional.gelu(features)))
    with pytest.raises(ValueError, match="retrieval compares halves of the batch, got an odd batch of 3"):
        model(one)


def test_mistakes_are_named():
    for options, message in [
        (dict(mixer="mambaa"), "mixer: unknown 'mambaa'; nearest: 'mamba"),
        (dict(mixer="s4d", options=dict(state_dims=3)), "s4d: unknown option 'state_dims'; nearest: 'state_dim'"),
        (dict(mlp_dim=-1), "mlp_dim: 0 or more"),
        (dict(norm="grup"), "norm: unknown 'grup'"),
    ]:
        with pytest.raises(ValueError, match=message):
            statescan.create_model("classifier_tiny", **options)
    model = statescan.create_model("classifier_tiny", dim=8, input_dim=2)
    with pytest.raises(ValueError, match="rate: this model's mixers take inputs at one rate only"):
        model(torch.zeros(1, 4, 2), rate=2.0)
    with pytest.raises(ValueError, match="x: "):
        model(torch.zeros(1, 4, 3))
