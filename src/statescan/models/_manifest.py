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
    "based": Entry("statescan.models.based", ("based_tiny", "based_360m", "based_1b")),
    "seqboat": Entry("statescan.models.seqboat", ("seqboat_tiny", "seqboat_cifar")),
    "spacetime": Entry("statescan.models.spacetime", ("spacetime_tiny", "spacetime_1_block", "spacetime_2_blocks")),
    "hybrid": Entry("statescan.models.hybrid", ("transformer_tiny", "transformer_small", "hybrid_tiny")),
    "forecaster": Entry(
        "statescan.models.forecaster", ("forecaster_tiny", "forecaster_small", "forecaster_mamba2_tiny")
    ),
    "classifier": Entry("statescan.models.classifier", ("classifier_tiny", "transformer_classifier_tiny")),
    "s5": Entry(
        "statescan.models.s5",
        (
            "s5_tiny",
            "s5_lra_listops",
            "s5_lra_text",
            "s5_lra_retrieval",
            "s5_lra_image",
            "s5_lra_pathfinder",
            "s5_lra_pathx",
            "s5_speech",
        ),
    ),
    "s5_rl": Entry("statescan.models.s5_rl", ("s5_rl_tiny", "s5_rl_popgym")),
    "s4": Entry(
        "statescan.models.s4",
        (
            "s4_tiny",
            "s4_small",
            "s4_speech",
            "s4_lra_listops",
            "s4_lra_text",
            "s4_lra_image",
            "s4_lra_pathfinder",
            "s4_lra_pathx",
        ),
    ),
    "s4d": Entry(
        "statescan.models.s4d",
        (
            "s4d_tiny",
            "s4d_example",
            "s4d_lra_listops",
            "s4d_lra_text",
            "s4d_lra_image",
            "s4d_lra_pathfinder",
            "s4d_lra_pathx",
        ),
    ),
    "long_conv": Entry(
        "statescan.models.long_conv",
        (
            "long_conv_tiny",
            "long_conv_lra_listops",
            "long_conv_lra_text",
            "long_conv_lra_image",
            "long_conv_lra_pathfinder",
            "long_conv_lra_pathx",
        ),
    ),
    "h3": Entry(
        "statescan.models.h3",
        ("h3_tiny", "h3_125m", "h3_355m", "h3_1.3b", "h3_2.7b", "h3_2.7b_rotary"),
    ),
    "s4nd": Entry("statescan.models.s4nd", ("s4nd_tiny", "s4nd_cifar")),
    "mhs_vm": Entry("statescan.models.mhs_vm", ("mhs_vm_tiny", "mhs_vm_3_heads", "mhs_vm_4_heads")),
    "hrvmamba": Entry(
        "statescan.models.hrvmamba",
        (
            "hrvmamba_nano",
            "hrvmamba_tiny",
            "hrvmamba_small",
            "hrvmamba_base",
            "hrvmamba_nano_pointwise",
            "hrvmamba_tiny_pointwise",
            "hrvmamba_small_pointwise",
            "hrvmamba_base_pointwise",
        ),
    ),
    "tsm2": Entry("statescan.models.tsm2", ("tsm2_tiny", "tsm2_small", "tsm2_base")),
    "vim2": Entry("statescan.models.vim2", ("vim2_nano", "vim2_tiny", "vim2_small", "vim2_base")),
    "mhs_vm_classifier": Entry("statescan.models.mhs_vm_classifier", ("mhs_vm_classifier_tiny", "mhs_vm_classifier")),
}
