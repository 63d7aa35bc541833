# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor of OneRef on torchvision, which can work on an accelerator."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.processing_utils import Unpack
from transformers.utils import is_torchvision_available
from transformers.utils.import_utils import requires, requires_backends

from .letterbox_oneref import OneRefImageProcessorKwargs, OneRefImageProcessorMixin


@requires(backends=("torch", "torchvision"))
class OneRefImageProcessor(OneRefImageProcessorMixin, TorchvisionBackend):
    r"""
    The image processor of OneRef on torchvision (`device="cuda"` works there). It follows `OneRefImageProcessorPil`,
    whose docstring says what is accepted and how it is read, to 2/255 before normalising: the antialiased resize
    differs in the last bits. Without torchvision an instance cannot be made (`ImportError`), and `AutoImageProcessor`
    gives `OneRefImageProcessorPil` instead.
    """

    _auto_class = "AutoImageProcessor"
    valid_kwargs = OneRefImageProcessorKwargs
    is_dummy = not is_torchvision_available()  # Transformers' mark for a class whose backend is missing

    def __init__(self, **kwargs: Unpack[OneRefImageProcessorKwargs]):
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)


__all__ = ["OneRefImageProcessor"]
