# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""BEiT-3 model configuration."""

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


@strict
class Beit3Config(PreTrainedConfig):
    r"""
    Configuration of a [`Beit3Model`]. The defaults are BEiT-3 base at 384 pixels, the backbone of OneRef base.

    Args:
        vocab_size (`int`, *optional*, defaults to 64010):
            Rows of the token embedding. BEiT-3's SentencePiece vocabulary uses the first 64,002 of them.
        hidden_size (`int`, *optional*, defaults to 768):
            Width D of both streams (1024 for large).
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of layers, each with a vision and a text expert (24 for large).
        num_attention_heads (`int`, *optional*, defaults to 12):
            Heads of the attention that both streams share (16 for large).
        intermediate_size (`int`, *optional*, defaults to 3072):
            Width of the feed-forward layers (4096 for large).
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers; `"gelu"` is the exact, erf-based one.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of every LayerNorm.
        image_size (`int`, *optional*, defaults to 384):
            Side S of the square input in pixels that the position table is made for; a multiple of `patch_size`.
        patch_size (`int`, *optional*, defaults to 16):
            Side p of a patch in pixels.
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the input image.
        max_position_embeddings (`int`, *optional*, defaults to 1024):
            Rows of the text position table. As in RoBERTa, the first two are never read, so a text may have
            `max_position_embeddings - 2` tokens.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout of the attention probabilities in training. BEiT-3 uses none.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last layer in training, growing linearly from 0 at the first one. The paper's
            recipes train with 0.1.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the truncated normal that initialises the linear layers; values beyond one
            standard deviation are drawn again, as in BEiT-3.
        shared_image_layers (`int`, *optional*, defaults to 0):
            Number of first layers in which the image does not read the text, while the text reads the image. Their
            image stream is then the same for all phrases about a picture and computed once, which saves nearly this
            share of the work where there are many. **An approximation**: BEiT-3's image reads the text in every
            layer, and only 0 gives the answers that the weights were trained for.
        pad_token_id, bos_token_id, eos_token_id (`int`, *optional*, defaults to 1, 0 and 2):
            Special tokens of the vocabulary.

    Example:

    ```python
    >>> from oneref_hf import Beit3Config, Beit3Model

    >>> config = Beit3Config(image_size=224)
    >>> model = Beit3Model(config)
    ```"""

    model_type = "beit3"
    _auto_class = "AutoConfig"

    vocab_size: int = 64010
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    image_size: int = 384
    patch_size: int = 16
    num_channels: int = 3
    max_position_embeddings: int = 1024
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    shared_image_layers: int = 0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2

    def validate_architecture(self):
        """Part of `@strict`-powered validation: rules that concern more than one field.

        Raises:
            ValueError: if a size is not positive, heads do not divide the hidden size, patches do not divide the
                image, there are fewer layers than shared ones, or `drop_path_rate` is outside [0, 1).
        """
        sizes = "vocab_size hidden_size num_attention_heads intermediate_size patch_size num_channels"
        for name in sizes.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.image_size < self.patch_size or self.image_size % self.patch_size != 0:
            raise ValueError(
                f"image_size ({self.image_size}) must be a positive multiple of patch_size ({self.patch_size})."
            )
        if not 0 <= self.shared_image_layers <= self.num_hidden_layers:
            raise ValueError(
                f"shared_image_layers ({self.shared_image_layers}) must lie between 0 and num_hidden_layers "
                f"({self.num_hidden_layers})."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {self.drop_path_rate}.")


__all__ = ["Beit3Config"]
