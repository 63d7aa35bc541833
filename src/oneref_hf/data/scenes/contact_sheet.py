# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Many samples on one picture, to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ...visualization import draw_answers


_PICTURE = 240  # pixels of the longer side
_GAP, _LINE, _LINES = 12, 17, 4
_CHARACTERS = 34


def contact_sheet(records: Sequence[dict], columns: int = 6) -> Image.Image:
    """Records in rows, the target outlined, phrase and expression type beneath.

    Args:
        records: as `scene_records` or `load_referring_dataset` gives them, with a box.
    """
    cell_width, cell_height = _PICTURE + _GAP, _PICTURE + _GAP + (_LINES + 1) * _LINE
    rows = -(-len(records) // columns)
    sheet = Image.new("RGB", (_GAP + columns * cell_width, _GAP + rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    font, small_font = ImageFont.load_default(14), ImageFont.load_default(11)
    for number, record in enumerate(records):
        row, column = divmod(number, columns)
        left, top = _GAP + column * cell_width, _GAP + row * cell_height
        picture = _outlined(record)
        sheet.paste(picture, (left + (_PICTURE - picture.width) // 2, top + _PICTURE - picture.height))
        lines = textwrap.wrap(record["phrase"], _CHARACTERS, max_lines=_LINES, placeholder=" …")
        draw.multiline_text((left, top + _PICTURE + 3), "\n".join(lines), "black", font, spacing=2)
        draw.text((left, top + _PICTURE + 5 + len(lines) * _LINE), record["expression_type"] or "", "grey", small_font)
    return sheet


def _outlined(record: dict) -> Image.Image:
    image = record["image"]
    scale = _PICTURE / max(image.size)
    size = tuple(round(side * scale) for side in image.size)
    box = {name: value * scale for name, value in zip(("xmin", "ymin", "xmax", "ymax"), record["box"])}
    return draw_answers(image.resize(size, Image.Resampling.LANCZOS), {"box": box}, labels=False)


__all__ = ["contact_sheet"]
