"""Decoding with a draft gives what decoding without one gives, and is where it would be at every token."""

from __future__ import annotations

import pytest
import torch

from statescan import ops
from statescan.checkpoints import ByteTokenizer
from statescan.generation import (
    GenerationState,
    ModelDraft,
    NGramDraft,
    SamplingConfig,
    TokenTree,
    generate,
    stream,
    verify_greedy,
    verify_rounds,
)
from tests.generation import _models

NAMES = ["mock", "mamba_tiny", "mamba2_tiny", "hybrid_tiny", "transformer_tiny"]
TREE = [-1, 0, 0, 1, 1, 2, 3, 3, 5, 8]
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 5}


class RandomDraft:
    """Trees of random tokens; now and then the token that the model will say, so that paths are accepted."""

    def __init__(self, truth=None, *, shape=TREE, right=0.6):
        self.truth, self.shape, self.right = truth, shape, right

    def begin(self, tokens, *, vocabulary, sampling, seed):
        return _RandomSession(self, list(tokens), vocabulary)


class _RandomSession:
    def __init__(self, draft, tokens, vocabulary):
        self.draft, self.tokens, self.vocabulary = draft, tokens, vocabulary
        self.generator = torch.Generator().manual_seed(1)
        self.begun = len(tokens) - 1

    def propose(self, depth):
        parents = torch.tensor(self.draft.shape)
        depths = (ops.tree_depths(parents) - 1).tolist()
        keep = [node for node in range(len(depths)) if depths[node] <= depth]
        tokens, above = [self.tokens[-1]], [-1]
        number = {0: 0}
        for node in keep[1:]:
            guess = int(torch.randint(self.vocabulary, (), generator=self.generator))
            at = len(self.tokens) - 1 - self.begun + depths[node]
            if (
                self.draft.truth
                and at < len(self.draft.truth)
                and torch.rand((), generator=self.generator) < self.draft.right
            ):
                guess = self.draft.truth[at]
            number[node] = len(tokens)
            tokens.append(guess)
            above.append(number[int(parents[node])])
        return TokenTree(tokens, above)

    def extend(self, tokens):
        self.tokens += tokens


def drafts(name, truth):
    model = _models.build(name)
    return {
        "random": RandomDraft(),
        "half right": RandomDraft(truth),
        "chain, half right": RandomDraft(truth, shape=[-1, 0, 1, 2]),
        "n-grams": NGramDraft(branches=3, shortest=1),
        "the model itself, chain": ModelDraft(model),
        "the model itself, static": ModelDraft(model, tree="static", branching=(2, 2)),
        "the model itself, dynamic": ModelDraft(model, tree="dynamic", nodes=6, depth=3),
        "another model": ModelDraft(_models.build("mamba_tiny"), tree="dynamic"),
    }


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_are_those_of_plain_decoding(name, settings):
    model = _models.build(name)
    prompts = ["abcabcab", "the quick brown fox"]
    settings = {**settings, "tokenizer": ByteTokenizer(), "max_new_tokens": 20}
    plain = generate(model, prompts, **settings)
    for label, draft in drafts(name, plain[0].tokens).items():
        pieces = stream(model, prompts, draft=draft, **settings)
        tokens = [[], []]
        for piece in pieces:
            tokens[piece.sequence].append(piece.token)
        assert tokens == [result.tokens for result in plain], label
        assert pieces.counts.tokens == sum(map(len, tokens)) - 2  # the first of each comes from reading the prompt
        if label.startswith("the model itself") and settings["temperature"] == 0:
            assert pieces.counts.tokens_per_pass > 2
        assert [r.text for r in generate(model, prompts, draft=draft, **settings)] == [r.text for r in plain], label


def test_stop_strings_and_lengths_end_a_sequence_in_the_middle_of_a_pass():
    model = _models.build("mamba2_tiny")
    settings = dict(tokenizer=ByteTokenizer(), temperature=0)
    (plain,) = generate(model, "ab", max_new_tokens=12, **settings)
    for length in range(1, 8):
        (result,) = generate(model, "ab", max_new_tokens=length, draft=ModelDraft(model), **settings)
        assert result.tokens == plain.tokens[:length]
    stop = plain.tokens[4]
    (want,) = generate(model, "ab", max_new_tokens=12, stop=[stop], **settings)
    (have,) = generate(model, "ab", max_new_tokens=12, stop=[stop], draft=ModelDraft(model), **settings)
    assert (have.tokens, have.text, have.finish_reason) == (want.tokens, want.text, "stop")


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", NAMES)
def test_stopping_anywhere_changes_nothing(name, settings, tmp_path):
    model = _models.build(name)
    settings = {**settings, "tokenizer": ByteTokenizer()}
    whole = list(stream(model, "ab", max_new_tokens=12, **settings))
    pieces = stream(model, "ab", max_new_tokens=12, draft=ModelDraft(model, depth=3), **settings)
    settings.pop("seed", None)
    for taken in range(1, 12):
        next(pieces)
        pieces.state_of().save(tmp_path / "state")
        rest = list(
            stream(model, state=GenerationState.load(tmp_path / "state"), max_new_tokens=12 - taken, **settings)
        )
        assert [piece.token for piece in rest] == [piece.token for piece in whole[taken:]]
    state, draft = pieces.state_of(), NGramDraft()
    again = list(stream(model, state=state, max_new_tokens=5, draft=draft, **settings))
    assert [p.token for p in again] == [p.token for p in stream(model, state=state, max_new_tokens=5, **settings)]


def test_finished_states_are_kept():
    model = _models.build("hybrid_tiny")
    settings = dict(max_new_tokens=6, temperature=0)
    plain = generate(model, [[1, 2, 3], [4]], keep_states=True, **settings)
    drafted = generate(model, [[1, 2, 3], [4]], keep_states=True, draft=ModelDraft(model), **settings)
    for want, have in zip(plain, drafted, strict=True):
        for (name, tensor), (_, wanted) in zip(have.state.model.tensors(), want.state.model.tensors(), strict=True):
            tail = wanted if wanted.shape == tensor.shape else wanted[..., -tensor.shape[-2] :, :]
            torch.testing.assert_close(tensor, tail, rtol=1e-3, atol=1e-3, msg=name) if name[-5:] != "start" else None
        assert int(have.state.last) == int(want.state.last)


def chi_square(counts, probabilities):
    """The statistic and its degrees of freedom."""
    expected = probabilities * counts.sum()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    return float(((counts - expected)[kept] ** 2 / expected[kept]).sum()), int(kept.sum()) - 1


#: The 99.9 % point of the chi-square distribution by degrees of freedom.
LIMIT = {5: 20.52, 24: 51.18, 35: 66.62}


@pytest.mark.parametrize("children", [1, 2, 4])
def test_rounds_keep_the_distribution_of_a_token(children):
    """The first token, whatever the draft: chi-square on a vocabulary of six."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(6, generator=generator, dtype=torch.float64) ** 2 for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    q[2], p[3] = 0, 0  # the draft never says 2, the model never 3
    p, q = p / p.sum(), q / q.sum()
    counts = torch.zeros(6)
    accepted = 0
    parents = torch.tensor([-1] + [0] * children)
    for _ in range(8000):
        guesses = torch.multinomial(q, children, replacement=False, generator=generator)
        tokens = torch.cat([torch.zeros(1, dtype=torch.int64), guesses])
        rows = p.expand(children + 1, -1), q.expand(children + 1, -1)
        found = verify_rounds(
            tokens, parents, *rows, lambda: float(torch.rand((), generator=generator, dtype=torch.float64))
        )
        counts[found.tokens[0]] += 1
        accepted += len(found.path) - 1
    statistic, freedom = chi_square(counts, p)
    assert statistic < {4: 18.47}.get(freedom, LIMIT.get(freedom, 20.52))
    assert accepted > 0


@pytest.mark.parametrize(
    ("acceptance", "draft"),
    [
        ("matching", dict(tree="static", branching=(2, 2))),
        ("rounds", dict(tree="static", branching=(3, 2), drawn=True)),
    ],
    ids=str,
)
def test_pairs_of_tokens_are_distributed_as_by_plain_sampling(acceptance, draft):
    """Two tokens after a prompt, 400 seeds: chi-square of the pairs against the model's own probabilities."""
    model, other = (_toy_model(seed) for seed in (0, 1))
    with torch.no_grad():
        first, state = model(torch.tensor([[1]]))
        pairs = torch.zeros(5, 5, dtype=torch.float64)
        for token in range(5):
            second, _ = model(torch.tensor([[token]]), state)
            pairs[token] = first[0, -1, :5].double().softmax(-1)[token] * second[0, -1, :5].double().softmax(-1)
        third = torch.zeros(5, 5, 5, dtype=torch.float64)
        for a in range(5):
            for b in range(5):
                logits, _ = model(torch.tensor([[a, b]]), state)
                third[a, b] = pairs[a, b] * logits[0, -1, :5].double().softmax(-1)
    counts = torch.zeros(5, 5, dtype=torch.float64)
    results = generate(
        model, [[1]] * 1500, max_new_tokens=3, seed=7, draft=ModelDraft(other, **draft), acceptance=acceptance
    )
    for result in results:
        counts[result.tokens[1], result.tokens[2]] += 1  # the first comes from reading the prompt
    statistic, freedom = chi_square(counts.flatten(), third.sum(0).flatten())
    assert statistic < LIMIT[freedom]


def _toy_model(seed):
    import statescan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = statescan.create_model(
            "mamba2_tiny", dim=8, depth=1, state_dim=4, head_dim=8, vocab_size=5, tie_embeddings=False
        ).eval()
        torch.nn.init.normal_(model.head.weight, std=0.4)
        torch.nn.init.normal_(model.embedding.weight)
    return model


def test_rounds_accept_more_than_matching():
    model, other = (_toy_model(seed) for seed in (0, 1))
    found = {}
    for acceptance, drawn in (("matching", False), ("rounds", True)):
        draft = ModelDraft(other, tree="static", branching=(2, 2), drawn=drawn)
        pieces = stream(model, [[1]] * 25, max_new_tokens=12, seed=7, draft=draft, acceptance=acceptance)
        list(pieces)
        found[acceptance] = pieces.counts.tokens_per_pass
    assert found["rounds"] > found["matching"] > 1


def test_n_grams_find_what_followed():
    settings = dict(vocabulary=100, sampling=SamplingConfig(0.0), seed=0)
    session = NGramDraft(depth=3).begin([1, 2, 3, 4, 9, 1, 2], **settings)
    assert session.propose(8) == TokenTree([2, 3, 4, 9], [-1, 0, 1, 2])
    session.extend([3, 7, 1, 2])
    assert session.propose(8).tokens == [2, 3, 7, 1]
    both = NGramDraft(depth=3, branches=2).begin([1, 2, 3, 4, 9, 1, 2, 3, 7, 1, 2], **settings)
    assert both.propose(8) == TokenTree([2, 3, 7, 1, 4, 9], [-1, 0, 1, 2, 1, 4])
    assert both.propose(1) == TokenTree([2, 3], [-1, 0])
    assert both.propose(0) == TokenTree([2], [-1])
    assert NGramDraft(nodes=3, branches=2).begin([1, 2, 3, 4, 1], **settings).propose(8).tokens == [1, 2, 3]
    assert NGramDraft().begin([5], **settings).propose(4) == TokenTree([5], [-1])


def test_trees_of_a_model_have_their_shape():
    model = _models.build("mamba_tiny")
    settings = dict(vocabulary=256, sampling=SamplingConfig(), seed=0)
    chain = ModelDraft(model, depth=3).begin([1, 2], **settings).propose(9)
    assert chain.parents == [-1, 0, 1, 2]
    static = ModelDraft(model, tree="static", branching=(2, 1)).begin([1, 2], **settings).propose(9)
    assert static.parents == [-1, 0, 0, 1, 2]
    assert len(set(static.tokens[1:3])) == 2
    dynamic = ModelDraft(model, tree="dynamic", nodes=9, depth=4).begin([1, 2], **settings).propose(9)
    assert len(dynamic.tokens) == 9
    assert all(parent < node for node, parent in enumerate(dynamic.parents))
    certain = ModelDraft(model, tree="dynamic", least=1.0, nodes=50).begin([1, 2], **settings).propose(9)
    assert set(certain.parents) == {-1, 0}  # nothing is certain, so nothing is followed
    drawn = ModelDraft(model, tree="static", branching=(3, 2), drawn=True).begin([1, 2], **settings).propose(9)
    assert drawn.probabilities.shape == (10, 256)
    torch.testing.assert_close(drawn.probabilities[:4].sum(-1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: ModelDraft(m, tree="bush"), "tree: expected one of chain, static, dynamic, got 'bush'"),
        (lambda m: ModelDraft(m, depth=0), "depth: at least 1, got 0"),
        (lambda m: ModelDraft(m, branching=()), "branching: at least 1 child a level"),
        (lambda m: ModelDraft(m, tree="dynamic", drawn=True), "use chain or static"),
        (lambda m: NGramDraft(shortest=3, longest=2), "1 <= shortest <= longest, got 3 and 2"),
        (lambda m: NGramDraft(nodes=1), "nodes: at least 2, got 1"),
        (
            lambda m: generate(m, [1], max_new_tokens=2, draft=ModelDraft(_toy_model(0))),
            "its vocabulary of 5 tokens is not that of the model, 256",
        ),
        (
            lambda m: generate(m, [1], max_new_tokens=9, draft=NGramDraft(), acceptance="rounds"),
            "needs a draft that draws its guesses",
        ),
        (
            lambda m: generate(m, [1], max_new_tokens=2, draft=NGramDraft(), acceptance="luck"),
            "acceptance: expected one of matching, rounds, got 'luck'",
        ),
        (
            lambda m: verify_greedy(torch.zeros(3), torch.zeros(3), torch.zeros(2, 5)),
            "tokens, parents, logits: expected",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(_models.build("mamba_tiny"))
