"""The published systems that work here: paper, models, and what was verified."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One row of the table of systems.

    Arguments:
        slug: its name.
        paper: title, authors and year.
        families: registry families that belong to it.
        verified: what was checked, each a short statement that a test or a committed benchmark bears out.
    """

    slug: str
    paper: str
    families: tuple[str, ...]
    verified: tuple[str, ...]


_SYSTEMS = (
    System(
        "mamba",
        "Mamba: Linear-Time Sequence Modeling with Selective State Spaces (Gu and Dao, 2023)",
        ("mamba", "falcon_mamba"),
        (
            "outputs and gradients of the published code",
            "exact parameter counts",
            "published and Hugging Face checkpoints both ways",
            "induction heads learned",
        ),
    ),
    System(
        "mamba2",
        "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality "
        "(Dao and Gu, 2024)",
        ("mamba2", "bamba", "zamba2"),
        (
            "outputs and gradients of the published code",
            "exact parameter counts",
            "published and Hugging Face checkpoints both ways",
        ),
    ),
    System(
        "s5",
        "Simplified State Space Layers for Sequence Modeling (Smith, Warrington and Linderman, 2023)",
        ("s5",),
        (
            "outputs of the published code",
            "exact parameter counts",
            "published names both ways",
            "scan, steps and convolution agree, also at irregular times",
        ),
    ),
    System(
        "s5_rl",
        "Structured State Space Models for In-Context Reinforcement Learning (Lu et al., 2023)",
        ("s5_rl",),
        (
            "outputs and states of the published code",
            "exact parameter counts",
            "published names both ways",
            "episodes that begin inside a sequence are strangers to what was before",
            "a memory task learned by proximal policy optimisation",
        ),
    ),
)


def systems() -> tuple[System, ...]:
    """All systems that work, in the order of their history."""
    return _SYSTEMS
