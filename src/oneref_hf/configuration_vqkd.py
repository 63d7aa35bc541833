# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the VQ-KD visual tokenizer."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class VqkdConfig(PreTrainedConfig):
    r"""
    Sizes of a [`VqkdModel`], the visual tokenizer of BEiT v2 ("BEiT v2: Masked Image Modeling with Vector-Quantized
    Visual Tokenizers", section 3.1). The defaults are those of the released tokenizer, which OneRef uses.

    Args:
        image_size (`int`, *optional*, defaults to 224):
            Side in pixels of the square images the position table was made for. Other sizes are accepted by the
            model, which then interpolates the table.
        patch_size (`int`, *optional*, defaults to 16):
            Side in pixels of a square patch; `image_size` must be a multiple of it.
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels of an image.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the encoder; must be a multiple of `num_attention_heads`.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of encoder layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads in each layer.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the hidden layer of each feed-forward network.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward networks, by its name in `transformers.activations.ACT2FN`.
        layer_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of every layer normalisation.
        codebook_size (`int`, *optional*, defaults to 8192):
            Number of codes, the visual vocabulary; the codes of an image are in `[0, codebook_size)`.
        codebook_dim (`int`, *optional*, defaults to 32):
            Dimension of a code.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of freshly initialised weights; they are cut off at plus and minus one deviation.

    Example:

    ```python
    >>> from oneref_hf import VqkdConfig, VqkdModel

    >>> model = VqkdModel(VqkdConfig(num_hidden_layers=2))
    >>> model.config.codebook_size
    8192
    ```
    """

    model_type = "vqkd"
    _auto_class = "AutoConfig"

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    codebook_size: int = 8192
    codebook_dim: int = 32
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Part of `@strict` validation: refuses sizes that make no model.

        Raises:
            ValueError: if a size is below 1, heads do not divide the hidden size, or patches do not divide the image.
        """
        sizes = "patch_size num_channels hidden_size num_attention_heads codebook_size codebook_dim"
        for name in sizes.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.image_size < self.patch_size or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be a positive multiple of patch_size ({self.patch_size})."
            )


__all__ = ["VqkdConfig"]
