# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""From logical forms to English: terse like RefCOCO ("2nd star from left") or in full like RefCOCOg."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from .logic import Form
from .objects import COLOURS


# All wording is in these tables; `vocabulary` reads it from here. Of several ways to say a thing the first is the
# most frequent. {np} is a noun phrase without article, {anchor} one with it.
NOUNS = {
    "circle": ("circle", "disc", "disk"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star", "star-shaped {thing}"),
    "cross": ("cross", "plus sign", "plus"),
    "ring": ("ring", "donut", "hoop"),
    "heart": ("heart", "heart-shaped {thing}"),
    "crescent": ("crescent", "moon", "crescent moon", "moon-shaped {thing}"),
    "arrow": ("arrow",),
    "hexagon": ("hexagon",),
    "cup": ("cup", "mug", "cup-shaped {thing}"),
    "drop": ("drop", "teardrop", "drop-shaped {thing}"),
}
THINGS = ("thing", "object", "shape")
ADJECTIVES = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "black": ("black",),
    "white": ("white",),
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "small": ("small", "little"),
    "large": ("big", "large"),
}
WITH_MATERIAL = {
    "plain": ("without a pattern",),
    "striped": ("with stripes",),
    "dotted": ("with dots", "with spots"),
}
PREDICATES = ("{np} that is {adjective}", "{np} which is {adjective}")
PLACES = {
    "left": ("left {np}", "{np} on the left", "{np} on the left side", "{np} at the left"),
    "right": ("right {np}", "{np} on the right", "{np} on the right side", "{np} at the right"),
    "top": ("top {np}", "{np} at the top", "{np} near the top", "upper {np}"),
    "bottom": ("bottom {np}", "{np} at the bottom", "{np} near the bottom", "lower {np}"),
    "middle": ("{np} in the middle", "{np} in the center", "center {np}", "central {np}", "{np} in the centre"),
} | {
    f"{row} {side}": (
        f"{row} {side} {{np}}",
        f"{{np}} in the {row} {side} corner",
        f"{{np}} at the {row} {side}",
        f"{other} {side} {{np}}",
        f"{{np}} in the {other} {side} corner",
        f"{{np}} {row} {side}",
    )
    for row, other in (("top", "upper"), ("bottom", "lower"))
    for side in ("left", "right")
}
SUPERLATIVES = {
    "left": ("leftmost {np}", "{np} farthest to the left", "{np} furthest left", "far left {np}"),
    "right": ("rightmost {np}", "{np} farthest to the right", "{np} furthest right", "far right {np}"),
    "top": ("highest {np}", "topmost {np}", "{np} closest to the top", "uppermost {np}"),
    "bottom": ("lowest {np}", "{np} closest to the bottom", "bottommost {np}"),
    "largest": ("largest {np}", "biggest {np}"),
    "smallest": ("smallest {np}", "tiniest {np}"),
}
ORDINALS = {
    "left": ("{rank} {np} from the left", "{rank} {np} counting from the left", "{rank} {np} from left"),
    "right": ("{rank} {np} from the right", "{rank} {np} counting from the right", "{rank} {np} from right"),
    "top": ("{rank} {np} from the top", "{rank} {np} counting from the top", "{rank} {np} from top"),
    "bottom": ("{rank} {np} from the bottom", "{rank} {np} counting from the bottom", "{rank} {np} from bottom"),
    "largest": ("{rank} largest {np}", "{rank} biggest {np}"),
    "smallest": ("{rank} smallest {np}",),
}
RANKS = {1: ("first", "1st"), 2: ("second", "2nd"), 3: ("third", "3rd")}
RELATIONS = {
    "left of": ("left of {anchor}", "to the left of {anchor}", "on the left of {anchor}"),
    "right of": ("right of {anchor}", "to the right of {anchor}", "on the right of {anchor}"),
    "above": ("above {anchor}", "higher than {anchor}"),
    "below": ("below {anchor}", "under {anchor}", "underneath {anchor}", "beneath {anchor}"),
    "closest to": ("closest to {anchor}", "nearest to {anchor}"),
    "in front of": ("in front of {anchor}", "partly covering {anchor}"),
    "behind": ("behind {anchor}", "partly hidden by {anchor}", "partly behind {anchor}"),
}
LINKS = ("{np} {relation}", "{np} that is {relation}", "{np} which is {relation}")
NEGATIONS = {
    "adjective": (
        "{np} that is not {adjective}",
        "{np} that isn't {adjective}",
        "{np} which is not {adjective}",
    ),
    "quality": ("non-{adjective} {np}",),  # not said of sizes
    "material": ("{np} without {material}", "{np} that has no {material}"),
    "noun": ("{np} that is not {noun}", "{np} that isn't {noun}"),
}
PATTERNS = {"striped": "stripes", "dotted": "dots"}
GLUE = ("the", "a", "an", "and", "one")


def say(form: Form, rng: np.random.Generator) -> str:
    """A phrase that means the form, in lower case."""
    return _Speaker(rng).phrase(form)


def vocabulary() -> list[str]:
    """All words that phrases are made of, sorted."""

    def texts(table):
        if isinstance(table, str):
            yield table
        else:
            for entry in table.values() if isinstance(table, dict) else table:
                yield from texts(entry)

    tables = (NOUNS, THINGS, ADJECTIVES, WITH_MATERIAL, PREDICATES, PLACES, SUPERLATIVES, ORDINALS)
    tables += (RANKS, RELATIONS, LINKS, NEGATIONS, PATTERNS, GLUE)
    words = {word for text in texts(tables) for word in re.sub(r"{\w+}", " ", text).replace("-", " ").split()}
    return sorted(words)


def scene_words(phrases: Iterable[str]) -> dict[str, list[str | None]]:
    """Subject and object word of phrases of scenes, as `data.text_masking.parse_words` finds them in any text.

    The subject is the head of the first noun, the object that of the second, None where there is none. No phrase of
    scenes is worded otherwise, so no parser is needed.
    """
    heads = [_heads(phrase.split()) for phrase in phrases]
    return {
        "subject": [found[0] if found else None for found in heads],
        "object": [found[1] if len(found) > 1 else None for found in heads],
    }


def names_a_colour(phrase: str) -> bool:
    """Whether a phrase of scenes says anything about colours, if only which one is not meant ("non-red")."""
    return not _COLOUR_WORDS.isdisjoint(re.findall("[a-z]+", phrase))


def _heads(words: list[str]) -> list[str]:
    """The last word of every run of words that are nouns ("crescent moon")."""
    following = [*words[1:], ""]
    return [word for word, after in zip(words, following) if word in _NOUN_WORDS and after not in _NOUN_WORDS]


_NOUN_WORDS = {
    *THINGS,
    "one",
    *(word for names in NOUNS.values() for name in names if "{" not in name for word in name.split()),
}

_COLOUR_WORDS = {word for colour in COLOURS for word in ADJECTIVES[colour]}


class _Speaker:
    """One phrase: terse or not throughout."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.terse = bool(rng.random() < 0.5)

    def phrase(self, form: Form) -> str:
        text = self._noun_phrase(form, top=True)
        draw = self.rng.random()
        if self.terse and draw < 0.7:
            return text
        if form["op"] in ("describe", "related") and not self.terse and draw < 0.2:
            return ("an " if text[0] in "aeiou" else "a ") + text
        return f"the {text}"

    def _choose(self, options):
        """The earlier the likelier."""
        weights = np.cumsum(0.6 ** np.arange(len(options)))
        return options[int(np.searchsorted(weights, self.rng.random() * weights[-1], side="right"))]

    def _noun_phrase(self, form: Form, top: bool = False) -> str:
        """Without article. `top`: it is the whole phrase, so that an attribute may follow as "that is red"."""
        if form["op"] == "describe":
            return self._described(form, predicate=top and not self.terse)
        if form["op"] == "related":
            return self._related(form)
        noun_phrase = self._noun_phrase(form["of"])
        if form["op"] == "without":
            return self._without(form, noun_phrase)
        if form["op"] == "place":
            return self._choose(PLACES[form["place"]]).format(np=noun_phrase)
        if form["op"] == "superlative":
            return self._choose(SUPERLATIVES[form["order"]]).format(np=noun_phrase)
        return self._choose(ORDINALS[form["order"]]).format(np=noun_phrase, rank=self._choose(RANKS[form["rank"]]))

    def _described(self, form: Form, predicate: bool = False) -> str:
        given = {name: form[name] for name in ("size", "material", "colour") if name in form}
        thing = "one" if given and self.rng.random() < 0.4 else self._choose(THINGS)
        noun = self._choose(NOUNS[form["shape"]]).format(thing=self._choose(THINGS[:2])) if "shape" in form else thing
        ending, said_last = "", None
        if "material" in given and self.rng.random() < 0.25:
            ending = " " + self._choose(WITH_MATERIAL[given.pop("material")])
        elif predicate and given and "shape" in form and self.rng.random() < 0.25:
            said_last = given.pop(list(given)[-1])
        adjectives = [self._choose(ADJECTIVES[value]) for value in given.values()]
        text = " ".join([*adjectives, noun]) + ending
        if said_last is None:
            return text
        return self._choose(PREDICATES).format(np=text, adjective=self._choose(ADJECTIVES[said_last]))

    def _related(self, form: Form) -> str:
        relation = self._relation(form)
        base = form["of"]
        if base["op"] == "related":
            relation = f"{self._relation(base)} and {relation}"
            base = base["of"]
        link = LINKS[0] if self.terse else self._choose(LINKS)
        return link.format(np=self._noun_phrase(base), relation=relation)

    def _relation(self, form: Form) -> str:
        anchor = form["anchor"]
        if anchor["op"] == "related":  # said in full, so that nobody takes the second relation for one of the target
            text = LINKS[1 + int(self.rng.random() < 0.4)]
            text = text.format(np=self._noun_phrase(anchor["of"]), relation=self._relation(anchor))
        else:
            text = self._noun_phrase(anchor)
        article = "" if self.terse and self.rng.random() < 0.5 else "the "
        return self._choose(RELATIONS[form["relation"]]).format(anchor=article + text)

    def _without(self, form: Form, noun_phrase: str) -> str:
        value = form["value"]
        if form["attribute"] == "shape":
            noun = self._choose([noun for noun in NOUNS[value] if "{" not in noun])
            article = "an " if noun[0] in "aeiou" else "a "
            return self._choose(NEGATIONS["noun"]).format(np=noun_phrase, noun=article + noun)
        if value in PATTERNS and self.rng.random() < 0.5:
            return self._choose(NEGATIONS["material"]).format(np=noun_phrase, material=PATTERNS[value])
        templates = NEGATIONS["adjective"] + (NEGATIONS["quality"] if form["attribute"] != "size" else ())
        return self._choose(templates).format(np=noun_phrase, adjective=self._choose(ADJECTIVES[value]))


__all__ = ["say", "scene_words", "vocabulary"]
