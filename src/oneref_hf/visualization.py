# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of answers: boxes, masks and labels on the picture, similarity maps, and rows like the paper's Figure 6.

Everything takes what `ReferringExpressionPipeline` returns and gives a new RGB `PIL.Image`; nothing is changed in
place.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from transformers.image_utils import ImageInput

from .letterbox_oneref import flatten_images, read_picture


# Okabe and Ito's colours, which people with every kind of colour vision can tell apart, ordered so that neighbours
# differ most.
ANSWER_COLOURS = (
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (204, 121, 167),
    (0, 158, 115),
    (230, 159, 0),
    (0, 114, 178),
)
# Nine equidistant points of the colour map "inferno": its lightness grows evenly from black to pale yellow.
HEAT_COLOURS = (
    (0, 0, 4),
    (33, 12, 74),
    (87, 16, 110),
    (138, 34, 106),
    (188, 55, 84),
    (228, 90, 49),
    (249, 142, 9),
    (249, 203, 53),
    (252, 255, 164),
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

MASK_OPACITY = 0.42
HEAT_OPACITY = 0.65
LABEL_LINES = 2
LARGEST_LABEL = 0.25  # share of the picture; a label that would hide more is left out
PANEL_SIZE = 360  # pixels of the longer side of a picture in a figure
SMALLEST_CELL = 200  # pixels that the caption of a narrow panel needs


def draw_answers(
    image: ImageInput,
    answers: dict | list[dict | None] | None,
    boxes: bool = True,
    masks: bool = True,
    labels: bool = True,
) -> Image.Image:
    """Draws what was found, each phrase in its own colour.

    Lines and letters grow with the picture. Labels stay inside the picture and avoid one another while there is room;
    a picture too small for a label gets none.

    Args:
        image: the picture in any form the pipeline takes.
        answers: one answer of the pipeline or a list of them; None (nothing above the threshold) is left out, but
            keeps its colour, so that colours stay the same whatever the threshold.
        boxes, masks, labels: what to draw; answers without a mask have none drawn.

    Returns:
        An RGB picture of the same size, the right way up (EXIF).

    Raises:
        ValueError: if the picture cannot be read, or a mask is not of its size.
    """
    canvas = rgb_picture(image)
    for layer in _layers(canvas.size, answers, boxes, masks, labels):
        layer.draw(canvas)
    return canvas


@dataclass(frozen=True)
class AnswerLayer:
    """What `draw_answers` draws of one kind for one answer, to be laid over the picture by whoever shows it.

    answer: number of the answer it belongs to.
    kind: "mask" (its area), "outline" (its edge), "box" or "label".
    overlay: RGBA, transparent where nothing is drawn, and cut to what is drawn.
    left, top: place of the overlay's corner on the picture, in pixels.
    """

    answer: int
    kind: str
    overlay: Image.Image
    left: int
    top: int


def draw_layers(size: tuple[int, int], answers: dict | list[dict | None] | None) -> list[AnswerLayer]:
    """`draw_answers` in separate layers, so that a page or a window can show and hide its parts.

    Laid over the picture in their order they give the same drawing, to the rounding of the overlays' 8-bit colours.
    Labels keep their places whichever layers are shown.

    Args:
        size: `(height, width)` of the picture in pixels.
        answers: as for `draw_answers`.

    Raises:
        ValueError: if a mask is not of the picture's size.
    """
    layers = []
    for layer in _layers(size[::-1], answers):
        found = _overlay(size[::-1], layer.draw)
        if found is not None:
            layers.append(AnswerLayer(layer.answer, layer.kind, *found))
    return layers


def answer_colour(index: int) -> tuple[int, int, int]:
    """The colour of the answer with this number, the same in all drawings."""
    return ANSWER_COLOURS[index % len(ANSWER_COLOURS)]


def draw_heatmap(image: ImageInput, heatmap: np.ndarray) -> Image.Image:
    """Lays a similarity map over the picture: from dark where it is lowest to pale yellow where it is highest.

    The picture below turns grey, so that all colour means similarity. The scale is stretched to the values of this
    map, so colours compare places in one map, not maps with one another; an even map is dark.

    Args:
        image: the picture in any form the pipeline takes.
        heatmap: float `(height, width)` of the picture, the pipeline's `heatmap`.

    Returns:
        An RGB picture of the same size, the right way up (EXIF).

    Raises:
        ValueError: if the picture cannot be read, or the map is not of its size.
    """
    picture = rgb_picture(image)
    heatmap = np.asarray(heatmap, dtype=np.float32)
    if heatmap.shape != (picture.height, picture.width):
        raise ValueError(
            f"The heat map is {heatmap.shape} (height, width), but the picture {(picture.height, picture.width)}."
        )
    low, high = heatmap.min(), heatmap.max()
    heat = Image.fromarray(((heatmap - low) * (255 / (high - low) if high > low else 0)).round().astype(np.uint8))
    points = np.linspace(0, 255, len(HEAT_COLOURS))
    table = [np.interp(np.arange(256), points, channel).round() for channel in np.transpose(HEAT_COLOURS)]
    heat.putpalette(np.transpose(table).astype(np.uint8).tobytes())
    return Image.blend(picture.convert("L").convert("RGB"), heat.convert("RGB"), HEAT_OPACITY)


def figure_row(image: ImageInput, answer: dict, heatmap: np.ndarray | None = None) -> Image.Image:
    """The picture, the mask (RES), the box (REC) and the similarity side by side, as in a row of the paper's Figure 6.

    Args:
        image: the picture in any form the pipeline takes.
        answer: an answer of the pipeline. Without a mask the second panel is left out.
        heatmap: float `(height, width)`, `answer["heatmap"]` by default; without either the last panel is left out.

    Returns:
        An RGB picture on white: the phrase above, the captioned panels below, each at most 360 pixels a side.
    """
    picture = rgb_picture(image)
    heatmap = answer.get("heatmap") if heatmap is None else heatmap
    scale = PANEL_SIZE / max(picture.size)
    size = tuple(max(round(side * scale), 1) for side in picture.size)
    panel = picture.resize(size, Image.Resampling.LANCZOS)
    corners = {
        name: value * size[name[0] == "y"] / picture.size[name[0] == "y"] for name, value in answer["box"].items()
    }
    scaled = {**answer, "box": corners}

    panels = [("picture", panel)]
    if "mask" in answer:
        mask = _mask_picture(answer["mask"], picture.size).resize(size, Image.Resampling.BILINEAR)
        scaled["mask"] = mask.point(lambda value: 255 * (value > 127))  # what is mostly covered
        panels.append(("segmentation (RES)", draw_answers(panel, scaled, boxes=False, labels=False)))
    panels.append((f"box (REC), score {answer['score']:.2f}", draw_answers(panel, scaled, masks=False, labels=False)))
    if heatmap is not None:
        # Overlaid at the size of the picture, then scaled, so that the map need not be interpolated on its own.
        overlay = draw_heatmap(picture, heatmap).resize(size, Image.Resampling.LANCZOS)
        panels.append((f"similarity, {np.min(heatmap):.2f} to {np.max(heatmap):.2f}", overlay))
    return framed_panels(answer["label"], panels)


def draw_figure(image: ImageInput, answers: dict | list[dict | None] | None) -> Image.Image:
    """`figure_row` of every answer, one below the other; the picture alone if there is none."""
    answers = [answers] if isinstance(answers, dict) else answers or []
    rows = [figure_row(image, answer) for answer in answers if answer is not None]
    if not rows:
        return rgb_picture(image)
    figure = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), WHITE)
    top = 0
    for row in rows:
        figure.paste(row, (0, top))
        top += row.height
    return figure


def rgb_picture(image: ImageInput) -> Image.Image:
    """One picture of any kind as the 8-bit RGB that the model sees, the right way up; always a copy.

    Raises:
        ValueError: if there is no readable picture, or more than one.
    """
    pictures = flatten_images(image)
    if len(pictures) != 1:
        raise ValueError(f"One picture is drawn at a time, but there are {len(pictures)}.")
    numbers = read_picture(pictures[0], convert_rgb=True, to_8_bit_range=True)  # (3, height, width)
    return Image.fromarray(numbers.detach().round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy())


@dataclass(frozen=True)
class _Stroke:
    """Sizes in pixels of everything drawn on one picture."""

    line: int
    halo: int
    font: ImageFont.FreeTypeFont

    @classmethod
    def for_picture(cls, size: tuple[int, int]) -> "_Stroke":
        side = math.sqrt(size[0] * size[1])
        line = max(round(side * 0.005), 1)
        return cls(line, max(round(line * 0.4), 1), ImageFont.load_default(max(round(side * 0.03), 11)))


@dataclass(frozen=True)
class _Layer:
    answer: int
    kind: str
    draw: Callable[[Image.Image], None]


def _layers(
    size: tuple[int, int],
    answers: dict | list[dict | None] | None,
    boxes: bool = True,
    masks: bool = True,
    labels: bool = True,
) -> list[_Layer]:
    """What there is to draw on a picture of this size (width, height), from the lowest to the topmost."""
    answers = [answers] if isinstance(answers, dict) else answers or []
    given = {index: answer for index, answer in enumerate(answers) if answer is not None}
    stroke = _Stroke.for_picture(size)
    layers = []
    if masks:
        drawn = {i: _mask_picture(answer["mask"], size) for i, answer in given.items() if "mask" in answer}
        for kind, paint in (("mask", _draw_area), ("outline", _draw_contour)):
            layers += [_Layer(i, kind, partial(paint, mask=mask)) for i, mask in drawn.items()]
    if boxes:
        layers += [_Layer(i, "box", partial(_draw_box, box=_corners(answer["box"]))) for i, answer in given.items()]
    if labels:
        placed = _placed_labels(size, given, stroke)
        layers += [_Layer(i, "label", partial(_draw_label, label=label)) for i, label in placed.items()]
    return [
        _Layer(layer.answer, layer.kind, partial(layer.draw, colour=answer_colour(layer.answer), stroke=stroke))
        for layer in layers
    ]


def _overlay(size: tuple[int, int], draw: Callable[[Image.Image], None]) -> tuple[Image.Image, int, int] | None:
    """What `draw` paints as an RGBA picture, with its left and top; None if it paints nothing.

    Drawn on black and on white, opaque colour is the same on both and transparency leaves their full difference.
    """
    on_black, on_white = Image.new("RGB", size, BLACK), Image.new("RGB", size, WHITE)
    draw(on_black)
    draw(on_white)
    alpha = ImageChops.invert(ImageChops.subtract(on_white, on_black).getchannel("G"))
    extent = alpha.getbbox()
    if extent is None:
        return None
    alpha = np.asarray(alpha.crop(extent), dtype=np.float32)[..., None]
    colours = np.asarray(on_black.crop(extent), dtype=np.float32) * 255 / alpha.clip(min=1)
    overlay = np.concatenate([colours.round().clip(max=255), alpha], axis=2).astype(np.uint8)
    return Image.fromarray(overlay), extent[0], extent[1]


def _corners(box: dict[str, float]) -> tuple[float, float, float, float]:
    return box["xmin"], box["ymin"], box["xmax"], box["ymax"]


def _contrast(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out more from the colour (relative luminance of sRGB)."""
    linear = [(value / 255) ** 2.2 for value in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else WHITE


def _mask_picture(mask, size: tuple[int, int]) -> Image.Image:
    """A mask, PIL or boolean array, as 0 and 255."""
    numbers = np.asarray(mask)
    if numbers.shape != size[::-1]:
        raise ValueError(f"The mask is {numbers.shape} (height, width), but the picture {size[::-1]}.")
    return Image.fromarray((numbers > 0).astype(np.uint8) * 255)


def _draw_area(canvas: Image.Image, mask: Image.Image, colour: tuple[int, int, int], stroke: _Stroke):
    canvas.paste(colour, mask=mask.point(lambda value: round(MASK_OPACITY * value)))


def _draw_contour(canvas: Image.Image, mask: Image.Image, colour: tuple[int, int, int], stroke: _Stroke):
    """A line along the edge of the mask, with a halo outside.

    A blurred straight edge is a normal distribution function, so the blurred mask tells the distance from the edge:
    smooth lines of any width at a cost that does not depend on the width.
    """
    sigma = stroke.line / 2 + stroke.halo
    around = mask.getbbox()
    if around is None:
        return
    margin = math.ceil(3 * sigma)
    left, top = (max(side - margin, 0) for side in around[:2])
    mask = mask.crop((left, top, min(around[2] + margin, mask.width), min(around[3] + margin, mask.height)))
    blurred = mask.filter(ImageFilter.GaussianBlur(sigma))
    outside = ImageChops.invert(mask)

    distances = [sigma * NormalDist().inv_cdf(min(max(value / 255, 1e-6), 1 - 1e-6)) for value in range(256)]

    def up_to(width: float, sign: int) -> Image.Image:
        """Opaque where the edge is nearer than `width` on one side of it."""
        return blurred.point([round(255 * min(max(width - sign * d + 0.5, 0), 1)) for d in distances])

    halo = ImageChops.darker(up_to(stroke.line / 2 + stroke.halo, -1), outside)
    # Thin parts vanish when blurred. Their pixels count as near the edge, for a low value means a far outside.
    line = ImageChops.lighter(
        ImageChops.darker(up_to(stroke.line / 2, -1), outside), ImageChops.darker(up_to(stroke.line / 2, 1), mask)
    )
    canvas.paste(_contrast(colour), (left, top), halo)
    canvas.paste(colour, (left, top), line)


def _draw_box(canvas: Image.Image, box: tuple[float, ...], colour: tuple[int, int, int], stroke: _Stroke):
    """A rectangle with a halo on both sides, moved inwards where it would leave the picture."""
    draw = ImageDraw.Draw(canvas)
    reach = stroke.line // 2

    def inside(value: float, side: int) -> int:
        return round(min(max(value, reach), max(side - 1 - reach, reach)))

    x0, y0, x1, y1 = (inside(value, canvas.size[axis % 2]) for axis, value in enumerate(box))
    outer = (x0 - reach, y0 - reach, x1 - reach + stroke.line - 1, y1 - reach + stroke.line - 1)
    halo_rectangle = (outer[0] - stroke.halo, outer[1] - stroke.halo, outer[2] + stroke.halo, outer[3] + stroke.halo)
    draw.rectangle(halo_rectangle, outline=_contrast(colour), width=stroke.line + 2 * stroke.halo)
    draw.rectangle(outer, outline=colour, width=stroke.line)


@dataclass(frozen=True)
class _Label:
    lines: list[str]
    left: int
    top: int
    width: int
    height: int


def _placed_labels(size: tuple[int, int], answers: dict[int, dict], stroke: _Stroke) -> dict[int, _Label]:
    """The labels of answers, by their numbers; those that would hide too much of the picture are left out."""
    font = stroke.font
    padding = _label_padding(stroke)
    boxes = [_corners(answer["box"]) for answer in answers.values()]
    widest = min(size[0] - 2 * padding, max(size[0] * 0.5, font.size * 14))
    labels: dict[int, _Label] = {}
    taken: list[tuple[float, ...]] = []
    for (index, answer), box in zip(answers.items(), boxes):
        lines = _wrap(answer["label"], f"  {answer['score']:.2f}", font, widest)
        width = math.ceil(max(font.getlength(line) for line in lines)) + 2 * padding
        height = len(lines) * sum(font.getmetrics()) + padding
        if width > size[0] or height > size[1] or width * height > LARGEST_LABEL * size[0] * size[1]:
            continue
        left, top = _place_label((width, height), box, size, taken, boxes, stroke.line)
        taken.append((left, top, left + width, top + height))
        labels[index] = _Label(lines, left, top, width, height)
    return labels


def _label_padding(stroke: _Stroke) -> int:
    return max(stroke.font.size // 4, 2)


def _draw_label(canvas: Image.Image, label: _Label, colour: tuple[int, int, int], stroke: _Stroke):
    draw = ImageDraw.Draw(canvas)
    padding, line_height = _label_padding(stroke), sum(stroke.font.getmetrics())
    rectangle = (label.left, label.top, label.left + label.width - 1, label.top + label.height - 1)
    draw.rounded_rectangle(rectangle, padding, fill=colour, outline=_contrast(colour), width=max(stroke.halo // 2, 1))
    for row, line in enumerate(label.lines):
        position = (label.left + padding, label.top + padding // 2 + row * line_height)
        draw.text(position, line, fill=_contrast(colour), font=stroke.font)


def _place_label(
    size: tuple[int, int],
    box: tuple[float, ...],
    picture_size: tuple[int, int],
    taken: list[tuple[float, ...]],
    boxes: list[tuple[float, ...]],
    line: int,
) -> tuple[int, int]:
    """Left and top of the best place for a label: off other labels, off what boxes frame, at or near its own box."""
    (width, height), (x0, y0, x1, y1) = size, box
    limits = np.array([picture_size[0] - width, picture_size[1] - height])
    beside = [(x0, y0 - height - line), (x0, y1 + line), (x0 + line, y0 + line), (x0 + line, y1 - height - line)]
    beside += [(x1 - width, y0 - height - line), (x1 - width, y1 + line), (x1 + line, y0), (x0 - width - line, y0)]
    columns = [x0, x1 - width, *np.arange(0, limits[0] + 1, max(width // 2, 1))]
    rows = np.arange(0, limits[1] + 1, max(height // 2, 1))
    places = np.array([*beside, *((column, row) for row in rows for column in columns)])
    places = np.clip(places.round(), 0, limits)
    rectangles = np.concatenate([places, places + size], axis=1)  # (num_places, 4)

    def gaps(other: tuple[float, ...]) -> np.ndarray:
        """Distance along x and y of every place from a rectangle, negative where they overlap."""
        return np.maximum(other[:2] - rectangles[:, 2:], rectangles[:, :2] - np.asarray(other[2:]))

    def covered(other: tuple[float, ...]) -> np.ndarray:
        overlap = np.minimum(rectangles[:, 2:], other[2:]) - np.maximum(rectangles[:, :2], other[:2])
        return overlap.clip(min=0).prod(1) / (width * height)

    cost = 0.3 * np.hypot(*gaps(box).clip(min=0).T) / height + 0.1 * np.abs(places[:, 0] - x0) / picture_size[0]
    cost += sum((0.25 if other == box else 0.5) * covered(other) for other in boxes)
    cost += sum(1e4 * covered(other) for other in taken)
    left, top = places[cost.argmin()]
    return int(left), int(top)


def _wrap(text: str, tail: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int = LABEL_LINES) -> list[str]:
    """The text in at most `max_lines` lines of `width` pixels, cut with an ellipsis, and the tail at its end."""
    rest = " ".join(text.split())
    lines = []
    while rest and len(lines) < max_lines:
        lengths = range(1, min(len(rest), 500) + 1)
        fitting = bisect_right(lengths, width, key=lambda count: font.getlength(rest[:count]))
        if fitting < len(rest):
            space = rest.rfind(" ", 0, fitting + 1)
            fitting = space if space > 0 else max(fitting, 1)
        lines.append(rest[:fitting].rstrip())
        rest = rest[fitting:].lstrip()
    last = lines.pop() if lines else ""
    ending = "…" + tail if rest else tail
    while last and font.getlength(last + ending) > width:
        last, ending = last[:-1], "…" + tail
    return [*lines, last.rstrip() + ending]


def framed_panels(title: str, panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Panels in a row on white, captions below, the title above.

    Args:
        title: of the row, in at most two lines; it may be empty.
        panels: `(caption, picture)` each; a caption may have line breaks, and all pictures have one size.

    Returns:
        An RGB picture.
    """
    title_font, caption_font = ImageFont.load_default(20), ImageFont.load_default(15)
    gap = 12
    panel_width, panel_height = panels[0][1].size
    cell_width = max(panel_width, SMALLEST_CELL)
    width = gap + len(panels) * (cell_width + gap)
    title_height, caption_height = (sum(font.getmetrics()) for font in (title_font, caption_font))
    caption_height *= max(1 + caption.count("\n") for caption, _ in panels)
    lines = _wrap(title, "", title_font, width - 2 * gap) if title else []
    panels_top = gap + len(lines) * title_height + gap // 2
    figure = Image.new("RGB", (width, panels_top + panel_height + caption_height + 2 * gap), WHITE)
    draw = ImageDraw.Draw(figure)
    for row, line in enumerate(lines):
        draw.text((gap, gap + row * title_height), line, fill=BLACK, font=title_font)
    for column, (caption, panel) in enumerate(panels):
        left = gap + column * (cell_width + gap)
        figure.paste(panel, (left + (cell_width - panel_width) // 2, panels_top))
        centre = left + cell_width // 2
        place = (centre, panels_top + panel_height + gap // 2)
        draw.text(place, caption, fill=BLACK, font=caption_font, anchor="ma", align="center")
    return figure


__all__ = [
    "AnswerLayer",
    "answer_colour",
    "draw_answers",
    "draw_figure",
    "draw_heatmap",
    "draw_layers",
    "figure_row",
    "framed_panels",
    "rgb_picture",
]
