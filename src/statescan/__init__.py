"""State-space models: operators, layers and published systems, to train, load, decode and serve.

>>> import statescan
>>> model = statescan.create_model("mamba_tiny")
>>> logits, state = model(tokens)  # tokens: (batch, length) int64
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: The public names and the rooms they live in. Each is imported on first use, so that `import statescan` stays light.
_PUBLIC = {
    "build_model": "statescan.models",
    "compile_for_generation": "statescan.generation",
    "compile_for_inference": "statescan.models",
    "create_model": "statescan.models",
    "generate": "statescan.generation",
    "list_models": "statescan.models",
    "load": "statescan.checkpoints",
    "load_published": "statescan.models",
    "model_info": "statescan.models",
    "ops": "statescan.ops",
    "save": "statescan.checkpoints",
    "State": "statescan.layers",
    "stream": "statescan.generation",
    "systems": "statescan.models",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'statescan' has no attribute {name!r}")
    room = importlib.import_module(_PUBLIC[name])
    return room if name == "ops" else getattr(room, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
