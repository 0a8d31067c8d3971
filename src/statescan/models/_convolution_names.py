"""Published names of stems and downsamplings that several systems took over from one another."""

from __future__ import annotations

from statescan.models._names import Rule


def convolution_norm_rules(published: str, ours: str, *, convolution: str = "conv", norm: str = "norm") -> list[Rule]:
    """Names of a `layers.grid.ConvolutionNorm` whose convolution and norm are published under these two names."""
    return [
        (f"{published}.{convolution}.*", f"{ours}.convolution.*"),
        (f"{published}.{norm}.*", f"{ours}.norm.*"),
    ]


def residual_stem_rules() -> list[Rule]:
    """Names of `layers.grid.ResidualStem` in the code of Han et al., "Demystify Mamba in Vision"."""
    return [
        *convolution_norm_rules("patch_embed.conv1", "stem.reduce"),
        *convolution_norm_rules("patch_embed.conv2.{}", "stem.residual.{}"),
        *convolution_norm_rules("patch_embed.conv3.0", "stem.expand"),
        *convolution_norm_rules("patch_embed.conv3.1", "stem.project"),
    ]


def inverted_downsample_rules() -> list[Rule]:
    """Names of `layers.grid.InvertedDownsample` in the same code."""
    published, ours = "layers.{}.downsample.conv.", "stages.{}.downsample."
    return [
        (f"{published}0.conv.*", f"{ours}expand.*"),
        (f"{published}1.conv.*", f"{ours}convolution.*"),
        *convolution_norm_rules(f"{published}2", f"{ours}project"),
    ]
