# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' configuration and model tests on the VQ-KD tokenizer."""

import unittest

from torch import nn

from oneref_hf.configuration_vqkd import VqkdConfig
from oneref_hf.modeling_vqkd import VqkdModel
from transformers_common.exceptions import with_exceptions
from transformers_common.testers import VqkdTester
from transformers_common.upstream import load


class VqkdConfigTest(unittest.TestCase):
    def test_config(self):
        tester = load("test_configuration_common").ConfigTester(
            self, config_class=VqkdConfig, has_text_modality=False, hidden_size=36
        )
        tester.run_common_tests()


@with_exceptions
class VqkdModelTest(load("test_modeling_common").ModelTesterMixin, unittest.TestCase):
    all_model_classes = (VqkdModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = VqkdTester(self)

    def test_model_get_set_embeddings(self):
        model = VqkdModel(self.model_tester.get_config())
        self.assertIsInstance(model.get_input_embeddings(), nn.Conv2d)
        replacement = nn.Conv2d(3, 32, kernel_size=16, stride=16)
        model.set_input_embeddings(replacement)
        self.assertIs(model.get_input_embeddings(), replacement)
        self.assertIsNone(model.get_output_embeddings())
