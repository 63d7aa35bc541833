# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""OneRef model configuration."""

from huggingface_hub.dataclasses import strict

from .configuration_beit3 import Beit3Config


# Weight of each loss by its key in `loss_dict`. The contrastive loss needs no labels, so a weight other than 0 would
# switch it on in every forward pass; no released recipe uses it.
DEFAULT_LOSS_WEIGHTS = {
    "box_l1": 1.0,
    "box_giou": 1.0,
    "similarity_focal": 20.0,
    "similarity_dice": 2.0,
    "mask_focal": 20.0,
    "mask_dice": 2.0,
    "contrastive": 0.0,
    "mim": 1.0,
    "visual_relation": 1.0,
    "mlm": 1.0,
    "semantic_relation": 1.0,
}


@strict
class OneRefConfig(Beit3Config):
    r"""
    Configuration of the OneRef models. It is the configuration of the BEiT-3 backbone (see [`Beit3Config`] for its
    fields) with the few values that the heads and losses need, so a BEiT-3 checkpoint loads into every OneRef head.

    Args:
        logit_scale_init_value (`float`, *optional*, defaults to 2.659260036932778):
            Initial logarithm of the contrastive loss' temperature, ln(1 / 0.07).
        visual_vocab_size (`int`, *optional*, defaults to 8192):
            Number of visual tokens that masked image modelling predicts: the codes of the VQ-KD tokenizer.
        loss_weights (`dict[str, float]`, *optional*):
            Weights by loss name; names that are left out keep their default: `box_l1` 1, `box_giou` 1,
            `similarity_focal` 20, `similarity_dice` 2, `mask_focal` 20, `mask_dice` 2, `contrastive` 0, `mim` 1,
            `visual_relation` 1, `mlm` 1, `semantic_relation` 1. A weight of 0 switches the loss off.
        trained_on_masks_only (`bool`, *optional*, defaults to `False`):
            Whether the model has learnt from the mask losses alone, as the released segmentation models have: their
            box head and similarity map never had a target. [`OneRefForSegmentation`] then takes boxes and scores from
            its masks.
        mlm_label_smoothing (`float`, *optional*, defaults to 0.1):
            Probability that masked language modelling spreads over the words that are not the label.
        mlm_drop_worst_ratio (`float`, *optional*, defaults to 0.2):
            Share of the masked tokens, those with the highest loss, that do not count after `mlm_drop_worst_after`.
        mlm_drop_worst_after (`int`, *optional*, defaults to 12000):
            Global step after which the worst tokens are dropped.

    Example:

    ```python
    >>> from oneref_hf import OneRefConfig, OneRefForSegmentation

    >>> config = OneRefConfig(loss_weights={"similarity_focal": 0.0, "similarity_dice": 0.0})
    >>> model = OneRefForSegmentation(config)
    ```"""

    model_type = "oneref"
    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = [
        "loss_dict",
        "similarity_map",
        "image_embeds",
        "text_embeds",
        "patch_embeds",
        "token_embeds",
        "last_hidden_state",
        "hidden_states",
        "attentions",
    ]

    logit_scale_init_value: float | int = 2.659260036932778
    visual_vocab_size: int = 8192
    loss_weights: dict[str, float | int] | None = None
    trained_on_masks_only: bool = False
    mlm_label_smoothing: float | int = 0.1
    mlm_drop_worst_ratio: float | int = 0.2
    mlm_drop_worst_after: int = 12000

    def __setattr__(self, name, value):
        if name == "loss_weights":  # here, for `from_pretrained` changes a finished configuration
            value = {**DEFAULT_LOSS_WEIGHTS, **(value or {})}
        super().__setattr__(name, value)

    def validate_architecture(self):
        """Part of `@strict`-powered validation: rules that concern more than one field.

        Raises:
            ValueError: as for `Beit3Config`, or if `loss_weights` has an unknown name.
        """
        super().validate_architecture()
        unknown = sorted(set(self.loss_weights) - set(DEFAULT_LOSS_WEIGHTS))
        if unknown:
            raise ValueError(
                f"Unknown names in loss_weights: {', '.join(unknown)}. "
                f"The losses are {', '.join(DEFAULT_LOSS_WEIGHTS)}."
            )


__all__ = ["OneRefConfig"]
