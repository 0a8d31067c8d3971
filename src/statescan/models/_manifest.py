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
            "s4_lra_retrieval",
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
            "s4d_lra_retrieval",
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
            "long_conv_lra_retrieval",
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
    "vmamba": Entry(
        "statescan.models.vmamba",
        (
            "vmamba_tiny",
            "vmamba_tiny_s1l8",
            "vmamba_small_s1l20",
            "vmamba_base_s1l20",
            "vmamba_tiny_s2l5",
            "vmamba_small_s2l15",
            "vmamba_base_s2l15",
            "vanilla_vmamba_tiny",
            "vanilla_vmamba_small",
            "vanilla_vmamba_base",
            "vmamba_tiny_m2",
            "vmamba_small_m2",
            "vmamba_base_m2",
        ),
    ),
    "efficient_vmamba": Entry(
        "statescan.models.efficient_vmamba",
        ("efficient_vmamba_tiny", "efficient_vmamba_t", "efficient_vmamba_s", "efficient_vmamba_b"),
    ),
    "msvmamba": Entry("statescan.models.msvmamba", ("msvmamba_tiny", "msvmamba_n", "msvmamba_m", "msvmamba_t")),
    "local_vmamba": Entry(
        "statescan.models.local_vmamba",
        ("local_vmamba_tiny", "local_vmamba_search", "local_vmamba_t", "local_vmamba_s"),
    ),
    "res_vmamba": Entry(
        "statescan.models.res_vmamba", ("res_vmamba_tiny", "res_vmamba_t", "res_vmamba_s", "res_vmamba_b")
    ),
    "mambaout": Entry(
        "statescan.models.mambaout",
        (
            "mambaout_femto",
            "mambaout_kobe",
            "mambaout_tiny",
            "mambaout_small",
            "mambaout_base",
            "mambaout_small_rw",
            "mambaout_base_short_rw",
            "mambaout_base_tall_rw",
            "mambaout_base_wide_rw",
            "mambaout_base_plus_rw",
            "mambaout_test",
        ),
    ),
    "vssd": Entry("statescan.models.vssd", ("vssd_micro", "vssd_tiny", "vssd_small", "vssd_base", "vssd_test")),
    "efficient_vim": Entry(
        "statescan.models.efficient_vim",
        ("efficient_vim_m1", "efficient_vim_m2", "efficient_vim_m3", "efficient_vim_m4", "efficient_vim_tiny"),
    ),
    "mobile_mamba": Entry(
        "statescan.models.mobile_mamba",
        (
            "mobile_mamba_t2",
            "mobile_mamba_t4",
            "mobile_mamba_s6",
            "mobile_mamba_b1",
            "mobile_mamba_b2",
            "mobile_mamba_b4",
            "mobile_mamba_tiny",
        ),
    ),
    "spatial_mamba": Entry(
        "statescan.models.spatial_mamba",
        ("spatial_mamba_tiny", "spatial_mamba_small", "spatial_mamba_base", "spatial_mamba_test"),
    ),
    "vim": Entry(
        "statescan.models.vim",
        ("vim_micro", "vim_tiny", "vim_small", "vim_base", "vim_tiny_stride8", "vim_small_stride8"),
    ),
    "lbmamba": Entry(
        "statescan.models.lbmamba",
        ("lbvim_micro", "lbvim_tiny", "lbvim_300", "lbvim_small", "lbvim_528_attention"),
    ),
    "plainmamba": Entry(
        "statescan.models.plainmamba", ("plainmamba_tiny", "plainmamba_l1", "plainmamba_l2", "plainmamba_l3")
    ),
    "rsmamba": Entry(
        "statescan.models.rsmamba",
        ("rsmamba_tiny", "rsmamba_small", "rsmamba_base", "rsmamba_large", "rsmamba_huge"),
    ),
    "patch_scaling": Entry(
        "statescan.models.patch_scaling",
        (
            "adventurer_micro",
            "adventurer_tiny",
            "adventurer_small",
            "adventurer_base",
            "adventurer_large",
            "adventurer_tiny_patch1",
            "adventurer_small_patch1",
            "adventurer_base_patch1",
            "adventurer_large_patch1",
        ),
    ),
    "vit": Entry("statescan.models.vit", ("vit_micro", "deit_tiny", "deit_small", "deit_base", "deit_tiny_patch1")),
    "local_vim": Entry(
        "statescan.models.local_vim",
        (
            "local_vim_tiny",
            "local_vim_t",
            "local_vim_t_class_token",
            "local_vim_t_unsearched",
            "local_vim_s",
            "local_vim_s_unsearched",
            "local_vim_search",
        ),
    ),
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
    "shuffle_mamba": Entry(
        "statescan.models.shuffle_mamba",
        (
            "shuffle_mamba_tiny",
            "shuffle_mamba_tiny_registers",
            "shuffle_mamba_small",
            "shuffle_mamba_middle",
            "shuffle_mamba_base",
            "shuffle_mamba_large",
            "shuffle_mamba_large_40",
            "shuffle_mamba_small_registers",
            "shuffle_mamba_base_registers",
            "shuffle_mamba_large_registers",
        ),
    ),
    "token_pruning": Entry(
        "statescan.models.token_pruning",
        (
            "pruned_vim_micro",
            "pruned_vim_tiny",
            "pruned_vim_small",
            "pruned_plainmamba_tiny",
            "pruned_plainmamba_l1",
            "pruned_plainmamba_l2",
            "pruned_plainmamba_l3",
        ),
    ),
    "morp_mamba": Entry(
        "statescan.models.morp_mamba",
        ("morp_mamba_tiny", "morp_mamba", "morp_mamba_spatial", "morp_mamba_published"),
    ),
    "ecg_mamba": Entry(
        "statescan.models.ecg_mamba", ("ecg_mamba_tiny", "ecg_mamba", "ecg_mamba_small", "ecg_mamba_stream")
    ),
    "jamba": Entry("statescan.models.jamba", ("jamba_tiny", "jamba_v0.1")),
    "granitemoehybrid": Entry(
        "statescan.models.granite_moe_hybrid",
        ("granite_hybrid_tiny", "granite_4.0_h_micro", "granite_4.0_h_small", "granite_4.0_h_tiny"),
    ),
    "falcon_h1": Entry("statescan.models.falcon_h1", ("falcon_h1_tiny", "falcon_h1_0.5b")),
    "nemotron_h": Entry("statescan.models.nemotron_h", ("nemotron_h_tiny", "nemotron_h_moe_tiny", "nemotron_h_8b")),
    "zamba": Entry("statescan.models.zamba", ("zamba_tiny", "zamba_7b")),
    "mixture_of_mamba": Entry(
        "statescan.models.mixture_of_mamba",
        (
            "mixture_of_mamba_tiny",
            "mixture_of_mamba_speech_tiny",
            "mixture_of_mamba_768",
            "mixture_of_mamba_2048",
        ),
    ),
    "transfusion_mamba": Entry(
        "statescan.models.transfusion_mamba", ("transfusion_mamba_tiny", "transfusion_mamba_2048")
    ),
    "mamba3": Entry(
        "statescan.models.mamba3",
        (
            "mamba3_tiny",
            "mamba3_mimo_tiny",
            "mamba3_small",
            "mamba3_180m",
            "mamba3_440m",
            "mamba3_880m",
            "mamba3_1.5b",
            "mamba3_mimo_1.5b",
        ),
    ),
    "anytime_ensemble": Entry("statescan.models.anytime_ensemble", ("anytime_ensemble_tiny",)),
    "retriever": Entry(
        "statescan.models.retriever",
        (
            "mamba_retriever_tiny",
            "mamba_retriever_130m",
            "mamba_retriever_370m",
            "mamba_retriever_790m",
            "mamba2_retriever_130m",
        ),
    ),
    "document_scanner": Entry(
        "statescan.models.document_scanner",
        ("document_scanner_tiny", "document_scanner_130m", "document_scanner_1.3b"),
    ),
    "memmamba": Entry(
        "statescan.models.memmamba",
        (
            "memmamba_tiny",
            "memmamba_small",
            "memmamba_130m",
            "memmamba_370m",
            "memmamba_790m",
            "memmamba_1.4b",
            "memmamba_2.8b",
        ),
    ),
}
