# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The meaning of phrases: logical forms, and what they refer to in a scene.

A form is a dictionary that JSON can hold. `OF` is a form again:

- `{"op": "describe", "shape": ..., "colour": ..., "material": ..., "size": ...}`: all objects with these attributes,
  each of which may be missing; without any, all objects.
- `{"op": "without", "of": OF, "attribute": NAME, "value": VALUE}`: those that lack the attribute.
- `{"op": "place", "of": OF, "place": ONE_OF_PLACES}`: those at a place of the picture.
- `{"op": "superlative", "of": OF, "order": ONE_OF_ORDERS}`: the first in an order.
- `{"op": "ordinal", "of": OF, "order": ONE_OF_ORDERS, "rank": 2}`: the second in an order.
- `{"op": "related", "of": OF, "relation": ONE_OF_RELATIONS, "anchor": OF}`: those that stand so to the one anchor.

Words such as "left of" have no sharp edge. Here each has a core, where nobody would disagree, and a surrounding in
which people might; a form that depends on an object there is `Undecided`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .geometry import Measurements, measure
from .objects import COLOURS, LARGE, MATERIALS, NOT_LARGE, NOT_SMALL, SMALL, Scene
from .shapes import SHAPES


Form = Mapping[str, Any]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "material": MATERIALS,
    "size": ("small", "large"),
}
PLACES = ("left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right", "middle")
ORDERS = ("left", "right", "top", "bottom", "largest", "smallest")
RELATIONS = ("left of", "right of", "above", "below", "closest to", "in front of", "behind")

# Shares of the width or height of the picture.
_AT_SIDE, _NOT_AT_SIDE = 0.34, 0.47
_AT_MIDDLE, _NOT_AT_MIDDLE = 0.12, 0.2
# In longer sides of the picture.
_AHEAD, _EDGE_AHEAD = 0.08, 0.05  # of the next in an order, its middle and its edge
_ASIDE, _NOT_ASIDE = 0.1, -0.03  # of the anchor
_NEARER, _NEARER_RATIO = 0.05, 1.25
# Ratios of diameters, and of visible areas.
_LARGER, _LARGER_AREA = 1.25, 1.35
# Of the area of the smaller one.
_COVERING = 0.09


class Undecided(Exception):
    """People might disagree on what the form refers to."""


class _Predicate(NamedTuple):
    """True of some objects (`yes`), open for others, false of the rest; each a set of objects as in `View`."""

    yes: int
    open: int

    def among(self, members: int) -> int:
        """Those of the members of which it is true.

        Raises:
            Undecided: it is open for one of them.
        """
        if members & self.open:
            raise Undecided
        return members & self.yes


def _predicates(yes: np.ndarray, no: np.ndarray) -> list[_Predicate]:
    """One for every row of bool arrays `(..., N)` over the objects."""
    return [_Predicate(*sets) for sets in zip(_sets(yes), _sets(~(yes | no)))]


def _sets(flags: np.ndarray) -> list[int]:
    return (flags @ (1 << np.arange(flags.shape[-1]))).tolist()


class View:
    """A scene prepared for `resolve`. Sets of objects are whole numbers of which bit i stands for object i."""

    def __init__(self, scene: Scene, measurements: Measurements):
        self.scene = scene
        self.everything = (1 << len(scene.objects)) - 1
        self._attributes = _attributes(scene)
        self._places = dict(zip(PLACES, _places(scene, measurements)))
        # Of an order and an object: what comes before it. Of a relation and an anchor: what stands so to it.
        self._before = {
            (order, index): before
            for order in ORDERS
            for index, before in enumerate(_before(scene, measurements, order))
        }
        self._related = {
            (relation, anchor): related
            for relation in RELATIONS
            if relation != "closest to"
            for anchor, related in enumerate(_related(measurements, relation))
        }
        self._farther = _farther(measurements)

    @classmethod
    def of(cls, scene: Scene) -> View | None:
        """None if too little is seen of an object."""
        measurements = measure(scene)
        return None if measurements is None else cls(scene, measurements)

    def resolve(self, form: Form) -> int:
        """The set of objects that a form refers to.

        Raises:
            Undecided: people might disagree, or the anchor is not exactly one object.
        """
        if form["op"] == "describe":
            members = self.everything
            for name in ATTRIBUTES:
                if name in form:
                    members = self._attributes[name, form[name]].among(members)
            return members
        members = self.resolve(form["of"])
        if form["op"] == "without":
            return members & ~self._attributes[form["attribute"], form["value"]].among(members)
        if form["op"] == "place":
            return self._places[form["place"]].among(members)
        if form["op"] in ("superlative", "ordinal"):
            return self._ranked(members, form["order"], form.get("rank", 1))
        anchor = self.resolve(form["anchor"])
        if anchor.bit_count() != 1:
            raise Undecided
        members &= ~anchor
        if form["relation"] == "closest to":
            return self._closest(members, anchor.bit_length() - 1)
        return self._related[form["relation"], anchor.bit_length() - 1].among(members)

    def relations_between(self, index: int, anchor: int) -> list[str]:
        """What surely holds of an object and an anchor, "closest to" aside, for it depends on others."""
        return [name for name in RELATIONS if name != "closest to" and self._related[name, anchor].yes >> index & 1]

    def overlapping(self, index: int) -> list[int]:
        """The objects that clearly cover this one or are covered by it."""
        return numbers_in(self._related["in front of", index].yes | self._related["behind", index].yes)

    def _ranked(self, members: int, order: str, rank: int) -> int:
        """The member that surely has `rank` - 1 others before it and the rest behind."""
        for index in numbers_in(members):
            others = members & ~(1 << index)
            before = self._before[order, index]
            if not others & before.open and (others & before.yes).bit_count() == rank - 1:
                return 1 << index
        raise Undecided

    def _closest(self, members: int, anchor: int) -> int:
        if members.bit_count() < 2:  # nobody says "closest" where there is only one
            raise Undecided
        for index in numbers_in(members):
            others = members & ~(1 << index)
            if others & self._farther[anchor][index] == others:
                return 1 << index
        raise Undecided


def numbers_in(members: int) -> list[int]:
    """The numbers of the objects in a set, ascending."""
    return [index for index in range(members.bit_length()) if members >> index & 1]


def _attributes(scene: Scene) -> dict[tuple[str, str], _Predicate]:
    """By name and value, of all values."""
    found = {(name, value): _Predicate(0, 0) for name, values in ATTRIBUTES.items() for value in values}
    for index, placed in enumerate(scene.objects):
        for name in ("shape", "colour", "material"):
            key = name, getattr(placed, name)
            found[key] = _Predicate(found[key].yes | 1 << index, 0)
    diameters = np.array([placed.diameter for placed in scene.objects])
    (found["size", "small"],) = _predicates((diameters <= SMALL)[None], (diameters >= NOT_SMALL)[None])
    (found["size", "large"],) = _predicates((diameters >= LARGE)[None], (diameters <= NOT_LARGE)[None])
    return found


def _places(scene: Scene, measurements: Measurements) -> list[_Predicate]:
    """In the order of PLACES."""
    x, y = measurements.centres.T / np.array([[scene.width], [scene.height]])
    depths = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}
    corners = np.array([np.max([depths[side] for side in place.split()], axis=0) for place in PLACES[:-1]])
    middle = np.maximum(np.abs(x - 0.5), np.abs(y - 0.5))[None]
    return _predicates(
        np.concatenate([corners <= _AT_SIDE, middle <= _AT_MIDDLE]),
        np.concatenate([corners >= _NOT_AT_SIDE, middle >= _NOT_AT_MIDDLE]),
    )


def _before(scene: Scene, measurements: Measurements, order: str) -> list[_Predicate]:
    """Of every object: which others come before it."""
    if order in ("largest", "smallest"):
        diameters = np.array([placed.diameter for placed in scene.objects])
        smaller = diameters[:, None] * _LARGER <= diameters
        smaller &= measurements.areas[:, None] * _LARGER_AREA <= measurements.areas
        before = smaller if order == "largest" else smaller.T
    else:
        axis, sign = (0 if order in ("left", "right") else 1), (1 if order in ("left", "top") else -1)
        middles = sign * measurements.centres[:, axis]
        edges = sign * measurements.boxes_xyxy[:, axis if sign == 1 else axis + 2]
        before = (middles[:, None] >= middles + _AHEAD) & (edges[:, None] >= edges + _EDGE_AHEAD)
    return _predicates(before, before.T)


def _related(measurements: Measurements, relation: str) -> list[_Predicate]:
    """Of every anchor: which others stand in the relation to it."""
    if relation in ("in front of", "behind"):
        covered = (measurements.covers if relation == "behind" else measurements.covers.T) >= _COVERING
        return _predicates(covered, (measurements.overlaps == 0) | covered.T)
    along, across = (0, 1) if relation in ("left of", "right of") else (1, 0)
    ahead = measurements.centres[:, None] - measurements.centres  # [i][j] leads from j to i
    distance = ahead[..., along] * (1 if relation in ("left of", "above") else -1)
    return _predicates(
        (distance >= _ASIDE) & (np.abs(ahead[..., across]) <= distance),
        distance <= _NOT_ASIDE,
    )


def _farther(measurements: Measurements) -> list[list[int]]:
    """[anchor][i]: which others are clearly farther from the anchor than i, from middle to middle and edge to edge."""
    centres, boxes = measurements.centres, measurements.boxes_xyxy
    middles = np.linalg.norm(centres[:, None] - centres, axis=2)
    gaps = np.maximum(boxes[:, None, :2] - boxes[:, 2:], boxes[:, :2] - boxes[:, None, 2:]).clip(min=0)
    edges = np.linalg.norm(gaps, axis=2)
    clear = middles[:, :, None] * _NEARER_RATIO + _NEARER <= middles[:, None]
    return _sets(clear & (edges[:, :, None] <= edges[:, None]))


__all__ = ["ATTRIBUTES", "ORDERS", "PLACES", "RELATIONS", "Form", "Undecided", "View", "numbers_in"]
