# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""OneRef: the box and the mask of what a phrase refers to, read off one BEiT-3 tower.

Source: "OneRef: Unified One-tower Expression Grounding and Segmentation with Mask Referring Modeling" (NeurIPS 2024).
B is the batch size, D the hidden size, S the canvas side in pixels, p the patch side, P = (S / p)^2 the number of
patches and T the text length. Boxes are (center x, center y, width, height) in [0, 1] of the canvas.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .configuration_oneref import OneRefConfig
from .loss_oneref import (
    box_giou_loss,
    box_l1_loss,
    contrastive_loss,
    cxcywh_to_xyxy,
    mask_dice_loss,
    mask_focal_loss,
    masked_language_loss,
    semantic_relation_loss,
    visual_relation_loss,
    visual_token_loss,
)
from .modeling_beit3 import (
    Beit3EncodedImages,
    Beit3Model,
    Beit3PreTrainedModel,
    image_of_each_text,
    init_torch_default_,
)


logger = logging.get_logger(__name__)


# Phrases whose masks are computed together in evaluation: of a base model in float32 each takes 0.25 GB at 384 pixels.
MASKS_AT_ONCE = 4

# Which class of this file each Auto class gets when a saved directory is loaded with trust_remote_code=True.
REMOTE_CODE_AUTO_MAP = {
    "AutoConfig": "configuration_oneref.OneRefConfig",
    "AutoModel": "modeling_oneref.OneRefModel",
    "AutoModelForMaskGeneration": "modeling_oneref.OneRefForSegmentation",
    "AutoModelForPreTraining": "modeling_oneref.OneRefForPreTraining",
    "AutoModelForZeroShotObjectDetection": "modeling_oneref.OneRefForGrounding",
}


@dataclass
class OneRefModelOutput(ModelOutput):
    r"""
    Output of [`OneRefModel`]. What needs a modality that was not given is `None`.

    Args:
        similarity_map (`torch.FloatTensor` of shape `(batch_size, S / p, S / p)`):
            Cosine similarity in [-1, 1] of the phrase with every patch.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
            L2-normalised embedding of the image: its CLS token in the cross-modal space.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
            L2-normalised embedding of the phrase: its BOS token in the cross-modal space.
        patch_embeds (`torch.FloatTensor` of shape `(batch_size, P, hidden_size)`):
            L2-normalised embeddings of the patches.
        token_embeds (`torch.FloatTensor` of shape `(batch_size, T, hidden_size)`):
            L2-normalised embeddings of the text tokens.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + P + T, hidden_size)`):
            Hidden states of the encoder in the order image CLS, patches, text tokens.
        vision_last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + P, hidden_size)`):
            The image part of `last_hidden_state`.
        text_last_hidden_state (`torch.FloatTensor` of shape `(batch_size, T, hidden_size)`):
            The text part of `last_hidden_state`.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states` asks for it):
            The embeddings and the output of each layer.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
            Attention probabilities of each layer over the joint sequence; eager attention only.
    """

    similarity_map: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    patch_embeds: torch.FloatTensor | None = None
    token_embeds: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    vision_last_hidden_state: torch.FloatTensor | None = None
    text_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class OneRefGroundingOutput(ModelOutput):
    r"""
    Output of [`OneRefForGrounding`].

    Args:
        loss (`torch.FloatTensor`, *optional*, returned when a loss is active):
            Sum of the values of `loss_dict`.
        loss_dict (`dict[str, torch.FloatTensor]`, *optional*, returned when a loss is active):
            Each active loss by name, weighted by `config.loss_weights`.
        pred_boxes (`torch.FloatTensor` of shape `(batch_size, 4)`):
            Boxes as (center x, center y, width, height) in [0, 1], relative to the padded S x S canvas, in float32.
            `post_process_grounded_object_detection` turns them into pixels of the original picture.
        scores (`torch.FloatTensor` of shape `(batch_size,)`):
            How much the similarity map prefers the answer over the rest of the picture, in [0, 1]; see
            [`~modeling_oneref.region_contrast_score`] for what it is and is not.
        similarity_map (`torch.FloatTensor` of shape `(batch_size, S / p, S / p)`):
            Cosine similarity in [-1, 1] of the phrase with every patch.
        image_embeds, text_embeds (`torch.FloatTensor` of shape `(batch_size, hidden_size)`):
            L2-normalised embeddings of the image and of the phrase.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, 1 + P + T, hidden_size)`):
            Hidden states of the encoder in the order image CLS, patches, text tokens.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            As in [`OneRefModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    pred_boxes: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    similarity_map: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class OneRefSegmentationOutput(ModelOutput):
    r"""
    Output of [`OneRefForSegmentation`]: that of [`OneRefGroundingOutput`] and the mask.

    Args:
        loss, loss_dict, pred_boxes, scores, similarity_map, image_embeds, text_embeds, last_hidden_state,
        hidden_states, attentions:
            As in [`OneRefGroundingOutput`].
        pred_masks (`torch.FloatTensor` of shape `(batch_size, S / 2, S / 2)`, *optional*):
            Mask logits on the padded canvas. They are cosines, so they lie in [-1, 1]; above 0 is inside.
            `post_process_masks` turns them into masks of the original picture. `None` with `predict_masks=False`.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    pred_boxes: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    pred_masks: torch.FloatTensor | None = None
    similarity_map: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class OneRefForPreTrainingOutput(ModelOutput):
    r"""
    Output of [`OneRefForPreTraining`].

    Each of the four pre-training heads runs when its labels are given, or always when no label of the four is. The
    two token heads are expensive, so with labels they return rows for the masked positions alone, in row-major order,
    and for every position without.

    Args:
        loss, loss_dict, pred_boxes, scores, similarity_map, image_embeds, text_embeds, last_hidden_state,
        hidden_states, attentions:
            As in [`OneRefGroundingOutput`].
        visual_token_logits (`torch.FloatTensor` of shape `(num_masked_patches, visual_vocab_size)`):
            Prediction of the visual token of a patch; without labels `(batch_size, P, visual_vocab_size)`.
        visual_relation_scores (`torch.FloatTensor` of shape `(batch_size, P, 4)`):
            Offset of each patch from the box centre, relative to the grid, and the inverse size of the box in patches.
        mlm_logits (`torch.FloatTensor` of shape `(num_masked_tokens, vocab_size)`):
            Prediction of a word; without labels `(batch_size, T, vocab_size)`.
        semantic_relation_scores (`torch.FloatTensor` of shape `(batch_size, T - 2)`):
            Distribution over the tokens after BOS, the last of them left out: how much each relates to the image.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    pred_boxes: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    visual_token_logits: torch.FloatTensor | None = None
    visual_relation_scores: torch.FloatTensor | None = None
    mlm_logits: torch.FloatTensor | None = None
    semantic_relation_scores: torch.FloatTensor | None = None
    similarity_map: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class OneRefMLP(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, hidden_size: int, output_size: int):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Linear(hidden_size, hidden_size),
                nn.Linear(hidden_size, hidden_size),
                nn.Linear(hidden_size, output_size),
            ]
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states).relu()
        return self.layers[-1](hidden_states)


class OneRefBoxHead(nn.Module):
    """The box from the patches, weighted by their similarity with the phrase."""

    def __init__(self, config: OneRefConfig):
        super().__init__()
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.mlp = OneRefMLP(config.hidden_size, 4)

    def forward(self, patch_states: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
        """From patches `(B, P, D)` and cosines `(B, P)` to boxes `(B, 4)` in [0, 1], float32.

        The weights sum to one, so projecting their sum equals summing the projections, for 1/P of the work.
        """
        weights = similarity.float().softmax(-1).to(patch_states.dtype)
        pooled = torch.matmul(weights[:, None], patch_states).squeeze(1)  # (batch_size, hidden_size)
        return self.mlp(self.projection(pooled)).float().sigmoid()


class OneRefGridDoubling(nn.ConvTranspose2d):
    """A transposed convolution with kernel and stride 2 and the norm after it, computed as the product that they are.

    Every position turns into a 2 x 2 block by itself, so the grid need not be laid out for it. In evaluation the norm
    scales the weights instead of the features, which are many more.
    """

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, hidden_size, kernel_size=2, stride=2, bias=False)

    def forward(self, features: torch.Tensor, norm: nn.BatchNorm1d) -> torch.Tensor:
        """From positions `(N, D)` to the four of each block, row by row, normalised, `(4 * N, D)`."""
        weight, bias = self.weight.permute(2, 3, 1, 0), None  # (2, 2, D out, D in)
        if not norm.training:
            scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
            bias = (norm.bias.float() - norm.running_mean.float() * scale).to(weight.dtype).repeat(4)
            weight = (weight.float() * scale[:, None]).to(weight.dtype)
        features = nn.functional.linear(features, weight.flatten(0, 2), bias).view(-1, self.out_channels)
        return norm(features) if norm.training else features


class OneRefMaskHead(nn.Module):
    """Three learned doublings of the patch grid, then the cosine of every position with the phrase."""

    def __init__(self, config: OneRefConfig):
        super().__init__()
        self.convs = nn.ModuleList(OneRefGridDoubling(config.hidden_size) for _ in range(3))
        # The features are rows of positions, for which the one-dimensional norm is the original's two-dimensional one.
        self.norms = nn.ModuleList(nn.BatchNorm1d(config.hidden_size) for _ in range(3))

    def forward(
        self, patch_states: torch.Tensor, text_embeds: torch.Tensor, grid_size: tuple[int, int]
    ) -> torch.Tensor:
        """From patches `(B, P, D)` and the phrase `(B, D)` to logits `(B, 8 * grid_height, 8 * grid_width)`.

        The features before the logits are 64 times as many as the patches. In evaluation, where no norm needs all of
        them at once, they exist for `MASKS_AT_ONCE` phrases only.
        """
        batch_size = patch_states.shape[0]
        if self.training or torch.compiler.is_compiling():
            logits = self._cosines(patch_states, text_embeds)
        else:
            parts = zip(patch_states.split(MASKS_AT_ONCE), text_embeds.split(MASKS_AT_ONCE))
            logits = torch.cat([self._cosines(*part) for part in parts])
        # Only now do the nested blocks become a picture: patch, then block in block in block, rows before columns.
        blocks = logits.view(batch_size, *grid_size, 2, 2, 2, 2, 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6, 8)
        return blocks.reshape(batch_size, 8 * grid_size[0], 8 * grid_size[1])

    def _cosines(self, patch_states: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """From patches `(B, P, D)` and the phrase `(B, D)` to the cosine at each position, `(B, 64 * P)`."""
        batch_size, _, hidden_size = patch_states.shape
        features = patch_states.reshape(-1, hidden_size)
        for conv, norm in zip(self.convs[:-1], self.norms[:-1]):
            features = conv(features, norm).relu_()
        features = self.convs[-1](features, self.norms[-1]).view(batch_size, -1, hidden_size)
        lengths = features.norm(dim=-1).clamp(min=1e-12)
        return torch.matmul(features, text_embeds[..., None]).squeeze(-1) / lengths


def box_coverage(boxes_cxcywh: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Share in [0, 1] of each patch that a box `(B, 4)` covers, `(B, grid_height, grid_width)`."""
    height, width = grid_size
    corners = cxcywh_to_xyxy(boxes_cxcywh) * boxes_cxcywh.new_tensor([width, height, width, height])
    x0, y0, x1, y1 = corners[..., None].unbind(1)  # each (batch_size, 1)
    columns = torch.arange(width, device=corners.device, dtype=corners.dtype)
    rows = torch.arange(height, device=corners.device, dtype=corners.dtype)
    covered_columns = (torch.minimum(x1, columns + 1) - torch.maximum(x0, columns)).clamp(0, 1)
    covered_rows = (torch.minimum(y1, rows + 1) - torch.maximum(y0, rows)).clamp(0, 1)
    return covered_rows[:, :, None] * covered_columns[:, None, :]


def _patch_means(values: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Means `(B, h, w)` of `(B, k * h, k * w)` over patches; adaptive pooling does not compile for dynamic shapes."""
    height, width = grid_size
    return values.unflatten(-1, (width, -1)).unflatten(-3, (height, -1)).mean((-3, -1))


@torch.no_grad()
def tight_boxes(
    mask_logits: torch.Tensor, fallback_boxes_cxcywh: torch.Tensor, pixel_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Smallest boxes `(B, 4)` in [0, 1] around the masks `(B, h, w)`, above 0 inside; the fallback for empty masks.

    With a `pixel_mask` `(B, S, S)`, what lies on the padding of the canvas does not count.
    """
    inside = mask_logits > 0
    if pixel_mask is not None:
        inside &= nn.functional.adaptive_max_pool2d(pixel_mask.float(), inside.shape[-2:]) > 0

    def extent(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = occupied.shape[-1]
        index = torch.arange(length, device=occupied.device)
        first, end = index.where(occupied, length).amin(-1), (index + 1).where(occupied, 0).amax(-1)
        return (first + end) / (2 * length), (end - first) / length

    (center_x, width), (center_y, height) = extent(inside.any(-2)), extent(inside.any(-1))
    boxes = torch.stack([center_x, center_y, width, height], dim=-1)
    return torch.where(inside.any(-1).any(-1, keepdim=True), boxes, fallback_boxes_cxcywh.float())


@torch.no_grad()
def region_contrast_score(
    similarity_map: torch.Tensor,
    boxes_cxcywh: torch.Tensor,
    mask_logits: torch.Tensor | None = None,
    pixel_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    A confidence for an answer, made of what OneRef computes anyway (the original reports none).

    The similarity map says of every patch how well it fits the phrase. The score compares its mean inside the answer
    with its mean in the rest of the picture: `(1 + (inside - outside) / 2) / 2`. 1 means a map that is perfect inside
    and perfectly opposed outside, 0.5 that it has no preference, less than 0.5 that it prefers the rest. Inside is the
    predicted box, so that skipping the mask changes no score; a model trained on masks alone is judged by its mask
    logits inside and outside its mask instead.

    It ranks answers of one model. It is not a probability that the answer is right, it is not calibrated, it does not
    compare across models, and a high value does not say that the picture contains what the phrase means: OneRef
    always points at something.

    Args:
        similarity_map: cosines `(B, h, w)`.
        boxes_cxcywh: predicted boxes `(B, 4)` in [0, 1] of the canvas.
        mask_logits: masks `(B, k * h, k * w)`, above 0 inside, that take the place of the boxes unless empty.
        pixel_mask: `(B, S, S)`, 1 where the canvas shows the picture; padding counts neither inside nor outside.

    Returns:
        `torch.Tensor` of shape `(B,)` in [0, 1], float32, without gradient.
    """
    similarity_map = similarity_map.float()
    grid_size = similarity_map.shape[-2:]
    inside = box_coverage(boxes_cxcywh.float(), grid_size)
    if mask_logits is not None:
        masked = _patch_means((mask_logits > 0).float(), grid_size)
        inside = torch.where(masked.sum((-2, -1), keepdim=True) > 0, masked, inside)
    picture = torch.ones_like(inside)
    if pixel_mask is not None:
        picture = _patch_means(pixel_mask.to(inside.dtype), grid_size)

    def weighted_mean(weights: torch.Tensor, smallest_weight: float) -> torch.Tensor:
        return (similarity_map * weights).sum((-2, -1)) / weights.sum((-2, -1)).clamp(min=smallest_weight)

    # An answer that fills the picture leaves nothing to compare with: below one patch the rest fades to neutral 0.
    contrast = weighted_mean(inside * picture, 1e-6) - weighted_mean((1 - inside) * picture, 1.0)
    return ((1 + contrast / 2) / 2).clamp(0, 1)


class OneRefPreTrainedModel(Beit3PreTrainedModel):
    """Weight initialisation, loading from BEiT-3 and freezing, for all OneRef models."""

    config: OneRefConfig
    config_class = OneRefConfig
    base_model_prefix = "oneref"
    # A Beit3Model checkpoint loads into every OneRef model and leaves its heads freshly initialised.
    _key_mapping_from = {"beit3": {r"^(?=vision_|text_|layers\.)": "oneref.beit3."}}
    # A checkpoint may have been made for another task: its heads are not worth a warning.
    _keys_to_ignore_on_load_unexpected = [
        r"^(box_head|mask_head|visual_token_head|visual_relation_head|mlm_head|semantic_relation_head)\."
    ]
    # The losses are means already: the Trainer must not rescale them under gradient accumulation.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # Modules are visited after their children, so what follows overrides the rule for linear layers: the original
        # leaves PyTorch's own initialisation in its heads.
        if isinstance(module, OneRefModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        elif isinstance(module, OneRefBoxHead):
            init_torch_default_(module.projection)
        elif isinstance(module, OneRefMLP):
            for layer in module.layers:
                init_torch_default_(layer)
        elif isinstance(module, OneRefForPreTraining):
            init_torch_default_(module.visual_token_head)
            init_torch_default_(module.mlm_head)
        else:
            super()._init_weights(module)

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers; the saved configuration names the class of this package for every Auto class, not only
        for the one of this model."""
        if self.is_custom_code():
            self.config.auto_map = dict(REMOTE_CODE_AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def backbone(self) -> Beit3Model:
        """The BEiT-3 encoder."""
        return self.beit3 if isinstance(self, OneRefModel) else self.oneref.beit3

    def encode_images(self, *args, **kwargs) -> Beit3EncodedImages:
        """What is the same for all phrases about a picture; see [`Beit3Model.encode_images`]."""
        return self.backbone.encode_images(*args, **kwargs)

    def freeze_backbone(self):
        """Stops the gradient of every encoder parameter: the first stage of the paper's training.

        The encoder stays in training mode, so drop path remains active, as in the original.
        """
        self.backbone.requires_grad_(False)

    def unfreeze_backbone(self):
        """Undoes [`~OneRefPreTrainedModel.freeze_backbone`] for the second stage."""
        self.backbone.requires_grad_(True)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.backbone.set_input_embeddings(value)


class OneRefModel(OneRefPreTrainedModel):
    r"""
    BEiT-3 with OneRef's cross-modal space: how well every patch fits the phrase, without a task head.

    Example:

    ```python
    >>> from oneref_hf import OneRefModel, OneRefProcessor

    >>> model, processor = OneRefModel.from_pretrained("DIRECTORY"), OneRefProcessor.from_pretrained("DIRECTORY")
    >>> outputs = model(**processor(image, "the woman left of the old lady"))
    >>> outputs.similarity_map.shape
    ```"""

    _key_mapping_from = {"beit3": {r"^(?=vision_|text_|layers\.)": "beit3."}}

    _auto_class = "AutoModel"

    def __init__(self, config: OneRefConfig):
        super().__init__(config)
        self.beit3 = Beit3Model(config)
        self.vision_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.text_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @can_return_tuple
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
    ) -> OneRefModelOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, S, S)`, *optional*):
                Letterboxed images of the processor: one per phrase, a single one for all phrases, or any number with
                `image_indices`.
            input_ids (`torch.LongTensor` of shape `(batch_size, T)`, *optional*):
                Tokens of the phrases.
            attention_mask (`torch.Tensor` of shape `(batch_size, T)`, *optional*):
                1 for tokens, 0 for padding.
            bool_masked_pos (`torch.BoolTensor` of shape `(num_images, P)`, *optional*):
                1 where the mask token replaces a patch.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the image positions when the canvas is not `config.image_size` pixels.
            pixel_mask (`torch.Tensor` of shape `(num_images, S, S)`, *optional*):
                Accepted, since the processor gives it, and not used: OneRef attends to the padding.
            image_indices (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Row in `pixel_values` of the image of each phrase. An image is embedded once, however many it has.
            encoded_images ([`Beit3EncodedImages`], *optional*):
                Instead of `pixel_values`: images as `encode_images` gives them.
        """
        encoded = self.beit3(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            image_indices=image_indices,
            encoded_images=encoded_images,
            **kwargs,
        )
        image_embeds = patch_embeds = text_embeds = token_embeds = similarity_map = None
        if encoded.vision_last_hidden_state is not None:
            vision = nn.functional.normalize(self.vision_projection(encoded.vision_last_hidden_state), dim=-1)
            image_embeds, patch_embeds = vision[:, 0], vision[:, 1:]
        if encoded.text_last_hidden_state is not None:
            token_embeds = nn.functional.normalize(self.text_projection(encoded.text_last_hidden_state), dim=-1)
            text_embeds = token_embeds[:, 0]
        if patch_embeds is not None and text_embeds is not None:
            if encoded_images is not None:
                grid_size = encoded_images.grid_size
            else:
                grid_size = tuple(side // self.config.patch_size for side in pixel_values.shape[-2:])
            similarity_map = torch.matmul(patch_embeds, text_embeds[..., None]).squeeze(-1).unflatten(-1, grid_size)

        return OneRefModelOutput(
            similarity_map=similarity_map,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            patch_embeds=patch_embeds,
            token_embeds=token_embeds,
            last_hidden_state=encoded.last_hidden_state,
            vision_last_hidden_state=encoded.vision_last_hidden_state,
            text_last_hidden_state=encoded.text_last_hidden_state,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class OneRefHeadModel(OneRefPreTrainedModel):
    """What the three task models share: OneRef, the box head, and the losses that need neither masks nor tokens."""

    def __init__(self, config: OneRefConfig):
        super().__init__(config)
        self.oneref = OneRefModel(config)
        self.box_head = OneRefBoxHead(config)

    def _require_both_modalities(self, images, input_ids: torch.Tensor | None):
        if images is None or input_ids is None:
            missing = "pixel_values" if images is None else "input_ids"
            raise ValueError(
                f"{type(self).__name__} needs an image and a phrase for each answer, but {missing} is missing."
            )

    def _predict_boxes(self, outputs: OneRefModelOutput) -> torch.Tensor:
        return self.box_head(outputs.vision_last_hidden_state[:, 1:], outputs.similarity_map.flatten(1))

    def _active(self, *names: str) -> bool:
        return any(self.config.loss_weights[name] != 0 for name in names)

    def _weighted(self, losses: dict[str, torch.Tensor]) -> tuple[torch.Tensor | None, dict[str, torch.Tensor] | None]:
        """The sum and the values of the active losses, weighted; two `None` when none is active."""
        weights = self.config.loss_weights
        loss_dict = {name: weights[name] * loss for name, loss in losses.items() if weights[name] != 0}
        return (sum(loss_dict.values()), loss_dict) if loss_dict else (None, None)

    def _grounding_losses(
        self,
        outputs: OneRefModelOutput,
        pred_boxes: torch.Tensor,
        box_labels: torch.Tensor | None,
        mask_labels: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        losses = {}
        if box_labels is not None:
            losses["box_l1"] = box_l1_loss(pred_boxes, box_labels)
            losses["box_giou"] = box_giou_loss(pred_boxes, box_labels)
        if mask_labels is not None and self._active("similarity_focal", "similarity_dice"):
            targets = shrink_mask(mask_labels, outputs.similarity_map.shape[-2:])
            losses["similarity_focal"] = mask_focal_loss(outputs.similarity_map, targets)
            losses["similarity_dice"] = mask_dice_loss(outputs.similarity_map, targets)
        if self._active("contrastive"):
            losses["contrastive"] = contrastive_loss(
                outputs.image_embeds, outputs.text_embeds, self.oneref.logit_scale
            )
        return losses


def rows_of_texts(
    pixel_mask: torch.Tensor | None, input_ids: torch.Tensor, image_indices: torch.Tensor | None
) -> torch.Tensor | None:
    """The `pixel_mask` of the image of each text."""
    rows = image_of_each_text(pixel_mask, input_ids, image_indices) if pixel_mask is not None else None
    return pixel_mask if rows is None else pixel_mask[rows]


def shrink_mask(mask_labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Target masks `(B, S, S)` (or `(B, 1, S, S)`) at `size`, nearest neighbour, as 0 and 1."""
    masks = mask_labels.reshape(mask_labels.shape[0], 1, *mask_labels.shape[-2:]).float()
    return (nn.functional.interpolate(masks, size=tuple(size), mode="nearest").squeeze(1) > 0.5).float()


class OneRefForGrounding(OneRefHeadModel):
    r"""
    Referring expression comprehension: one box per image and phrase.

    Example:

    ```python
    >>> from oneref_hf import OneRefForGrounding, OneRefProcessor

    >>> model, processor = OneRefForGrounding.from_pretrained("DIR"), OneRefProcessor.from_pretrained("DIR")
    >>> inputs = processor(image, ["the cup", "the spoon left of the cup"])
    >>> outputs = model(**inputs)
    >>> processor.post_process_grounded_object_detection(outputs, target_sizes=[(image.height, image.width)] * 2)
    ```"""

    _auto_class = "AutoModelForZeroShotObjectDetection"

    def __init__(self, config: OneRefConfig):
        super().__init__(config)
        if config.trained_on_masks_only:
            logger.warning_once(
                "This model has learnt from masks alone, so its box head knows nothing: OneRefForSegmentation takes "
                "boxes from its masks. To train it on boxes, load it with trained_on_masks_only=False."
            )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        box_labels: torch.FloatTensor | None = None,
        mask_labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        image_indices: torch.LongTensor | None = None,
        encoded_images: Beit3EncodedImages | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> OneRefGroundingOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, S, S)`):
                Letterboxed images of the processor: one per phrase, a single one for all phrases, or any number with
                `image_indices`.
            input_ids (`torch.LongTensor` of shape `(batch_size, T)`):
                Tokens of the phrases.
            attention_mask (`torch.Tensor` of shape `(batch_size, T)`, *optional*):
                1 for tokens, 0 for padding.
            pixel_mask (`torch.Tensor` of shape `(num_images, S, S)`, *optional*):
                1 where the canvas shows the picture. It affects `scores` alone: OneRef attends to the padding.
            bool_masked_pos (`torch.BoolTensor` of shape `(num_images, P)`, *optional*):
                1 where the mask token replaces a patch.
            box_labels (`torch.FloatTensor` of shape `(batch_size, 4)`, *optional*):
                Target boxes as (center x, center y, width, height) in [0, 1] of the canvas.
            mask_labels (`torch.Tensor` of shape `(batch_size, S, S)`, *optional*):
                Target masks on the canvas, 1 inside; the similarity map learns from them at patch resolution.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`):
                Whether to interpolate the image positions when the canvas is not `config.image_size` pixels.
            image_indices (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Row in `pixel_values` of the image of each phrase. An image is embedded once, however many it has; for
                hundreds of phrases see [`~modeling_oneref.answer_phrases`].
            encoded_images ([`Beit3EncodedImages`], *optional*):
                Instead of `pixel_values`: images as `encode_images` gives them.
        """
        self._require_both_modalities(pixel_values if encoded_images is None else encoded_images, input_ids)
        outputs = self.oneref(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            image_indices=image_indices,
            encoded_images=encoded_images,
            **kwargs,
        )
        pixel_mask = rows_of_texts(pixel_mask, input_ids, image_indices)
        pred_boxes = self._predict_boxes(outputs)
        loss, loss_dict = self._weighted(self._grounding_losses(outputs, pred_boxes, box_labels, mask_labels))
        return OneRefGroundingOutput(
            loss=loss,
            loss_dict=loss_dict,
            pred_boxes=pred_boxes,
            scores=region_contrast_score(outputs.similarity_map, pred_boxes, pixel_mask=pixel_mask),
            similarity_map=outputs.similarity_map,
            image_embeds=outputs.image_embeds,
            text_embeds=outputs.text_embeds,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class OneRefForSegmentation(OneRefHeadModel):
    r"""
    Referring expression segmentation: one mask per image and phrase, and the box as well.

    Example:

    ```python
    >>> from oneref_hf import OneRefForSegmentation, OneRefProcessor

    >>> model, processor = OneRefForSegmentation.from_pretrained("DIR"), OneRefProcessor.from_pretrained("DIR")
    >>> outputs = model(**processor(image, "the cup"))
    >>> processor.post_process_masks(outputs, target_sizes=[(image.height, image.width)])
    ```"""

    _auto_class = "AutoModelForMaskGeneration"

    def __init__(self, config: OneRefConfig):
        super().__init__(config)
        self.mask_head = OneRefMaskHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        box_labels: torch.FloatTensor | None = None,
        mask_labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        predict_masks: bool = True,
        image_indices: torch.LongTensor | None = None,
        encoded_images: Beit3EncodedImages | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> OneRefSegmentationOutput:
        r"""
        Args:
            pixel_values, input_ids, attention_mask, pixel_mask, bool_masked_pos, box_labels, interpolate_pos_encoding,
            image_indices, encoded_images:
                As in [`OneRefForGrounding.forward`].
            mask_labels (`torch.Tensor` of shape `(batch_size, S, S)`, *optional*):
                Target masks on the canvas, 1 inside, for the mask and for the similarity map.
            predict_masks (`bool`, *optional*, defaults to `True`):
                Whether to run the mask head, which costs about as much as half of the base encoder. With
                `config.trained_on_masks_only` it runs in any case, because boxes and scores come from it.
        """
        self._require_both_modalities(pixel_values if encoded_images is None else encoded_images, input_ids)
        outputs = self.oneref(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            image_indices=image_indices,
            encoded_images=encoded_images,
            **kwargs,
        )
        pixel_mask = rows_of_texts(pixel_mask, input_ids, image_indices)
        pred_boxes = self._predict_boxes(outputs)
        losses = self._grounding_losses(outputs, pred_boxes, box_labels, mask_labels)

        pred_masks = None
        if predict_masks or self.config.trained_on_masks_only:
            grid_size = tuple(outputs.similarity_map.shape[-2:])
            pred_masks = self.mask_head(outputs.vision_last_hidden_state[:, 1:], outputs.text_embeds, grid_size)
            if mask_labels is not None and self._active("mask_focal", "mask_dice"):
                canvas = mask_labels.shape[-2:]
                logits = nn.functional.interpolate(
                    pred_masks[:, None].float(), size=canvas, mode="bilinear", align_corners=False
                ).squeeze(1)
                targets = shrink_mask(mask_labels, canvas)
                losses["mask_focal"] = mask_focal_loss(logits, targets)
                losses["mask_dice"] = mask_dice_loss(logits, targets)

        map_to_score, region = outputs.similarity_map, None
        if self.config.trained_on_masks_only:
            pred_boxes, map_to_score, region = tight_boxes(pred_masks, pred_boxes, pixel_mask), pred_masks, pred_masks

        loss, loss_dict = self._weighted(losses)
        return OneRefSegmentationOutput(
            loss=loss,
            loss_dict=loss_dict,
            pred_boxes=pred_boxes,
            scores=region_contrast_score(map_to_score, pred_boxes, region, pixel_mask),
            pred_masks=pred_masks,
            similarity_map=outputs.similarity_map,
            image_embeds=outputs.image_embeds,
            text_embeds=outputs.text_embeds,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class OneRefForPreTraining(OneRefHeadModel):
    r"""
    Mask referring modelling (MRefM, section 3.3 of the paper): predicts masked patches and words of an image and
    phrase whose referred region is known, and how each of them relates to the target.
    """

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: OneRefConfig):
        super().__init__(config)
        self.visual_token_head = nn.Linear(config.hidden_size, config.visual_vocab_size)
        self.visual_relation_head = OneRefMLP(config.hidden_size, 4)
        self.mlm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.semantic_relation_head = OneRefMLP(config.hidden_size, 1)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.mlm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        box_labels: torch.FloatTensor | None = None,
        mask_labels: torch.Tensor | None = None,
        visual_token_labels: torch.LongTensor | None = None,
        visual_relation_labels: torch.FloatTensor | None = None,
        mlm_labels: torch.LongTensor | None = None,
        semantic_relation_labels: torch.FloatTensor | None = None,
        global_step: int | None = None,
        interpolate_pos_encoding: bool = False,
        image_indices: torch.LongTensor | None = None,
        encoded_images: Beit3EncodedImages | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> OneRefForPreTrainingOutput:
        r"""
        Args:
            pixel_values, input_ids, attention_mask, pixel_mask, bool_masked_pos, box_labels, mask_labels,
            interpolate_pos_encoding, image_indices, encoded_images:
                As in [`OneRefForGrounding.forward`].
            visual_token_labels (`torch.LongTensor` of shape `(batch_size, P)`, *optional*):
                Visual token of each masked patch ([`VqkdModel.get_codebook_indices`]), -100 elsewhere.
            visual_relation_labels (`torch.FloatTensor` of shape `(batch_size, P, 4)`, *optional*):
                Relation of each patch to the box: see `oneref_hf.data.masking.visual_relation_labels`.
            mlm_labels (`torch.LongTensor` of shape `(batch_size, T)`, *optional*):
                Token id at each masked position, -100 elsewhere.
            semantic_relation_labels (`torch.FloatTensor` of shape `(batch_size, T - 2)`, *optional*):
                Relation of each token after BOS to the target. Padded positions take part, so pad all texts of a
                training run to one length.
            global_step (`int`, *optional*):
                Number of optimiser steps done. After `config.mlm_drop_worst_after` of them the hardest masked tokens
                stop counting; without it all count.
        """
        self._require_both_modalities(pixel_values if encoded_images is None else encoded_images, input_ids)
        outputs = self.oneref(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            image_indices=image_indices,
            encoded_images=encoded_images,
            **kwargs,
        )
        pixel_mask = rows_of_texts(pixel_mask, input_ids, image_indices)
        pred_boxes = self._predict_boxes(outputs)
        losses = self._grounding_losses(outputs, pred_boxes, box_labels, mask_labels)

        labels = (visual_token_labels, visual_relation_labels, mlm_labels, semantic_relation_labels)
        without_labels = all(label is None for label in labels)
        visual_token_logits = visual_relation_scores = mlm_logits = semantic_relation_scores = None

        if visual_token_labels is not None or visual_relation_labels is not None or without_labels:
            related_patches = (
                outputs.text_embeds[:, None] * outputs.patch_embeds
            )  # (batch_size, num_patches, hidden_size)
            if visual_token_labels is not None or without_labels:
                masked = related_patches if without_labels else related_patches[visual_token_labels != -100]
                visual_token_logits = self.visual_token_head(nn.functional.normalize(masked, dim=-1))
            if visual_relation_labels is not None or without_labels:
                visual_relation_scores = self.visual_relation_head(related_patches)
        if mlm_labels is not None or without_labels:
            token_states = outputs.text_last_hidden_state
            mlm_logits = self.mlm_head(token_states if without_labels else token_states[mlm_labels != -100])
        if semantic_relation_labels is not None or without_labels:
            related_tokens = outputs.image_embeds[:, None] * outputs.token_embeds[:, 1:-1]
            semantic_relation_scores = self.semantic_relation_head(related_tokens).squeeze(-1).float().softmax(-1)

        if visual_token_labels is not None:
            losses["mim"] = visual_token_loss(visual_token_logits, visual_token_labels[visual_token_labels != -100])
        if visual_relation_labels is not None:
            losses["visual_relation"] = visual_relation_loss(visual_relation_scores, visual_relation_labels)
        if mlm_labels is not None:
            drop_worst = global_step is not None and global_step > self.config.mlm_drop_worst_after
            losses["mlm"] = masked_language_loss(
                mlm_logits,
                mlm_labels[mlm_labels != -100],
                label_smoothing=self.config.mlm_label_smoothing,
                drop_worst_ratio=self.config.mlm_drop_worst_ratio if drop_worst else 0.0,
            )
        if semantic_relation_labels is not None:
            losses["semantic_relation"] = semantic_relation_loss(semantic_relation_scores, semantic_relation_labels)

        loss, loss_dict = self._weighted(losses)
        return OneRefForPreTrainingOutput(
            loss=loss,
            loss_dict=loss_dict,
            pred_boxes=pred_boxes,
            scores=region_contrast_score(outputs.similarity_map, pred_boxes, pixel_mask=pixel_mask),
            visual_token_logits=visual_token_logits,
            visual_relation_scores=visual_relation_scores,
            mlm_logits=mlm_logits,
            semantic_relation_scores=semantic_relation_scores,
            similarity_map=outputs.similarity_map,
            image_embeds=outputs.image_embeds,
            text_embeds=outputs.text_embeds,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# What is small enough to be kept for hundreds of phrases.
_ANSWERS = ("pred_boxes", "scores", "pred_masks", "similarity_map", "image_embeds", "text_embeds")


@torch.no_grad()
def answer_phrases(
    model: nn.Module,
    pixel_values: torch.FloatTensor,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None = None,
    pixel_mask: torch.Tensor | None = None,
    image_indices: torch.LongTensor | None = None,
    max_tokens_per_forward: int = 16384,
    **options,
) -> OneRefSegmentationOutput:
    """
    Answers any number of phrases about one or several pictures in bounded memory.

    Every picture is embedded once. The phrases go through the model in parts of similar length, so that there is
    hardly any padding, and none at all where the attention could do without a mask. The answers are in the order of
    the phrases.

    Args:
        model: a OneRef model with a box head, in evaluation mode; it may be compiled. One that cannot encode pictures
            beforehand, such as an exported one, gets a copy of the picture with every phrase.
        pixel_values: pictures `(num_images, 3, S, S)`: one for all phrases, one for each, or any number.
        input_ids, attention_mask: phrases `(N, T)`, padded at the end.
        pixel_mask: `(num_images, S, S)`, 1 where the canvas shows the picture.
        image_indices: `(N,)`, the row in `pixel_values` of the picture of each phrase.
        max_tokens_per_forward: bound of the positions, patches and words together, that the model sees at a time, but
            at least one phrase. A base model needs about 35 kB for each in float32, and up to 1 GB for masks besides.
        options: for every forward pass, such as `predict_masks=False`; `bool_masked_pos` has a row per picture.

    Returns:
        [`OneRefSegmentationOutput`] with what the model gives of `pred_boxes`, `scores`, `pred_masks`,
        `similarity_map`, `image_embeds` and `text_embeds`, and nothing else.

    Raises:
        ValueError: if there are no phrases, or the numbers of pictures and phrases do not fit.
    """
    num_phrases, text_length = input_ids.shape
    if num_phrases == 0:
        raise ValueError("There are no phrases to answer.")
    rows = image_of_each_text(pixel_values, input_ids, image_indices)
    if rows is None:
        rows = torch.arange(num_phrases, device=input_ids.device)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    positions = torch.arange(1, text_length + 1, device=input_ids.device)
    lengths = (attention_mask * positions).amax(dim=1).cpu()
    encode_images = getattr(model, "encode_images", None)
    names = {"bool_masked_pos", "interpolate_pos_encoding"}.intersection(options)
    of_images = {name: options.pop(name) for name in names}
    encoded = None if encode_images is None else encode_images(pixel_values, **of_images)
    image_tokens = 1 + pixel_values[0, 0].numel() // model.config.patch_size**2

    order = lengths.argsort(stable=True)

    def answered(part: slice) -> dict[str, torch.Tensor]:
        chosen = order[part].to(input_ids.device)
        longest = int(lengths[order[part]].max())
        mask = attention_mask[chosen, :longest]
        if encoded is None:
            images = {"pixel_values": pixel_values[rows[chosen]], **of_images}
            if images.get("bool_masked_pos") is not None:
                images["bool_masked_pos"] = images["bool_masked_pos"][rows[chosen]]
        else:
            images = {"encoded_images": encoded, "image_indices": rows[chosen]}
        if pixel_mask is not None:
            images["pixel_mask"] = pixel_mask[rows[chosen]] if encoded is None else pixel_mask
        mask = None if mask.all() else mask
        outputs = model(input_ids=input_ids[chosen, :longest], attention_mask=mask, **images, **options)
        # Copies: some are views of what is large, and a CUDA graph writes the next part over its outputs.
        return {name: outputs[name].clone() for name in _ANSWERS if outputs.get(name) is not None}

    parts = [answered(part) for part in _parts(lengths[order].tolist(), image_tokens, max_tokens_per_forward)]
    back = order.argsort().to(input_ids.device)
    return OneRefSegmentationOutput(**{name: torch.cat([part[name] for part in parts])[back] for name in parts[0]})


def _parts(lengths: list[int], image_tokens: int, max_tokens: int) -> list[slice]:
    """Cuts phrases of ascending length into parts of at most `max_tokens` positions, or of one phrase."""
    parts, start = [], 0
    for end, length in enumerate(lengths):
        if end > start and (end + 1 - start) * (image_tokens + length) > max_tokens:
            parts.append(slice(start, end))
            start = end
    return [*parts, slice(start, len(lengths))]


__all__ = [
    "OneRefForGrounding",
    "OneRefForPreTraining",
    "OneRefForSegmentation",
    "OneRefModel",
    "OneRefPreTrainedModel",
    "answer_phrases",
]
