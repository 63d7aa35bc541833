# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' processor tests on OneRefProcessor."""

import unittest
from pathlib import Path

from tokenizer import build_tokenizer

from oneref_hf.image_processing_pil_oneref import OneRefImageProcessorPil
from oneref_hf.processing_oneref import OneRefProcessor
from transformers_common.exceptions import with_exceptions
from transformers_common.upstream import load


@with_exceptions
class OneRefProcessorTest(load("test_processing_common").ProcessorTesterMixin, unittest.TestCase):
    processor_class = OneRefProcessor

    @classmethod
    def _setup_image_processor(cls):
        return OneRefImageProcessorPil(size={"height": 24, "width": 24})

    @classmethod
    def _setup_tokenizer(cls):
        return build_tokenizer(Path(__file__).parents[1] / "fixtures" / "tiny.spm")
