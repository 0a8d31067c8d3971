"""Our image models in timm's registry.

    import timm
    from statescan.bridges import timm as bridge

    bridge.register()
    model = timm.create_model("statescan_vmamba_tiny_s1l8", num_classes=10)

timm is imported by `register` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from statescan import models
from statescan.bridges._images import IMAGENET_MEAN, IMAGENET_STD, image_models

PREFIX = "statescan_"

#: timm's registry looks these up in the module of an entry point.
default_cfgs: dict[str, dict[str, Any]] = {}
__all__: list[str] = ["PREFIX", "register"]

#: timm's names of options, and ours.
_OPTIONS = {"in_chans": "in_channels", "img_size": "image_size"}
#: What timm passes to every entry point and our models have no use for.
_DROPPED = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable", "no_jit")


def register() -> list[str]:
    """Add every image model to timm's registry, each as ``statescan_NAME``; a second call adds nothing.

    Returns:
        The names.

    Raises:
        ImportError: timm (or torchvision, which it needs) is not installed.
    """
    try:
        from timm.models import is_model, register_model
    except ImportError as error:
        raise ImportError(f"statescan.bridges.timm needs timm: pip install timm torchvision ({error})") from None
    names = []
    for name in image_models():
        entry = _entry_point(name)
        names.append(entry.__name__)
        if not is_model(entry.__name__):
            globals()[entry.__name__] = register_model(entry)
    return names


def _entry_point(name: str) -> Callable[..., Any]:
    def create(pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise ValueError(
                f"{PREFIX}{name}: no weights come with it; give checkpoint_path, or use statescan.create_model("
                f"{name!r}, checkpoint=...)"
            )
        return build(name, **options)

    create.__name__ = create.__qualname__ = PREFIX + name
    create.__module__ = __name__
    create.__doc__ = f"`statescan.create_model({name!r})`."
    config = models.model_info(name).config
    height, width = config.image_shape
    default_cfgs[create.__name__] = {
        "url": "",
        "num_classes": config.num_classes,
        "input_size": (config.in_channels, height, width),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    }
    return create


def build(name: str, **options: Any) -> Any:
    """A model with the attributes that timm's tools ask for.

    Arguments:
        name: one of ours.
        options: timm's (`num_classes`, `in_chans`, `img_size`, `drop_path_rate`, `features_only`, `out_indices`), and
            any field of the model's config.
    """
    ours = {_OPTIONS.get(key, key): value for key, value in options.items() if key not in _DROPPED}
    ours = {key: tuple(value) if isinstance(value, list) else value for key, value in ours.items() if value is not None}
    model = models.create_model(name, **ours)
    model.num_classes = model.config.num_classes
    model.num_features = model.head_hidden_size = model.feature_info[-1].channels
    model.set_grad_checkpointing = model.set_gradient_checkpointing
    model.default_cfg = model.pretrained_cfg = dict(default_cfgs.get(PREFIX + name, {}), architecture=PREFIX + name)
    harmed = model.undecayed
    names = [key for key, _ in model.named_parameters() if any(part in f".{key}" for part in harmed)]
    model.no_weight_decay = lambda: set(names)
    if model.config.features_only:
        from timm.models._features import FeatureInfo

        rows = [
            {"num_chs": info.channels, "reduction": info.reduction, "module": info.module}
            for info in model.feature_info
        ]
        model.feature_info = FeatureInfo(rows, model.out_indices)
    return model
