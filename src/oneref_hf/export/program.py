# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What is exported: inference as a function of four tensors, with the batch and the text length left open."""

import torch
from torch import nn

from ..modeling_beit3 import POSITION_OFFSET
from ..modeling_oneref import OneRefForGrounding


INPUTS = ("pixel_values", "input_ids", "attention_mask", "pixel_mask")
# What each task answers. The mask comes last, so that the others have the same place in both.
OUTPUTS = {
    "grounding": ("pred_boxes", "scores", "similarity_map"),
    "segmentation": ("pred_boxes", "scores", "similarity_map", "pred_masks"),
}
# Shapes by axis: the same names tie the inputs together, and are those of the ONNX file.
AXES = {
    "pixel_values": {0: "batch"},
    "input_ids": {0: "batch", 1: "text_length"},
    "attention_mask": {0: "batch", 1: "text_length"},
    "pixel_mask": {0: "batch"},
}


class ExportError(Exception):
    """A sentence for the user: why something cannot be exported, or why an exported model cannot be used."""


class OneRefProgram(nn.Module):
    """A model's answers to `INPUTS`, as a tuple in the order of `OUTPUTS`, in float32 whatever the weights are.

    The image side is fixed. `attention_mask` is always applied, where the model itself looks whether it needs one:
    a program cannot depend on the values it gets.

    Args:
        model: any OneRef model with a box head; in evaluation mode.
        task: grounding leaves a mask head out; None is whatever the model can do.

    Raises:
        ExportError: if the model cannot do the task.
    """

    def __init__(self, model: nn.Module, task: str | None = None):
        super().__init__()
        segments = hasattr(model, "mask_head")
        self.task = task or ("segmentation" if segments else "grounding")
        if self.task == "segmentation" and not segments:
            raise ExportError(f"A {type(model).__name__} has no mask head, so it cannot be exported for segmentation.")
        if self.task == "grounding" and segments and model.config.trained_on_masks_only:
            raise ExportError(
                "This model was trained on masks alone and takes its boxes from them, so it cannot be exported for "
                "grounding; leave out the task."
            )
        self.model = model if self.task == "segmentation" else _box_part(model)

    @property
    def config(self):
        return self.model.config

    def forward(self, pixel_values, input_ids, attention_mask, pixel_mask) -> tuple[torch.Tensor, ...]:
        """From the model's inputs to `OUTPUTS` of the task, float32.

        Boxes are `(B, 4)`, scores `(B,)`, similarity maps `(B, S/p, S/p)`, and mask logits `(B, S/2, S/2)`.
        """
        outputs = self.model(
            pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask, pixel_mask=pixel_mask
        )
        return tuple(outputs[name].float() for name in OUTPUTS[self.task])

    def trace(self) -> torch.export.ExportedProgram:
        """The program with symbolic batch and text length."""
        dimensions = {
            "batch": torch.export.Dim("batch", min=1),
            "text_length": torch.export.Dim("text_length", min=2, max=longest_text(self.config)),
        }
        shapes = {name: {axis: dimensions[size] for axis, size in axes.items()} for name, axes in AXES.items()}
        # Neither 0 nor 1 is a good example, for the tracer takes those for constants.
        inputs = random_inputs(self.config, batch_size=2, text_length=5)
        with torch.no_grad():
            return torch.export.export(self, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)


def _box_part(model: nn.Module) -> OneRefForGrounding:
    """The model without any other head than that for boxes; the weights are shared."""
    if isinstance(model, OneRefForGrounding):
        return model
    with torch.device("meta"):
        part = OneRefForGrounding(model.config)
    part.oneref, part.box_head = model.oneref, model.box_head
    return part.eval()


def longest_text(config) -> int:
    """How many tokens a text may have."""
    return config.max_position_embeddings - POSITION_OFFSET


def random_inputs(
    config, batch_size: int, text_length: int, padded: bool = True, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs as the processor gives them, with noise for a picture and random words.

    Args:
        padded: whether the canvas has a margin and all texts but the first are shorter than `text_length`.
    """
    generator = torch.Generator().manual_seed(seed)
    side = config.image_size
    pixel_values = torch.randn(batch_size, config.num_channels, side, side, generator=generator)
    input_ids = torch.randint(config.vocab_size, (batch_size, text_length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    pixel_mask = torch.ones(batch_size, side, side, dtype=torch.long)
    if padded:
        lengths = torch.randint(2, text_length + 1, (batch_size,), generator=generator)
        lengths[0] = text_length
        attention_mask = (torch.arange(text_length) < lengths[:, None]).long()
        pixel_mask[:, : side // 5] = pixel_mask[:, -(side // 5) :] = 0
        pixel_values = pixel_values * pixel_mask[:, None]
    return {
        "pixel_values": pixel_values,
        "input_ids": input_ids.where(attention_mask.bool(), config.pad_token_id),
        "attention_mask": attention_mask,
        "pixel_mask": pixel_mask,
    }
