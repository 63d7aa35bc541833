# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The original's training augmentation: crop, scale, colour jitter, blur and placement, with box and mask following.

Two layers: `ReferringAugmentation` changes the picture and says where it goes on the canvas; `TrainingTransform` turns
that into the tensors of one training sample. All randomness comes from one `torch.Generator`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import interpolate

from ..letterbox_oneref import IMAGE_MEAN, IMAGE_STD, Letterbox, centred_offset, read_picture, upright


Box = tuple[float, float, float, float]
Window = tuple[int, int, int, int]  # x0, y0, x1, y1

# Cropping can change what these words mean. They match as substrings, hence inside "bright" or "stop" as well.
DIRECTION_WORDS = ("left", "right", "top", "bottom", "middle")

_CROP_SHORT_SIDES = (400, 500, 600)
_CROP_SIDES = (384, 600)  # smallest and largest side of the crop window
_CROP_TRIES = 20
_SCALE_STEP = 32
_BLUR_SIGMAS = (0.1, 2.0)
# Drawn at once per sample, which is faster than one by one; the longest path takes fewer than 100.
_DRAWS = 128
_MEAN, _STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
_LUMA = (19595, 38470, 7471)  # of 65536; Pillow's weights of red, green and blue


@dataclass(frozen=True)
class AugmentedSample:
    """A picture on the canvas, with box and mask in its own frame.

    pixels: float32 `(3, S, S)`, RGB in whole numbers from 0 to 255, 0 around the picture. canvas: where it lies,
    unscaled. box_xyxy: pixels. mask: uint8 `(height, width)`, 1 = the object, or None.
    """

    pixels: torch.Tensor
    canvas: Letterbox
    box_xyxy: Box
    mask: np.ndarray | None

    @property
    def picture(self) -> torch.Tensor:
        """The part of `pixels` that shows it, a view `(3, height, width)`."""
        return self.canvas.cut(self.pixels)


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

    There is no flip: it would swap left and right. With every step off the result is the evaluation transform, number
    for number. With random scales, step 2 resizes by torch in a third of Pillow's time; a few values of a hundred then
    differ, by one (seldom two) of 255 levels.

    Args:
        image_size: canvas side S in pixels.
        num_scales: 7 in fine-tuning, 6 in MRefM; 1 is no random scale.
        crop, translate, blur: whether these steps are taken; no released recipe blurs.
        color_jitter: how far the factors stray from 1; 0 is no colour step.

    Raises:
        ValueError: if image_size or num_scales is below 1, or color_jitter outside [0, 1].
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
        self.exact = len(self.scales) == 1
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
        image = _as_rgb(upright(image))
        frame = _Frame.of_picture((image.height, image.width), box_xyxy, mask)
        draws = _Draws(generator)
        if self.crop and draws.chance(0.5) and not has_direction_word(phrase):
            ratio = draws.choice(_CROP_SHORT_SIDES) / min(frame.size)
            window = _crop_window(frame, ratio, draws)
            image = _cropped(image, frame.scaled_size(ratio), window)
            frame = frame.resized(ratio, window)
        ratio = draws.choice(self.scales) / max(frame.size)
        picture = _resized(image, frame.scaled_size(ratio), self.exact)
        frame = frame.resized(ratio)
        colours = self._draw_colours(draws)
        sigma = draws.uniform(*_BLUR_SIGMAS) if self.blur and draws.chance(0.5) else None
        offset = (self._offset(side, draws) for side in frame.size)
        canvas = Letterbox(self.image_size, *frame.size, 1.0, *frame.size, *offset)
        # Everything happens on the canvas of the result: fresh memory costs more than the arithmetic.
        pixels = torch.zeros(3, self.image_size, self.image_size)
        levels = canvas.cut(pixels).copy_(picture)
        for reference, factor in colours:
            _blend_(levels, reference(levels), factor)
        if sigma is not None:
            levels.copy_(_pixels(_image(levels).filter(ImageFilter.GaussianBlur(sigma))))
        return AugmentedSample(pixels, canvas, frame.box_xyxy, None if mask is None else frame.sampled(mask))

    def _draw_colours(self, draws: _Draws) -> list[tuple[Callable, float]]:
        """The references of brightness, contrast and saturation in their random order, each with its factor."""
        if self.color_jitter == 0 or not draws.chance(0.8):
            return []
        references = draws.shuffled([_black, _mean_grey, _grey])
        return [(reference, draws.uniform(1 - self.color_jitter, 1 + self.color_jitter)) for reference in references]

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
            `pixel_values` float32 `(3, S, S)`, ImageNet-normalised, then padded with 0; `box_labels` float32 `(4,)`,
            cx, cy, w, h in [0, 1] of the canvas; `mask_labels` uint8 `(S, S)` if a mask is given;
            `pixel_values_unnormalized` float32 `(3, S, S)` in [0, 1], padded with 0, if `for_visual_tokens`. There is
            no `pixel_mask`: scores need it, losses do not.
        """
        sample = self.augment(image, phrase, box_xyxy, mask, generator)
        canvas, normalized = sample.canvas, sample.pixels
        tensors = {"box_labels": canvas.boxes_to_canvas(torch.tensor([sample.box_xyxy]))[0]}
        if sample.mask is not None:
            tensors["mask_labels"] = canvas.paste(torch.from_numpy(sample.mask))
        picture = sample.picture.div_(255)
        if self.for_visual_tokens:
            tensors["pixel_values_unnormalized"], normalized = sample.pixels, torch.zeros_like(sample.pixels)
        torch.sub(picture, _MEAN, out=canvas.cut(normalized)).div_(_STD)
        tensors["pixel_values"] = normalized
        return tensors


def has_direction_word(phrase: str) -> bool:
    """Whether the phrase contains one of `DIRECTION_WORDS`, as a substring and in any case."""
    phrase = phrase.lower()
    return any(word in phrase for word in DIRECTION_WORDS)


# Pixels -----------------------------------------------------------------------------------------------------------
def _pixels(image: Image.Image) -> torch.Tensor:
    """uint8 `(3, height, width)` of an RGB picture."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy())


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    return _image(read_picture(image, convert_rgb=True, to_8_bit_range=True).round())


def _cropped(image: Image.Image, size: tuple[int, int], window: Window | None) -> Image.Image:
    """Resizes to `size` and keeps the window of that, without computing the rest.

    Pillow filters across the edges of its `box`, so the pixels are those of resizing first and cropping then, up to
    the rounding of an 8-bit level.
    """
    height, width = size
    if window is None:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    x0, y0, x1, y1 = window
    step_x, step_y = image.width / width, image.height / height
    source = (x0 * step_x, y0 * step_y, min(x1 * step_x, image.width), min(y1 * step_y, image.height))
    return image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=source)


def _resized(image: Image.Image, size: tuple[int, int], exact: bool) -> torch.Tensor:
    """uint8 `(3, height, width)`, bilinear and antialiased, by Pillow or, if not `exact`, by torch."""
    if exact or size == (image.height, image.width):
        return _pixels(image.resize(size[::-1], Image.Resampling.BILINEAR))
    return interpolate(_pixels(image)[None], size=size, mode="bilinear", antialias=True)[0]


# Colours, as Pillow's `ImageEnhance` changes them, number for number, in half of its time -------------------------
def _black(levels: torch.Tensor) -> float:
    return 0.0


def _grey(levels: torch.Tensor) -> torch.Tensor:
    """The brightness of every pixel, `(height, width)`; the sums stay below 2**24, hence exact in float32."""
    red, green, blue = levels
    grey = red * _LUMA[0]
    return grey.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).add_(0x8000).mul_(1 / 0x10000).floor_()


def _mean_grey(levels: torch.Tensor) -> float:
    return float(int(_grey(levels).mean(dtype=torch.float64).item() + 0.5))


def _blend_(levels: torch.Tensor, reference: torch.Tensor | float, factor: float) -> torch.Tensor:
    """Moves the levels away from the reference (factor above 1) or towards it, in place, and cuts off fractions."""
    return levels.sub_(reference).mul_(factor).add_(reference).clamp_(0, 255).floor_()


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


# Geometry ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Frame:
    """A picture's box after resizing and cropping, and where its rows and columns lie in the original picture."""

    box_xyxy: Box
    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def of_picture(cls, size: tuple[int, int], box_xyxy, mask: np.ndarray | None) -> _Frame:
        box = tuple(float(value) for value in box_xyxy)
        if len(box) != 4:
            raise ValueError(f"A box has four values (x0, y0, x1, y1), not {len(box)}.")
        if mask is not None and mask.shape != size:
            raise ValueError(f"The mask has the shape {mask.shape}, the picture {size} (height, width).")
        return cls(box, np.arange(size[0]), np.arange(size[1]))

    @property
    def size(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def scaled_size(self, ratio: float) -> tuple[int, int]:
        return tuple(max(round(side * ratio), 1) for side in self.size)

    def resized(self, ratio: float, window: Window | None = None) -> _Frame:
        """Scaled by `ratio`, and of that the window."""
        height, width = self.scaled_size(ratio)
        x0, y0, x1, y1 = window or (0, 0, width, height)
        box = _scaled(self.box_xyxy, ratio)
        if window:
            box = _clipped(box, window)
        rows, columns = (_nearest(*sides) for sides in zip(self.size, (height, width)))
        return _Frame(box, self.rows[rows[y0:y1]], self.columns[columns[x0:x1]])

    def sampled(self, mask: np.ndarray) -> np.ndarray:
        """The mask resized and cropped like the picture, by nearest neighbour."""
        return (mask[self.rows][:, self.columns] != 0).view(np.uint8)


def _crop_window(frame: _Frame, ratio: float, draws: _Draws) -> Window | None:
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


def _clipped(box_xyxy: Box, window: Window) -> Box:
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
