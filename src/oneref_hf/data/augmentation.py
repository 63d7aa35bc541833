# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The original's training augmentation: crop, scale, colour jitter, blur and placement, with box and mask following.

Two layers: `ReferringAugmentation` changes the picture and says where it goes on the canvas; `TrainingTransform` turns
that into the tensors of one training sample. All randomness comes from one `torch.Generator`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ..letterbox_oneref import IMAGE_MEAN, IMAGE_STD, Letterbox, centred_offset, read_picture


Box = tuple[float, float, float, float]

# Cropping can change what these words mean. They match as substrings, hence inside "bright" or "stop" as well.
DIRECTION_WORDS = ("left", "right", "top", "bottom", "middle")

_CROP_SHORT_SIDES = (400, 500, 600)
_CROP_SIDES = (384, 600)  # smallest and largest side of the crop window
_CROP_TRIES = 20
_SCALE_STEP = 32
_BLUR_SIGMAS = (0.1, 2.0)
# Drawn at once per sample, which is faster than one by one; the longest path takes fewer than 100.
_DRAWS = 128


@dataclass(frozen=True)
class AugmentedSample:
    """A picture ready to be placed on the canvas, with box and mask in its own frame.

    image: RGB, long side at most the canvas side. canvas: where it lies, unscaled. box_xyxy: pixels.
    mask: uint8 `(height, width)`, 1 = the object, or None.
    """

    image: Image.Image
    canvas: Letterbox
    box_xyxy: Box
    mask: np.ndarray | None


class ReferringAugmentation:
    """Random crop, scale, colour and place of one picture with its box and mask.

    In this order, each step optional:

    1. crop: half of the time, and never when the phrase holds a direction word, the short side goes to 400, 500 or
       600; then up to 20 windows with sides of 384 to 600 px are tried, and the first whose origin lies left of and
       above the box centre is cut out and the box clipped to it. If none does, the resized picture stays whole. Two
       slips of the original are not repeated: it compared the centre's x with the window's top, y with the left; and
       it kept windows with less than a pixel of the box in them (right and bottom edge are not looked at), which here
       count as failed tries.
    2. scale: the long side goes to one of S, S - 32, ... (`num_scales` of them; those above 0).
    3. colour: with probability 0.8, brightness, contrast and saturation in random order, by factors of 0.6 to 1.4.
    4. blur: with probability 0.5, Gaussian with sigma 0.1 to 2.
    5. translate: a random place on the canvas; without it centred, as in evaluation.

    There is no flip: it would swap left and right. With every step off the result is the evaluation transform.

    Args:
        image_size: canvas side S in pixels.
        num_scales: 7 in fine-tuning, 6 in MRefM; 1 is no random scale.
        crop, translate, blur: whether these steps are taken; no released recipe blurs.
        color_jitter: how far the factors stray from 1; 0 is no colour step.
    """

    def __init__(
        self,
        image_size: int = 384,
        *,
        num_scales: int = 7,
        crop: bool = True,
        translate: bool = True,
        blur: bool = False,
        color_jitter: float = 0.4,
    ):
        self.image_size = image_size
        self.scales = [
            side for side in range(image_size, image_size - _SCALE_STEP * num_scales, -_SCALE_STEP) if side > 0
        ]
        if not self.scales:
            raise ValueError(f"image_size and num_scales must be at least 1, not {image_size} and {num_scales}.")
        if not 0 <= color_jitter <= 1:
            raise ValueError(f"color_jitter lies between 0 and 1, not {color_jitter}.")
        self.crop = crop
        self.translate = translate
        self.blur = blur
        self.color_jitter = color_jitter

    def __call__(
        self,
        image: Image.Image,
        phrase: str,
        box_xyxy,
        mask: np.ndarray | None = None,
        generator: torch.Generator | None = None,
    ) -> AugmentedSample:
        """Augments one picture.

        Args:
            image: PIL image of any mode; turned the right way up if its EXIF data say so.
            phrase: decides whether cropping is allowed.
            box_xyxy: `(4,)`, pixels of the upright picture, as it is (annotations are truncated by their reader).
            mask: `(height, width)` of the upright picture, non-zero = the object, or None.
            generator: source of randomness; torch's global one by default.

        Raises:
            ValueError: if box or mask have the wrong shape.
        """
        mask = None if mask is None else np.asarray(mask)
        frame = _Frame.of_picture(image, box_xyxy, mask)
        draws = _Draws(generator)
        if self.crop and draws.chance(0.5) and not has_direction_word(phrase):
            ratio = draws.choice(_CROP_SHORT_SIDES) / min(frame.size)
            frame = frame.resized(ratio, _crop_window(frame, ratio, draws))
        frame = frame.resized(draws.choice(self.scales) / max(frame.size))
        image = self._recoloured(frame.image, draws)
        if self.blur and draws.chance(0.5):
            image = image.filter(ImageFilter.GaussianBlur(draws.uniform(*_BLUR_SIGMAS)))
        offset = (self._offset(side, draws) for side in frame.size)
        canvas = Letterbox(self.image_size, *frame.size, 1.0, *frame.size, *offset)
        return AugmentedSample(image, canvas, frame.box_xyxy, None if mask is None else frame.sampled(mask))

    def _recoloured(self, image: Image.Image, draws: _Draws) -> Image.Image:
        if self.color_jitter == 0 or not draws.chance(0.8):
            return image
        for enhance in draws.shuffled([ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]):
            image = enhance(image).enhance(draws.uniform(1 - self.color_jitter, 1 + self.color_jitter))
        return image

    def _offset(self, side: int, draws: _Draws) -> int:
        """Where a side starts on the canvas."""
        return draws.integer(0, self.image_size - side) if self.translate else centred_offset(side, self.image_size)


class TrainingTransform:
    """One training sample's tensors: augmentation, normalisation and padding.

    Args:
        image_size: canvas side S in pixels.
        for_visual_tokens: also return the picture as the visual tokenizer wants it.
        augmentation: the keywords of `ReferringAugmentation`.
    """

    def __init__(self, image_size: int = 384, *, for_visual_tokens: bool = False, **augmentation):
        self.augment = ReferringAugmentation(image_size, **augmentation)
        self.image_size = image_size
        self.for_visual_tokens = for_visual_tokens

    def __call__(
        self,
        image: Image.Image,
        phrase: str,
        box_xyxy,
        mask: np.ndarray | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Arguments as in `ReferringAugmentation.__call__`.

        Returns:
            `pixel_values` float32 `(3, S, S)`, ImageNet-normalised, then padded with 0; `pixel_mask` int64 `(S, S)`,
            1 = picture; `box_labels` float32 `(4,)`, cx, cy, w, h in [0, 1] of the canvas; `mask_labels` uint8
            `(S, S)` if a mask is given; `pixel_values_unnormalized` float32 `(3, S, S)` in [0, 1], padded with 0, if
            `for_visual_tokens`.
        """
        sample = self.augment(image, phrase, box_xyxy, mask, generator)
        canvas = sample.canvas
        pixels = torch.from_numpy(np.stack([np.asarray(band) for band in sample.image.split()])) / 255
        tensors = {
            "pixel_mask": canvas.pixel_mask(),
            "box_labels": canvas.boxes_to_canvas(torch.tensor([sample.box_xyxy]))[0],
        }
        if sample.mask is not None:
            tensors["mask_labels"] = canvas.paste(torch.from_numpy(sample.mask))
        if self.for_visual_tokens:
            tensors["pixel_values_unnormalized"] = canvas.paste(pixels)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        tensors["pixel_values"] = canvas.paste(pixels.sub_(mean).div_(std))
        return tensors


def has_direction_word(phrase: str) -> bool:
    """Whether the phrase contains one of `DIRECTION_WORDS`, as a substring and in any case."""
    phrase = phrase.lower()
    return any(word in phrase for word in DIRECTION_WORDS)


class _Draws:
    """Random numbers of one sample; a fixed number is taken from the generator whatever path the sample goes."""

    def __init__(self, generator: torch.Generator | None):
        self._next = iter(torch.rand(_DRAWS, dtype=torch.float64, generator=generator).tolist()).__next__

    def chance(self, probability: float) -> bool:
        return self._next() < probability

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return low + int(self._next() * (high - low + 1))

    def choice(self, options):
        return options[self.integer(0, len(options) - 1)]

    def shuffled(self, items: list) -> list:
        return sorted(items, key=lambda _: self._next())


@dataclass(frozen=True)
class _Frame:
    """A picture after resizing and cropping; `rows` and `columns` are where its pixels sample the original mask."""

    image: Image.Image
    box_xyxy: Box
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of_picture(cls, image: Image.Image, box_xyxy, mask: np.ndarray | None) -> _Frame:
        image = ImageOps.exif_transpose(image)
        if image.mode != "RGB":
            pixels = read_picture(image, convert_rgb=True, to_8_bit_range=True).round().to(torch.uint8)
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        size = (image.height, image.width)
        box = tuple(float(value) for value in box_xyxy)
        if len(box) != 4:
            raise ValueError(f"A box has four values (x0, y0, x1, y1), not {len(box)}.")
        if mask is not None and mask.shape != size:
            raise ValueError(f"The mask has the shape {mask.shape}, the picture {size} (height, width).")
        return cls(image, box, np.arange(size[0]), np.arange(size[1]))

    @property
    def size(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    def scaled_size(self, ratio: float) -> tuple[int, int]:
        return tuple(max(round(side * ratio), 1) for side in self.size)

    def resized(self, ratio: float, window: tuple[int, int, int, int] | None = None) -> _Frame:
        """Scales by `ratio` and keeps `window` (x0, y0, x1, y1 in the scaled picture), without computing the rest.

        Pillow filters across the edges of its `box`, so the pixels are those of resizing first and cropping then, up
        to the rounding of an 8-bit level.
        """
        height, width = self.scaled_size(ratio)
        x0, y0, x1, y1 = window or (0, 0, width, height)
        step_x, step_y = self.image.width / width, self.image.height / height
        source = (x0 * step_x, y0 * step_y, min(x1 * step_x, self.image.width), min(y1 * step_y, self.image.height))
        image = self.image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=source if window else None)
        box = _scaled(self.box_xyxy, ratio)
        if window:
            box = _clipped(box, window)
        rows = self.rows[_nearest(self.image.height, height)[y0:y1]]
        return _Frame(image, box, rows, self.columns[_nearest(self.image.width, width)[x0:x1]])

    def sampled(self, mask: np.ndarray) -> np.ndarray:
        """The mask resized and cropped like the picture, by nearest neighbour."""
        return (mask[self.rows][:, self.columns] != 0).astype(np.uint8)


def _crop_window(frame: _Frame, ratio: float, draws: _Draws) -> tuple[int, int, int, int] | None:
    """A window of the picture scaled by `ratio`, or None if no try is accepted."""
    height, width = frame.scaled_size(ratio)
    box = _scaled(frame.box_xyxy, ratio)
    centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    smallest, largest = _CROP_SIDES
    for _ in range(_CROP_TRIES):
        window_width = draws.integer(smallest, min(width, largest))
        window_height = draws.integer(smallest, min(height, largest))
        x0 = draws.integer(0, width - window_width)
        y0 = draws.integer(0, height - window_height)
        window = (x0, y0, x0 + window_width, y0 + window_height)
        left, top, right, bottom = _clipped(box, window)
        if x0 < centre_x and y0 < centre_y and right - left >= 1 and bottom - top >= 1:
            return window
    return None


def _scaled(box_xyxy: Box, ratio: float) -> Box:
    """By the exact ratio, although the sides of the picture are rounded."""
    return tuple(value * ratio for value in box_xyxy)


def _clipped(box_xyxy: Box, window: tuple[int, int, int, int]) -> Box:
    """The part of the box inside the window, in the window's frame."""
    x0, y0, x1, y1 = window
    left, top, right, bottom = box_xyxy
    xs = (min(max(x, x0), x1) - x0 for x in (left, right))
    ys = (min(max(y, y0), y1) - y0 for y in (top, bottom))
    (left, right), (top, bottom) = xs, ys
    return left, top, right, bottom


def _nearest(length: int, new_length: int) -> np.ndarray:
    """Source index of every pixel of a side resized by nearest neighbour, counted in float32 like torch's."""
    step = np.float32(length / new_length)
    return np.minimum((np.arange(new_length, dtype=np.float32) * step).astype(np.int64), length - 1)
