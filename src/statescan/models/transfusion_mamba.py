"""Mixture-of-Mamba over text tokens and continuous image patches, the setting of Transfusion.

Liang et al. 2025, arXiv 2501.16295, section 4.1: text is predicted token by token, images are denoised, in one causal scan.
Patches come in through a linear map with an embedding of the diffusion time added, and leave through another one as the
noise that the model finds in them. (Transfusion: Zhou et al. 2024, arXiv 2408.11039.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from statescan.layers import ModalityGroups, State, TimeEmbedding, build_norm, denoise, initialise_language_model
from statescan.models._modal_stack import ModalStack
from statescan.models._modality_names import from_published, to_published
from statescan.models._model import Model
from statescan.models._registry import Family
from statescan.models.mixture_of_mamba import MixtureOfMambaConfig, build_mixer


@dataclass(frozen=True)
class TransfusionMambaConfig(MixtureOfMambaConfig):
    """A Mixture-of-Mamba of tokens and patches; the last modality are the patches.

    Arguments:
        vocabularies: tokens of each discrete modality.
        patch_dim: channels of a patch, or of its latent.
        diffusion_steps: times from nearly no noise to noise alone.
    """

    vocabularies: tuple[int, ...] = (65536,)
    patch_dim: int = 32
    diffusion_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_dim", "diffusion_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1, got {getattr(self, name)}")

    @property
    def modalities(self) -> int:
        """The vocabularies and the patches."""
        return len(self.vocabularies) + 1


class TransfusionMamba(Model):
    """tokens and noised patches -> logits of the next token, and the noise in each patch."""

    family = "transfusion_mamba"
    undecayed = (*Model.undecayed, ".bias")

    def __init__(self, config: TransfusionMambaConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.padded_vocab_size, config.dim)
        self.patch_input = nn.Linear(config.patch_dim, config.dim)
        self.time = TimeEmbedding(config.dim)
        self.stack = ModalStack(config, [build_mixer(config) for _ in range(config.depth)])
        self.norm = build_norm(config.norm, config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.padded_vocab_size, bias=False)
        self.patch_output = nn.Linear(config.dim, config.patch_dim)
        initialise_language_model(self, depth=max(1, config.depth))
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> State:
        """The state before anything: one entry a block."""
        weight = self.embedding.weight
        return self.stack.initial_state(batch_size, dtype=dtype or weight.dtype, device=device or weight.device)

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping what it computed."""
        self.stack.gradient_checkpointing = enabled

    def modality(self, tokens: Tensor, is_patch: Tensor) -> Tensor:
        """Modality of each position: that of its token, or the last one where there is a patch."""
        found = torch.zeros_like(tokens)
        first = 0
        for size in self.config.vocabularies[:-1]:
            first += size
            found = found + (tokens >= first).to(tokens.dtype)
        return torch.where(is_patch, self.config.modalities - 1, found)

    def forward(
        self,
        tokens: Tensor,
        patches: Tensor,
        times: Tensor,
        is_patch: Tensor,
        state: State | None = None,
        *,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """A sequence of tokens and patches.

        Arguments:
            tokens: (batch, length) int64; anything in the vocabulary where a patch stands.
            patches: (batch, length, patch_dim), noised; anything where a token stands.
            times: (batch, length), the diffusion time of each patch.
            is_patch: (batch, length) bool.
            state: what an earlier call returned; None is the beginning.
            resets: (batch, length) bool, True where a new sequence begins.

        Returns:
            logits (batch, length, vocabulary), to be asked where tokens stand; noise (batch, length, patch_dim), where
            patches stand; and the state after the last position.
        """
        if tokens.shape != is_patch.shape or patches.shape != (*tokens.shape, self.config.patch_dim):
            wanted = (*tokens.shape, self.config.patch_dim)
            raise ValueError(
                f"patches: expected {wanted} beside tokens {tuple(tokens.shape)}, got {tuple(patches.shape)}"
            )
        weight = self.patch_input.weight
        seen = self.patch_input(patches.to(weight.dtype)) + self.time(times)
        x = torch.where(is_patch[..., None], seen, self.embedding(tokens))
        groups = ModalityGroups(self.modality(tokens, is_patch), self.config.modalities)
        features, after = self.stack(x, state, modality=groups, resets=resets)
        features = self.norm(features.to(self.head.weight.dtype))
        return self.head(features), self.patch_output(features), after

    def read(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Tokens alone: (batch, length) -> logits (batch, length, vocabulary) and the state."""
        nothing = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        patches = self.patch_input.weight.new_zeros(*tokens.shape, self.config.patch_dim)
        logits, _, after = self(tokens, patches, nothing.float(), nothing, state)
        return logits, after

    @torch.no_grad()
    def draw(
        self,
        count: int,
        state: State,
        *,
        evaluations: int = 50,
        seed: int = 0,
        stochastic: bool = False,
    ) -> tuple[Tensor, State]:
        """Patches of an image after what the state holds, by denoising.

        Arguments:
            count: patches.
            state: after the text before them, from `read`; it is left as it is.
            evaluations: of the model; each walks over the patches once from the same state.
            seed: of the noise.
            stochastic: DDPM's sampling instead of DDIM's.

        Returns:
            patches (batch, count, patch_dim) and the state after them.
        """
        if not 1 <= evaluations <= self.config.diffusion_steps:
            raise ValueError(f"evaluations: 1 to {self.config.diffusion_steps} diffusion steps, got {evaluations}")
        batch = next(tensor.shape[0] for _, tensor in state.tensors())
        device, dtype = self.patch_input.weight.device, self.patch_input.weight.dtype
        generator = torch.Generator(device=device).manual_seed(seed)
        noise = torch.randn(batch, count, self.config.patch_dim, generator=generator, device=device, dtype=dtype)
        tokens = torch.zeros(batch, count, dtype=torch.int64, device=device)
        here = torch.ones(batch, count, dtype=torch.bool, device=device)

        def predict(noised: Tensor, times: Tensor) -> Tensor:
            return self(tokens, noised, times, here, state)[1]

        drawn = denoise(
            predict,
            noise,
            steps=self.config.diffusion_steps,
            evaluations=evaluations,
            generator=generator,
            stochastic=stochastic,
        )
        _, _, after = self(tokens, drawn, torch.zeros(batch, count, device=device), here, state)
        return drawn, after


VARIANTS: dict[str, dict[str, Any]] = {
    "transfusion_mamba_tiny": dict(dim=96, depth=4, vocabularies=(258,), patch_dim=4, pad_vocab_size_multiple=1),
    "transfusion_mamba_2048": dict(dim=2048, depth=48),
}

FAMILY = Family("transfusion_mamba", TransfusionMambaConfig, TransfusionMamba, VARIANTS, from_published, to_published)
