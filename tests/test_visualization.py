# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Drawings: what is drawn where, in colours that can be told apart, legible, and on pictures of any size."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from oneref_hf.visualization import (
    ANSWER_COLOURS,
    HEAT_COLOURS,
    draw_answers,
    draw_figure,
    draw_heatmap,
    draw_layers,
    figure_row,
)


SIZE = (400, 300)
BOX = (100, 80, 300, 220)
ELLIPSE = (150, 100, 250, 200)


def answer_of(phrase="the cup", box=BOX, score=0.61, mask=None, heatmap=None) -> dict:
    answer = {"score": score, "label": phrase, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
    extras = {"mask": mask, "heatmap": heatmap}
    return {**answer, **{name: value for name, value in extras.items() if value is not None}}


def ellipse(size=SIZE, box=ELLIPSE) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def noise(size=SIZE) -> Image.Image:
    numbers = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(numbers)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def luminance(colour) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


def contrast(first, second) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture
def drawn_labels(monkeypatch):
    """Records the rectangle, the fill and the lines of text of every label."""
    labels = []
    rectangle, text = ImageDraw.ImageDraw.rounded_rectangle, ImageDraw.ImageDraw.text

    def record_rectangle(self, xy, *args, fill, **kwargs):
        labels.append({"rectangle": xy, "fill": fill, "lines": [], "colours": set()})
        rectangle(self, xy, *args, fill=fill, **kwargs)

    def record_text(self, xy, line, fill, font, **kwargs):
        labels[-1]["lines"].append((xy, line, font.getlength(line), sum(font.getmetrics())))
        labels[-1]["colours"].add(fill)
        text(self, xy, line, fill=fill, font=font, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", record_rectangle)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record_text)
    return labels


# Boxes and masks


def test_a_box_is_drawn_on_its_edges_alone():
    picture = noise()
    before = pixels(picture)
    drawn = pixels(draw_answers(picture, answer_of(), labels=False))
    assert np.array_equal(pixels(picture), before)
    colour = np.array(ANSWER_COLOURS[0])
    for x, y in ((100, 150), (300, 150), (200, 80), (200, 220), (100, 80), (300, 220)):
        assert (drawn[y, x] == colour).all(), (x, y)
    changed = (drawn != before).any(-1)
    assert not changed[90:211, 110:291].any()
    assert not changed[:70].any() and not changed[230:].any() and not changed[:, :90].any()


@pytest.mark.parametrize("colour", [*ANSWER_COLOURS, (0, 0, 0), (255, 255, 255)])
def test_a_box_stands_out_from_any_background(colour):
    for index in range(len(ANSWER_COLOURS)):
        answers = [None] * index + [answer_of()]
        drawn = draw_answers(Image.new("RGB", SIZE, colour), answers, labels=False)
        across = {drawn.getpixel((x, 150)) for x in range(90, 110)}
        # Two tones, one of them a fixed colour, cannot promise more on a background that lies between them.
        assert max(contrast(colour, other) for other in across) > 2.2


def test_a_box_at_the_edge_stays_visible():
    picture = noise()
    drawn = pixels(draw_answers(picture, answer_of(box=(0, 0, *SIZE)), labels=False))
    for edge in (drawn[:3, 200], drawn[-3:, 200], drawn[150, :3], drawn[150, -3:]):
        assert (edge == ANSWER_COLOURS[0]).all(-1).any()


def test_a_mask_is_tinted_inside_and_has_a_contour():
    picture, mask = Image.new("RGB", SIZE, (120, 120, 120)), ellipse()
    inside = pixels(mask) > 0
    drawn = pixels(draw_answers(picture, answer_of(mask=mask), boxes=False, labels=False))
    tint = 0.58 * 120 + 0.42 * np.array(ANSWER_COLOURS[0])
    assert np.abs(drawn[120:180, 170:230] - tint).max() <= 1

    rows, columns = np.indices(inside.shape)
    radius = np.hypot(rows - 150, columns - 200)
    assert (drawn[radius > 56] == 120).all()
    strong = np.abs(drawn - ANSWER_COLOURS[0]).sum(-1) < np.abs(tint - ANSWER_COLOURS[0]).sum() / 2
    assert (np.abs(radius[strong] - 50) < 3).all()
    directions = np.degrees(np.arctan2(rows - 150, columns - 200))[strong].astype(int)
    assert len(set(directions)) > 300, "the contour is closed"
    halo = np.abs(drawn).max(-1) < 30
    assert halo.any() and (radius[halo] > 50).all()

    as_array = draw_answers(picture, answer_of(mask=inside), boxes=False, labels=False)
    assert np.array_equal(pixels(as_array), drawn)


def test_thin_masks_keep_their_contour_and_empty_ones_have_none():
    mask = Image.new("L", SIZE, 0)
    picture = noise()
    assert np.array_equal(
        pixels(draw_answers(picture, answer_of(mask=mask), boxes=False, labels=False)), pixels(picture)
    )
    ImageDraw.Draw(mask).line((50, 150, 350, 150), fill=255)
    drawn = pixels(draw_answers(picture, answer_of(mask=mask), boxes=False, labels=False))
    assert (np.abs(drawn[150, 60:340] - ANSWER_COLOURS[0]).max(-1) < 12).all()


def test_answers_below_the_threshold_leave_the_colours_as_they_are():
    picture = noise()
    answers = [answer_of(box=(10, 10, 60, 60)), answer_of()]
    drawn = pixels(draw_answers(picture, [None, answers[1]], labels=False))
    assert (drawn[150, 100] == ANSWER_COLOURS[1]).all()
    assert np.array_equal(drawn[:62, :62], pixels(picture)[:62, :62])
    for nothing in (None, [], [None]):
        assert np.array_equal(pixels(draw_answers(picture, nothing)), pixels(picture))


def test_the_picture_is_turned_the_right_way_up(tmp_path):
    sideways = noise((40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "sideways.png", exif=exif)
    upright = sideways.transpose(Image.Transpose.ROTATE_270)
    for source in (tmp_path / "sideways.png", str(tmp_path / "sideways.png"), Image.open(tmp_path / "sideways.png")):
        assert np.array_equal(pixels(draw_answers(source, [])), pixels(upright))


def test_sixteen_bits_are_not_clipped():
    ramp = Image.fromarray(np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16))
    drawn = pixels(draw_answers(ramp, []))
    assert drawn.max() == 255 and len(np.unique(drawn)) == 256


# Labels


def test_labels_stay_inside_the_picture_and_off_one_another(drawn_labels):
    phrases = ["the cup", "the spoon left of the cup", "a much longer phrase that needs more than one line to be read"]
    boxes = [BOX, (0, 0, 50, 50), (350, 250, 400, 300)]
    answers = [answer_of(phrase, box) for box, phrase in itertools.product(boxes, phrases)]
    draw_answers(noise((800, 600)), answers)
    assert len(drawn_labels) == len(answers)
    for label in drawn_labels:
        left, top, right, bottom = label["rectangle"]
        assert left >= 0 and top >= 0 and right < 800 and bottom < 600
        for (x, y), _, width, height in label["lines"]:
            assert left <= x and x + width <= right and top <= y and y + height <= bottom + 1
    for one, other in itertools.combinations([label["rectangle"] for label in drawn_labels], 2):
        assert one[0] > other[2] or other[0] > one[2] or one[1] > other[3] or other[1] > one[3]


def test_a_label_stands_at_its_box(drawn_labels):
    for box in (BOX, (0, 0, *SIZE), (0, 200, 80, 300), (350, 0, 400, 60)):
        draw_answers(noise(), answer_of(box=box))
        left, top, right, bottom = drawn_labels[-1]["rectangle"]
        gap = max(box[0] - right, left - box[2], box[1] - bottom, top - box[3])
        assert gap <= 5


def test_label_text_contrasts_with_its_colour(drawn_labels):
    draw_answers(noise((800, 600)), [answer_of(f"thing {index}") for index in range(len(ANSWER_COLOURS))])
    assert [label["fill"] for label in drawn_labels] == list(ANSWER_COLOURS)
    for label in drawn_labels:
        assert contrast(*label["colours"], label["fill"]) > 4.5


@pytest.mark.parametrize(
    "phrase",
    ["word " * 500, "x" * 10_000, "日本語の長い句" * 40],
    ids=["words", "letters", "without spaces"],
)
def test_long_phrases_are_cut_but_keep_their_score(drawn_labels, phrase):
    draw_answers(noise(), answer_of(phrase))
    (label,) = drawn_labels
    assert len(label["lines"]) == 2 and label["lines"][-1][1].endswith("…  0.61")
    text = "".join(line for _, line, _, _ in label["lines"]).removesuffix("…  0.61")
    assert "".join(phrase.split()).startswith("".join(text.split()))


@pytest.mark.parametrize(
    "phrase", ["a\tb\n c", "женщина слева", "左の猫", "\x00\x1b[31m", "👩‍🚀", "e\u0301", "\udcff", "(°□°)"]
)
def test_any_text_can_be_a_label(drawn_labels, phrase):
    draw_answers(noise(), answer_of(phrase))
    assert len(drawn_labels[0]["lines"]) == 1


def test_small_pictures_are_not_hidden_by_labels(drawn_labels):
    picture = noise((60, 40))
    drawn = pixels(draw_answers(picture, answer_of("a rather long phrase", box=(5, 5, 50, 30))))
    assert not drawn_labels and (drawn[15, 5] == ANSWER_COLOURS[0]).all()


# Layers


def test_layers_laid_over_the_picture_are_the_drawing():
    """Overlapping areas and lines included; the second answer, below the threshold, keeps its colour and number."""
    answers = [
        answer_of(mask=ellipse()),
        None,
        answer_of("the other", (200, 100, 390, 290), 0.4, ellipse(box=(200, 120, 380, 280))),
    ]
    laid = noise().convert("RGBA")
    layers = draw_layers(SIZE[::-1], answers)
    assert [(layer.kind, layer.answer) for layer in layers] == [
        (kind, answer) for kind in ("mask", "outline", "box", "label") for answer in (0, 2)
    ]
    for layer in layers:
        laid.alpha_composite(layer.overlay, (layer.left, layer.top))
    assert abs(pixels(laid.convert("RGB")) - pixels(draw_answers(noise(), answers))).max() <= 3


def test_layers_are_cut_to_what_is_drawn():
    (box,) = [layer for layer in draw_layers(SIZE[::-1], answer_of("x" * 5000)) if layer.kind == "box"]
    margin = max(BOX[0] - box.left, BOX[1] - box.top)
    assert 0 < margin < 5 and box.overlay.size == (BOX[2] - box.left + margin, BOX[3] - box.top + margin)
    assert np.asarray(box.overlay)[20:-20, 20:-20, 3].max() == 0, "nothing within the frame"
    empty = answer_of(mask=Image.new("L", SIZE, 0))
    assert {layer.kind for layer in draw_layers(SIZE[::-1], empty)} == {"box", "label"}


# Heat maps


def test_colours_get_lighter_with_the_similarity():
    assert all(luminance(low) < luminance(high) for low, high in itertools.pairwise(HEAT_COLOURS))
    heatmap = np.tile(np.linspace(-0.2, 0.7, 120, dtype=np.float32), (50, 1))
    drawn = pixels(draw_heatmap(Image.new("RGB", (120, 50), (90, 140, 60)), heatmap))
    row = [luminance(colour) for colour in drawn[25]]
    assert all(low <= high for low, high in itertools.pairwise(row)) and row[-1] - row[0] > 0.3
    assert (drawn == drawn[:1]).all()


def test_the_picture_shows_through_without_its_colours():
    picture = noise((30, 20))
    drawn = pixels(draw_heatmap(picture, np.zeros((20, 30))))
    grey = pixels(picture.convert("L"))[..., None]
    assert np.abs(drawn - (0.35 * grey + 0.65 * np.array(HEAT_COLOURS[0]))).max() <= 1


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"The heat map is \(30, 20\) \(height, width\), but the picture \(20, 30\)"):
        draw_heatmap(noise((30, 20)), np.zeros((30, 20)))


# Figures


def test_a_row_shows_picture_mask_box_and_similarity():
    heatmap = np.zeros(SIZE[::-1], np.float32)
    heatmap[:, 200:] = 1
    answer = answer_of(mask=ellipse(), heatmap=heatmap)
    picture = noise()
    rows = [figure_row(picture, answer), figure_row(picture, answer_of(mask=ellipse()), heatmap)]
    assert np.array_equal(pixels(rows[0]), pixels(rows[1]))
    row = pixels(rows[0])
    top = next(y for y in range(row.shape[0]) if (row[y, 12:372] != 255).any(-1).mean() > 0.95)
    shown, segmented, boxed, similar = (row[top : top + 270, left : left + 360] for left in (12, 384, 756, 1128))
    assert row.shape[1] == 1128 + 360 + 12
    assert np.array_equal(shown, pixels(picture.resize((360, 270), Image.Resampling.LANCZOS)))
    tinted = (segmented != shown).any(-1)
    assert tinted[135, 180] and not tinted[:80].any() and not tinted[:, :120].any()
    framed = (boxed != shown).any(-1)
    assert framed[135, 90] and framed[72, 180] and not framed[135, 180] and not framed[:60].any()
    assert luminance(similar[:, 200:].mean((0, 1))) > luminance(similar[:, :160].mean((0, 1))) + 0.2


def test_what_an_answer_lacks_is_left_out():
    widths = [figure_row(noise(), answer_of(**extras)).width for extras in ({}, {"mask": ellipse()})]
    assert widths == [12 + 2 * 372, 12 + 3 * 372]


def test_the_mask_of_a_panel_is_as_large_as_that_of_the_answer():
    """Enlarged smoothly, so that its edge would grow if everything touched counted."""
    mask = Image.new("L", (40, 40))
    mask.paste(255, (10, 10, 20, 20))
    answer = answer_of(box=(0, 0, 40, 40), mask=mask)
    panel = pixels(figure_row(Image.new("RGB", (40, 40), "white"), answer))[44:400, 384:744]
    _, columns = (panel != 255).any(-1).nonzero()
    assert 90 <= columns.max() - columns.min() + 1 <= 96, "with the contour"


def test_a_figure_stacks_the_rows():
    picture, answers = noise(), [answer_of("first"), None, answer_of("second", mask=ellipse())]
    rows = [figure_row(picture, answer) for answer in answers if answer]
    figure = pixels(draw_figure(picture, answers))
    assert np.array_equal(figure[: rows[0].height, : rows[0].width], pixels(rows[0]))
    assert np.array_equal(figure[rows[0].height :], pixels(rows[1]))
    for nothing in ([None], [], None):
        assert np.array_equal(pixels(draw_figure(picture, nothing)), pixels(picture))
    assert pixels(draw_figure(torch.rand(3, 20, 30, requires_grad=True), None)).shape == (20, 30, 3)


# Sizes and bad input


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (10_000, 3), (3, 10_000), (15, 400)])
def test_extreme_pictures(size):
    picture = noise(size)
    answer = answer_of(box=(0, 0, *size), mask=Image.new("L", size, 255), heatmap=np.zeros(size[::-1]))
    assert draw_answers(picture, [answer] * 3).size == size
    assert draw_answers(picture, answer_of(box=(0.2, 0.3, 0.2, 0.3))).size == size
    assert draw_heatmap(picture, answer["heatmap"]).size == size
    assert max(figure_row(picture, answer).size) < 1600


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"The mask is \(400, 300\) \(height, width\), but the picture \(300, 400\)"):
        draw_answers(noise(), answer_of(mask=np.zeros(SIZE, bool)))
    with pytest.raises(ValueError, match="One picture is drawn at a time, but there are 2"):
        draw_answers([noise(), noise()], [])
    with pytest.raises(FileNotFoundError, match=r"no image file 'absent\.png'"):
        draw_answers("absent.png", [])
