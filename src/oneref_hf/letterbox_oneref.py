# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The square canvas of OneRef: the only place that knows how a picture, its boxes and its masks get onto it and back.

`Letterbox` is the geometry (the original's evaluation transform). `OneRefImageProcessorMixin` is everything the two
image processors share: reading any kind of picture, laying it out with its labels, and undoing that for predictions.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from transformers import BatchFeature
from transformers.image_transforms import center_to_corners_format, corners_to_center_format
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    load_image,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging


logger = logging.get_logger(__name__)

IMAGE_MEAN = tuple(IMAGENET_DEFAULT_MEAN)
IMAGE_STD = tuple(IMAGENET_DEFAULT_STD)

# Read as numbers, because PIL's own conversion to RGB clips them at 255.
_PIL_MODES_ABOVE_8_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
# What is to be done to a picture of each EXIF orientation; 1 is the right way up.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow looks for the orientation.
_EXIF_ENTRIES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
# Seconds that a web server may be silent for.
_URL_TIMEOUT = 60.0
# Resampling and arithmetic push floats a little over the edges of [0, 1].
_FLOAT_SLACK = 0.01


# --------------------------------------------------------------------------------------------------------------------
# Geometry
# --------------------------------------------------------------------------------------------------------------------


def centred_offset(side: int, canvas_size: int) -> int:
    """Pixels of padding before a side that lies in the middle of the canvas; the smaller half comes first."""
    return (canvas_size - side) // 2


@dataclass(frozen=True)
class Letterbox:
    """Where one picture lies on its square canvas.

    height, width: the picture in pixels, the right way up. scale: canvas pixels per picture pixel, exact, although the
    sides of the content are rounded; boxes use it. content_height, content_width, top, left: the part of the canvas
    that shows the picture, in canvas pixels.
    """

    canvas_size: int
    height: int
    width: int
    scale: float
    content_height: int
    content_width: int
    top: int
    left: int

    @classmethod
    def centred(cls, height: int, width: int, canvas_size: int) -> "Letterbox":
        """The evaluation layout: the long side fills the canvas, the short one (at least a pixel) is centred.

        Raises:
            ValueError: if a side has no pixel.
        """
        if height < 1 or width < 1:
            raise ValueError(f"A picture has at least one pixel per side, not (height, width) = ({height}, {width}).")
        scale = canvas_size / max(height, width)
        content_height, content_width = (max(round(side * scale), 1) for side in (height, width))
        top, left = (centred_offset(side, canvas_size) for side in (content_height, content_width))
        return cls(canvas_size, height, width, scale, content_height, content_width, top, left)

    def paste(self, content: torch.Tensor) -> torch.Tensor:
        """`(..., content_height, content_width)` onto a canvas of zeros, `(..., S, S)`."""
        canvas = content.new_zeros(*content.shape[:-2], self.canvas_size, self.canvas_size)
        self.cut(canvas).copy_(content)
        return canvas

    def cut(self, canvas: torch.Tensor) -> torch.Tensor:
        """The part of a canvas `(..., S, S)` that shows the picture: a view `(..., content_height, content_width)`."""
        rows = slice(self.top, self.top + self.content_height)
        columns = slice(self.left, self.left + self.content_width)
        return canvas[..., rows, columns]

    def pixel_mask(self) -> torch.Tensor:
        """int64 `(S, S)`, 1 = picture, 0 = padding."""
        return self.paste(torch.ones(self.content_height, self.content_width, dtype=torch.int64))

    def boxes_to_canvas(self, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        """`(N, 4)` corners in pixels of the picture to float32 `(N, 4)` cx, cy, w, h in [0, 1] of the canvas."""
        boxes_xyxy = boxes_xyxy.float() * self.scale
        return corners_to_center_format(boxes_xyxy + self._shift(boxes_xyxy)) / self.canvas_size

    def boxes_to_picture(self, boxes_cxcywh: torch.Tensor) -> torch.Tensor:
        """The way back from `boxes_to_canvas`: `(N, 4)` to corners `(N, 4)` in pixels, clipped to the picture."""
        boxes_xyxy = center_to_corners_format(boxes_cxcywh.float() * self.canvas_size)
        boxes_xyxy = (boxes_xyxy - self._shift(boxes_xyxy)) / self.scale
        return torch.minimum(boxes_xyxy.clamp(min=0), boxes_xyxy.new_tensor([self.width, self.height] * 2))

    def mask_to_canvas(self, mask: torch.Tensor) -> torch.Tensor:
        """bool `(height, width)` to uint8 `(S, S)`: nearest neighbour as torch counts it, padded with 0."""
        size = (self.content_height, self.content_width)
        return self.paste(F.interpolate(mask[None, None].to(torch.uint8), size=size, mode="nearest")[0, 0])

    def map_to_picture(self, values: torch.Tensor) -> torch.Tensor:
        """A map over the canvas, `(s, s)` at any resolution, to float32 `(height, width)`, bilinear both times."""
        return _bilinear(self.cut(_bilinear(values, (self.canvas_size,) * 2)), (self.height, self.width))

    def _shift(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_tensor([self.left, self.top] * 2)


def canvas_masks(mask_logits, size: tuple[int, int]) -> torch.Tensor:
    """Binary masks at `size` (height, width) from low-resolution logits, by the rule of the original's evaluation.

    Sigmoid, minus 0.5, ReLU, then bilinear upsampling, then "> 0". Cutting before upsampling grows every region by
    part of a cell, so thresholding the upsampled logits instead would give other scores.

    Args:
        mask_logits: `(..., h, w)`, tensor or array, foreground above 0.

    Returns:
        bool `(..., height, width)`.
    """
    logits = torch.as_tensor(mask_logits)
    positive = (logits.float().sigmoid() - 0.5).relu().reshape(-1, 1, *logits.shape[-2:])
    positive = F.interpolate(positive, size=tuple(size), mode="bilinear", align_corners=False)
    return (positive > 0).reshape(*logits.shape[:-2], *size)


def _bilinear(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """float32 `(h, w)` to `(height, width)`."""
    return F.interpolate(values[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]


# --------------------------------------------------------------------------------------------------------------------
# Reading pictures, boxes and masks of every kind
# --------------------------------------------------------------------------------------------------------------------


def flatten_images(images: ImageInput) -> list:
    """A flat list of pictures (PIL, array or tensor) from one picture, a 4-D batch, or any nesting of lists of them.

    File paths and addresses (http, https, data) are opened on the way; a web server may be silent for a minute.

    Raises:
        FileNotFoundError: if a path leads nowhere.
        ValueError: if a file is not a picture, or is cut off, or an address gives none.
        TypeError: if something is no kind of picture at all.
    """
    if isinstance(images, (list, tuple)):
        return [picture for item in images for picture in flatten_images(item)]
    if isinstance(images, (str, os.PathLike)):
        return [_open_picture(os.fspath(images))]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Image.Image):
        return [images]
    raise TypeError(
        f"A picture is a path, a URL, a PIL image, a NumPy array or a torch tensor, not {type(images).__name__}."
    )


def _open_picture(source: str) -> Image.Image:
    if source.startswith(("http://", "https://", "data:")):
        try:
            return load_image(source, timeout=_URL_TIMEOUT)
        except Exception as error:  # whatever the network or the decoder says
            raise ValueError(f"No picture could be read from {source[:200]!r}: {error}") from error
    if not os.path.exists(source):
        raise FileNotFoundError(f"There is no image file {source!r}; check the path.")
    try:
        with Image.open(source) as image:
            image.load()
            return upright(image)
    except Exception as error:  # decoders fail in every possible way
        raise ValueError(f"The file {source!r} is not a readable image, or is cut off: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say; itself, not a copy of it, where there is nothing to turn.

    A turned picture has no EXIF data: Pillow's `exif_transpose` would write them anew, which fails if any is damaged.
    """
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged data say nothing about the pixels
        turn = None
    if turn is None:
        return image
    image = image.transpose(turn)
    for name in _EXIF_ENTRIES:
        image.info.pop(name, None)
    return image


def read_picture(
    image: Image.Image | np.ndarray | torch.Tensor,
    convert_rgb: bool,
    to_8_bit_range: bool,
    layout: str | ChannelDimension | None = None,
) -> torch.Tensor:
    """One picture as `(channels, height, width)`: uint8, or float32 where the picture has floating-point numbers.

    Args:
        convert_rgb: give three channels: grey is repeated, alpha is dropped.
        to_8_bit_range: bring floats to 0..255 (see the policy in the docstring of `OneRefImageProcessorPil`).
        layout: where the channels of an array are; by default it is found out.

    Raises:
        ValueError: if the picture is empty, truncated or has impossible numbers.
    """
    habit = ChannelDimension.FIRST if isinstance(image, torch.Tensor) else ChannelDimension.LAST
    if isinstance(image, Image.Image):
        image, layout = _numbers_of_pil(image, convert_rgb), ChannelDimension.LAST
    if isinstance(image, np.ndarray):
        image = _tensor(image)
    if image.numel() == 0:
        raise ValueError(f"the picture is empty, its shape is {tuple(image.shape)}.")
    image = _as_8_bit_or_float(_channels_first(image, layout, habit), to_8_bit_range)
    if not convert_rgb:
        return image
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of the array's numbers; a copy, since torch knows neither read-only memory nor foreign byte orders."""
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except TypeError as error:
        raise ValueError(f"a picture is an array of numbers, not of {array.dtype}.") from error


def _numbers_of_pil(image: Image.Image, convert_rgb: bool) -> np.ndarray:
    try:
        image = upright(image)
        if convert_rgb and image.mode not in _PIL_MODES_ABOVE_8_BIT:
            if image.mode == "P":  # the detour keeps Pillow from warning about transparent palettes
                image = image.convert("RGBA")
            image = image.convert("RGB")
        numbers = np.asarray(image)
    except Exception as error:  # of a decoder, where the picture is only read now
        raise ValueError(f"the PIL image cannot be decoded, it may be cut off: {error}") from error
    if image.mode == "I" and numbers.size:  # 32-bit in memory, 16-bit in every file format that leads here
        if numbers.min() < 0 or numbers.max() > 65535:
            raise ValueError("a PIL image of mode I must hold 16-bit numbers, 0 to 65535.")
        numbers = numbers.astype(np.uint16)
    return numbers


def _channels_first(
    image: torch.Tensor, layout: str | ChannelDimension | None, habit: ChannelDimension
) -> torch.Tensor:
    if image.ndim == 2:
        return image[None]
    channels = (1, 3, 4)
    if image.ndim == 3 and layout is None:
        first, last = (side if side in channels else 0 for side in (image.shape[0], image.shape[-1]))
        if first and last and (first > 1) == (last > 1):
            layout = habit
            logger.warning_once(
                f"An array of shape {tuple(image.shape)} can be read in two ways; it is taken as {habit.value}. "
                "Pass `input_data_format` to say which it is."
            )
        else:  # where both ends could be the channels, colour is likelier than grey
            layout = ChannelDimension.FIRST if first > last else ChannelDimension.LAST
    axis = 0 if layout is not None and ChannelDimension(layout) == ChannelDimension.FIRST else -1
    if image.ndim != 3 or image.shape[axis] not in channels:
        raise ValueError(
            "an array must be (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 "
            f"channels, not {tuple(image.shape)}{'' if layout is None else f', {ChannelDimension(layout).value}'}."
        )
    return image.movedim(axis, 0)


def _as_8_bit_or_float(image: torch.Tensor, to_8_bit_range: bool) -> torch.Tensor:
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if image.dtype == torch.uint16:
        return (image.float() / 257).round().to(torch.uint8)
    if image.is_complex():
        raise ValueError("complex numbers are not a picture.")
    if not image.is_floating_point():
        low, high = (bound.item() for bound in image.to(torch.int64).aminmax())
        if low < 0 or high > 255:
            raise ValueError(
                f"{image.dtype} numbers must lie in 0..255, not {low}..{high}; 16-bit pictures need the type uint16."
            )
        return image.to(torch.uint8)
    image = image.float()
    if not image.isfinite().all():
        raise ValueError("the picture has NaN or infinite numbers.")
    if not to_8_bit_range:
        return image
    low, high = (bound.item() for bound in image.aminmax())
    if low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK:
        return image.clamp(0, 1) * 255
    if low < 0 or high > 255:
        raise ValueError(
            f"floating-point pictures lie in [0, 1] or [0, 255], not [{low:g}, {high:g}]; was it normalised already?"
        )
    return image


def flatten_boxes(boxes) -> torch.Tensor:
    """float32 `(N, 4)` on the CPU from a box, a list of boxes, arrays, tensors, or lists of those.

    Raises:
        ValueError: if a box has not four numbers.
    """
    if isinstance(boxes, (list, tuple)) and boxes and not isinstance(boxes[0], Real):
        return torch.cat([flatten_boxes(item) for item in boxes])
    try:
        numbers = torch.as_tensor(boxes, dtype=torch.float32, device="cpu")
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"A box has four numbers (x0, y0, x1, y1), this one is {boxes!r}.") from None
    if numbers.ndim == 0 or numbers.shape[-1] != 4:
        raise ValueError(f"A box has four numbers (x0, y0, x1, y1); the shape {tuple(numbers.shape)} does not fit.")
    return numbers.reshape(-1, 4)


def flatten_masks(masks) -> list[torch.Tensor]:
    """bool `(height, width)` on the CPU from PIL images, arrays, tensors `(..., height, width)`, or lists of those.

    Raises:
        ValueError: if a mask has channels, or values other than those of a mask.
    """
    if isinstance(masks, (list, tuple)):
        return [mask for item in masks for mask in flatten_masks(item)]
    if isinstance(masks, Image.Image):
        masks = np.asarray(upright(masks))
        if masks.ndim != 2:
            raise ValueError(f"A mask has one channel (PIL mode 1 or L), not {masks.shape[-1]}.")
    if isinstance(masks, np.ndarray):
        masks = _tensor(masks)
    if not isinstance(masks, torch.Tensor) or masks.ndim < 2:
        raise ValueError("A mask is a PIL image, a NumPy array or a torch tensor of shape (height, width).")
    masks = masks.cpu()
    if masks.is_floating_point():
        if not ((masks >= 0) & (masks <= 1)).all():
            raise ValueError("A floating-point mask lies in [0, 1].")
    elif masks.dtype != torch.bool:
        masks = masks.to(torch.int64)
        foreground = 255 if (masks == 255).any() else 1
        if not ((masks == 0) | (masks == foreground)).all():
            raise ValueError("A mask holds 0 and 1 (or 0 and 255); for a label map pass `label_map == label`.")
    return list((masks > 0.5).reshape(-1, *masks.shape[-2:]))


# --------------------------------------------------------------------------------------------------------------------
# What both image processors share
# --------------------------------------------------------------------------------------------------------------------


class OneRefImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    truncate_boxes (`bool`, *optional*, defaults to `self.truncate_boxes`):
        Whether the numbers of `boxes` lose their fractions first, as in the original's training and evaluation.
    """

    truncate_boxes: bool | None


class OneRefImageProcessorMixin:
    """Layout of pictures and labels, and post-processing, on a backend's `resize`, `rescale` and `normalize`."""

    valid_kwargs = OneRefImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    resample = PILImageResampling.BILINEAR
    size = {"height": 384, "width": 384}
    image_mean = IMAGE_MEAN
    image_std = IMAGE_STD
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    truncate_boxes = True

    def preprocess(
        self,
        images: ImageInput,
        boxes=None,
        masks=None,
        phrases_per_image: list[int] | None = None,
        **kwargs: Unpack[OneRefImageProcessorKwargs],
    ) -> BatchFeature:
        """Lays pictures, and the boxes and masks on them, out on the canvas.

        Args:
            images: a path, URL, PIL image, array or tensor, a 4-D batch, or lists of them, nested or not.
            boxes: one box per row of the result: x0, y0, x1, y1 in pixels of its picture the right way up (EXIF).
            masks: one mask per row of the result: `(height, width)` of its picture, 0 and 1.
            phrases_per_image: how many rows each picture gives, one by default. A picture is processed once, its
                rows are copies. A single picture takes any number of boxes or masks without it.

        Returns:
            `pixel_values` float32 `(B, 3, S, S)`, normalised, then padded with 0; `pixel_mask` int64 `(B, S, S)`,
            1 = picture; with boxes `box_labels` float32 `(B, 4)`, cx, cy, w, h in [0, 1] of the canvas (beyond it
            where a box leaves its picture); with masks `mask_labels` uint8 `(B, S, S)`, 1 = the object.

        Raises:
            FileNotFoundError, TypeError, ValueError: if a picture cannot be used, counts or sizes do not match, or an
                option would leave the canvas of the model.
        """
        return super().preprocess(images, boxes, masks, phrases_per_image, **kwargs)

    def process_image(
        self,
        image: Image.Image | np.ndarray | torch.Tensor,
        do_convert_rgb: bool | None = None,
        do_rescale: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "torch.device | str | None" = None,
        **kwargs,
    ) -> torch.Tensor:
        """One picture as `(channels, height, width)`, uint8 or float32; see `read_picture`."""
        picture = read_picture(image, bool(do_convert_rgb), bool(do_rescale), input_data_format)
        return picture if device is None else picture.to(device)

    def _standardize_kwargs(self, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        size = kwargs["size"]
        if size is not None and (not size.height or size.height != size.width):
            raise ValueError(f"OneRef's canvas is a square: size={{'height': S, 'width': S}}, not {dict(size)}.")
        return kwargs

    def _validate_preprocess_kwargs(self, do_pad=None, do_center_crop=None, **kwargs):
        if not kwargs["do_resize"] or not do_pad or do_center_crop:
            raise ValueError(
                "OneRef sees the whole picture, resized and padded onto its square canvas: do_resize and do_pad stay "
                "True and do_center_crop False; `size` sets the side of the canvas."
            )
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        boxes,
        masks,
        phrases_per_image: list[int] | None,
        size: SizeDict,
        resample: "PILImageResampling | int",
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | tuple[float, ...] | None,
        image_std: float | tuple[float, ...] | None,
        truncate_boxes: bool,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        images = flatten_images(images)
        targets = {}
        if boxes is not None:
            targets["boxes"] = _checked_boxes(flatten_boxes(boxes), truncate_boxes)
        if masks is not None:
            targets["masks"] = flatten_masks(masks)
        owners = _owners(len(images), phrases_per_image, {name: len(values) for name, values in targets.items()})

        canvases, letterboxes = [], []
        for index, image in enumerate(images):
            try:
                image = self.process_image(image, do_rescale=do_rescale, **kwargs)
                letterbox = Letterbox.centred(*image.shape[-2:], size.height)
            except ValueError as error:
                raise ValueError(f"Image {index} of {len(images)} cannot be used: {error}") from error
            content_size = SizeDict(height=letterbox.content_height, width=letterbox.content_width)
            content = self.resize(image, content_size, resample)
            if do_rescale:
                content = self.rescale(content, rescale_factor)
            if do_normalize:
                content = self.normalize(content, image_mean, image_std)
            canvases.append(letterbox.paste(torch.as_tensor(content, dtype=torch.float32)))
            letterboxes.append(letterbox)

        data = {"pixel_values": canvases, "pixel_mask": [letterbox.pixel_mask() for letterbox in letterboxes]}
        data = {name: [values[owner] for owner in owners] for name, values in data.items()}
        if boxes is not None:
            rows = zip(targets["boxes"], owners)
            data["box_labels"] = [letterboxes[owner].boxes_to_canvas(box[None])[0] for box, owner in rows]
        if masks is not None:
            for row, (mask, owner) in enumerate(zip(targets["masks"], owners)):
                picture_size = (letterboxes[owner].height, letterboxes[owner].width)
                if mask.shape != picture_size:
                    raise ValueError(
                        f"Mask {row} is {tuple(mask.shape)} (height, width), but its picture is {picture_size} the "
                        "right way up (EXIF)."
                    )
            data["mask_labels"] = [letterboxes[owner].mask_to_canvas(m) for m, owner in zip(targets["masks"], owners)]
        device = canvases[0].device
        data = {name: [self._exported(value.to(device)) for value in values] for name, values in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def _exported(self, values: torch.Tensor) -> np.ndarray | torch.Tensor:
        """A row of the result in the type the backend works with."""
        return values

    # Post-processing

    def post_process_object_detection(
        self, outputs, threshold: float = 0.0, target_sizes: torch.Tensor | list[tuple[int, int]] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Scores and boxes in the form of other detectors, one dict per row of the batch.

        Args:
            outputs: a OneRef head's outputs, or a dict with its `scores` and `pred_boxes`.
            threshold: rows with a lower score give empty tensors. 0 keeps everything, for OneRef always has an answer.
            target_sizes: `(B, 2)` height and width of the pictures, the right way up; a single one serves all rows.

        Returns:
            Per row `scores` `(1,)`, `labels` `(1,)` int64 zeros, `boxes` `(1, 4)` float32 x0, y0, x1, y1 in pixels of
            the picture and clipped to it; in pixels of the canvas without `target_sizes`.
        """
        scores, boxes = _output(outputs, "scores"), _output(outputs, "pred_boxes")
        results = []
        for score, box, letterbox in zip(scores, boxes, self._letterboxes(target_sizes, len(boxes))):
            score = score.float().reshape(1)
            kept = score >= threshold
            results.append(
                {
                    "scores": score[kept],
                    "labels": torch.zeros(1, dtype=torch.int64, device=box.device)[kept],
                    "boxes": letterbox.boxes_to_picture(box[None])[kept],
                }
            )
        return results

    def post_process_grounded_object_detection(
        self,
        outputs,
        threshold: float = 0.0,
        target_sizes: torch.Tensor | list[tuple[int, int]] | None = None,
        text_labels: list[str] | list[list[str]] | None = None,
    ) -> list[dict]:
        """`post_process_object_detection` with the phrases and, where the model segments, the masks.

        Args:
            outputs, threshold, target_sizes: as there.
            text_labels: the phrases, one per row of the batch, or one list per picture.

        Returns:
            Per row `scores`, `labels`, `boxes` as there, `text_labels` (`[phrase]`, or None without phrases), and
            `masks` bool `(1, H, W)` in the frame of the boxes if the outputs have `pred_masks`. A row below the
            threshold has zero entries.

        Raises:
            ValueError: if there are not as many phrases, or sizes, as rows.
        """
        results = self.post_process_object_detection(outputs, threshold, target_sizes)
        if text_labels is not None:
            nested = [[label] if isinstance(label, str) else label for label in text_labels]
            text_labels = [label for labels in nested for label in labels]
            if len(text_labels) != len(results):
                raise ValueError(f"There are {len(text_labels)} text_labels for {len(results)} predictions.")
        logits = _output(outputs, "pred_masks", required=False)
        for row, (result, letterbox) in enumerate(zip(results, self._letterboxes(target_sizes, len(results)))):
            kept = len(result["scores"])
            result["text_labels"] = None if text_labels is None else text_labels[row : row + kept]
            if logits is not None:
                result["masks"] = (
                    (letterbox.map_to_picture(logits[row]) > 0)[None]
                    if kept
                    else torch.zeros(0, letterbox.height, letterbox.width, dtype=torch.bool, device=logits.device)
                )
        return results

    def post_process_masks(
        self,
        outputs,
        target_sizes: torch.Tensor | list[tuple[int, int]] | None = None,
        protocol: str = "picture",
    ) -> list[torch.Tensor]:
        """Binary masks, one per row of the batch, computed one after the other to bound memory.

        Args:
            outputs: outputs of a head that segments, or a dict with its `pred_masks` `(B, S/2, S/2)`.
            target_sizes: as in `post_process_object_detection`; the canvas itself by default.
            protocol: `"picture"` upsamples the logits to the canvas, removes the letterbox, resizes to the picture,
                and asks for > 0. `"canvas"` is the original's evaluation rule at `(S, S)`, `canvas_masks`.

        Returns:
            bool `(H, W)` of the picture, or `(S, S)`.

        Raises:
            ValueError: if there is no such protocol, no mask, or not one size per row.
        """
        logits = _output(outputs, "pred_masks")
        if protocol == "picture":
            letterboxes = self._letterboxes(target_sizes, len(logits))
            return [letterbox.map_to_picture(row) > 0 for row, letterbox in zip(logits, letterboxes)]
        if protocol == "canvas":
            return [canvas_masks(row, (self.size.height,) * 2) for row in logits]
        raise ValueError(f"protocol is 'picture' or 'canvas', not {protocol!r}.")

    def post_process_similarity(
        self, outputs, target_sizes: torch.Tensor | list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """Heat maps: the similarity of the phrase with every patch, spread over the picture.

        Args:
            outputs: outputs of a OneRef head, or a dict with its `similarity_map` `(B, S/p, S/p)`, cosines.
            target_sizes: as in `post_process_object_detection`; the canvas itself by default.

        Returns:
            float32 `(H, W)` cosines in [-1, 1], one per row of the batch.
        """
        maps = _output(outputs, "similarity_map")
        return [box.map_to_picture(row) for row, box in zip(maps, self._letterboxes(target_sizes, len(maps)))]

    def _letterboxes(self, target_sizes, num_rows: int) -> list[Letterbox]:
        """The layout of every row's picture; the canvas itself without sizes."""
        canvas_size = self.size.height
        if target_sizes is None:
            target_sizes = (canvas_size, canvas_size)
        sizes = target_sizes.cpu() if isinstance(target_sizes, torch.Tensor) else np.asarray(target_sizes)
        if sizes.ndim not in (1, 2) or sizes.shape[-1] != 2 or (sizes.ndim == 2 and len(sizes) not in (1, num_rows)):
            raise ValueError(
                f"target_sizes needs one (height, width) for each of the {num_rows} predictions, or one for all; the "
                f"shape {tuple(sizes.shape)} does not fit."
            )
        sizes = sizes.reshape(-1, 2).tolist()
        letterboxes = [Letterbox.centred(int(height), int(width), canvas_size) for height, width in sizes]
        return letterboxes * num_rows if len(letterboxes) == 1 else letterboxes


def _checked_boxes(boxes_xyxy: torch.Tensor, truncate: bool) -> torch.Tensor:
    valid = boxes_xyxy.isfinite().all(1) & (boxes_xyxy[:, 2:] >= boxes_xyxy[:, :2]).all(1)
    if not valid.all():
        row = valid.int().argmin().item()
        raise ValueError(
            f"Box {row} is {boxes_xyxy[row].tolist()}, but a box is (x0, y0, x1, y1) in pixels, x0 <= x1 and y0 <= y1."
        )
    return boxes_xyxy.trunc() if truncate else boxes_xyxy


def _owners(num_images: int, phrases_per_image: list[int] | None, num_targets: dict[str, int]) -> list[int]:
    """For every row of the batch, the index of its picture."""
    if num_images == 0:
        raise ValueError("No picture was given.")
    if phrases_per_image is None:
        phrases_per_image = [max(num_targets.values(), default=1) if num_images == 1 else 1] * num_images
    if len(phrases_per_image) != num_images:
        raise ValueError(f"phrases_per_image has {len(phrases_per_image)} numbers for {num_images} pictures.")
    owners = [index for index, count in enumerate(phrases_per_image) for _ in range(count)]
    for name, count in num_targets.items():
        if count != len(owners):
            raise ValueError(f"There are {count} {name} for {len(owners)} phrases on {num_images} pictures.")
    return owners


def _output(outputs, name: str, required: bool = True) -> torch.Tensor | None:
    value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    if value is None and required:
        raise ValueError(f"The outputs have no `{name}`: they must come from a OneRef head that computes it.")
    return None if value is None else value.detach()


__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "Letterbox",
    "OneRefImageProcessorKwargs",
    "OneRefImageProcessorMixin",
    "canvas_masks",
    "centred_offset",
    "flatten_boxes",
    "flatten_images",
    "flatten_masks",
    "read_picture",
    "upright",
]
