"""Models by name. Importing this room imports no model: each is found through the manifest and imported on use."""

from statescan.models._inference import compile_for_inference
from statescan.models._model import Model, build_config
from statescan.models._published import (
    check_tensors,
    fill_tensors,
    load_published,
    load_tensors,
    translate_published,
)
from statescan.models._registry import (
    Family,
    ModelInfo,
    build_model,
    config_dict,
    create_model,
    family,
    list_models,
    model_info,
)
from statescan.models._systems import System, systems

__all__ = [
    "Family",
    "Model",
    "ModelInfo",
    "System",
    "build_config",
    "build_model",
    "check_tensors",
    "compile_for_inference",
    "config_dict",
    "create_model",
    "family",
    "fill_tensors",
    "list_models",
    "load_published",
    "load_tensors",
    "model_info",
    "systems",
    "translate_published",
]
