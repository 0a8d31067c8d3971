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
        "s4",
        "Efficiently Modeling Long Sequences with Structured State Spaces (Gu, Goel and Re, 2022)",
        ("s4",),
        (
            "outputs, kernels and steps of the published code",
            "exact parameter counts of its backbones",
            "published names both ways",
            "whole, chunks and steps agree over 4,096 positions",
        ),
    ),
    System(
        "s4d",
        "On the Parameterization and Initialization of Diagonal State Space Models (Gu, Gupta, Goel and Re, 2022); "
        "Diagonal State Spaces are as Effective as Structured State Spaces (Gupta, Gu and Berant, 2022)",
        ("s4d",),
        (
            "outputs, kernels and steps of the published code",
            "exact parameter counts",
            "published names both ways",
            "whole, chunks and steps agree over 4,096 positions",
        ),
    ),
    System(
        "s4nd",
        "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces (Nguyen et al., 2022)",
        ("s4nd",),
        (
            "outputs and kernels of the published layer",
            "equal to the dense convolution over two and three axes",
            "a band limit carries over to twice the resolution",
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
        ),
    ),
    System(
        "h3",
        "Hungry Hungry Hippos: Towards Language Modeling with State Space Models (Fu et al., 2023)",
        ("h3",),
        (
            "outputs, kernels, states and steps of the published code",
            "exact parameter counts",
            "published names of both releases",
            "whole, chunks and steps agree over 4,096 positions",
        ),
    ),
    System(
        "long_conv",
        "Simple Hardware-Efficient Long Convolutions for Sequence Modeling (Fu et al., 2023)",
        ("long_conv",),
        (
            "outputs and kernels of the published code",
            "exact parameter counts of its backbones",
            "published names both ways",
            "causal for inputs of any length",
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
        "seqboat",
        "Sparse Modular Activation for Efficient Sequence Modeling (Ren et al., 2023)",
        ("seqboat",),
        (
            "outputs of the published code",
            "exact parameter counts",
            "published names both ways",
            "whole, chunks and steps agree",
        ),
    ),
    System(
        "lra",
        "Long Range Arena: A Benchmark for Efficient Transformers (Tay et al., 2021)",
        (),
        (
            "expressions of the published ListOps generator, bit for bit",
            "Pathfinder's labels by construction, and its images' statistics",
            "the six tasks trained on in small, and read from the published layouts",
            "recipes of the published S4, S4D, S5 and long-convolution experiments",
        ),
    ),
    System(
        "synthetics",
        "Recall and copying tasks of Mamba (Gu and Dao, 2023), H3 (Fu et al., 2023), Zoology (Arora et al., 2024), "
        "Repeat After Me (Jelassi et al., 2024) and Landmark Attention (Mohtashami and Jaggi, 2023)",
        (),
        (
            "selective copying, MQAR, induction head and associative recall as their published generators draw them, "
            "bit for bit",
            "an oracle solves every task",
            "selective copying and induction heads learned",
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
            "selective copying and induction heads learned",
        ),
    ),
    System(
        "based",
        "Simple Linear Attention Language Models Balance the Recall-Throughput Tradeoff (Arora et al., 2024)",
        ("based",),
        (
            "outputs and states of the published code",
            "exact parameter counts",
            "published names both ways",
            "quadratic, chunked and recurrent forms agree",
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
        "vim",
        "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model (Zhu et al., 2024)",
        ("vim",),
        (
            "outputs of the published classifier and dense backbone",
            "exact parameter counts, multiply-adds within 2 %",
            "published names both ways",
            "tied directions commute with reversal",
        ),
    ),
    System(
        "plainmamba",
        "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition (Yang et al., 2024)",
        ("plainmamba",),
        (
            "tokens, maps and walks of the published code",
            "exact parameter counts, multiply-adds within 2 %",
            "published names both ways",
            "the scan equals a loop over cells",
        ),
    ),
    System(
        "rsmamba",
        "RSMamba: Remote Sensing Image Classification with State Space Model (Chen et al., 2024)",
        ("rsmamba",),
        (
            "outputs of the published code for given permutations",
            "exact parameter counts, multiply-adds within 2 %",
            "published names both ways",
            "the same scores twice in evaluation",
        ),
    ),
    System(
        "patch_scaling",
        "Causal Image Modeling for Efficient Visual Understanding (Wang et al., 2025); "
        "Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More (Wang et al., 2025)",
        ("patch_scaling", "vit"),
        (
            "outputs of the published model and block",
            "exact parameter counts at four widths and sizes",
            "published names both ways",
            "the class token knows every patch",
        ),
    ),
    System(
        "lbmamba",
        "LBMamba: Locally Bi-directional Mamba (Zhang et al., 2025)",
        ("lbmamba",),
        (
            "outputs and gradients of the published scan's definition",
            "outputs of LBVim as the published code defines it",
            "exact parameter counts",
            "whole windows one after another give what one call gives",
        ),
    ),
    System(
        "mambaout",
        "MambaOut: Do We Really Need Mamba for Vision? (Yu and Wang, 2025)",
        ("mambaout",),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds within 2 %",
            "published names both ways",
            "timm's checkpoints under timm's names",
        ),
    ),
    System(
        "vssd",
        "VSSD: Vision Mamba with Non-Causal State Space Duality (Shi et al., 2025)",
        ("vssd",),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds within 2 %",
            "published names both ways",
            "permuting cells permutes the output",
            "four times the cells cost four times as much",
        ),
    ),
    System(
        "efficient_vim",
        "EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality (Lee et al., 2025)",
        ("efficient_vim",),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds within 2 %",
            "published names both ways",
            "rectangular images",
            "its dead parameter changes nothing",
        ),
    ),
    System(
        "mobile_mamba",
        "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network (He et al., 2025)",
        ("mobile_mamba",),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds within 2 %",
            "published names both ways",
            "wavelets come back",
            "norms folded into convolutions change nothing",
        ),
    ),
    System(
        "spatial_mamba",
        "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion (Xiao et al., 2025)",
        ("spatial_mamba",),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds within 2 %",
            "published names both ways",
            "merged and dilated fusions agree",
            "no stale kernel after training",
        ),
    ),
    System(
        "vmamba",
        "VMamba: Visual State Space Model (Liu et al., 2024)",
        ("vmamba",),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds and scans within 2 %",
            "published names of both releases",
            "tied walks commute with half a turn",
            "compiles into one graph",
        ),
    ),
    System(
        "efficient_vmamba",
        "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba (Pei, Huang and Xu, 2024)",
        ("efficient_vmamba",),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds and scans within 2 %",
            "published names both ways",
            "a quarter of the scans of four full walks",
        ),
    ),
    System(
        "msvmamba",
        "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model (Shi, Dong and Xu, 2024)",
        ("msvmamba",),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds and scans within 2 %",
            "published names both ways",
            "1.75 positions scanned a cell where four full walks scan 4",
        ),
    ),
    System(
        "local_vmamba",
        "LocalMamba: Visual State Space Model with Windowed Selective Scan (Huang et al., 2024)",
        ("local_vmamba", "local_vim"),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds and scans within 2 %",
            "published names both ways",
            "every walk put back on every grid up to 16 x 16",
            "gradients reach the weights of the search",
        ),
    ),
    System(
        "res_vmamba",
        "Res-VMamba: Fine-Grained Food Category Visual Classification Using Selective State Space Models with Deep "
        "Residual Learning (Chen et al., 2024)",
        ("res_vmamba",),
        (
            "outputs of the published code",
            "exact parameter counts",
            "published names both ways",
            "with branches of zero it is VMamba",
        ),
    ),
    System(
        "mambamixer",
        "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection "
        "(Behrouz, Santacatterina and Zabih, 2024)",
        ("tsm2", "vim2"),
        (
            "TSM2: outputs and counts of a public replication; the authors published no code",
            "averages of earlier layers contain the plain stack",
            "ViM2: parameters within 15 % of the paper's",
        ),
    ),
    System(
        "mhs_vm",
        "MHS-VM: Multi-Head Scanning in Parallel Subspaces for Vision Mamba (Ji, 2024)",
        ("mhs_vm", "mhs_vm_classifier"),
        (
            "outputs of the published code",
            "exact parameter counts, multiply-adds",
            "published names both ways",
            "all walks of its heads",
        ),
    ),
    System(
        "hrvmamba",
        "HRVMamba: High-Resolution Visual State Space Model for Dense Prediction (Zhang et al., 2024)",
        ("hrvmamba",),
        (
            "outputs of the published code, its CUDA step written out from the definition",
            "exact parameter counts",
            "published names both ways",
        ),
    ),
    System(
        "shuffle_mamba",
        "Stochastic Layer-Wise Shuffle: A Good Practice to Improve Vision Mamba Training (Huang et al., 2024)",
        ("shuffle_mamba",),
        (
            "outputs of the published code, in evaluation and shuffled in training",
            "exact parameter counts, multiply-adds and scans within 2 %",
            "published names both ways",
            "evaluation is that of the model without it, bit for bit, on every plain backbone",
        ),
    ),
    System(
        "token_pruning",
        "Exploring Token Pruning in Vision State Space Models (Zhan et al., 2024)",
        ("token_pruning",),
        (
            "the published Vim with tokens dropped, selection and aligned scan by their definition",
            "operations fall as the shorter rows say, within 2 %",
            "a ratio of 1 is the backbone bit for bit",
        ),
    ),
    System(
        "morp_mamba",
        "Spatial-Spectral Morphological Mamba for Hyperspectral Image Classification (Ahmad et al., 2025)",
        ("morp_mamba",),
        (
            "outputs of the published notebook's definition",
            "its exact parameter count",
            "true erosion and dilation equal SciPy's",
            "windows of a split by blocks share no pixel",
        ),
    ),
    System(
        "ecg_mamba",
        "One Dimensional CNN ECG Mamba for Multilabel Abnormality Classification in 12 Lead ECG (2025)",
        ("ecg_mamba",),
        (
            "blocks give Vim's features; no code was published",
            "records read in parts give the scores of one call where scans go forward",
            "the challenge's score by its definition",
        ),
    ),
    System(
        "hybrid",
        "Jamba (Lieber et al., 2024); Zamba (Glorioso et al., 2024); Zamba2 (Glorioso et al., 2024); Bamba (2024); "
        "Falcon-H1 (Zuo et al., 2025); Nemotron-H (NVIDIA, 2025); Granite 4 (IBM, 2025)",
        ("jamba", "zamba", "zamba2", "bamba", "falcon_h1", "nemotron_h", "granitemoehybrid"),
        (
            "logits of the published classes",
            "exact parameter counts",
            "Hugging Face checkpoints both ways: the same logits and greedy text",
            "prefill and steps equal one pass",
        ),
    ),
    System(
        "mixture_of_mamba",
        "Mixture-of-Mamba: Enhancing Multi-Modal State-Space Models with Modality-Aware Sparsity (Liang et al., 2025)",
        ("mixture_of_mamba", "transfusion_mamba"),
        (
            "outputs of the published block",
            "exact parameter counts",
            "equal copies are the dense block; a token costs as much",
            "a split model knows more of two interleaved vocabularies at equal steps",
        ),
    ),
    System(
        "stree",
        "STree: Speculative Tree Decoding for Hybrid State-Space Models (Wu et al., 2025)",
        (),
        (
            "scans, convolutions, verification and replay of the published definitions",
            "every path of a tree read alone",
            "greedy and seeded text the same as without a draft; sampling in rounds by a chi-square test",
            "operators against float64 references, CPU kernels, Triton in its interpreter",
        ),
    ),
    System(
        "longmamba",
        "LongMamba: Enhancing Mamba's Long-Context Capabilities via Training-Free Receptive Field Enlargement "
        "(Ye et al., 2025)",
        (),
        (
            "rules, thresholds and filtered outputs of the published code",
            "short texts and local channels exactly as before",
            "whole, in chunks, by steps and as a tree alike",
        ),
    ),
    System(
        "free_lunch",
        "Exploring the Limitations of Mamba in COPY and CoT Reasoning (Ren, Li and Liu, 2024)",
        (),
        (
            "tables of all dynamic programs",
            "an oracle solves every task",
            "problems for learning and for tests never meet",
        ),
    ),
    System(
        "mamba3",
        "Mamba-3: Improved Sequence Modeling using State Space Principles (Lahoti et al., 2026)",
        ("mamba3",),
        (
            "outputs and states of the published code (one input a head)",
            "exact parameter counts",
            "published names and configs both ways",
            "chunked, stepped and whole sequences agree",
        ),
    ),
    System(
        "pkd",
        "Mamba base PKD for efficient knowledge compression (Medina, Hadachi, Honeine and Bensrhair, 2025)",
        ("anytime_ensemble",),
        (
            "no published code: the definition",
            "operations of a block as counted by hand",
            "the loss and its gradient as torch's divergence gives them",
        ),
    ),
    System(
        "dynamic_reflections",
        "Dynamic Reflections: Probing Video Representations with Text Alignment (2026); "
        "The Platonic Representation Hypothesis (Huh, Cheung, Wang and Isola, 2024)",
        (),
        (
            "metrics and layer search of the published code",
            "blocks of neighbours equal to the whole matrix",
            "the published laws found again from noisy points",
        ),
    ),
    System(
        "mamba_retriever",
        "Mamba Retriever: Utilizing Mamba for Effective and Efficient Dense Retrieval (Zhang et al., 2024); "
        "Single-Pass Document Scanning for Question Answering (2025)",
        ("retriever", "document_scanner"),
        (
            "embeddings, scores and losses of the published encoder",
            "logits and loss of the published scanner",
            "exact parameter counts",
            "padding changes nothing; pieces and whole texts agree",
            "exact search equals sorting, scores equal those by hand",
        ),
    ),
    System(
        "birdie",
        "Birdie: Advancing State Space Language Modeling with Dynamic Mixtures of Training Objectives (Blouir et al., 2024)",
        (),
        (
            "outputs of the published layer; rewards and exploration rates of the published code",
            "a generated position changes nothing before it, a prefix position all of its prefix",
            "infilled spans rebuild the text, retrieved spans stand between their delimiters",
            "on made-up losses the one objective that helps is chosen",
        ),
    ),
    System(
        "dynamax",
        "DYNAMAX: Dynamic computing for Transformers and Mamba based architectures (Nogales, Gambella and Roveri, 2025)",
        (),
        (
            "tokens and states of the whole model where no token leaves",
            "skipped layers advance as in a step; a sequence in a batch as alone",
            "given exits token by token as in one pass",
            "blocks counted as computed",
        ),
    ),
    System(
        "memmamba",
        "MemMamba: Rethinking Memory Patterns in State Space Model (2025)",
        ("memmamba",),
        (
            "no published code: the definition token by token with lists, outputs and states",
            "steps, pieces, resets and whole sequences agree; no token sees what comes later",
            "without notes Mamba bit for bit; the state does not grow",
            "memory fidelity near 1 where tokens are kept, near 0 on random streams",
        ),
    ),
)


def systems() -> tuple[System, ...]:
    """All systems that work, in the order of their history."""
    return _SYSTEMS
