# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of Mask Referring Modeling: what it hides (the paper's Figure 4) and what it relates (Figure 2).

Everything is drawn on the square canvas that the model sees and comes as a new RGB `PIL.Image`; `visualization` draws
answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers.image_utils import ImageInput

from .data.masking import (
    blockwise_image_mask,
    dynamic_image_mask,
    random_image_mask,
    referred_region,
    visual_relation_labels,
)
from .letterbox_oneref import Letterbox
from .visualization import ANSWER_COLOURS, BLACK, WHITE, draw_answers, framed_panels, rgb_picture


PANEL_SIZE = 336  # pixels, about; a whole number per patch
_PADDING, _HIDDEN, _JOINT = (226, 226, 226), (92, 98, 106), (112, 118, 126)
# Blue, white and vermilion of Okabe and Ito: the two ends differ for every kind of colour vision.
_DIVERGING = ((0, 114, 178), WHITE, (213, 94, 0))
_SEQUENTIAL = (WHITE, (0, 158, 115))
_MAP_OPACITY = 0.78
_BAR, _GAP = 120, 12


def draw_masked_patches(image: ImageInput, mask: torch.Tensor | np.ndarray) -> Image.Image:
    """The canvas with the hidden patches covered.

    Args:
        image: one picture of any kind.
        mask: bool `(P,)`, True = hidden, row-major over a square grid, as `bool_masked_pos`.

    Returns:
        An RGB picture `PANEL_SIZE` pixels a side, or a little less; padding is light grey.

    Raises:
        ValueError: if P is no square number, or the picture cannot be read.
    """
    hidden = _on_grid(mask, "mask")
    panel = _canvas(image, len(hidden))
    draw = ImageDraw.Draw(panel)
    side = panel.width // len(hidden)
    for row, column in np.argwhere(hidden > 0).tolist():
        corners = (column * side, row * side, (column + 1) * side - 1, (row + 1) * side - 1)
        draw.rectangle(corners, fill=_HIDDEN, outline=_JOINT)
    return panel


def masking_figure(
    image: ImageInput,
    box_xyxy: Sequence[float],
    phrase: str = "",
    grid_size: int = 24,
    seed: int = 0,
) -> Image.Image:
    """What the three ways of masking hide, as in the paper's Figure 4: random, block-wise and referring-aware.

    Args:
        image: one picture of any kind.
        box_xyxy: `(4,)`, the referred box as x0, y0, x1, y1 in pixels of the picture the right way up.
        phrase: the title.
        grid_size: patches per side of the canvas.
        seed: of the random choices.

    Returns:
        An RGB picture: the picture with its box, then the three masks. On the last the region that is masked densely
        is outlined, too.
    """
    picture = rgb_picture(image)
    box = _on_canvas(picture, box_xyxy)
    generator = torch.Generator().manual_seed(seed)
    masks = {
        "random, as in MAE": random_image_mask(grid_size, generator=generator),
        "block-wise, as in BEiT": blockwise_image_mask(grid_size, generator=generator),
        "referring-aware": dynamic_image_mask(box, grid_size, generator=generator),
    }
    region = referred_region(box, grid_size)
    x0, y0, x1, y1 = region
    panels = [("the canvas and the box", _with_boxes(_canvas(picture, grid_size), grid_size, box))]
    for name, mask in masks.items():
        near = mask.view(grid_size, grid_size)[y0:y1, x0:x1]
        far = (mask.sum() - near.sum()) / max(mask.numel() - near.numel(), 1)
        drawn = draw_masked_patches(picture, mask)
        outlined = [box, region] if name == "referring-aware" else [box]
        caption = f"{name}\n{near.float().mean():.0%} near the box, {far:.0%} elsewhere"
        panels.append((caption, _with_boxes(drawn, grid_size, *outlined)))
    return framed_panels(phrase, panels)


def visual_relation_figure(
    image: ImageInput,
    box_xyxy: Sequence[float],
    phrase: str = "",
    grid_size: int = 24,
    scores: torch.Tensor | np.ndarray | None = None,
) -> Image.Image:
    """The visual target-relation score as four maps, as in the paper's Figure 2.

    Blue patches lie left of or above the centre of the box, vermilion ones right of or below it; the last two maps are
    the box's inverse width and height in patches, the same everywhere in the labels; the longer side is the paler one.

    Args:
        image: one picture of any kind.
        box_xyxy: `(4,)`, the referred box as x0, y0, x1, y1 in pixels of the picture the right way up.
        phrase: the title.
        grid_size: patches per side of the canvas.
        scores: `(P, 4)`, one row of a model's `visual_relation_scores`, for a second row of maps.

    Returns:
        An RGB picture: the canvas with its box, then the maps of the labels and, below, those of the scores.

    Raises:
        ValueError: if the scores are not for this grid.
    """
    picture = rgb_picture(image)
    box = _on_canvas(picture, box_xyxy)
    labels = visual_relation_labels(box, grid_size).numpy().reshape(grid_size, grid_size, 4)
    canvas = _canvas(picture, grid_size)
    # Both sides of the box share a scale, so that the longer one is paler.
    limits = [max(np.abs(labels[..., axes]).max(), 1e-6) for axes in (0, 1, [2, 3], [2, 3])]
    boxed = _with_boxes(canvas, grid_size, box)
    rows = [_relation_row(phrase, "the canvas and the box", boxed, canvas, labels, limits)]
    if scores is not None:
        scores = torch.as_tensor(scores).detach().float().cpu().numpy()
        if scores.shape != (grid_size**2, 4):
            raise ValueError(f"The scores are of shape {scores.shape}; {(grid_size**2, 4)} fits the grid.")
        scores = scores.reshape(labels.shape)
        error = np.abs(scores - labels).sum(-1).mean()
        caption = f"as the model sees it\n(mean error {error:.2f})"
        rows.append(_relation_row("", caption, canvas, canvas, scores, limits))
    return _stacked(rows)


def semantic_relation_figure(
    image: ImageInput,
    box_xyxy: Sequence[float],
    pieces: Sequence[str],
    scores: torch.Tensor | np.ndarray | Sequence[float],
    phrase: str = "",
) -> Image.Image:
    """The semantic target-relation score of each piece of a phrase as a bar, beside the referred box.

    Args:
        image: one picture of any kind.
        box_xyxy: `(4,)`, the referred box as x0, y0, x1, y1 in pixels of the picture the right way up.
        pieces: N tokens without BOS and EOS, as the tokenizer's `convert_ids_to_tokens` gives them.
        scores: `(N,)`, at least 0: `semantic_relation_labels`, or `semantic_relation_scores` of a model.
        phrase: the title.

    Returns:
        An RGB picture on white.

    Raises:
        ValueError: if there are not as many scores as pieces.
    """
    values = np.asarray(torch.as_tensor(scores).detach().cpu(), dtype=np.float64)
    if values.shape != (len(pieces),) or not len(pieces):
        raise ValueError(f"There are {len(pieces)} pieces, but scores of the shape {values.shape}.")
    picture = rgb_picture(image)
    answer = {"box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box_xyxy))}
    shown = draw_answers(picture, answer, labels=False)
    shown.thumbnail((_BAR * 2, _BAR * 2), Image.Resampling.LANCZOS)
    font, title_font = ImageFont.load_default(16), ImageFont.load_default(20)
    words = [piece.replace("▁", " ").strip() or "_" for piece in pieces]
    widths = [max(round(font.getlength(word)), 40) + _GAP for word in words]
    line = sum(font.getmetrics())
    top = 2 * _GAP + sum(title_font.getmetrics())
    height = max(shown.height, _BAR + 2 * line + _GAP)
    width = max(3 * _GAP + shown.width + sum(widths), 2 * _GAP + round(title_font.getlength(phrase)))
    figure = Image.new("RGB", (width, top + height + _GAP), WHITE)
    draw = ImageDraw.Draw(figure)
    draw.text((_GAP, _GAP), phrase, fill=BLACK, font=title_font)
    figure.paste(shown, (_GAP, top + (height - shown.height) // 2))
    left, base = 2 * _GAP + shown.width, top + (height + _BAR) // 2
    largest = max(values.max(), 1e-9)
    for word, value, step in zip(words, values.tolist(), widths):
        centre, tall = left + step // 2, round(_BAR * value / largest)
        draw.rectangle((left + _GAP // 2, base - tall, left + step - _GAP // 2, base), fill=ANSWER_COLOURS[4])
        draw.text((centre, base - tall - 2), f"{value:.2f}", fill=BLACK, font=font, anchor="md")
        draw.text((centre, base + 4), word, fill=BLACK, font=font, anchor="ma")
        left += step
    return figure


def _relation_row(title, caption, first, canvas, values, limits) -> Image.Image:
    names = ("horizontal offset (blue: left)", "vertical offset (blue: above)", "inverse width", "inverse height")
    panels = [(caption, first)]
    for axis, name in enumerate(names):
        numbers, colours = values[..., axis], _DIVERGING if axis < 2 else _SEQUENTIAL
        low, high = numbers.min(), numbers.max()
        span = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
        panels.append((f"{name}\n{span}", _mapped(canvas, numbers, colours, limits[axis])))
    return framed_panels(title, panels)


def _mapped(canvas: Image.Image, numbers: np.ndarray, colours, limit: float) -> Image.Image:
    """Numbers on the grid as colours over the grey canvas: three colours for -limit, 0, limit, or two for 0, limit."""
    points = np.linspace(-limit if len(colours) == 3 else 0, limit, len(colours))
    channels = [np.interp(numbers, points, channel) for channel in np.transpose(colours)]
    tiles = Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
    tiles = tiles.resize(canvas.size, Image.Resampling.NEAREST)
    return Image.blend(canvas.convert("L").convert("RGB"), tiles, _MAP_OPACITY)


def _stacked(rows: list[Image.Image]) -> Image.Image:
    figure = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), WHITE)
    top = 0
    for row in rows:
        figure.paste(row, (0, top))
        top += row.height
    return figure


def _canvas(image: ImageInput, grid_size: int) -> Image.Image:
    """The picture letterboxed to a whole number of pixels per patch."""
    picture = rgb_picture(image)
    side = grid_size * max(PANEL_SIZE // grid_size, 1)
    layout = Letterbox.centred(picture.height, picture.width, side)
    canvas = Image.new("RGB", (side, side), _PADDING)
    content = picture.resize((layout.content_width, layout.content_height), Image.Resampling.LANCZOS)
    canvas.paste(content, (layout.left, layout.top))
    return canvas


def _on_canvas(picture: Image.Image, box_xyxy: Sequence[float]) -> torch.Tensor:
    """`(4,)` centre and size in [0, 1] of the canvas."""
    layout = Letterbox.centred(picture.height, picture.width, PANEL_SIZE)
    return layout.boxes_to_canvas(torch.tensor([list(box_xyxy)]))[0]


def _on_grid(values, name: str) -> np.ndarray:
    values = np.asarray(torch.as_tensor(values).cpu())
    side = round(values.size**0.5)
    if values.ndim != 1 or side**2 != values.size:
        raise ValueError(f"The {name} has the shape {values.shape}, not one value per patch of a square grid.")
    return values.reshape(side, side)


def _with_boxes(panel: Image.Image, grid_size: int, box_cxcywh, region=None) -> Image.Image:
    """The referred box, and a region in patches."""
    cx, cy, w, h = (float(value) * panel.width for value in box_cxcywh)
    corners = [(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)]
    if region is not None:
        corners.append(tuple(side * panel.width / grid_size for side in region))
    boxes = [{"box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))} for box in corners]
    return draw_answers(panel, boxes, labels=False)


__all__ = [
    "draw_masked_patches",
    "masking_figure",
    "semantic_relation_figure",
    "visual_relation_figure",
]
