# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""OneRef for Transformers: find the box and the mask of what a phrase means in a picture.

Importing the package makes Transformers' Auto classes know its models and processors, and `pipeline` its task
"referring-expression". Everything public is imported on first use.
"""

import importlib
from pathlib import Path

from . import _registration  # noqa: F401  registers with Transformers, see there


_PUBLIC_NAMES = {
    "configuration_beit3": ["Beit3Config"],
    "configuration_oneref": ["OneRefConfig"],
    "configuration_vqkd": ["VqkdConfig"],
    "image_processing_oneref": ["OneRefImageProcessor"],
    "image_processing_pil_oneref": ["OneRefImageProcessorPil"],
    "modeling_beit3": ["Beit3Model"],
    "modeling_oneref": ["OneRefForGrounding", "OneRefForPreTraining", "OneRefForSegmentation", "OneRefModel"],
    "modeling_vqkd": ["VqkdModel"],
    "pipeline_oneref": ["ReferringExpressionPipeline"],
    "processing_oneref": ["OneRefProcessor"],
    "trainer": ["MRefMTrainer", "OneRefTrainer"],
}
_MODULE_OF_NAME = {name: module for module, names in _PUBLIC_NAMES.items() for name in names}

__version__ = "0.1.0"
# The directory of the small model that comes with the package; it knows drawn scenes alone.
SMALL_MODEL = Path(__file__).with_name("small_model_files")
__all__ = sorted([*_MODULE_OF_NAME, "SMALL_MODEL"])


def __getattr__(name: str):
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
