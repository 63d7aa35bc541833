# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""BEiT-3: one tower that reads image patches and words together.

Every linear layer and LayerNorm exists twice, once per modality (the "experts" of a multiway transformer); attention
alone sees the joint sequence. The two modalities therefore travel as two contiguous streams and meet only inside
[`Beit3Attention`]: each expert works on its own tensor, without splitting or joining the sequence around it.

Source: "Image as a Foreign Language" (arXiv 2208.10442), as implemented by torchscale 0.3.0 with sub-LayerNorm.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import (
    OutputRecorder,
    capture_outputs,
    resolve_hidden_states_indices,
    selected_hidden_states,
)

from .configuration_beit3 import Beit3Config


# Position tables follow fairseq: the first two rows exist in every checkpoint and are never read.
POSITION_OFFSET = 2

_CHECKPOINT_LOCATION_KWARGS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@dataclass
class Beit3ModelOutput(ModelOutput):
    r"""
    Output of [`Beit3Model`]. A modality that was not given leaves its fields `None`.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + num_patches + text_length, hidden_size)`):
            Normalised hidden states in the order image CLS, patches (row by row), text tokens.
        vision_last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + num_patches, hidden_size)`):
            The image part of `last_hidden_state`.
        text_last_hidden_state (`torch.FloatTensor` of shape `(batch_size, text_length, hidden_size)`):
            The text part of `last_hidden_state`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states` asks for it):
            The embeddings and the output of each layer, in the layout of `last_hidden_state`; the last entry is
            `last_hidden_state` itself.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
            Per layer the attention probabilities `(batch_size, num_heads, sequence_length, sequence_length)` over the
            joint sequence; eager attention only.
    """

    last_hidden_state: torch.FloatTensor | None = None
    vision_last_hidden_state: torch.FloatTensor | None = None
    text_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class Beit3EncodedImages(NamedTuple):
    r"""
    Images that any number of texts can read, in any number of forward passes; see [`Beit3Model.encode_images`].

    Args:
        states (`torch.FloatTensor` of shape `(num_images, 1 + num_patches, hidden_size)`):
            The image stream as the first joint layer takes it: the embeddings, or what the last shared layer gave.
        keys_values (`tuple(torch.FloatTensor)`):
            For each shared layer the packed keys and values of the image, `(num_images, 1 + num_patches, 2 *
            hidden_size)`. Empty unless `config.shared_image_layers` is set.
        grid_size (`tuple[int, int]`):
            Rows and columns of patches.
    """

    states: torch.FloatTensor
    keys_values: tuple[torch.FloatTensor, ...]
    grid_size: tuple[int, int]


def interpolate_patch_positions(positions: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Positions `(P, D)` of a square grid of patches for another grid, `(height * width, D)`, in float32.

    Bicubic without antialiasing: what the original does to its weights when it goes from 224 to 384 pixels.
    """
    side = math.isqrt(positions.shape[0])
    grid = positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=grid_size, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(0, 2)


class Beit3PatchEmbedding(nn.Conv2d):
    """A convolution whose stride is its kernel size, computed as the matrix product that it is.

    The result then has the layout of the stream. On a CPU the convolution takes 1.4 times as long, and four times as
    long for several images whose channels come last.
    """

    def __init__(self, num_channels: int, hidden_size: int, patch_size: int):
        super().__init__(num_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """From images `(batch_size, num_channels, height, width)` to `(batch_size, num_patches, hidden_size)`."""
        size = self.kernel_size[0]
        patches = pixel_values.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        return nn.functional.linear(patches.flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)


class Beit3VisionEmbeddings(nn.Module):
    """Patches of the image behind a CLS token, with learned positions; masked patches become the mask token."""

    def __init__(self, config: Beit3Config):
        super().__init__()
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        self.grid_size = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = Beit3PatchEmbedding(config.num_channels, config.hidden_size, config.patch_size)
        self.position_embedding = nn.Embedding(self.grid_size**2 + 1 + POSITION_OFFSET, config.hidden_size)

    def interpolate_pos_encoding(self, grid_height: int, grid_width: int) -> torch.Tensor:
        """Positions of the CLS token and of a `grid_height` x `grid_width` grid, `(1 + num_patches, hidden_size)`."""
        rows = self.position_embedding.weight[POSITION_OFFSET:]
        patches = interpolate_patch_positions(rows[1:], (grid_height, grid_width))
        return torch.cat([rows[:1], patches.to(rows.dtype)])

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        batch_size, _, height, width = pixel_values.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"The image is {height}x{width} pixels, which is not a multiple of the patch size {self.patch_size}."
            )
        if not interpolate_pos_encoding and (height != self.image_size or width != self.image_size):
            raise ValueError(
                f"The image is {height}x{width} pixels but the model is made for {self.image_size}x{self.image_size}; "
                "resize it or pass interpolate_pos_encoding=True."
            )

        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        grid_height, grid_width = height // self.patch_size, width // self.patch_size

        if bool_masked_pos is not None:
            if bool_masked_pos.shape != patches.shape[:2]:
                raise ValueError(
                    f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, but one value per patch is needed: "
                    f"{tuple(patches.shape[:2])}."
                )
            patches = torch.where(bool_masked_pos.bool()[..., None], self.mask_token, patches)

        if interpolate_pos_encoding and (grid_height != self.grid_size or grid_width != self.grid_size):
            positions = self.interpolate_pos_encoding(grid_height, grid_width)
        else:
            positions = self.position_embedding.weight[POSITION_OFFSET:]
        return torch.cat([self.cls_token.expand(batch_size, -1, -1), patches], dim=1) + positions


class Beit3TextEmbeddings(nn.Module):
    """Token embeddings with learned positions; padded tokens are set to zero, as in the original."""

    def __init__(self, config: Beit3Config):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        text_length = input_ids.shape[1]
        longest = self.position_embedding.num_embeddings - POSITION_OFFSET
        if text_length > longest:
            raise ValueError(f"The text has {text_length} tokens, but the model has positions for {longest} only.")
        positions = self.position_embedding.weight[POSITION_OFFSET : POSITION_OFFSET + text_length]
        embeddings = self.token_embedding(input_ids) + positions
        if attention_mask is not None:
            embeddings = embeddings * attention_mask[..., None].to(embeddings.dtype)
        return embeddings


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference attention: softmax in float32; inputs `(batch_size, num_heads, length, head_dim)`."""
    attention_weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        attention_weights = attention_weights + attention_mask
    attention_weights = nn.functional.softmax(attention_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attention_weights = nn.functional.dropout(attention_weights, p=dropout, training=module.training)
    context = torch.matmul(attention_weights, value)
    return context.transpose(1, 2).contiguous(), attention_weights


class Beit3Attention(nn.Module):
    """Attention over the joint sequence. It has no weights: the experts project into and out of it."""

    def __init__(self, config: Beit3Config):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False

    def _heads(self, packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Splits `(batch_size, length, n * hidden_size)` into n of `(batch_size, num_heads, length, head_dim)`."""
        batch_size, length, _ = packed.shape
        return packed.view(batch_size, length, -1, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(
        self,
        qkv: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_keys_values: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """From packed projections `(batch_size, length, 3 * hidden_size)` to the context `(..., hidden_size)`.

        `image_keys_values` `(batch_size, image_length, 2 * hidden_size)` are read before the own ones.
        """
        batch_size, length, _ = qkv.shape
        query, key, value = self._heads(qkv)
        if image_keys_values is not None:
            image_key, image_value = self._heads(image_keys_values)
            key, value = torch.cat([image_key, key], dim=2), torch.cat([image_value, value], dim=2)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, attention_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            is_causal=self.is_causal,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return context.reshape(batch_size, length, -1), attention_weights


class Beit3Expert(nn.Module):
    """The weights of one modality in one layer: a pre-norm, sub-norm block without the attention itself."""

    def __init__(self, config: Beit3Config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.attention_sub_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.mlp_sub_norm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def project_in(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.qkv_proj(self.attention_norm(hidden_states))

    def project_out(self, context: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.attention_sub_norm(context))

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation(self.fc1(self.mlp_norm(hidden_states)))
        return self.fc2(self.mlp_sub_norm(hidden_states))


class Beit3DropPath(nn.Module):
    """Stochastic depth per sample (arXiv 1603.09382): a dropped sample skips the branch in both modalities."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branches: list[torch.Tensor]) -> list[torch.Tensor]:
        if self.drop_prob == 0.0 or not self.training:
            return branches
        keep_prob = 1.0 - self.drop_prob
        scale = branches[0].new_empty(branches[0].shape[0], 1, 1).bernoulli_(keep_prob).div_(keep_prob)
        return [branch * scale for branch in branches]

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class Beit3Layer(GradientCheckpointingLayer):
    """One layer: two experts around one attention. Either stream may be absent (`None`).

    Returns both streams and, of an image stream without text, its packed keys and values (a view).
    """

    def __init__(self, config: Beit3Config, drop_path: float):
        super().__init__()
        self.vision = Beit3Expert(config)
        self.text = Beit3Expert(config)
        self.attention = Beit3Attention(config)
        self.drop_path = Beit3DropPath(drop_path)

    def forward(
        self,
        vision_states: torch.Tensor | None,
        text_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        image_indices: torch.Tensor | None = None,
        image_keys_values: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            image_indices: the image of each text, where they are not paired one to one. The image stream comes out
                once per text, but is projected once per image.
            image_keys_values: for the text stream alone, an image stream that it reads: keys and values of this layer.
        """
        present = [
            (expert, states)
            for expert, states in ((self.vision, vision_states), (self.text, text_states))
            if states is not None
        ]
        experts, streams = map(list, zip(*present))

        # Step 1. Attention over the joint sequence.
        qkv = [expert.project_in(states) for expert, states in present]
        if image_indices is not None:
            if image_keys_values is not None:
                image_keys_values = image_keys_values[image_indices]
            else:
                qkv[0], streams[0] = qkv[0][image_indices], streams[0][image_indices]
        joint = qkv[0] if len(qkv) == 1 else torch.cat(qkv, dim=1)
        keys_values = joint[..., streams[0].shape[-1] :] if text_states is None else None
        context, _ = self.attention(joint, attention_mask, image_keys_values, **kwargs)
        contexts = context.split([states.shape[1] for states in streams], dim=1)
        branches = [expert.project_out(part) for expert, part in zip(experts, contexts)]
        streams = [states + branch for states, branch in zip(streams, self.drop_path(branches))]
        del qkv, joint, context, contexts, branches  # the feed-forward pass has use for their memory

        # Step 2. Feed-forward of each modality.
        branches = [expert.feed_forward(states) for expert, states in zip(experts, streams)]
        streams = [states + branch for states, branch in zip(streams, self.drop_path(branches))]

        if vision_states is None:
            return None, streams[0], None
        return streams[0], streams[1] if text_states is not None else None, keys_values


class Beit3PreTrainedModel(PreTrainedModel):
    """Weight initialisation and the abilities shared by [`Beit3Model`] and everything built on it."""

    config: Beit3Config
    config_class = Beit3Config
    base_model_prefix = "beit3"
    # Every concrete class names its Auto class as `register_for_auto_class` would: what it saves then carries its own
    # code and loads with trust_remote_code=True where this package is not installed.
    _auto_class: str | None = None
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Beit3VisionEmbeddings", "Beit3TextEmbeddings", "Beit3Layer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Hidden states are joined from the two streams in `Beit3Model.forward`, hence not recorded by a hook.
    _can_record_outputs = {"attentions": OutputRecorder(Beit3Attention, index=1)}

    # How to rename the parameters of a checkpoint of another `model_type`, by that type.
    _key_mapping_from: dict[str, dict[str, str]] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As in Transformers; BEiT-3 and OneRef checkpoints load into each other as far as they share parameters."""
        key_mapping = None
        if cls._key_mapping_from and pretrained_model_name_or_path is not None:
            where = {name: kwargs[name] for name in _CHECKPOINT_LOCATION_KWARGS if name in kwargs}
            source, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **where)
            key_mapping = cls._key_mapping_from.get(source.get("model_type"))
        if key_mapping is None or kwargs.get("key_mapping") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, **{**kwargs, "key_mapping": key_mapping}
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Otherwise saving would map the names back and write a file that this class cannot read.
        model._weight_conversions = None
        return loaded

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # Transformers skips modules without parameters of their own in code that does not initialise through
        # `transformers.initialization`. Ours does, and some of those modules initialise their children.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std, a=-std, b=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init_torch_default_(module)
        elif isinstance(module, Beit3VisionEmbeddings):
            init.zeros_(module.cls_token)
            init.zeros_(module.mask_token)
            init.trunc_normal_(module.position_embedding.weight, std=std, a=-std, b=std)
        elif isinstance(module, Beit3TextEmbeddings):
            init.normal_(module.token_embedding.weight, std=module.token_embedding.embedding_dim**-0.5)
            init.trunc_normal_(module.position_embedding.weight, std=std, a=-std, b=std)
        elif not isinstance(module, nn.Embedding):  # the two embedding modules above own theirs
            super()._init_weights(module)


@torch.no_grad()
def init_torch_default_(module: nn.Module):
    """PyTorch's own default for linear and convolution layers, which the original leaves in place in some heads."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        bound = module.weight[0].numel() ** -0.5  # fan-in, as PyTorch counts it
        init.uniform_(module.bias, -bound, bound)


class Beit3Model(Beit3PreTrainedModel):
    r"""
    The BEiT-3 encoder: image and text together, image alone (vision experts only) or text alone (text experts only).

    Example:

    ```python
    >>> from oneref_hf import Beit3Model

    >>> model = Beit3Model.from_pretrained("DIRECTORY")
    >>> outputs = model(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
    >>> outputs.last_hidden_state.shape  # image CLS, patches, tokens
    ```"""

    _auto_class = "AutoModel"
    _key_mapping_from = {"oneref": {r"^(?:oneref\.)?beit3\.": ""}}

    def __init__(self, config: Beit3Config):
        config.validate_architecture()  # again, for `from_pretrained` changes a finished configuration
        super().__init__(config)
        self.vision_embeddings = Beit3VisionEmbeddings(config)
        self.text_embeddings = Beit3TextEmbeddings(config)
        # Plain Python: models are built on the meta device, where a tensor has no values to read.
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            Beit3Layer(config, drop_path=config.drop_path_rate * index / last)
            for index in range(config.num_hidden_layers)
        )
        self.vision_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.text_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def encode_images(
        self,
        pixel_values: torch.FloatTensor,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Beit3EncodedImages:
        """What does not depend on the text, computed once for all texts about an image.

        It is the embedding of the patches and, with `config.shared_image_layers`, the image stream of so many layers.

        Args:
            pixel_values, bool_masked_pos, interpolate_pos_encoding: as in [`Beit3Model.forward`].

        Returns:
            [`Beit3EncodedImages`], for `encoded_images` of `forward`.
        """
        states = self.vision_embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        keys_values = []
        attention_mask = self._attention_mask(states, None, None)
        for layer in self.layers[: self.config.shared_image_layers]:
            states, _, image_keys_values = layer(states, None, attention_mask)
            keys_values.append(image_keys_values)
        patch_size = self.config.patch_size
        grid_size = (pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size)
        return Beit3EncodedImages(states, tuple(keys_values), grid_size)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        self.text_embeddings.token_embedding = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        pixel_mask: torch.Tensor | None = None,
        image_indices: torch.LongTensor | None = None,
        encoded_images: Beit3EncodedImages | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Beit3ModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
                Normalised images: one per text, a single one for all texts, or any number with `image_indices`.
            input_ids (`torch.LongTensor` of shape `(batch_size, text_length)`, *optional*):
                Tokens between BOS and EOS.
            attention_mask (`torch.Tensor` of shape `(batch_size, text_length)`, *optional*):
                1 for tokens, 0 for padding (torchscale's padding mask has it the other way round).
            bool_masked_pos (`torch.BoolTensor` of shape `(num_images, num_patches)`, *optional*):
                1 where the mask token replaces a patch. Of `encoded_images` it belongs to `encode_images`.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the image positions when the image is not `config.image_size` pixels.
            pixel_mask (`torch.Tensor` of shape `(num_images, height, width)`, *optional*):
                Accepted, since the processor gives it, and not used: BEiT-3 attends to the padding of an image.
            image_indices (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Row in `pixel_values` of the image of each text. An image is embedded once, however many texts it has.
            encoded_images ([`Beit3EncodedImages`], *optional*):
                Instead of `pixel_values`: images as [`Beit3Model.encode_images`] gives them.

        Returns:
            [`Beit3ModelOutput`], one row per text. `output_hidden_states` is a flag, an index or a list of indices.

        Raises:
            ValueError: without any input, when encoded images shall be masked, when the numbers of images and texts or
                the image size do not fit, or when hidden states or attentions are asked of shared layers.
        """
        if encoded_images is not None and pixel_values is not None:
            raise ValueError("The images were given twice, as pixel_values and as encoded_images; give one of them.")
        if encoded_images is not None and bool_masked_pos is not None:
            raise ValueError("Encoded images can no longer be masked; give bool_masked_pos to encode_images.")
        if encoded_images is None and pixel_values is None and input_ids is None:
            raise ValueError("Nothing to encode: give pixel_values, input_ids or both.")
        wanted = kwargs.pop("output_hidden_states", None)
        keep = self._hidden_states_to_keep(self.config.output_hidden_states if wanted is None else wanted)

        # Step 1. Embed each modality.
        images, vision_states, text_states = encoded_images, None, None
        if pixel_values is not None:
            images = self.encode_images(pixel_values, bool_masked_pos, interpolate_pos_encoding)
        if images is not None:
            vision_states = images.states
        if input_ids is not None:
            text_states = self.text_embeddings(input_ids, attention_mask)
        image_indices = image_of_each_text(vision_states, text_states, image_indices)
        shared = [] if images is None else images.keys_values
        if shared and (keep is not None or kwargs.get("output_attentions", self.config.output_attentions)):
            raise ValueError("Shared layers keep no hidden states and attentions; set shared_image_layers to 0.")

        # Step 2. One mask for the joint sequence; it is None when no token is padded.
        joint_mask = self._attention_mask(vision_states, text_states, attention_mask)

        # Step 3. Where the image stream is shared, the text reads what the image has become without it.
        if shared and text_states is not None:
            reading_mask = self._attention_mask(vision_states, text_states, attention_mask, of_text_alone=True)
            for layer, keys_values in zip(self.layers, shared):
                text_states = layer(None, text_states, reading_mask, image_indices, keys_values, **kwargs)[1]

        # Step 4. Run both streams through the layers.
        if keep is not None and image_indices is not None:
            vision_states, image_indices = vision_states[image_indices], None
        hidden_states = []
        for index, layer in enumerate(self.layers[len(shared) :]):
            if keep is not None:
                joined = None
                if index in keep:
                    # The layer reads views of what the caller gets, so that gradients reach the returned hidden state.
                    joined = join_streams(vision_states, text_states)
                    vision_states, text_states = split_streams(joined, vision_states, text_states)
                hidden_states.append(joined)
            vision_states, text_states = layer(vision_states, text_states, joint_mask, image_indices, **kwargs)[:2]
            image_indices = None  # from here on every text has an image stream of its own

        # Step 5. Normalise each modality and join them once.
        vision_states = None if vision_states is None else self.vision_norm(vision_states)
        text_states = None if text_states is None else self.text_norm(text_states)
        if image_indices is not None:
            vision_states = vision_states[image_indices]
        last_hidden_state = join_streams(vision_states, text_states)
        if keep is not None:
            hidden_states.append(last_hidden_state if len(self.layers) in keep else None)

        return Beit3ModelOutput(
            last_hidden_state=last_hidden_state,
            vision_last_hidden_state=vision_states,
            text_last_hidden_state=text_states,
            hidden_states=tuple(hidden_states) if keep is not None else None,
        )

    def _attention_mask(
        self,
        vision_states: torch.Tensor | None,
        text_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        of_text_alone: bool = False,
    ) -> torch.Tensor | None:
        """The mask of the joint sequence for every position in it, or for those of the text alone."""
        rows = vision_states if text_states is None else text_states
        length = sum(states.shape[1] for states in (vision_states, text_states) if states is not None)
        if text_states is None:
            attention_mask = None
        elif attention_mask is not None and vision_states is not None:
            image = attention_mask.new_ones(text_states.shape[0], vision_states.shape[1])
            attention_mask = torch.cat([image, attention_mask], dim=1)  # (batch_size, 1 + num_patches + text_length)
        # The function reads the batch size, length, dtype and device of the embeddings, hence one column is enough.
        joint = rows[:, :1, :1].expand(-1, length, -1)
        queries = text_states[..., :1] if of_text_alone else joint
        return create_bidirectional_mask(self.config, queries, attention_mask, encoder_hidden_states=joint)

    def _hidden_states_to_keep(self, wanted: bool | int | list[int] | None) -> set[int] | None:
        """Indices of the hidden states to return, or `None` for none at all."""
        num_hidden_states = len(self.layers) + 1
        selected = selected_hidden_states(wanted)
        if selected is not None:
            return resolve_hidden_states_indices(self, selected, num_hidden_states)
        return set(range(num_hidden_states)) if wanted else None


def image_of_each_text(
    images: torch.Tensor | None, texts: torch.Tensor | None, image_indices: torch.Tensor | None
) -> torch.Tensor | None:
    """The row in `images` that belongs to each row of `texts`, `(num_texts,)`; None where they are paired one to one.

    Raises:
        ValueError: if the numbers do not fit.
    """
    if images is None or texts is None:
        if image_indices is not None:
            raise ValueError("image_indices says which image belongs to which text, so it needs both of them.")
        return None
    num_images, num_texts = images.shape[0], texts.shape[0]
    if image_indices is not None:
        if tuple(image_indices.shape) != (num_texts,):
            raise ValueError(
                f"image_indices has shape {tuple(image_indices.shape)}, but one value per text is needed: "
                f"{(num_texts,)}."
            )
        return image_indices
    if num_images == num_texts:
        return None
    if num_images != 1:
        raise ValueError(
            f"Got {num_images} images but {num_texts} texts; give one image for all texts, one for each, or "
            "image_indices."
        )
    return torch.zeros(num_texts, dtype=torch.long, device=texts.device)


def join_streams(vision: torch.Tensor | None, text: torch.Tensor | None) -> torch.Tensor:
    """The joint sequence, image first, of the streams that are present."""
    present = [stream for stream in (vision, text) if stream is not None]
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)


def split_streams(
    joined: torch.Tensor, vision: torch.Tensor | None, text: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Undoes [`join_streams`], given what was joined."""
    if vision is None:
        return None, joined
    if text is None:
        return joined, None
    return joined.split([vision.shape[1], text.shape[1]], dim=1)


__all__ = ["Beit3EncodedImages", "Beit3Model", "Beit3ModelOutput", "Beit3PreTrainedModel"]
