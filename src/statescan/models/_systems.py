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
        "hippo",
        "HiPPO: Recurrent Memory with Optimal Polynomial Projections (Gu, Dao, Ermon, Rudra and Re, 2020); "
        "How to Train Your HiPPO (Gu, Johnson, Timalsina, Rudra and Re, 2023)",
        (),
        (
            "matrices, normal forms and discretisations of the published code",
            "signals rebuilt from the coefficients",
        ),
    ),
    System(
        "lssl",
        "Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers "
        "(Gu, Johnson, Goel, Saab, Dao, Rudra and Re, 2021)",
        (),
        (
            "outputs of the published layer",
            "convolution, recurrence and differential equation agree",
            "a delay of 50 steps learned",
        ),
    ),
    System(
        "spacetime",
        "Effectively Modeling Time Series with Simple Discrete State Spaces (Zhang, Saab, Poli, Dao, Goel and Re, 2023)",
        ("spacetime",),
        (
            "outputs of the published code",
            "exact parameter counts",
            "kernels in O(d + l) equal those of matrix powers",
            "an autoregression forecast within 1.2 times the best possible error",
        ),
    ),
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
)


def systems() -> tuple[System, ...]:
    """All systems that work, in the order of their history."""
    return _SYSTEMS
