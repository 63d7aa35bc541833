# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor of OneRef on PIL and NumPy: the reference, which reproduces the original's evaluation transform."""

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from .letterbox_oneref import OneRefImageProcessorKwargs, OneRefImageProcessorMixin


class OneRefImageProcessorPil(OneRefImageProcessorMixin, PilBackend):
    r"""
    Puts pictures on OneRef's square canvas of side S (`size`, 384 by default): the long side is resized to S
    (bilinear, antialiased), the numbers go to [0, 1] and are normalised with the ImageNet mean and deviation, and
    after that the rest of the canvas, on both sides of the picture, is filled with zeros.

    What is accepted, and how it is read:

    - Paths, http(s) and data addresses, PIL images, NumPy arrays and torch tensors, 4-D batches, and lists of these.
      Addresses are read by Transformers' `load_image`, which is limited to 8 bits per channel.
    - The EXIF orientation is applied, for PIL images passed directly too; boxes, masks and target sizes refer to the
      picture the right way up. Arrays have no orientation.
    - PIL images become RGB as in the original, by PIL's own rule: the stored colours count and transparency is
      dropped (RGBA, LA, palettes), CMYK and the like are converted, grey and black-and-white are repeated over the
      channels. Arrays are treated alike: 1 channel is repeated, the fourth is dropped.
    - 16-bit greyscale (PIL modes I;16 and I, uint16 arrays) is divided by 257 and rounded, not clipped.
    - Floating-point pictures (arrays, tensors, PIL mode F) that lie in [0, 1] are taken as already rescaled, even
      with `do_rescale=True`; others must lie in [0, 255]. With `do_rescale=False` floats are left as they are.
    - Other integers must lie in 0..255; True is white.
    - Arrays are (height, width), (height, width, channels) or (channels, height, width). Where two readings are
      possible colour beats grey, then NumPy arrays count as channels-last and tensors as channels-first;
      `input_data_format` decides otherwise.
    - Very thin pictures keep at least one pixel per side.
    - Empty, truncated or unreadable pictures, NaN and infinity are a `ValueError`; a missing file is a
      `FileNotFoundError`.
    """

    _auto_class = "AutoImageProcessor"
    valid_kwargs = OneRefImageProcessorKwargs

    def process_image(self, image: Image.Image | np.ndarray | torch.Tensor, device=None, **kwargs) -> np.ndarray:
        """One picture as `(channels, height, width)`, uint8 or float32, always in main memory."""
        return super().process_image(image, **kwargs).detach().cpu().numpy()

    def resize(self, image: np.ndarray, size: SizeDict, resample: int | None = None, **kwargs) -> np.ndarray:
        """Resizes `(channels, height, width)` of uint8 or float32 to `size`, keeping the type."""
        target = (size.width, size.height)
        if image.dtype == np.uint8 and len(image) == 3:  # the same numbers as channel by channel, in half the time
            picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize(target, resample)
            return np.array(picture).transpose(2, 0, 1)
        channels = [Image.fromarray(np.ascontiguousarray(channel)).resize(target, resample) for channel in image]
        return np.stack([np.asarray(channel) for channel in channels])

    def _exported(self, values: torch.Tensor) -> np.ndarray:
        return values.numpy()


__all__ = ["OneRefImageProcessorPil"]
