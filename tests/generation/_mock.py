"""A language model of a few lines that keeps every promise of the contract: the engine is tested with it too."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from statescan.layers import State


class MockModel(nn.Module):
    """h_t = 0.8 h_{t-1} + embedding(token_t); logits = head(tanh(h_t)). Its state is h, (batch, width)."""

    def __init__(self, vocabulary: int = 256, width: int = 16, *, sharpness: float = 3.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.embedding = nn.Parameter(torch.randn(vocabulary, width, generator=generator))
        self.head = nn.Parameter(sharpness * torch.randn(width, vocabulary, generator=generator))
        self.config = SimpleNamespace(vocab_size=vocabulary, padded_vocab_size=vocabulary)

    def initial_state(self, batch_size: int) -> State:
        return State({"h": torch.zeros(batch_size, self.embedding.shape[1])})

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        h = 0.8 * state["h"] + self.embedding[tokens]
        return h.tanh() @ self.head, State({"h": h})

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
        offsets: Tensor | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, State]:
        if offsets is not None:
            parts = [tokens[:, a:b] for a, b in itertools.pairwise(offsets)]
            states = state or self.initial_state(len(parts))
            results = [self(part, states.select([i]), last=last) for i, part in enumerate(parts)]
            return torch.cat([r[0] for r in results], 1), State.concatenate([r[1] for r in results])
        state = state or self.initial_state(tokens.shape[0])
        logits = []
        for t in range(tokens.shape[1]):
            if resets is not None:
                state = State({"h": state["h"] * ~resets[:, t, None]})
            out, state = MockModel.step(self, tokens[:, t], state)
            logits.append(out)
        stacked = torch.stack(logits, 1) if logits else self.head.new_zeros(tokens.shape[0], 0, self.head.shape[1])
        return (stacked if last is None else stacked[:, tokens.shape[1] - last :]), state
