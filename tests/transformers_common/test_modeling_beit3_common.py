# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' configuration and model tests on BEiT-3."""

import unittest

from oneref_hf.configuration_beit3 import Beit3Config
from oneref_hf.modeling_beit3 import Beit3Model
from transformers_common.exceptions import with_exceptions
from transformers_common.testers import Beit3Tester
from transformers_common.upstream import load


class Beit3ConfigTest(unittest.TestCase):
    def test_config(self):
        tester = load("test_configuration_common").ConfigTester(self, config_class=Beit3Config, hidden_size=36)
        tester.run_common_tests()


@with_exceptions
class Beit3ModelTest(load("test_modeling_common").ModelTesterMixin, unittest.TestCase):
    all_model_classes = (Beit3Model,)
    additional_model_inputs = ("input_ids",)

    def setUp(self):
        self.model_tester = Beit3Tester(self)
