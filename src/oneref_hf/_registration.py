# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Makes Transformers' Auto classes and pipelines know OneRef.

Registering a class needs the class, and with it most of Transformers, torch and, where it is installed, torchvision.
So each registration waits until the module that would look it up is imported; until then `import oneref_hf` costs
next to nothing. (Transformers has no entry points for packages outside it.)
"""

import sys
from collections.abc import Callable
from types import ModuleType

from wrapt import register_post_import_hook


def _when_imported(theirs: str, *ours: str) -> Callable:
    """Has a function called with Transformers' module `theirs` as soon as that and our modules can be used.

    One of `ours` may be what caused the import of `theirs`, and then be halfway through its own. So every import that
    completes gives the registration another chance; doing it twice does no harm.
    """
    ours = tuple(f"{__package__}.{name}" for name in ours)

    def decorate(register: Callable[[ModuleType], None]):
        def attempt(completed: ModuleType):
            modules = [sys.modules.get(name) for name in (theirs, *ours)]
            halfway = [module for module in modules if module not in (None, completed) and _is_halfway(module)]
            if modules[0] is not None and not halfway:
                register(modules[0])

        for name in (theirs, *ours):
            register_post_import_hook(attempt, name)
        return register

    return decorate


def _is_halfway(module: ModuleType) -> bool:
    return getattr(module.__spec__, "_initializing", False)


@_when_imported(
    "transformers.models.auto.configuration_auto", "configuration_beit3", "configuration_oneref", "configuration_vqkd"
)
def _register_configurations(module):
    from .configuration_beit3 import Beit3Config
    from .configuration_oneref import OneRefConfig
    from .configuration_vqkd import VqkdConfig

    for config_class in (Beit3Config, OneRefConfig, VqkdConfig):
        module.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


@_when_imported("transformers.models.auto.modeling_auto", "modeling_beit3", "modeling_oneref", "modeling_vqkd")
def _register_models(module):
    from .modeling_beit3 import Beit3Model
    from .modeling_oneref import OneRefForGrounding, OneRefForPreTraining, OneRefForSegmentation, OneRefModel
    from .modeling_vqkd import VqkdModel

    for auto_class, model_class in (
        (module.AutoModel, Beit3Model),
        (module.AutoModel, OneRefModel),
        (module.AutoModel, VqkdModel),
        (module.AutoModelForMaskGeneration, OneRefForSegmentation),
        (module.AutoModelForPreTraining, OneRefForPreTraining),
        (module.AutoModelForZeroShotObjectDetection, OneRefForGrounding),
    ):
        auto_class.register(model_class.config_class, model_class, exist_ok=True)


@_when_imported(
    "transformers.models.auto.image_processing_auto",
    "letterbox_oneref",
    "image_processing_oneref",
    "image_processing_pil_oneref",
)
def _register_image_processors(module):
    from .configuration_oneref import OneRefConfig
    from .image_processing_oneref import OneRefImageProcessor
    from .image_processing_pil_oneref import OneRefImageProcessorPil

    classes = {"pil": OneRefImageProcessorPil, "torchvision": OneRefImageProcessor}
    module.AutoImageProcessor.register(OneRefConfig, image_processor_classes=classes, exist_ok=True)


@_when_imported("transformers.models.auto.tokenization_auto", "configuration_beit3", "configuration_oneref")
def _register_tokenizer(module):
    from transformers import XLMRobertaTokenizer

    from .configuration_beit3 import Beit3Config
    from .configuration_oneref import OneRefConfig

    for config_class in (Beit3Config, OneRefConfig):
        module.AutoTokenizer.register(config_class, tokenizer_class=XLMRobertaTokenizer, exist_ok=True)


@_when_imported("transformers.models.auto.processing_auto", "letterbox_oneref", "processing_oneref")
def _register_processor(module):
    from .configuration_oneref import OneRefConfig
    from .processing_oneref import OneRefProcessor

    module.AutoProcessor.register(OneRefConfig, OneRefProcessor, exist_ok=True)


@_when_imported("transformers.pipelines", "pipeline_oneref")
def _register_pipeline(module):
    from .pipeline_oneref import AutoModelForReferringExpression, ReferringExpressionPipeline

    if "referring-expression" not in module.PIPELINE_REGISTRY.get_supported_tasks():
        module.PIPELINE_REGISTRY.register_pipeline(
            "referring-expression",
            pipeline_class=ReferringExpressionPipeline,
            pt_model=AutoModelForReferringExpression,
            type="multimodal",
        )
