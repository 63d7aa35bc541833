# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Test scenes to show and to try, with phrases to ask."""

from __future__ import annotations

from PIL import Image

from .builder import scene_expressions


SIDE = 512
# Numbers of scenes that show well, and what to ask beside their own phrase.
SHOWN = {
    18: ("the largest cup", "the green ring"),
    22: ("the brown arrow", "the striped circle"),
    13: ("the star",),
    7: ("the heart with stripes",),
}
_PHRASES = 3


def showcase(number: int, side: int = SIDE) -> tuple[Image.Image, list[str]]:
    """A scene of the split "test", which no model was trained on, and phrases for some of its objects.

    Args:
        number: of the scene, from 0 on.
        side: the longer one, in pixels.

    Raises:
        SceneError: if a number is out of range.
    """
    samples = scene_expressions("test", number, 1 if number in SHOWN else _PHRASES)
    return samples[0].record(side)["image"], [*(sample.phrase for sample in samples), *SHOWN.get(number, ())]


__all__ = ["SHOWN", "SIDE", "showcase"]
