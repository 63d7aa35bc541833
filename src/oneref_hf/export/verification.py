# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""How far an exported model is from the model it was made of."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..data.scenes import SceneRecords
from ..loss_oneref import cxcywh_to_xyxy
from ..metrics import box_iou
from ..modeling_oneref import region_contrast_score, tight_boxes
from .program import OUTPUTS, ExportError, OneRefProgram, longest_text, random_inputs


# The largest difference that passes. In half precision the two sum up in different orders, and each with its rounding.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
# Batch size, text length, whether texts and pictures are padded. None of it is what the program was traced with.
_CASES = ((1, 2, False), (1, 12, False), (1, 12, True), (2, 64, True), (3, 7, False), (5, 20, True))
_PICTURE_SIZE = 320
_PICTURES_AT_ONCE = 4


class Difference(NamedTuple):
    """The largest difference between two sets of answers: how much, in which output, for how many cases."""

    value: float
    output: str
    num_cases: int


def largest_difference(exported, program: OneRefProgram) -> Difference:
    """Compares an exported model with its program in PyTorch, for several batch sizes and text lengths.

    Raises:
        ExportError: if a shape differs or a value is no number.
    """
    worst = {}
    for number, (batch_size, text_length, padded) in enumerate(_CASES):
        length = min(text_length, longest_text(program.config))
        inputs = random_inputs(program.config, batch_size, length, padded, seed=1 + number)
        answers = exported(**inputs)
        with torch.no_grad():
            expected = dict(zip(OUTPUTS[program.task], program(**inputs)))
        if program.task == "segmentation" and program.config.trained_on_masks_only:
            # A pixel on the verge of the mask may fall on either side, and then moves the box as a whole.
            expected.update(_from_masks(answers, inputs, program))
        for name, value in expected.items():
            if answers[name].shape != value.shape:
                raise ExportError(
                    f"The exported model gave {name} of shape {tuple(answers[name].shape)} where "
                    f"{tuple(value.shape)} is right."
                )
            difference = (answers[name] - value).abs().max().item()
            if not difference < float("inf"):
                raise ExportError(f"The exported model gave {name} that are no numbers.")
            worst[name] = max(difference, worst.get(name, 0.0))
    name = max(worst, key=worst.get)
    return Difference(worst[name], name, len(_CASES))


def _from_masks(answers, inputs: dict[str, torch.Tensor], program: OneRefProgram) -> dict[str, torch.Tensor]:
    """Boxes and scores that PyTorch reads off the exported model's masks."""
    masks, pixel_mask = answers["pred_masks"], inputs["pixel_mask"]
    boxes = tight_boxes(masks, answers["pred_boxes"], pixel_mask)
    return {"pred_boxes": boxes, "scores": region_contrast_score(masks, boxes, masks, pixel_mask)}


def box_agreement(exported, program: OneRefProgram, processor, num_phrases: int = 16) -> float:
    """Mean IoU of the boxes of an exported model with those of its program in PyTorch, on drawn scenes."""
    overlaps = []
    for inputs in _scenes(processor, num_phrases):
        with torch.no_grad():
            expected = program(**inputs)[0]
        boxes = (cxcywh_to_xyxy(boxes).clamp(0, 1) for boxes in (exported(**inputs).pred_boxes, expected))
        overlaps.append(box_iou(*boxes, "xyxy"))
    return torch.cat(overlaps).mean().item()


def _scenes(processor, num_phrases: int) -> Iterator[dict[str, torch.Tensor]]:
    records = SceneRecords("test", num_phrases, size=_PICTURE_SIZE)
    for start in range(0, num_phrases, _PICTURES_AT_ONCE):
        part = [records[index] for index in range(start, min(start + _PICTURES_AT_ONCE, num_phrases))]
        pictures, phrases = ([record[name] for record in part] for name in ("image", "phrase"))
        yield dict(processor(pictures, phrases, return_tensors="pt"))
