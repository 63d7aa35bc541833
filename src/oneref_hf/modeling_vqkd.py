# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""VQ-KD visual tokenizer (BEiT v2): a vision transformer and a codebook that name every image patch by a number."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_vqkd import VqkdConfig


@dataclass
class VqkdModelOutput(ModelOutput):
    """
    Output of [`VqkdModel`]. P is the number of patches, row by row from the top left.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, 1 + P, hidden_size)`):
            Output of the last encoder layer: the CLS position, then the patches. No normalisation follows it.
        codes (`torch.LongTensor` of shape `(batch, P)`):
            For every patch the index in `[0, codebook_size)` of the code nearest to its normalised feature.
        features (`torch.FloatTensor` of shape `(batch, P, codebook_dim)`):
            What is quantised, BEFORE its L2 normalisation (the original's `to_quantizer_features`).
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
            Input of the first layer and output of each layer, `(batch, 1 + P, hidden_size)`.
        attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True` and eager attention):
            Attention weights of each layer, `(batch, num_attention_heads, 1 + P, 1 + P)`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    features: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class VqkdEmbeddings(nn.Module):
    """Patches, the CLS token in front of them, and absolute positions."""

    def __init__(self, config: VqkdConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.grid_size = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(1 + self.grid_size**2, config.hidden_size)

    def positions(self, height: int, width: int) -> torch.Tensor:
        """
        Position vectors for a grid of `height` x `width` patches, `(1 + height * width, hidden_size)`: the table as it
        is, or its patch rows interpolated bicubically in float32.

        The original (as DINO, whence it comes) adds 0.1 to the wanted size so that rounding cannot lose a row, and
        hands the resulting ratio, not the size, to the interpolation. This moves the sampling points, so it is kept.
        """
        table = self.position_embedding.weight
        if (height, width) == (self.grid_size, self.grid_size):
            return table
        patches = table[1:].float().unflatten(0, (self.grid_size, self.grid_size)).permute(2, 0, 1)
        patches = nn.functional.interpolate(
            patches[None],
            scale_factor=((height + 0.1) / self.grid_size, (width + 0.1) / self.grid_size),
            mode="bicubic",
        )
        return torch.cat([table[:1], patches[0].flatten(1).T.to(table.dtype)])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values)  # (batch, hidden_size, height, width)
        positions = self.positions(*patches.shape[-2:])
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([cls_token, patches.flatten(2).transpose(1, 2)], dim=1) + positions


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention spelled out, for `attn_implementation="eager"`; patches are never padded, so there is no mask."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class VqkdAttention(nn.Module):
    """Multi-head self-attention whose keys have no bias: softmax would cancel it."""

    def __init__(self, config: VqkdConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads_shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads_shape).transpose(1, 2)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.out_proj(attended.reshape(hidden_states.shape)), weights


class VqkdLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer."""

    def __init__(self, config: VqkdConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VqkdAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.fc2(self.activation(self.fc1(self.mlp_norm(hidden_states))))


class VqkdProjection(nn.Module):
    """From the width of the encoder to that of the codebook: linear, tanh, linear."""

    def __init__(self, config: VqkdConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, config.codebook_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(hidden_states)))


class VqkdCodebook(nn.Embedding):
    """
    Table of codes, `weight` of shape `(codebook_size, codebook_dim)`, compared as it is stored: its rows should have
    length 1. It gets no gradient; another codebook, from k-means for instance, is copied into the weight.
    """

    @torch.no_grad()
    def nearest(self, features: torch.Tensor) -> torch.LongTensor:
        """
        Index of the code at the least squared distance from each L2-normalised feature, the lowest index where several
        are equally near: `(..., codebook_dim)` -> `(...)`. Computed in float32 and summed in the original's order
        (`NormEMAVectorQuantizer`), because bfloat16 cannot tell neighbouring codes apart.
        """
        with maybe_autocast(features.device.type, enabled=False):  # else mixed-precision training lowers the product
            vectors = nn.functional.normalize(features.float(), dim=-1)
            codes = self.weight.float()
            squares = vectors.pow(2).sum(-1, keepdim=True) + codes.pow(2).sum(-1)
            return (squares - 2 * vectors @ codes.T).argmin(-1)


class VqkdPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading for [`VqkdModel`]."""

    config: VqkdConfig
    base_model_prefix = "vqkd"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VqkdEmbeddings", "VqkdLayer"]
    _input_embed_layer = "patch_embedding"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": VqkdLayer, "attentions": VqkdAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, VqkdCodebook):
            init.normal_(module.weight)
            init.copy_(module.weight, nn.functional.normalize(module.weight, dim=-1))
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            init.trunc_normal_(module.weight, std=std, a=-std, b=std)
        elif isinstance(module, VqkdEmbeddings):
            init.trunc_normal_(module.cls_token, std=std, a=-std, b=std)


class VqkdModel(VqkdPreTrainedModel):
    """
    Encoder and codebook of the VQ-KD tokenizer; the decoder, which only its training needs, is left out.

    OneRef's masked image modelling predicts the codes that this model gives to the masked patches.

    Args:
        config ([`VqkdConfig`]): sizes of the model.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: VqkdConfig):
        super().__init__(config)
        self.embeddings = VqkdEmbeddings(config)
        self.layers = nn.ModuleList([VqkdLayer(config) for _ in range(config.num_hidden_layers)])
        self.patch_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = VqkdProjection(config)
        self.codebook = VqkdCodebook(config.codebook_size, config.codebook_dim)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]) -> VqkdModelOutput:
        r"""
        Encodes images and names their patches.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`):
                Images in [0, 1], NOT normalised by mean and deviation: the model itself stretches them to [-1, 1].
                Height and width must be multiples of `config.patch_size`; where they differ from
                `config.image_size`, positions are interpolated.

        Returns:
            [`VqkdModelOutput`]

        Raises:
            ValueError: if `pixel_values` is not a floating-point batch of images of a usable size.
        """
        self._check_pixel_values(pixel_values)
        # In float32 even for a half-precision model, so that pixels are rounded once.
        pixel_values = pixel_values.float() * 255.0 / 127.5 - 1.0
        hidden_states = self.embeddings(pixel_values.to(self.embeddings.patch_embedding.weight.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        features = self.projection(self.patch_norm(hidden_states[:, 1:]))
        codes = self.codebook.nearest(features)
        return VqkdModelOutput(last_hidden_state=hidden_states, codes=codes, features=features)

    @torch.no_grad()
    def get_codebook_indices(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """
        Codes of the patches of images in [0, 1]: `(batch, num_channels, height, width)` -> `(batch, P)`, row by row,
        each in `[0, codebook_size)`. Computes no gradients; other conditions are those of [`VqkdModel.forward`].
        """
        return self(pixel_values).codes

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        channels, patch_size = self.config.num_channels, self.config.patch_size
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != channels:
            raise ValueError(f"pixel_values must have shape (batch, {channels}, height, width), got {shape}.")
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values must be floating point in [0, 1], got {pixel_values.dtype}.")
        height, width = shape[2:]
        if not height or not width or height % patch_size or width % patch_size:
            raise ValueError(
                f"Height and width of pixel_values must be multiples of the patch size {patch_size}, "
                f"got {height} x {width}; resize or pad the images first."
            )


__all__ = ["VqkdModel", "VqkdPreTrainedModel"]
