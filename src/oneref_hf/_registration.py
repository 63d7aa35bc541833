# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Makes Transformers' Auto classes and pipelines know OneRef."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskGeneration,
    AutoModelForPreTraining,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    XLMRobertaTokenizer,
)

from .configuration_beit3 import Beit3Config
from .configuration_oneref import OneRefConfig
from .configuration_vqkd import VqkdConfig
from .modeling_beit3 import Beit3Model
from .modeling_oneref import OneRefForGrounding, OneRefForPreTraining, OneRefForSegmentation, OneRefModel
from .modeling_vqkd import VqkdModel


_MODELS = [
    (AutoModel, Beit3Config, Beit3Model),
    (AutoModel, OneRefConfig, OneRefModel),
    (AutoModel, VqkdConfig, VqkdModel),
    (AutoModelForZeroShotObjectDetection, OneRefConfig, OneRefForGrounding),
    (AutoModelForMaskGeneration, OneRefConfig, OneRefForSegmentation),
    (AutoModelForPreTraining, OneRefConfig, OneRefForPreTraining),
]


def register():
    """Registers every class; doing it twice does no harm."""
    for config_class in (Beit3Config, OneRefConfig, VqkdConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        # What is saved carries its own code, so it loads with trust_remote_code=True where this package is absent.
        config_class.register_for_auto_class()
    for auto_class, config_class, model_class in _MODELS:
        auto_class.register(config_class, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class.__name__)
    for config_class in (Beit3Config, OneRefConfig):
        AutoTokenizer.register(config_class, tokenizer_class=XLMRobertaTokenizer, exist_ok=True)
