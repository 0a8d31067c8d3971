"""MobileMamba: a light backbone of three stages whose blocks scan some channels, convolve some, and leave the rest. He
et al. 2025, arXiv 2411.15941.

Peculiar: a block adds its input once more around its whole chain of residual steps; the share of scanned channels is
rounded to a multiple of 16; published parameter counts include the fixed wavelet filters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from statescan.layers.grid import (
    ConvolutionMLP,
    ConvolutionStem,
    DropPath,
    MultiReceptiveMixer,
    NormLinear,
    Residual,
    SqueezeDownsample,
    depthwise_norm,
    drop_path_rates,
    haar_filters,
)
from statescan.models._convolution_names import convolution_norm_rules
from statescan.models._names import POINTWISE, Names, Reshape, Rule
from statescan.models._registry import Family, Tensors
from statescan.models._vision import HierarchicalModel, Stage, VisionConfig


@dataclass(frozen=True)
class MobileMambaConfig(VisionConfig):
    """A MobileMamba backbone.

    Arguments:
        widths: channels of each stage.
        depths: blocks of each stage.
        global_ratios, local_ratios: shares of scanned and of convolved channels in each stage.
        kernels: side of the depthwise kernels of each stage's mixers, odd.
        expand: inner channels of the scan over the scanned ones.
        route: of the scans, see `routes.names()`.
        scan_activation: after a scan's norm, by name.
        distillation: a second head for a teacher; training gives both scores, evaluation their mean.
    """

    widths: tuple[int, ...] = (192, 384, 448)
    depths: tuple[int, ...] = (1, 2, 2)
    global_ratios: tuple[float, ...] = (0.8, 0.7, 0.6)
    local_ratios: tuple[float, ...] = (0.2, 0.2, 0.3)
    kernels: tuple[int, ...] = (7, 5, 3)
    expand: float = 2.0
    route: str = "bidirectional"
    scan_activation: str = "identity"
    distillation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.widths, self.depths, self.global_ratios, self.local_ratios, self.kernels)
        if len({len(values) for values in given}) != 1:
            raise ValueError(
                "widths, depths, global_ratios, local_ratios, kernels: one of each a stage, got "
                + ", ".join(str(values) for values in given)
            )


class MobileMambaBlock(nn.Module):
    """x + drop_path(chain(x)), the chain of residual steps: depthwise, channel mixer, mixer, depthwise, channel mixer.

    Arguments:
        dim: channels.
        mixer: a module on grids.
        drop_path: probability that a sample skips the chain in training.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float):
        super().__init__()
        self.convolution1 = Residual(depthwise_norm(dim, norm_weight=0.0))
        self.channel_mixer1 = Residual(ConvolutionMLP(dim, 2 * dim))
        self.mixer = Residual(mixer)
        self.convolution2 = Residual(depthwise_norm(dim, norm_weight=0.0))
        self.channel_mixer2 = Residual(ConvolutionMLP(dim, 2 * dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        y = self.mixer(self.channel_mixer1(self.convolution1(x)))
        return x + self.drop_path(self.channel_mixer2(self.convolution2(y)))


class MobileMamba(HierarchicalModel):
    """Stem of stride 16, stages of multi-receptive blocks, mean over the grid, batch norm and a linear head.

    Arguments:
        config: a `MobileMambaConfig`.
    """

    family = "mobile_mamba"

    def __init__(self, config: MobileMambaConfig):
        widths = config.widths
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        stages = [
            Stage(
                [MobileMambaBlock(width, build_mixer(config, index), rate) for rate in rates[index]],
                build_downsample(widths[index - 1], width) if index else None,
            )
            for index, width in enumerate(widths)
        ]
        head = NormLinear(widths[-1], config.num_classes) if config.num_classes else nn.Identity()
        stem = ConvolutionStem(config.in_channels, widths[0])
        super().__init__(config, stem, stages, widths, reduction=16, norm=None, head=head, downsample_first=True)
        self.distilled = config.distillation and config.num_classes > 0 and not config.features_only
        if self.distilled:
            self.distillation_head = NormLinear(widths[-1], config.num_classes)
        for module in self.modules():
            if isinstance(module, NormLinear):
                nn.init.trunc_normal_(module.linear.weight, std=0.02)
                nn.init.zeros_(module.linear.bias)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Any:
        """The last grid -> class scores (batch, num_classes); with `distillation` the pair of both heads in training,
        their mean in evaluation; with `pre_logits` the mean over the grid."""
        scores = super().forward_head(features, pre_logits=pre_logits)
        if pre_logits or not self.distilled:
            return scores
        distilled = self.distillation_head(features.mean((1, 2)))
        return (scores, distilled) if self.training else (scores + distilled) / 2


def build_mixer(config: MobileMambaConfig, stage: int) -> MultiReceptiveMixer:
    """A block's mixer."""
    return MultiReceptiveMixer(
        config.widths[stage],
        global_ratio=config.global_ratios[stage],
        local_ratio=config.local_ratios[stage],
        kernel=config.kernels[stage],
        expand=config.expand,
        route=config.route,
        scan_activation=config.scan_activation,
    )


def build_downsample(dim: int, out_dim: int) -> nn.Module:
    """From a stage to the next: a depthwise step and a channel mixer on both sides of the strided convolution."""
    return nn.Sequential(
        Residual(depthwise_norm(dim)),
        Residual(ConvolutionMLP(dim, 2 * dim)),
        SqueezeDownsample(dim, out_dim, 4 * dim),
        Residual(depthwise_norm(out_dim)),
        Residual(ConvolutionMLP(out_dim, 2 * out_dim)),
    )


def _convolution(published: str, ours: str) -> list[Rule]:
    return convolution_norm_rules(published, ours, convolution="c", norm="bn")


def _mlp(published: str, ours: str) -> list[Rule]:
    return [
        *_convolution(f"{published}.m.pw1", f"{ours}.module.input_projection"),
        *_convolution(f"{published}.m.pw2", f"{ours}.module.output_projection"),
    ]


#: Scales of channels, published as (1, channels, 1, 1).
_CHANNELS = Reshape(lambda tensor: tensor.flatten(), lambda tensor: tensor[None, :, None, None])


def _rules() -> list[Rule]:
    block = "stages.{}.blocks.{}."
    mixer, ours = f"{block}mixer.m.attn.", f"{block}mixer.module."
    scan, wave = f"{mixer}global_op.global_atten.", f"{mixer}global_op."
    down, down_ours = "stages.{}.downsample.", "stages.{}.downsample."
    return [
        *_convolution(f"{block}dw0.m", f"{block}convolution1.module"),
        *_convolution(f"{block}dw1.m", f"{block}convolution2.module"),
        *_mlp(f"{block}ffn0", f"{block}channel_mixer1"),
        *_mlp(f"{block}ffn1", f"{block}channel_mixer2"),
        (f"{mixer}local_op.dwconv3x3.*", f"{ours}local.0.convolution.*"),
        (f"{mixer}local_op.bn1.*", f"{ours}local.0.norm.*"),
        (f"{mixer}local_op.dwconv1x1.*", f"{ours}local.1.convolution.*"),
        (f"{mixer}local_op.bn2.*", f"{ours}local.1.norm.*"),
        *_convolution(f"{scan}in_proj", f"{ours}scan.input_projection"),
        *_convolution(f"{scan}out_proj", f"{ours}scan.output_projection"),
        (f"{scan}conv2d.*", f"{ours}scan.convolution.*"),
        (f"{scan}out_norm.*", f"{ours}scan.output_norm.*"),
        (f"{scan}x_proj_weight", f"{ours}scan.scan.selection_weight"),
        (f"{scan}dt_projs_weight", f"{ours}scan.scan.delta_weight"),
        (f"{scan}dt_projs_bias", f"{ours}scan.scan.delta_bias"),
        (f"{scan}A_logs", f"{ours}scan.scan.A_log"),
        (f"{scan}Ds", f"{ours}scan.scan.D"),
        (f"{wave}base_scale.weight", f"{ours}scan_scale", _CHANNELS),
        (f"{wave}wavelet_convs.0.weight", f"{ours}wavelet.convolution.weight"),
        (f"{wave}wavelet_scale.0.weight", f"{ours}wavelet.scale", _CHANNELS),
        (f"{wave}wt_filter", f"{ours}wavelet.analysis"),
        (f"{wave}iwt_filter", f"{ours}wavelet.synthesis"),
        *_convolution(f"{mixer}proj.1", f"{ours}output_projection"),
        *_convolution(f"{down}0.0.m", f"{down_ours}0.module"),
        *_mlp(f"{down}0.1", f"{down_ours}1"),
        *_convolution(f"{down}1.conv1", f"{down_ours}2.expand"),
        *_convolution(f"{down}1.conv2", f"{down_ours}2.convolution"),
        (f"{down}1.se.fc1.weight", f"{down_ours}2.squeeze.reduce.weight", POINTWISE),
        (f"{down}1.se.fc1.bias", f"{down_ours}2.squeeze.reduce.bias"),
        (f"{down}1.se.fc2.weight", f"{down_ours}2.squeeze.expand.weight", POINTWISE),
        (f"{down}1.se.fc2.bias", f"{down_ours}2.squeeze.expand.bias"),
        *_convolution(f"{down}1.conv3", f"{down_ours}2.project"),
        *_convolution(f"{down}2.0.m", f"{down_ours}3.module"),
        *_mlp(f"{down}2.1", f"{down_ours}4"),
        ("head.bn.*", "head.norm.*"),
        ("head.l.*", "head.linear.*"),
        ("head_dist.bn.*", "distillation_head.norm.*"),
        ("head_dist.l.*", "distillation_head.linear.*"),
    ]


_NAMES = Names(_rules())
#: Published stages are flat lists: three places for the downsampling where there is one, then the blocks.
_DOWNSAMPLING_PLACES = 3


def _staged(name: str) -> str:
    found = re.fullmatch(r"patch_embed\.(\d+)\.(c|bn)\.(.+)", name)
    if found:  # a ReLU stands between two convolutions
        part = "convolution" if found[2] == "c" else "norm"
        return f"stem.{int(found[1]) // 2}.{part}.{found[3]}"
    found = re.fullmatch(r"blocks(\d+)\.(\d+)\.(.+)", name)
    if not found:
        return name
    stage, place = int(found[1]) - 1, int(found[2])
    places = _DOWNSAMPLING_PLACES if stage else 0
    if place < places:
        return f"stages.{stage}.downsample.{place}.{found[3]}"
    return f"stages.{stage}.blocks.{place - places}.{found[3]}"


def _flat(name: str) -> str:
    found = re.fullmatch(r"stem\.(\d+)\.(convolution|norm)\.(.+)", name)
    if found:
        return f"patch_embed.{2 * int(found[1])}.{'c' if found[2] == 'convolution' else 'bn'}.{found[3]}"
    found = re.fullmatch(r"stages\.(\d+)\.(downsample|blocks)\.(\d+)\.(.+)", name)
    if not found:
        return name
    stage, place = int(found[1]), int(found[3])
    places = _DOWNSAMPLING_PLACES if stage and found[2] == "blocks" else 0
    return f"blocks{stage + 1}.{place + places}.{found[4]}"


def from_published(tensors: Tensors, config: MobileMambaConfig) -> Tensors:
    """A model's tensors under our names; the fixed wavelet filters are added where a file leaves them out."""
    ours = _NAMES.from_published({_staged(name): tensor for name, tensor in tensors.items()})
    for name in [name for name in ours if name.endswith("wavelet.scale")]:
        scale = ours[name]
        filters = (
            haar_filters(scale.numel() // 4).to(scale) if not scale.is_meta else scale.new_empty(len(scale), 1, 2, 2)
        )
        for leaf in ("analysis", "synthesis"):
            ours.setdefault(name.removesuffix("scale") + leaf, filters)
    return ours


def to_published(tensors: Tensors, config: MobileMambaConfig) -> Tensors:
    """The inverse of `from_published`."""
    return {_flat(name): tensor for name, tensor in _NAMES.to_published(tensors).items()}


_B: dict[str, Any] = dict(widths=(200, 376, 448), depths=(2, 3, 2), drop_path_rate=0.03)

VARIANTS: dict[str, dict[str, Any]] = {
    "mobile_mamba_t2": dict(widths=(144, 272, 368), image_size=192),
    "mobile_mamba_t4": dict(widths=(176, 368, 448), image_size=192),
    "mobile_mamba_s6": dict(),
    "mobile_mamba_b1": _B | dict(image_size=256),
    "mobile_mamba_b2": _B | dict(image_size=384),
    "mobile_mamba_b4": _B | dict(image_size=512),
    "mobile_mamba_tiny": dict(widths=(48, 64, 96), depths=(1, 1, 2), image_size=64, num_classes=10),
}

FAMILY = Family("mobile_mamba", MobileMambaConfig, MobileMamba, VARIANTS, from_published, to_published)
