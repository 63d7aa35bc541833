# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What can be seen of the objects of a scene, measured on a coarse grid whatever the size of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .objects import Scene
from .shapes import placed_outline


_CELLS = 96  # per unit
_BORDER = 12  # cells around the picture, for what lies outside
_LEAST_VISIBLE = 0.68


@dataclass(frozen=True)
class Measurements:
    """Of every object of a scene, lengths in its unit, areas in its square.

    boxes_xyxy: `(N, 4)` of the visible part.
    areas: `(N,)` of the visible part.
    overlaps: `(N, N)`, area shared by two objects, hidden or not, over that of the smaller one.
    covers: `(N, N)`, area in which object i is seen where object j would be, over that of the smaller one.
    """

    boxes_xyxy: np.ndarray
    areas: np.ndarray
    overlaps: np.ndarray
    covers: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """`(N, 2)`: x, y of the middle of the visible boxes."""
        return (self.boxes_xyxy[:, :2] + self.boxes_xyxy[:, 2:]) / 2


def measure(scene: Scene) -> Measurements | None:
    """None if too little is seen of an object."""
    height, width = (round(side * _CELLS) for side in (scene.height, scene.width))
    whole = np.stack([_filled(placed, (height, width)) for placed in scene.objects])
    picture = np.s_[:, _BORDER : _BORDER + height, _BORDER : _BORDER + width]
    seen = visible_parts(whole[picture])
    cells, seen_cells = (layers.sum(axis=(1, 2), dtype=float) for layers in (whole, seen))
    if (seen_cells < _LEAST_VISIBLE * cells).any():
        return None
    flat, flat_seen = (layers.reshape(len(layers), -1).astype(np.float32) for layers in (whole[picture], seen))
    smaller = np.minimum(cells[:, None], cells[None])
    return Measurements(
        boxes_xyxy=np.array([tight_box(layer) for layer in seen]) / _CELLS,
        areas=seen_cells / _CELLS**2,
        overlaps=flat @ flat.T / smaller,
        covers=flat_seen @ flat.T / smaller,
    )


def visible_parts(layers: np.ndarray) -> np.ndarray:
    """What remains of layers, bool `(N, H, W)` from back to front, where later ones hide earlier ones."""
    hidden = np.zeros(layers.shape[1:], dtype=bool)
    visible = np.empty_like(layers)
    for index in range(len(layers) - 1, -1, -1):
        visible[index] = layers[index] & ~hidden
        hidden |= layers[index]
    return visible


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a bool mask `(H, W)` that is not empty; x1 and y1 are just behind the last pixel."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _filled(placed, size: tuple[int, int]) -> np.ndarray:
    grid = Image.new("1", (size[1] + 2 * _BORDER, size[0] + 2 * _BORDER))
    draw = ImageDraw.Draw(grid)
    for points, filled in placed_outline(placed.shape, placed.centre, placed.diameter, placed.rotation):
        draw.polygon((points * _CELLS + _BORDER - 0.5).ravel().tolist(), fill=int(filled))
    return np.asarray(grid)


__all__ = ["Measurements", "measure", "tight_box", "visible_parts"]
