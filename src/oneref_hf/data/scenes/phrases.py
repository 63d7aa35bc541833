# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Finding something to say about one object of a scene that is true of no other."""

from __future__ import annotations

import functools
import itertools

import numpy as np

from .logic import ATTRIBUTES, ORDERS, PLACES, Form, Undecided, View
from .objects import HELD_OUT_PAIRS, Crowd


# Which scenes give a phrase of the type often enough.
CROWDS = {
    "category": Crowd(shapes=(3, 7)),
    "attribute": Crowd(),
    "place": Crowd(),
    "superlative": Crowd(),
    "ordinal": Crowd(count=(4, 9), shapes=(1, 3)),
    "relation": Crowd(),
    "two_step": Crowd(count=(4, 9)),
    "negation": Crowd(shapes=(1, 4), colours=(2, 4)),
}
EXPRESSION_TYPES = tuple(CROWDS)

_PROPOSALS = 300  # per scene
_REDUNDANCY = 0.15
_CLOSEST = 0.2  # share of "closest to" among the relations that are tried
_CHAINS = 0.22  # share of chains among the two-step phrases that are tried; they succeed more often than pairs
_OVERLAPPING = 0.3  # share of anchors that are looked for among the objects in front or behind
# How readily people say things: weights of descriptions with these parts.
_NOUNLESS = 0.15
_WEIGHTS = {"colour": 0.7, "striped": 0.55, "dotted": 0.55, "plain": 0.15, "size": 0.25}
_Names = frozenset[str]


def find_expression(kind: str, view: View, rng: np.random.Generator, held_out: bool) -> tuple[Form, int] | None:
    """A form of the type that refers to exactly one object, and that object; None if none is found.

    Args:
        held_out: whether the object must be of `HELD_OUT_PAIRS`.
    """
    objects = view.scene.objects
    targets = [i for i, o in enumerate(objects) if not held_out or (o.colour, o.shape) in HELD_OUT_PAIRS]
    if not targets:
        return None
    proposer = _Proposer(view, rng)
    propose = getattr(proposer, kind)
    for _ in range(_PROPOSALS):
        target = proposer.choose(targets)
        try:
            form = propose(target)
            if form is not None and view.resolve(form) == 1 << target:
                return form, target
        except Undecided:
            continue
    return None


class _Proposer:
    """Random forms that may refer to an object; one method per expression type.

    The methods see to it that the phrase needs its last part; that it is true of the object, and of no other, is for
    the caller to check.
    """

    def __init__(self, view: View, rng: np.random.Generator):
        self.view = view
        self.rng = rng
        self.descriptions = functools.cache(self._descriptions)
        self.unique_options = functools.cache(self._unique_options)
        self.shared_options = functools.cache(self._shared_options)

    def category(self, target: int) -> Form | None:
        if self._shape_is_shared(target):
            return None
        return self._unique(target, shape=True)

    def attribute(self, target: int) -> Form | None:
        return self._unique(target) if self._shape_is_shared(target) else None

    def place(self, target: int) -> Form | None:
        base = self._shared(target)
        return base and {"op": "place", "of": base, "place": self.choose(PLACES)}

    def superlative(self, target: int) -> Form | None:
        base = self._shared(target)
        return base and {"op": "superlative", "of": base, "order": self.choose(ORDERS)}

    def ordinal(self, target: int) -> Form | None:
        base = self._shared(target, least=3)
        if base is None:
            return None
        order = self.choose(ORDERS)
        ranks = range(2 if order in ("largest", "smallest") else 1, min(self.view.resolve(base).bit_count(), 4))
        return {"op": "ordinal", "of": base, "order": order, "rank": self.choose(ranks)}

    def relation(self, target: int) -> Form | None:
        anchor = self._anchor(target)
        return self._stand(self._shared(target), target, anchor, self._unique(anchor))

    def two_step(self, target: int) -> Form | None:
        """A chain (left of the circle that is above the star) or a pair (left of the circle and above the star)."""
        base, first = self._shared(target), self._anchor(target)
        if self.rng.random() < _CHAINS:
            second = self._anchor(first, target)
            middle = self._shared(first)
            if middle == base:  # two things of one description in a chain are hard to follow
                return None
            return self._stand(base, target, first, self._stand(middle, first, second, self._unique(second)))
        halves = []
        for anchor in (first, self._anchor(target, first)):
            half = self._stand(base, target, anchor, self._unique(anchor))
            # "closest to" leaves one object by itself, so it cannot be half of a pair.
            if half is None or half["relation"] == "closest to" or self.view.resolve(half).bit_count() == 1:
                return None
            halves.append(half)
        if halves[0]["relation"] == halves[1]["relation"]:
            return None
        return {**halves[1], "of": halves[0]}

    def negation(self, target: int) -> Form | None:
        attribute = self.choose(list(ATTRIBUTES))
        base = self._shared(target, shape=False if attribute == "shape" else None)
        if base is None or attribute in base:
            return None
        value = getattr(self.view.scene.objects[self._other(target)], attribute)
        if value not in ATTRIBUTES[attribute]:
            return None
        return {"op": "without", "of": base, "attribute": attribute, "value": value}

    def choose(self, options):
        return options[int(self.rng.random() * len(options))]

    def _stand(self, base: Form | None, target: int, anchor: int, anchor_form: Form | None) -> Form | None:
        """Some relation that the target has to the anchor, said of the base."""
        relations = self.view.relations_between(target, anchor)
        if self.rng.random() < _CLOSEST:
            relations = ["closest to"]
        if base is None or anchor_form is None or not relations:
            return None
        return {"op": "related", "of": base, "relation": self.choose(relations), "anchor": anchor_form}

    # Descriptions by attributes ---------------------------------------------------------------------------------
    def _shared(self, target: int, least: int = 2, shape: bool | None = None) -> Form | None:
        """A description that is true of at least `least` objects; with or without the shape, if that is said."""
        return self._described(target, *self.shared_options(target, least, shape))

    def _unique(self, target: int, shape: bool | None = None) -> Form | None:
        """A description that is true of no other object, without needless attributes, except sometimes one.

        The shape does not count as needless, for a phrase needs a noun.
        """
        form = self._described(target, *self.unique_options(target, shape))
        if form is not None and self.rng.random() < _REDUNDANCY:
            placed = self.view.scene.objects[target]
            more = [name for name in self._sayable(target) if name not in form and getattr(placed, name) != "plain"]
            if more:
                name = self.choose(more)
                return {**form, name: getattr(placed, name)}
        return form

    def _other(self, *known: int) -> int:
        return self.choose([index for index in range(len(self.view.scene.objects)) if index not in known])

    def _anchor(self, index: int, *known: int) -> int:
        """An object that object `index` can be related to."""
        if self.rng.random() < _OVERLAPPING:
            near = [other for other in self.view.overlapping(index) if other not in known]
            if near:
                return self.choose(near)
        return self._other(index, *known)

    def _shape_is_shared(self, target: int) -> bool:
        return self.descriptions(target)[frozenset(["shape"])].bit_count() > 1

    def _described(self, target: int, options: list[_Names], weights: list[float]) -> Form | None:
        if not options:
            return None
        names = self._weighted(options, weights)
        placed = self.view.scene.objects[target]
        return {"op": "describe", **{name: getattr(placed, name) for name in ATTRIBUTES if name in names}}

    def _weighted(self, options: list[_Names], weights: list[float]) -> _Names:
        point = self.rng.random() * sum(weights)
        for option, weight in zip(options, weights):
            point -= weight
            if point < 0:
                return option
        return options[-1]

    def _shared_options(self, target: int, least: int, shape: bool | None) -> tuple[list[_Names], list[float]]:
        options = [
            names
            for names, members in self.descriptions(target).items()
            if members.bit_count() >= least and shape in (None, "shape" in names)
        ]
        return options, [self._weight(target, names) for names in options]

    def _unique_options(self, target: int, shape: bool | None) -> tuple[list[_Names], list[float]]:
        unique = {names for names, members in self.descriptions(target).items() if members.bit_count() == 1}
        options = [
            names
            for names in self.descriptions(target)
            if names in unique
            and shape in (None, "shape" in names)
            and not any(names - {name} in unique for name in names if name != "shape")
        ]
        return options, [self._weight(target, names) for names in options]

    def _weight(self, target: int, names: _Names) -> float:
        weight = 1 if "shape" in names else _NOUNLESS
        for name in sorted(names - {"shape"}):  # in one order everywhere: products of floats depend on it
            weight *= _WEIGHTS[self.view.scene.objects[target].material if name == "material" else name]
        return weight

    def _sayable(self, target: int) -> list[str]:
        """The attributes by which the object can be called."""
        placed = self.view.scene.objects[target]
        return [name for name, values in ATTRIBUTES.items() if getattr(placed, name) in values]

    def _descriptions(self, target: int) -> dict[_Names, int]:
        """By the attributes that are named: the objects that the description is true of."""
        placed, names = self.view.scene.objects[target], self._sayable(target)
        found = {}
        for count in range(len(names) + 1):
            for chosen in itertools.combinations(names, count):
                form = {"op": "describe", **{name: getattr(placed, name) for name in chosen}}
                try:
                    found[frozenset(chosen)] = self.view.resolve(form)
                except Undecided:
                    continue
        return found


__all__ = ["CROWDS", "EXPRESSION_TYPES", "find_expression"]
