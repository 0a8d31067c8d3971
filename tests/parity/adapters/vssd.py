"""YuHengsss/VSSD."""

from __future__ import annotations

from typing import Any

from tests.parity._arguments import translate
from tests.parity._fixture import Fixture, ParityError
from tests.parity._images import features, image_model

_NAMES = {
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "embed_dim": "dim",
    "depths": "depths",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path_rate",
    "simple_downsample": "simple_downsample",
    "simple_patch_embed": "simple_stem",
    "ssd_expansion": "expand",
    "ssd_ngroups": "groups",
    "d_state": "state_dim",
    "d_conv": "conv_kernel",
    "conv_bias": "conv_bias",
    "bias": "bias",
}
#: Without effect on the function: sizes that the stem does not read, dropout in training, speed, first values.
_IGNORED = (
    *("img_size", "image_size", "patch_size", "qkv_bias", "drop_rate", "use_checkpoint", "ssd_chunk_size"),
    *("A_init_range", "dt_min", "dt_max", "dt_init_floor", "use_mem_eff_path", "chunk_size", "layer_idx"),
)
_ONLY: dict[str, tuple[Any, ...]] = {
    "learnable_init_states": (False,),
    "activation": ("silu", "swish"),
    "conv_init": (None,),
}


def options(given: dict[str, Any]) -> dict[str, Any]:
    """Published arguments under our names."""
    # The published defaults are not those of its released models.
    given = {"depths": [2, 4, 12, 4], "drop_path_rate": 0.2} | given
    types = given.pop("attn_types", None) or ["mamba2", "mamba2", "mamba2", "standard"]
    dual = given.pop("linear_attn_duality", True)
    both = given.pop("bidirection", False)
    negative = not given.pop("ssd_positve_dA", True)
    kind = "non_causal" if dual else "bidirectional" if both else "causal"
    kinds = {"mamba2": kind, "standard": "attention"}
    unknown = [name for name in types if name not in kinds]
    if unknown:
        raise ParityError(f"attn_types {unknown} are not supported; supported: {', '.join(kinds)}")
    mixers = tuple(kinds[name] for name in types)[: len(given["depths"])]
    return translate(given, _NAMES, ignored=_IGNORED, only=_ONLY) | {"mixers": mixers, "negative": negative}


def model(fixture: Fixture) -> dict[str, Any]:
    """`VMAMBA2`."""
    return image_model(fixture, "vssd", options(fixture.kwargs))


def backbone(fixture: Fixture) -> dict[str, Any]:
    """`Backbone_VMAMBA2`: maps of the stages."""
    given = fixture.kwargs
    own = features({}, given)
    return image_model(fixture, "vssd", options(given) | own)


ADAPTERS = {
    "classification/models/mamba2.py:VMAMBA2": model,
    "classification/models/mamba2.py:Backbone_VMAMBA2": backbone,
}
