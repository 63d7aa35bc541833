# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""From numbers to samples and records.

Sample i of a split is a function of the seed, the split and i alone, whatever came before it and in which process.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .drawing import draw_scene
from .geometry import tight_box, visible_parts
from .logic import Form, View
from .objects import Scene, sample_scene
from .phrases import CROWDS, EXPRESSION_TYPES, find_expression
from .wording import say


SPLITS = ("train", "val", "test", "compositional")
SIZES = (96, 4096)  # pixels: smaller ones leave next to nothing of small objects
_SAMPLE_STREAM, _TYPE_STREAM, _FURTHER_STREAM = 0, 1, 2


class SceneError(ValueError):
    """Scenes cannot be made as asked; the message is one sentence for a person."""


@dataclass(frozen=True)
class SceneSample:
    """A scene and a phrase for one of its objects.

    target: number of the object in `scene.objects`.
    form: what the phrase means (`logic`).
    """

    id: str
    scene: Scene
    target: int
    form: Form
    phrase: str
    expression_type: str

    def record(self, size: int) -> dict:
        """The sample with its picture drawn, as `datasets` gives a record (`data.records`), all columns there.

        `image` is an RGB picture whose longer side has `size` pixels; `box` and `mask` are those of the visible part:
        a pixel belongs to the mask if the target covers half of it and nothing nearer does; the box is the tightest.
        """
        drawing = draw_scene(self.scene, size)
        mask = visible_parts(drawing.layers)[self.target]
        box = tight_box(mask)
        return {
            "id": self.id,
            "image": drawing.picture,
            "image_file": None,
            "phrase": self.phrase,
            "box": [float(side) for side in box],
            "box_truncated": list(box),
            "polygons": None,
            "rle": None,
            "mask": Image.fromarray(mask),
            "height": drawing.picture.height,
            "width": drawing.picture.width,
            "source": "scenes",
            "expression_type": self.expression_type,
            "semantic_relation_labels": None,
        }


def scene_sample(split: str, index: int, seed: int = 0) -> SceneSample:
    """Sample `index` of a split, not drawn yet.

    Raises:
        SceneError: if there is no such split, or a number is negative.
    """
    check_arguments(split, seed)
    if index < 0:
        raise SceneError(f"Samples are counted from 0; there is none with the number {index}.")
    kind, held_out = _expression_type(split, index, seed), split == "compositional"
    rng = _generator(seed, split, _SAMPLE_STREAM, index)
    while True:
        scene = sample_scene(rng, CROWDS[kind], held_out)
        view = scene and View.of(scene)
        found = view and find_expression(kind, view, rng, held_out)
        if found:
            form, target = found
            return SceneSample(f"{split}-{seed}-{index}", scene, target, form, say(form, rng), kind)


def scene_expressions(split: str, index: int, count: int, seed: int = 0) -> list[SceneSample]:
    """Sample `index` and others of its scene, up to `count` in all, whose phrases are of different types.

    Fewer where the scene does not lend itself to the other types. Raises as `scene_sample` does.
    """
    sample = scene_sample(split, index, seed)
    view = View.of(sample.scene)
    rng = _generator(seed, split, _FURTHER_STREAM, index)
    samples = [sample]
    for kind in rng.permutation([kind for kind in EXPRESSION_TYPES if kind != sample.expression_type]).tolist():
        found = len(samples) < count and find_expression(kind, view, rng, split == "compositional")
        if found:
            form, target = found
            identity = f"{sample.id}-{len(samples)}"
            samples.append(SceneSample(identity, sample.scene, target, form, say(form, rng), kind))
    return samples


class SceneRecords(Sequence):
    """The first `count` records of a split, each drawn when it is asked for; fit for a data loader.

    Args:
        split: one of `SPLITS`. The objects of "train", "val" and "test" are alike; in "compositional" every target has
            one of the colour-shape pairs that occur nowhere in the others (`HELD_OUT_PAIRS`).
        count: how many.
        seed: scenes of one seed and split are always the same, and others than those of another.
        size: pixels of the longer side; scenes and phrases do not depend on it.

    Raises:
        SceneError: if an argument is out of range.
    """

    def __init__(self, split: str, count: int, seed: int = 0, size: int = 160):
        check_arguments(split, seed, size, count)
        self.split, self.count, self.seed, self.size = split, count, seed, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        if isinstance(index, slice):
            return [self[number] for number in range(self.count)[index]]
        return scene_sample(self.split, range(self.count)[index], self.seed).record(self.size)


def scene_records(split: str, count: int, seed: int = 0, size: int = 160) -> Iterator[dict]:
    """The records of `SceneRecords` one after the other."""
    return iter(SceneRecords(split, count, seed, size))


def scene_phrases(split: str, count: int, seed: int = 0) -> Iterator[str]:
    """The phrases alone, without drawing: a corpus to train a tokenizer on.

    A unigram model splits rare words unless the corpus holds `vocabulary()`, repeated, as well.
    """
    check_arguments(split, seed, count=count)
    return (scene_sample(split, index, seed).phrase for index in range(count))


def check_arguments(split: str, seed: int, size: int = SIZES[0], count: int = 0) -> None:
    """Sees to it that scenes can be drawn with them.

    Raises:
        SceneError: if one of them is out of range.
    """
    if split not in SPLITS:
        raise SceneError(f"There is no split {split!r} of scenes; there are {', '.join(SPLITS)}.")
    if seed < 0:
        raise SceneError(f"The seed is {seed}, but must not be negative.")
    if count < 0:
        raise SceneError(f"{count} scenes of the split {split} are asked for; give 0 or more.")
    if not SIZES[0] <= size <= SIZES[1]:
        raise SceneError(f"Scenes are drawn at {SIZES[0]} to {SIZES[1]} pixels, not at {size}.")


def _generator(seed: int, split: str, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), stream, number)))


@functools.lru_cache(maxsize=64)
def _types_of_block(split: str, block: int, seed: int) -> list[str]:
    return _generator(seed, split, _TYPE_STREAM, block).permutation(EXPRESSION_TYPES).tolist()


def _expression_type(split: str, index: int, seed: int) -> str:
    """Every block of eight samples has each type once, in random order, so that no stride meets one type only."""
    block, place = divmod(index, len(EXPRESSION_TYPES))
    return _types_of_block(split, block, seed)[place]


__all__ = [
    "SIZES",
    "SPLITS",
    "SceneError",
    "SceneRecords",
    "SceneSample",
    "check_arguments",
    "scene_expressions",
    "scene_phrases",
    "scene_records",
    "scene_sample",
]
