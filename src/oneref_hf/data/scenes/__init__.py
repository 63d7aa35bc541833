# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Drawn scenes with referring expressions, made up as needed: training data that needs no download.

    records = SceneRecords("train", 20_000, seed=0, size=160)      # a sequence, drawn on the fly
    write_scenes("scenes", {"val": 1000, "test": 2000})            # a directory for `load_referring_dataset`

A scene is a textured, lit background with 3 to 9 objects of a dozen shapes, ten colours and three materials, which may
cover one another in part. Each sample has a phrase that refers to exactly one object, its box and its mask. How it
comes about, one module each: `objects` (what there is), `shapes` (outlines), `geometry` (what can be seen), `logic`
(what phrases mean), `phrases` (what can be said of an object), `wording` (how it is said), `drawing` (the picture),
`builder` (samples), `storage` (files), `contact_sheet` and
`showcase` (scenes to show the small model with).
"""

from .builder import (
    SIZES,
    SPLITS,
    SceneError,
    SceneRecords,
    SceneSample,
    scene_expressions,
    scene_phrases,
    scene_records,
    scene_sample,
)
from .objects import HELD_OUT_PAIRS
from .phrases import EXPRESSION_TYPES
from .storage import write_scenes
from .wording import scene_words, vocabulary


__all__ = [
    "EXPRESSION_TYPES",
    "HELD_OUT_PAIRS",
    "SIZES",
    "SPLITS",
    "SceneError",
    "SceneRecords",
    "SceneSample",
    "scene_expressions",
    "scene_phrases",
    "scene_records",
    "scene_sample",
    "scene_words",
    "vocabulary",
    "write_scenes",
]
