"""Encoders of texts and the scanner of documents."""

import pytest
import torch
from torch.nn import functional as F

import statescan
from statescan.models import build_model
from statescan.models.document_scanner import sentence_logits, sentence_loss
from statescan.models.retriever import Retriever, contrastive_loss

SMALL = dict(dim=16, depth=2, vocab_size=32)


def encoder(backbone="mamba", **options):
    torch.manual_seed(0)
    fields = SMALL | ({"head_dim": 8, "state_dim": 8} if backbone == "mamba2" else {})
    return build_model("retriever", {"backbone": backbone, "language_model": fields, **options})


@pytest.fixture
def texts():
    tokens = torch.randint(1, 32, (4, 13), generator=torch.Generator().manual_seed(1))
    return tokens, torch.tensor([13, 1, 6, 9])


@pytest.mark.parametrize("backbone", ["mamba", "mamba2", "hybrid"])
@pytest.mark.parametrize("pooling", ["eos", "mean"])
@torch.no_grad()
def test_padding_changes_nothing_and_chunks_agree(texts, backbone, pooling):
    model = encoder(backbone, pooling=pooling, normalise=pooling == "mean")
    tokens, lengths = texts
    found = model(tokens, lengths)
    other = torch.where(torch.arange(13) < lengths[:, None], tokens, 7)
    torch.testing.assert_close(model(other, lengths), found)
    alone = torch.cat([model(row[None, :length]) for row, length in zip(tokens, lengths, strict=True)])
    torch.testing.assert_close(alone, found, atol=1e-5, rtol=1e-4)
    for chunk in (1, 5, 13):
        torch.testing.assert_close(model(tokens, lengths, chunk=chunk), found, atol=1e-5, rtol=1e-4)
    if pooling == "mean":
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))


def test_an_encoder_keeps_a_language_models_weights_without_its_head(tmp_path, texts):
    language = statescan.create_model("mamba_tiny", dim=16, depth=2, vocab_size=32, tie_embeddings=False)
    model = Retriever.of(language)
    tokens, _ = texts
    torch.testing.assert_close(model(tokens), language.hidden(tokens)[0][:, -1])
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in language.parameters()) - 32 * 16
    model.save(tmp_path / "model")
    torch.testing.assert_close(statescan.load(tmp_path / "model")(tokens), model(tokens))


def test_published_sizes():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in statescan.create_model(f"mamba_retriever_{size}").parameters())
            for size in ("130m", "370m", "790m")
        ]
    assert counts == [129_135_360, 371_516_416, 793_204_224]


def test_contrastive_loss_is_cross_entropy_of_scores():
    torch.manual_seed(0)
    queries, passages = torch.randn(3, 5, requires_grad=True), torch.randn(6, 5)
    loss, scores = contrastive_loss(queries, passages, temperature=0.5)
    torch.testing.assert_close(scores, queries @ passages.T / 0.5)
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.tensor([0, 2, 4]), reduction="none"))
    loss.sum().backward()
    assert queries.grad is not None and queries.grad.abs().sum() > 0
    both, _ = contrastive_loss(queries, passages, temperature=0.5, symmetric=True)
    back = F.cross_entropy(scores[:, ::2].T, torch.arange(3), reduction="none")
    torch.testing.assert_close(both, (loss + back) / 2)
    excluded = torch.zeros(3, 6, dtype=torch.bool)
    excluded[0, :3] = True  # its own passage stays whatever is said
    left, _ = contrastive_loss(queries, passages, temperature=0.5, excluded=excluded)
    rest = scores[0, [0, 3, 4, 5]]
    torch.testing.assert_close(left[0], rest.logsumexp(0) - rest[0])
    torch.testing.assert_close(left[1:], loss[1:])


def test_gradients_reach_every_weight(texts):
    model = encoder()
    tokens, lengths = texts
    loss, _ = contrastive_loss(model(tokens[:2], lengths[:2]), model(tokens, lengths))
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_sentences_are_judged_where_they_end():
    torch.manual_seed(0)
    model = statescan.create_model("document_scanner_tiny", language_model=SMALL | {"head_dim": 8, "state_dim": 8})
    tokens = torch.randint(0, 32, (2, 12))
    logits, _ = model(tokens)
    first, state = model(tokens[:, :5])
    torch.testing.assert_close(torch.cat([first, model(tokens[:, 5:], state)[0]], 1), logits, atol=1e-5, rtol=1e-4)
    ends = torch.tensor([[3, 7, 11], [5, 11, 0]])
    labels, real = torch.tensor([[0, 1, 0], [0, 0, 1]]), ends > 0
    loss, each, weight = sentence_loss(sentence_logits(logits, ends), labels, real)
    assert weight == 4  # four without the answer, one with it; the last is no sentence
    by_hand = [F.softplus(logits[0, 3]), 4 * F.softplus(-logits[0, 7]), F.softplus(logits[0, 11])]
    by_hand += [F.softplus(logits[1, 5]), F.softplus(logits[1, 11])]
    torch.testing.assert_close(each[real], torch.stack(by_hand))
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    assert sentence_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))[2] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling: expected one of eos, mean, got 'max'"),
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"end_token": 32}, "end_token: expected from 0 to 31, got 32"),
        ({"query_length": 0}, "query_length: expected at least 1, or None, got 0"),
        ({"backbone": "vim"}, "backbone: expected a family of language models, got 'vim'"),
        ({"language_model": {"width": 3}}, "unknown option 'width'"),
    ],
)
def test_configs_that_make_no_encoder(options, message):
    with pytest.raises(ValueError, match=message):
        build_model("retriever", {"language_model": SMALL, **options})


def test_calls_that_make_no_embedding(texts):
    model, (tokens, lengths) = encoder(), texts
    with pytest.raises(ValueError, match="lengths: expected 4 numbers from 1 to 13, got"):
        model(tokens, lengths + 1)
    with pytest.raises(ValueError, match="lengths: expected 4 numbers from 1 to 13, got"):
        model(tokens, lengths[:2])
    with pytest.raises(ValueError, match="chunk: expected at least 1, got 0"):
        model(tokens, chunk=0)
    with pytest.raises(ValueError, match="passages: expected as many for each of 2 queries, got 3"):
        contrastive_loss(torch.ones(2, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        contrastive_loss(torch.ones(2, 4), torch.ones(2, 4), temperature=0)
    with pytest.raises(ValueError, match="ends: expected from 0 to 4, got 2 to 5"):
        sentence_logits(torch.zeros(1, 5), torch.tensor([[2, 5]]))
    with pytest.raises(TypeError, match="model: expected a language model, got Vim"):
        Retriever.of(statescan.create_model("vim_micro"))
