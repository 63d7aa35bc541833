# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' image processor tests on both backends, or on PIL alone where torchvision is not installed."""

import unittest

from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from oneref_hf.configuration_oneref import OneRefConfig
from oneref_hf.image_processing_oneref import OneRefImageProcessor
from oneref_hf.image_processing_pil_oneref import OneRefImageProcessorPil
from transformers_common.exceptions import with_exceptions
from transformers_common.upstream import load


image_processing_common = load("test_image_processing_common")


class OneRefImageProcessingTester(image_processing_common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(parent, size={"height": 24, "width": 24}, **kwargs)

    def _get_image_processing_classes(self):
        classes = {"pil": OneRefImageProcessorPil}
        if is_torchvision_available():
            classes["torchvision"] = OneRefImageProcessor
        return classes


@with_exceptions
class OneRefImageProcessingTest(image_processing_common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = OneRefImageProcessingTester
    test_cast_dtype = True

    def test_new_models_require_torchvision_backend(self):
        registered = IMAGE_PROCESSOR_MAPPING[OneRefConfig]
        self.assertEqual(registered, {"torchvision": OneRefImageProcessor, "pil": OneRefImageProcessorPil})
