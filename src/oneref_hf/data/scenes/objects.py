# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What scenes consist of, and how they are put together at random.

Lengths are in units of the longer side of the picture, so that one scene can be drawn at any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .shapes import SHAPES


COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 30, 38),
    "orange": (246, 128, 18),
    "yellow": (250, 214, 30),
    "green": (40, 148, 60),
    "blue": (34, 90, 208),
    "purple": (124, 50, 166),
    "pink": (248, 142, 184),
    "brown": (118, 70, 36),
    "black": (36, 36, 40),
    "white": (246, 246, 242),
}
MATERIALS = ("plain", "striped", "dotted")
# Two colours of every shape, each colour of two or three shapes.
HELD_OUT_PAIRS = frozenset(
    (list(COLOURS)[(3 * number + step) % len(COLOURS)], shape)
    for number, shape in enumerate(SHAPES)
    for step in (1, 6)
)

OBJECT_COUNTS = (3, 9)
# An object is small up to the first diameter and surely not from the second on; large from the fourth on and surely
# not up to the third. In between nobody calls it either.
SMALL, NOT_SMALL, NOT_LARGE, LARGE = 0.18, 0.22, 0.25, 0.31
_DIAMETERS = (0.14, 0.38)
_ASPECTS = ((1.0, 1.0), (1.0, 1.0), (0.75, 1.0), (1.0, 0.8))  # (height, width)
_GAP = 0.015
_PLACES_TRIED = 40
_CUT_OFF = 0.08  # share of the radius that may lie outside the picture


@dataclass(frozen=True)
class SceneObject:
    """`centre` (x, y) and `diameter` in longer sides of the picture, `rotation` in degrees, clockwise."""

    shape: str
    colour: str
    material: str
    centre: tuple[float, float]
    diameter: float
    rotation: float

    @property
    def size(self) -> str | None:
        """One of "small", "medium" and "large"; None in between."""
        for name, low, high in (("small", 0, SMALL), ("medium", NOT_SMALL, NOT_LARGE), ("large", LARGE, np.inf)):
            if low <= self.diameter <= high:
                return name
        return None


@dataclass(frozen=True)
class Scene:
    """Objects from back to front in a picture of `height` by `width`, of which the longer is 1.

    `look` seeds all that phrases never speak of: background, light, exact tones.
    """

    height: float
    width: float
    objects: tuple[SceneObject, ...]
    look: int


@dataclass(frozen=True)
class Crowd:
    """How many objects a scene has, and how many shapes and colours they share: few make them alike."""

    count: tuple[int, int] = OBJECT_COUNTS
    shapes: tuple[int, int] = (2, 4)
    colours: tuple[int, int] = (2, 5)


def sample_scene(rng: np.random.Generator, crowd: Crowd, held_out: bool) -> Scene | None:
    """A random scene; None if too few objects found a place.

    Args:
        held_out: whether colour-shape pairs of `HELD_OUT_PAIRS` occur; if so, about half of the objects have one.
    """
    count = int(rng.integers(*crowd.count, endpoint=True))
    pairs = _sample_pairs(rng, crowd, count, held_out)
    height, width = _ASPECTS[rng.integers(len(_ASPECTS))]
    diameters = _sample_diameters(rng, count)
    centres = _sample_places(rng, [SHAPES[shape].reach for _, shape in pairs] * diameters, (width, height))
    if len(centres) < crowd.count[0]:
        return None
    objects = [
        SceneObject(
            shape=shape,
            colour=colour,
            material=MATERIALS[max(int(rng.integers(-1, 3)), 0)],  # half of them plain
            centre=(round(float(x), 4), round(float(y), 4)),
            diameter=round(float(diameter), 4),
            rotation=round(float(rng.uniform(-1, 1)) * SHAPES[shape].tilt, 1),
        )
        for (colour, shape), (x, y), diameter in zip(pairs, centres, diameters)
    ]
    order = rng.permutation(len(objects))
    return Scene(height, width, tuple(objects[index] for index in order), look=int(rng.integers(2**31)))


def _sample_pairs(rng: np.random.Generator, crowd: Crowd, count: int, held_out: bool) -> list[tuple[str, str]]:
    """(colour, shape) of every object."""
    while True:
        shapes = rng.permutation(list(SHAPES))[: rng.integers(*crowd.shapes, endpoint=True)].tolist()
        colours = rng.permutation(list(COLOURS))[: rng.integers(*crowd.colours, endpoint=True)].tolist()
        pairs = [(colour, shape) for shape in shapes for colour in colours]
        rare = [pair for pair in pairs if pair in HELD_OUT_PAIRS]
        usual = [pair for pair in pairs if pair not in HELD_OUT_PAIRS]
        if usual and (rare or not held_out):
            break
    pools = [rare if held_out and rng.random() < 0.5 else usual for _ in range(count)]
    return [pool[rng.integers(len(pool))] for pool in pools]


def _sample_diameters(rng: np.random.Generator, count: int) -> np.ndarray:
    """Descending, mostly of clear size classes; the more objects, the smaller the large ones."""
    low, high = _DIAMETERS[0], _DIAMETERS[1] - 0.01 * (count - OBJECT_COUNTS[0])
    bands = np.array([(low, SMALL), (NOT_SMALL, NOT_LARGE), (LARGE, high), (low, high)])
    chosen = bands[rng.choice(4, size=count, p=[0.32, 0.32, 0.2, 0.16])]
    return np.sort(rng.uniform(chosen[:, 0], chosen[:, 1]))[::-1]


def _sample_places(rng: np.random.Generator, radii: np.ndarray, picture: tuple[float, float]) -> np.ndarray:
    """Centres `(N, 2)` of the first objects, up to one that finds no place.

    In most scenes neighbours may overlap, and some are pushed to do so.
    """
    overlap = rng.uniform(0.15, 0.5) if rng.random() < 0.7 else 0.0
    centres = np.zeros((len(radii), 2))
    for index, radius in enumerate(radii):
        margin = radius * (1 - _CUT_OFF)
        places = rng.uniform(margin, np.array(picture) - margin, size=(_PLACES_TRIED, 2))
        if index and overlap and rng.random() < 0.4:
            other = rng.integers(index)
            angles = rng.uniform(0, 2 * np.pi, _PLACES_TRIED)
            distance = (radius + radii[other]) * rng.uniform(1 - overlap, 0.9, _PLACES_TRIED)
            places = centres[other] + distance[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        distances = np.linalg.norm(places[:, None] - centres[None, :index], axis=2)
        least = (radius + radii[:index]) * (1 - overlap) + (_GAP if not overlap else 0)
        inside = ((places >= margin) & (places <= np.array(picture) - margin)).all(axis=1)
        fitting = np.flatnonzero((distances >= least).all(axis=1) & inside)
        if not len(fitting):
            return centres[:index]
        centres[index] = places[fitting[0]]
    return centres


__all__ = ["COLOURS", "HELD_OUT_PAIRS", "MATERIALS", "OBJECT_COUNTS", "Crowd", "Scene", "SceneObject", "sample_scene"]
