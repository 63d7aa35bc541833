# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' configuration and model tests on OneRef and its three heads."""

import unittest

from oneref_hf.configuration_oneref import OneRefConfig
from oneref_hf.modeling_oneref import OneRefForGrounding, OneRefForPreTraining, OneRefForSegmentation, OneRefModel
from transformers_common.exceptions import with_exceptions
from transformers_common.testers import OneRefTester
from transformers_common.upstream import load


ModelTesterMixin = load("test_modeling_common").ModelTesterMixin


class OneRefConfigTest(unittest.TestCase):
    def test_config(self):
        tester = load("test_configuration_common").ConfigTester(self, config_class=OneRefConfig, hidden_size=36)
        tester.run_common_tests()


class OneRefCase(ModelTesterMixin):
    additional_model_inputs = ("input_ids",)

    def setUp(self):
        self.model_tester = OneRefTester(self)


@with_exceptions
class OneRefModelTest(OneRefCase, unittest.TestCase):
    all_model_classes = (OneRefModel,)


class HeadCase(OneRefCase):
    """Hands the labels to the head under test."""

    def labels(self) -> dict:
        return self.model_tester.grounding_labels()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, **self.labels()} if return_labels else inputs


@with_exceptions
class OneRefForGroundingTest(HeadCase, unittest.TestCase):
    all_model_classes = (OneRefForGrounding,)


@with_exceptions
class OneRefForSegmentationTest(HeadCase, unittest.TestCase):
    all_model_classes = (OneRefForSegmentation,)


@with_exceptions
class OneRefForPreTrainingTest(HeadCase, unittest.TestCase):
    all_model_classes = (OneRefForPreTraining,)

    def labels(self) -> dict:
        return self.model_tester.pretraining_labels()
