# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Which patches and which words Mask Referring Modeling hides, and where each patch lies relative to the referred box.

Grids are `(height, width)` in patches, or one int for a square; flattened patches are row-major. Every random choice
is drawn from the `torch.Generator` that is passed (default: torch's global one, which `DataLoader` seeds per worker).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .text_masking import ReferringTextMasker, parse_words


__all__ = [
    "ReferringTextMasker",
    "blockwise_image_mask",
    "dynamic_image_mask",
    "parse_words",
    "random_image_mask",
    "referred_region",
    "visual_relation_labels",
]

GridSize = int | tuple[int, int]


def referred_region(box_cxcywh, grid_size: GridSize) -> tuple[int, int, int, int]:
    """The patches around the referred box, as the half-open rectangle `(x0, y0, x1, y1)` in patches.

    The corners of the box in patch units are cut to whole numbers, moved outwards by one patch and clipped to the grid
    (the original's dynamic masking). The upper corners are cut before growing, so a box whose right edge lies at 4.9
    reaches to patch column 4, not 5. Never empty for a box whose centre lies in the canvas.

    Args:
        box_cxcywh: `(4,)`, centre and size in [0, 1] of the canvas.
    """
    height, width = _grid(grid_size)
    box = _box_in_patches(box_cxcywh, height, width)
    (x0, y0), (x1, y1) = (corner.astype(int).tolist() for corner in (box[:2] - box[2:] / 2, box[:2] + box[2:] / 2))
    return max(x0 - 1, 0), max(y0 - 1, 0), min(x1 + 1, width), min(y1 + 1, height)


def dynamic_image_mask(
    box_cxcywh,
    grid_size: GridSize,
    inside_ratio: float = 0.75,
    outside_ratio: float = 0.35,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Referring-aware dynamic masking: dense around the referred box, sparse elsewhere.

    Of the L patches of `referred_region` exactly `L - int(L * (1 - inside_ratio))` are masked. Elsewhere the patches
    of an independent random mask over the whole grid, of `outside_ratio` counted alike, are; so their number varies.

    Args:
        box_cxcywh: `(4,)`, centre and size in [0, 1] of the canvas.

    Returns:
        bool `(P,)`, True = masked.
    """
    height, width = _grid(grid_size)
    x0, y0, x1, y1 = referred_region(box_cxcywh, (height, width))
    mask = random_image_mask((height, width), outside_ratio, generator).view(height, width)
    mask[y0:y1, x0:x1] = random_image_mask((y1 - y0, x1 - x0), inside_ratio, generator).view(y1 - y0, x1 - x0)
    return mask.flatten()


def random_image_mask(
    grid_size: GridSize, ratio: float = 0.75, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Uniform random masking as in MAE: exactly `P - int(P * (1 - ratio))` patches, bool `(P,)`, True = masked.

    Raises:
        ValueError: if the ratio is outside [0, 1].
    """
    height, width = _grid(grid_size)
    if not 0 <= ratio <= 1:
        raise ValueError(f"A masking ratio lies between 0 and 1, not {ratio}.")
    patches = height * width
    mask = torch.zeros(patches, dtype=torch.bool)
    mask[torch.randperm(patches, generator=generator)[: patches - int(patches * (1 - ratio))]] = True
    return mask


def blockwise_image_mask(
    grid_size: GridSize,
    ratio: float = 0.4,
    min_block: int = 16,
    min_aspect: float = 0.3,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Block-wise masking as in BEiT: rectangles of random area and aspect until `int(P * ratio)` patches are masked.

    A rectangle is placed only if it adds at least one patch and does not exceed the target; after ten rectangles in a
    row that do not fit, the mask is taken as it is, so it may hold fewer patches than the target, never more.

    Args:
        min_block: smallest area drawn, in patches, while that many are still missing.
        min_aspect: height / width is drawn log-uniformly between this and its inverse.

    Returns:
        bool `(P,)`, True = masked.
    """
    height, width = _grid(grid_size)
    target = int(height * width * ratio)
    mask = torch.zeros(height, width, dtype=torch.bool)
    masked = failures = 0
    while masked < target and failures < 10:
        missing = target - masked
        area_at, aspect_at, top_at, left_at = torch.rand(4, generator=generator).tolist()
        smallest = min(min_block, missing)
        area = smallest + area_at * (missing - smallest)
        aspect = math.exp((2 * aspect_at - 1) * math.log(1 / min_aspect))
        block_height, block_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        added = 0
        if 0 < block_height <= height and 0 < block_width <= width:
            top, left = int(top_at * (height - block_height + 1)), int(left_at * (width - block_width + 1))
            block = mask[top : top + block_height, left : left + block_width]
            added = block.numel() - int(block.sum())
        if 0 < added <= missing:
            block.fill_(True)
            masked, failures = masked + added, 0
        else:
            failures += 1
    return mask.flatten()


def visual_relation_labels(box_cxcywh, grid_size: GridSize) -> torch.Tensor:
    """Where the referred box lies for each patch: the labels of the visual target-relation score.

    Patch (row j, column i) gets `[(i - cx) / W, (j - cy) / H, 1 / w, 1 / h]` with the box (cx, cy, w, h) in patch
    units, w and h at least 1, and W x H the grid.

    Args:
        box_cxcywh: `(4,)`, centre and size in [0, 1] of the canvas.

    Returns:
        float32 `(P, 4)`.
    """
    height, width = _grid(grid_size)
    cx, cy, w, h = _box_in_patches(box_cxcywh, height, width)
    labels = np.empty((height, width, 4), dtype=np.float32)
    labels[..., 0] = (np.arange(width, dtype=np.float32) - cx) / width
    labels[..., 1] = ((np.arange(height, dtype=np.float32) - cy) / height)[:, None]
    labels[..., 2:] = 1 / max(w, 1), 1 / max(h, 1)
    return torch.from_numpy(labels.reshape(-1, 4))


def _grid(grid_size: GridSize) -> tuple[int, int]:
    height, width = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
    if height < 1 or width < 1:
        raise ValueError(f"A patch grid has at least one row and one column, not {height} x {width}.")
    return int(height), int(width)


def _box_in_patches(box_cxcywh, height: int, width: int) -> np.ndarray:
    """float32 throughout, as the original counts: it decides where a corner on the border of two patches falls."""
    box = torch.as_tensor(box_cxcywh, dtype=torch.float32).numpy()
    if box.shape != (4,):
        raise ValueError(f"One box of four values (cx, cy, w, h) is needed, not the shape {box.shape}.")
    return box * np.array([width, height, width, height], dtype=np.float32)
