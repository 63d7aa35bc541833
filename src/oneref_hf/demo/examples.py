# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures to start with: drawn scenes, which every model may be asked about, and a photograph."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..data.scenes.showcase import SHOWN, showcase


PHOTOGRAPH = Path(__file__).parent / "static" / "coffee.jpg"
_PHOTOGRAPH_PHRASES = ["the cup of coffee", "the spoon on the saucer"]


@dataclass(frozen=True)
class Example:
    """A picture to try, and phrases that suit it."""

    title: str
    path: Path
    phrases: list[str]


def make_examples(folder: Path, photograph: bool) -> list[Example]:
    """Draws the examples into a folder.

    Args:
        photograph: whether to include one, which is no use to a model that knows drawings alone.
    """
    examples = []
    if photograph:
        path = folder / PHOTOGRAPH.name
        path.write_bytes(PHOTOGRAPH.read_bytes())
        examples.append(Example("Photograph", path, _PHOTOGRAPH_PHRASES))
    for number in SHOWN:
        path = folder / f"scene-{number}.png"
        picture, phrases = showcase(number)
        picture.save(path)
        examples.append(Example("Drawn scene", path, phrases))
    return examples


def thumbnail(example: Example, side: int) -> Image.Image:
    """The picture of an example, RGB, at most `side` pixels a side."""
    with Image.open(example.path) as picture:
        picture.thumbnail((side, side))
        return picture.convert("RGB")
