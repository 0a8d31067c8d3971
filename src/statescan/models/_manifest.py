"""Where each family is defined and what its variants are called: what can be listed without importing any model."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A family's module and the names of its variants (tests hold both to the module's own table)."""

    module: str
    variants: tuple[str, ...]


MANIFEST: dict[str, Entry] = {
    "mamba": Entry(
        "statescan.models.mamba",
        ("mamba_tiny", "mamba_small", "mamba_130m", "mamba_370m", "mamba_790m", "mamba_1.4b", "mamba_2.8b"),
    ),
    "mamba2": Entry(
        "statescan.models.mamba2",
        (
            "mamba2_tiny",
            "mamba2_small",
            "mamba2_130m",
            "mamba2_370m",
            "mamba2_780m",
            "mamba2_1.3b",
            "mamba2_2.7b",
            "mamba2attn_2.7b",
        ),
    ),
    "falcon_mamba": Entry("statescan.models.falcon_mamba", ("falcon_mamba_tiny", "falcon_mamba_7b")),
    "bamba": Entry("statescan.models.bamba", ("bamba_tiny", "bamba_9b")),
    "zamba2": Entry("statescan.models.zamba2", ("zamba2_tiny", "zamba2_1.2b", "zamba2_2.7b", "zamba2_7b")),
    "hybrid": Entry("statescan.models.hybrid", ("transformer_tiny", "transformer_small", "hybrid_tiny")),
    "forecaster": Entry(
        "statescan.models.forecaster", ("forecaster_tiny", "forecaster_small", "forecaster_mamba2_tiny")
    ),
}
