"""Image models for the Auto classes of transformers.

    from statescan.bridges import huggingface

    huggingface.save(model, "my_vim", labels=["cat", "dog"])
    huggingface.register()  # once in a program that loads such folders
    model = transformers.AutoModelForImageClassification.from_pretrained("my_vim")
    processor = transformers.AutoImageProcessor.from_pretrained("my_vim")

Needs ``pip install 'statescan[hf]'``; the processor also pillow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from statescan import models
from statescan.bridges._images import IMAGENET_MEAN, IMAGENET_STD
from statescan.checkpoints._folder import new_folder
from statescan.models._vision import VisionModel

MODEL_TYPE = "statescan_image_model"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ImportError("statescan.bridges.huggingface needs transformers: pip install 'statescan[hf]'") from None
    return transformers


@cache
def classes() -> tuple[type, type]:
    """The configuration class and the model class, as transformers wants them."""
    import torch
    from torch import Tensor, nn

    transformers = _transformers()
    output = transformers.modeling_outputs.ImageClassifierOutput

    class StatescanImageConfig(transformers.PretrainedConfig):  # type: ignore[name-defined]
        """`family` and `options` are those of `statescan.build_model`."""

        model_type = MODEL_TYPE

        def __init__(self, family: str = "vmamba", options: dict[str, Any] | None = None, **rest: Any):
            self.family, self.options = family, dict(options or {})
            super().__init__(**rest)

    class StatescanForImageClassification(transformers.PreTrainedModel):  # type: ignore[name-defined]
        """A statescan image model behind transformers' interface."""

        config_class = StatescanImageConfig
        base_model_prefix = "model"
        main_input_name = "pixel_values"
        supports_gradient_checkpointing = True

        def __init__(self, config: Any):
            super().__init__(config)
            # transformers builds on the meta device, and would never fill what a formula gives and no file holds.
            with torch.device("cpu"):
                self.model = models.build_model(config.family, config.options)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            """Weights are those that the model was built with."""

        def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
            """pixel_values (batch, channels, height, width), labels (batch,) -> scores, and the loss with labels."""
            logits = self.model(pixel_values)
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return output(loss=loss, logits=logits)

        def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
            """See `VisionModel.set_gradient_checkpointing`."""
            self.model.set_gradient_checkpointing(True)

        def gradient_checkpointing_disable(self) -> None:
            """The opposite."""
            self.model.set_gradient_checkpointing(False)

    return StatescanImageConfig, StatescanForImageClassification


def register() -> None:
    """Tell transformers' Auto classes of our image models; a second call does nothing.

    Raises:
        ImportError: transformers is not installed.
    """
    transformers = _transformers()
    config, model = classes()
    transformers.AutoConfig.register(MODEL_TYPE, config, exist_ok=True)
    transformers.AutoModelForImageClassification.register(config, model, exist_ok=True)


def wrap(model: VisionModel, labels: Sequence[str] | None = None) -> Any:
    """A model of ours as a model of transformers, for its Trainer and pipelines; weights are shared, not copied.

    Arguments:
        model: an image model with a head.
        labels: names of the classes, in their order.

    Raises:
        ValueError: it has no head, or another number of classes than labels.
    """
    config = _config(model, labels)
    wrapped = classes()[1](config)
    wrapped.model = model
    return wrapped


def save(
    model: VisionModel,
    folder: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Write a folder that `AutoModelForImageClassification` and `AutoImageProcessor` load after `register`.

    Arguments:
        model: an image model with a head.
        folder: written whole or not at all.
        labels: names of the classes, in their order.
        size: side, or (height, width), to which the processor resizes; that of the config unless given.
        mean, std: of the channels of images from 0 to 1, which the processor subtracts and divides by.

    Raises:
        ValueError: the model has no head, numbers of labels or channels do not fit, or the folder cannot be written.
    """
    channels = model.config.in_channels
    mean, std = list(mean), list(std)
    if (mean, std) == (list(IMAGENET_MEAN), list(IMAGENET_STD)) and channels != 3:
        mean, std = [0.5] * channels, [0.5] * channels
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean, std: one for each of {channels} channels, got {len(mean)} and {len(std)}")
    height, width = model.config.image_shape if size is None else (size, size) if isinstance(size, int) else size
    wrapped = wrap(model, labels)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    with new_folder(folder) as place:
        wrapped.save_pretrained(place)
        (place / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))


def _config(model: VisionModel, labels: Sequence[str] | None) -> Any:
    if model.config.features_only or not model.config.num_classes:
        raise ValueError("model: an image classifier, got one without a head (features_only, or num_classes=0)")
    names = [f"LABEL_{index}" for index in range(model.config.num_classes)] if labels is None else list(labels)
    if len(names) != model.config.num_classes:
        raise ValueError(f"labels: one for each of {model.config.num_classes} classes, got {len(names)}")
    return classes()[0](
        family=model.family,
        options=models.config_dict(model),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        architectures=["StatescanForImageClassification"],
    )
