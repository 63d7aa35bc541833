# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Masks from annotations: COCO polygons, run lengths, or the box where nothing better is annotated.

Sizes are (height, width) in pixels of the picture; masks are uint8 arrays `(height, width)`, 1 = the referred object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def box_to_mask(box_xywh, size: tuple[int, int]) -> np.ndarray:
    """A filled box, by the rule of the COCO API.

    Column c is set when `floor(x + 0.5) <= c < floor(x + w + 0.5)`, rows alike, clipped to the picture. The original
    feeds the *untruncated* annotation, whereas its regression target is truncated: the two may differ by a pixel.

    Args:
        box_xywh: left, top, width, height in pixels.
    """
    x, y, w, h = (float(value) for value in box_xywh)
    mask = np.zeros(size, dtype=np.uint8)
    mask[_span(y, h, size[0]), _span(x, w, size[1])] = 1
    return mask


def polygons_to_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """The union of COCO polygons, each a flat list x0, y0, x1, y1, ... in pixels.

    Raises:
        ValueError: if there is no polygon, or one is not a flat list of at least three points.
    """
    if len(polygons) == 0:
        raise ValueError("A segmentation needs at least one polygon; the list is empty.")
    for polygon in polygons:
        if np.ndim(polygon) != 1 or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                "A polygon is a flat list x0, y0, x1, y1, ... of at least three points; "
                f"this one has the shape {np.shape(polygon)}."
            )
    coco = _coco()
    height, width = size
    # Lists, because the COCO API takes a 2-D array of four columns for boxes.
    runs = coco.frPyObjects([[float(value) for value in polygon] for polygon in polygons], height, width)
    return coco.decode(coco.merge(runs))


def rle_to_mask(rle: dict, size: tuple[int, int]) -> np.ndarray:
    """COCO run lengths, `{"size": [height, width], "counts": ...}`, compressed (string) or not (list).

    Raises:
        ValueError: if `size` or `counts` is missing, or the run lengths are for another size.
    """
    missing = {"size", "counts"} - rle.keys()
    if missing:
        raise ValueError(f"Run lengths need the keys 'size' and 'counts'; {' and '.join(sorted(missing))} is missing.")
    if tuple(rle["size"]) != tuple(size):
        raise ValueError(
            f"The run lengths are for a picture of {tuple(rle['size'])}, not {tuple(size)} (height, width)."
        )
    counts = decoded_counts(rle["counts"]) if isinstance(rle["counts"], (str, bytes)) else rle["counts"]
    if sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise ValueError(f"The run lengths cover {sum(counts)} pixels, the picture has {size[0] * size[1]}.")
    coco = _coco()
    return coco.decode(coco.frPyObjects({"size": list(size), "counts": list(counts)}, *size))


def decoded_counts(text: str | bytes) -> list[int]:
    """The run lengths in COCO's compressed text.

    Characters from code 48 on carry five bits each, lowest first, bit 5 set where a number goes on; numbers are in
    two's complement, and from the fourth on they are differences to the number two before. (The COCO API itself
    returns uninitialised memory for texts that do not cover the picture, hence this reader.)

    Raises:
        ValueError: if it is no such text.
    """
    digits = np.frombuffer(text.encode("utf-8") if isinstance(text, str) else text, dtype=np.uint8).astype(np.int64)
    digits -= 48
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not len(ends) or ends[-1] != len(digits) - 1:
        raise ValueError("the compressed counts of the run lengths are damaged")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise ValueError("the compressed counts of the run lengths are damaged")
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((digits & 31) << shifts, starts)
    numbers -= (digits[ends] >> 4 & 1) << (5 * lengths)
    for phase in (1, 2):  # odd and even numbers from the second on are two running sums
        numbers[phase::2] = np.cumsum(numbers[phase::2])
    return numbers.tolist()


def segmentation_to_mask(segmentation, size: tuple[int, int]) -> np.ndarray:
    """The mask of any annotation this package reads: COCO polygons (list), run lengths (dict) or a mask picture.

    A mask picture (array or PIL image, grey or one bit) has the size of the photograph; non-zero is the object.

    Raises:
        ValueError: if the annotation is malformed or has another size.
    """
    if isinstance(segmentation, dict):
        return rle_to_mask(segmentation, size)
    if isinstance(segmentation, (list, tuple)):
        return polygons_to_mask(segmentation, size)
    mask = np.asarray(segmentation)
    if mask.shape != tuple(size):
        raise ValueError(f"The mask has the shape {mask.shape}, the picture {tuple(size)} (height, width).")
    return (mask != 0).astype(np.uint8)


def _span(start: float, length: float, limit: int) -> slice:
    first, last = math.floor(start + 0.5), math.floor(start + length + 0.5)
    return slice(min(max(first, 0), limit), min(max(last, 0), limit))


def _coco():
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("Polygons and run lengths need pycocotools: pip install oneref-hf[train].") from error
    return mask
