# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny configurations and inputs for Transformers' model tests."""

import torch
from transformers.testing_utils import torch_device

from oneref_hf.configuration_beit3 import Beit3Config
from oneref_hf.configuration_oneref import OneRefConfig
from oneref_hf.configuration_vqkd import VqkdConfig
from transformers_common.upstream import load


modeling_common = load("test_modeling_common")
# How the tests tell base models, which have no loss, from heads; names registered from outside are not in it.
modeling_common.MODEL_MAPPING_NAMES = {
    **modeling_common.MODEL_MAPPING_NAMES,
    "beit3": "Beit3Model",
    "oneref": "OneRefModel",
    "vqkd": "VqkdModel",
}

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}


class VisionTester:
    """What Transformers asks of a tester: sizes as attributes, and `prepare_config_and_inputs_for_common`."""

    config_class = None
    is_training = True

    def __init__(self, parent, batch_size: int = 3, **sizes):
        self.parent = parent
        self.batch_size = batch_size
        self.sizes = {**SIZES, **sizes}
        vars(self).update(self.sizes)
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.seq_length = 1 + self.num_patches
        # The test of SDPA masks the first patches.
        self.num_masks, self.mask_length = 1, self.num_patches

    def get_config(self):
        return self.config_class(**self.sizes)

    def pixel_values(self) -> torch.Tensor:
        return modeling_common.floats_tensor([self.batch_size, 3, self.image_size, self.image_size])

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": self.pixel_values()}


class VqkdTester(VisionTester):
    config_class = VqkdConfig

    def __init__(self, parent, **sizes):
        super().__init__(parent, codebook_size=24, codebook_dim=8, **sizes)


class Beit3Tester(VisionTester):
    """Images and texts of which some tokens are padding."""

    config_class = Beit3Config
    text_length = 7

    def __init__(self, parent, **sizes):
        super().__init__(parent, vocab_size=99, max_position_embeddings=20, **sizes)
        self.seq_length += self.text_length

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.text_length]
        inputs = {
            "pixel_values": self.pixel_values(),
            "input_ids": modeling_common.ids_tensor(shape, self.vocab_size),
            "attention_mask": torch.ones(shape, dtype=torch.long, device=torch_device),
        }
        inputs["attention_mask"][:, -2:] = 0
        return self.get_config(), inputs


class OneRefTester(Beit3Tester):
    """Adds the labels of the heads: the same ones at every call, because some tests compare two."""

    config_class = OneRefConfig

    def __init__(self, parent, **sizes):
        # With the contrastive loss, which is off by default, every parameter gets a gradient.
        super().__init__(parent, visual_vocab_size=24, loss_weights={"contrastive": 1.0}, **sizes)

    def grounding_labels(self) -> dict[str, torch.Tensor]:
        masks = torch.zeros(self.batch_size, self.image_size, self.image_size)
        masks[:, 8:24, 4:20] = 1
        boxes = torch.tensor([12, 16, 16, 16]) / self.image_size
        patches = torch.arange(self.num_patches) == 0  # the mask token needs a gradient too
        labels = {
            "bool_masked_pos": patches.expand(self.batch_size, -1),
            "box_labels": boxes.expand(self.batch_size, -1),
            "mask_labels": masks,
        }
        return {name: value.to(torch_device) for name, value in labels.items()}

    def pretraining_labels(self) -> dict[str, torch.Tensor]:
        grounding = self.grounding_labels()
        patches, words = grounding["bool_masked_pos"], torch.arange(self.text_length).expand(self.batch_size, -1)
        labels = {
            "visual_token_labels": torch.where(patches, 5, -100),
            "visual_relation_labels": torch.linspace(-1, 1, 4).expand(*patches.shape, -1),
            "mlm_labels": torch.where((words == 2) | (words == 3), words, -100),
            "semantic_relation_labels": words[:, 1:-1] / self.text_length,
        }
        return {**grounding, **{name: value.to(torch_device) for name, value in labels.items()}}
