# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""BEiT-3's encoder as its authors published it: `torchscale==0.3.0`, the yardstick for parity and for speed.

torchscale imports timm for one function and fairscale for two names. Both are replaced by stand-ins here, so that
neither package is needed: drop path is the identity in evaluation, and activation checkpointing is off.
"""

import sys
import types

import torch
from torch import nn


def build_torchscale_beit3(
    hidden_size: int = 768,
    num_hidden_layers: int = 12,
    num_attention_heads: int = 12,
    intermediate_size: int = 3072,
    image_size: int = 384,
    patch_size: int = 16,
    vocab_size: int = 64010,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """The encoder `torchscale.model.BEiT3` in evaluation mode, with its own random initialisation.

    Raises:
        ImportError: when torchscale is not installed (`pip install --no-deps torchscale==0.3.0`).
    """
    _install_stand_ins()
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3

    config = EncoderConfig(
        img_size=image_size,
        patch_size=patch_size,
        vocab_size=vocab_size,
        multiway=True,
        layernorm_embedding=False,
        normalize_output=True,
        no_output_layer=True,
        drop_path_rate=drop_path_rate,
        encoder_embed_dim=hidden_size,
        encoder_attention_heads=num_attention_heads,
        encoder_ffn_embed_dim=intermediate_size,
        encoder_layers=num_hidden_layers,
        checkpoint_activations=False,
    )
    return BEiT3(config).eval()


def run_torchscale_beit3(
    encoder: nn.Module,
    pixel_values: torch.Tensor | None,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    bool_masked_pos: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states of the joint sequence; the mask is given in Transformers' polarity (1 = token)."""
    return encoder(
        textual_tokens=input_ids,
        visual_tokens=pixel_values,
        text_padding_position=None if attention_mask is None else attention_mask == 0,
        vision_masked_position=bool_masked_pos,
    )["encoder_out"]


def _install_stand_ins():
    if "timm.models.layers" not in sys.modules:
        timm, models, layers = (types.ModuleType(name) for name in ("timm", "timm.models", "timm.models.layers"))
        layers.drop_path = lambda hidden_states, drop_prob, training: hidden_states
        timm.models, models.layers = models, layers
        sys.modules.update({"timm": timm, "timm.models": models, "timm.models.layers": layers})
    if "fairscale.nn" not in sys.modules:
        fairscale, fairscale_nn = types.ModuleType("fairscale"), types.ModuleType("fairscale.nn")
        fairscale_nn.checkpoint_wrapper = fairscale_nn.wrap = lambda module, *args, **kwargs: module
        fairscale.nn = fairscale_nn
        sys.modules.update({"fairscale": fairscale, "fairscale.nn": fairscale_nn})
