# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Processor of OneRef: pictures and phrases in, model inputs out, and predictions back to pixels."""

import re

import torch
from transformers import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .letterbox_oneref import flatten_images


logger = logging.get_logger(__name__)

MAX_LENGTH = 64  # tokens of a phrase, as in the released models
_UNLIMITED = 10**6  # from here on a tokenizer has no limit of its own


class OneRefProcessor(ProcessorMixin):
    r"""
    Pairs pictures with phrases. A OneRef image processor and an XLM-RoBERTa tokenizer do the work.

    Phrases are lower-cased, cut to `tokenizer.model_max_length` tokens (64 in released models) with `<s>` and `</s>`,
    and padded to the longest of the batch. `padding="max_length"` pads to as many; `pad_to_multiple_of=16` pads to a
    multiple, so that a compiled model sees few shapes. Control tokens typed by a user (`<mask>`, `</s>`) are text:
    they get a space after their first character. (`split_special_tokens=True` would not do: the vocabulary knows them
    as pieces, too.)
    """

    _auto_class = "AutoProcessor"
    text_kwargs = {"padding": True, "truncation": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor, tokenizer):
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | list[list[str]] | None = None,
        boxes=None,
        masks=None,
        repeat_images: bool | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Prepares a batch of B pairs of a picture and a phrase.

        Args:
            images: one picture or several, in any form the image processor takes. None for text alone.
            text: one picture takes any number of phrases; several pictures take one phrase each, or one list of
                phrases each. None for pictures alone.
            boxes: for training, one box per phrase: x0, y0, x1, y1 in pixels of its picture the right way up. Nested
                like `text` or flat.
            masks: for training, one mask `(height, width)` per phrase, likewise.
            repeat_images: whether a picture with several phrases appears once for each, as by default. False saves the
                copies: there is one row per picture, and `image_indices` `(B,)` says which belongs to each phrase.

        Returns:
            Tensors (`return_tensors=None` gives lists). With images `pixel_values` `(B, 3, S, S)` and `pixel_mask`
            `(B, S, S)`, with text `input_ids` and `attention_mask` `(B, T)`, with boxes `box_labels` `(B, 4)`, with
            masks `mask_labels` `(B, S, S)`. A picture with several phrases is processed once and then copied, so that
            every tensor is contiguous.

        Raises:
            ValueError: if a phrase is empty, counts do not match, or an input cannot be used.
        """
        if images is None and text is None:
            raise ValueError("OneRefProcessor needs images, text or both.")
        if images is None and (boxes is not None or masks is not None):
            raise ValueError("boxes and masks need the images they lie on.")
        if repeat_images is False and (images is None or text is None or boxes is not None or masks is not None):
            raise ValueError("repeat_images=False is for images and text together, without boxes and masks.")
        kwargs = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data = {}
        phrases, phrases_per_image = None, None
        if images is not None:
            images = flatten_images(images)
        if text is not None:
            phrases, phrases_per_image = _pair(text, None if images is None else len(images))
            data.update(self._tokenized(phrases, **kwargs["text_kwargs"]))
        if images is not None:
            rows_per_image = phrases_per_image
            if repeat_images is False:
                rows_per_image = None
                owners = [image for image, count in enumerate(phrases_per_image) for _ in range(count)]
                tensor_type = kwargs["text_kwargs"]["return_tensors"]
                data.update(BatchFeature({"image_indices": owners}, tensor_type=tensor_type))
            pictures = self.image_processor(
                images, boxes=boxes, masks=masks, phrases_per_image=rows_per_image, **kwargs["images_kwargs"]
            )
            data = {**pictures, **data}
        return BatchFeature(data)

    def _tokenized(self, phrases: list[str], **text_kwargs) -> dict:
        if text_kwargs.get("max_length") is None:
            limit = self.tokenizer.model_max_length
            text_kwargs["max_length"] = limit if limit < _UNLIMITED else MAX_LENGTH
        control_tokens = re.compile("|".join(map(re.escape, self.tokenizer.all_special_tokens)))
        phrases = [self._as_plain_text(phrase.lower(), control_tokens) for phrase in phrases]
        encoding = self.tokenizer(phrases, **text_kwargs)
        if any(row.overflowing for row in encoding.encodings):
            logger.warning_once(f"Phrases are cut off after {text_kwargs['max_length']} tokens.")
        return dict(encoding)

    def _as_plain_text(self, phrase: str, control_tokens: re.Pattern) -> str:
        """The phrase without control tokens, neither typed nor made by the normaliser: `<mask>` becomes `< mask>`."""
        phrase = control_tokens.sub(_with_a_gap, phrase)
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        normalized = phrase if normalizer is None else normalizer.normalize_str(phrase)
        return control_tokens.sub(_with_a_gap, normalized) if control_tokens.search(normalized) else phrase

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in Transformers, but the cut and the padding of the last call do not become the saved tokenizer's own."""
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        saved = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        # Saving writes `auto_map` onto the object too; loading does not, so the two would no longer be equal.
        vars(self).pop("auto_map", None)
        return saved

    def post_process_grounded_object_detection(
        self,
        outputs,
        threshold: float = 0.0,
        target_sizes: torch.Tensor | list[tuple[int, int]] | None = None,
        text_labels: list[str] | list[list[str]] | None = None,
    ) -> list[dict]:
        """See `OneRefImageProcessorPil.post_process_grounded_object_detection`."""
        return self.image_processor.post_process_grounded_object_detection(
            outputs, threshold, target_sizes, text_labels
        )

    def post_process_masks(
        self,
        outputs,
        target_sizes: torch.Tensor | list[tuple[int, int]] | None = None,
        protocol: str = "picture",
    ) -> list[torch.Tensor]:
        """See `OneRefImageProcessorPil.post_process_masks`."""
        return self.image_processor.post_process_masks(outputs, target_sizes, protocol)

    def post_process_similarity(
        self, outputs, target_sizes: torch.Tensor | list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """See `OneRefImageProcessorPil.post_process_similarity`."""
        return self.image_processor.post_process_similarity(outputs, target_sizes)


def _with_a_gap(match: re.Match) -> str:
    return f"{match[0][0]} {match[0][1:]}"


def _pair(text: str | list[str] | list[list[str]], num_images: int | None) -> tuple[list[str], list[int] | None]:
    """All phrases in a row, and how many of them belong to each picture."""
    groups = [text] if isinstance(text, str) else list(text)
    nested = any(isinstance(group, (list, tuple)) for group in groups)
    groups = [list(group) if isinstance(group, (list, tuple)) else [group] for group in groups]
    phrases = [phrase for group in groups for phrase in group]
    for index, phrase in enumerate(phrases):
        if not isinstance(phrase, str):
            raise ValueError(
                f"`text` is a phrase, a list of phrases, or one list of phrases per image; phrase {index} is a "
                f"{type(phrase).__name__}."
            )
        if not phrase.strip():
            raise ValueError(f"Phrase {index} is empty: an empty phrase is an error, since it refers to nothing.")
    if not all(groups) or not groups:
        raise ValueError("`text` has no phrase" + (f" for image {groups.index([])}." if groups else "."))
    if num_images is None:
        return phrases, None
    if num_images == 1 and not nested:
        return phrases, [len(phrases)]
    if len(groups) != num_images:
        lists = "lists of phrases" if nested else "phrases"
        raise ValueError(
            f"There are {len(groups)} {lists} for {num_images} images: give one image with any number of phrases, one "
            "phrase per image, or one list of phrases per image."
        )
    return phrases, [len(group) for group in groups]


__all__ = ["OneRefProcessor"]
