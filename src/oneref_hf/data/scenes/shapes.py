# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Outlines of the dozen shapes, as polygons around the origin, y downwards."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """`parts` are drawn in order: points `(N, 2)` and whether they fill or cut out.

    The bounding boxes of shapes differ a little in size, so that shapes of one diameter *look* equally large. `tilt`
    is the largest rotation either way, in degrees, that leaves the shape what it is called.
    """

    parts: tuple[tuple[np.ndarray, bool], ...]
    tilt: float

    @functools.cached_property
    def reach(self) -> float:
        """The largest distance of the outline from the origin."""
        return max(float(np.hypot(*points.T).max()) for points, _ in self.parts)


def _shape(extent: float, tilt: float, *parts: tuple[Sequence[Sequence[float]] | np.ndarray, bool]) -> Shape:
    """Centred, the square root of the area of the bounding box being `extent`."""
    corners = np.concatenate([np.asarray(points, dtype=float) for points, _ in parts])
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = extent / math.sqrt(float(np.prod(high - low)))
    return Shape(tuple(((np.asarray(points) - (low + high) / 2) * scale, filled) for points, filled in parts), tilt)


def _arc(radius: float, start: float = 0, stop: float = 360, centre=(0.0, 0.0), steps: int = 40) -> np.ndarray:
    """Points on a circle, angles in degrees, clockwise on the screen from the positive x axis."""
    angles = np.radians(np.linspace(start, stop, steps))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + centre


def _star() -> np.ndarray:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2, 0.46, 1)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1)


def _drop() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return np.stack([1.15 * np.sin(t) * np.sin(t / 2) ** 2.2, -np.cos(t)], axis=1)


def _crescent(inner: float = 0.84, shift: float = 0.42) -> np.ndarray:
    """A disc of radius 1 less a disc of radius `inner`, `shift` to the right."""
    x = (1 - inner**2 + shift**2) / (2 * shift)
    y = math.sqrt(1 - x**2)
    outer_horn, inner_horn = (math.degrees(math.atan2(y, x - offset)) for offset in (0, shift))
    outer_edge = _arc(1, outer_horn, 360 - outer_horn)
    return np.concatenate([outer_edge, _arc(inner, 360 - inner_horn, inner_horn, (shift, 0.0))])


_CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
_ARROW = [(-6, -1.6), (0.5, -1.6), (0.5, -4.4), (6, 0), (0.5, 4.4), (0.5, 1.6), (-6, 1.6)]
_CUP = (
    (_arc(3.1, centre=(2.9, -0.8)), True),
    (_arc(1.6, centre=(3.2, -0.8)), False),
    ([(-5, -5), (3, -5), (2.6, 2.5), (1.7, 5), (-3.7, 5), (-4.6, 2.5)], True),
)

SHAPES: dict[str, Shape] = {
    "circle": _shape(1.0, 180, (_arc(1), True)),
    "square": _shape(0.9, 18, ([(-1, -1), (1, -1), (1, 1), (-1, 1)], True)),
    "triangle": _shape(1.08, 180, (_arc(1, -90, 270, steps=4), True)),
    "star": _shape(1.16, 180, (_star(), True)),
    "cross": _shape(1.06, 16, (_CROSS, True)),
    "ring": _shape(1.06, 180, (_arc(1), True), (_arc(0.52), False)),
    "heart": _shape(1.06, 40, (_heart(), True)),
    "crescent": _shape(1.1, 180, (_crescent(), True)),
    "arrow": _shape(1.06, 180, (_ARROW, True)),
    "hexagon": _shape(1.0, 180, (_arc(1, 0, 360, steps=7), True)),
    "cup": _shape(1.04, 25, *_CUP),
    "drop": _shape(1.04, 60, (_drop(), True)),
}


def placed_outline(shape: str, centre: tuple[float, float], diameter: float, rotation: float):
    """The parts of a shape where an object has it: `[(points (N, 2), filled), ...]` in the unit of `centre`.

    Args:
        rotation: degrees, clockwise.
    """
    angle = math.radians(rotation)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) * diameter
    return [(points @ turn + centre, filled) for points, filled in SHAPES[shape].parts]


__all__ = ["SHAPES", "Shape", "placed_outline"]
