# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of masking and of relation scores show the numbers that they are given."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from oneref_hf import illustrations
from oneref_hf.data.masking import dynamic_image_mask, visual_relation_labels
from oneref_hf.illustrations import (
    draw_masked_patches,
    masking_figure,
    semantic_relation_figure,
    visual_relation_figure,
)


GRID = 12
SIDE = illustrations.PANEL_SIZE // GRID  # of a patch
BOX = (120, 30, 180, 90)  # of a picture 200 wide and 100 high: on the canvas a quarter lower
CENTRES = slice(SIDE // 2, None, SIDE)


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (200, 100), (240, 240, 240))
    ImageDraw.Draw(image).rectangle(BOX, fill=(200, 30, 30))
    return image


@pytest.fixture
def panels(monkeypatch):
    """Keeps the panels of every row that is put together."""
    rows = []
    frame = illustrations.framed_panels

    def keep(title, drawn):
        rows.append((title, drawn))
        return frame(title, drawn)

    monkeypatch.setattr(illustrations, "framed_panels", keep)
    return rows


def centres(panel: Image.Image) -> np.ndarray:
    """The colour in the middle of every patch."""
    return np.asarray(panel)[CENTRES, CENTRES].astype(int)


def test_hidden_patches_are_covered_and_no_others(picture):
    mask = torch.rand(GRID**2, generator=torch.Generator().manual_seed(0)) < 0.5
    drawn, plain = draw_masked_patches(picture, mask), draw_masked_patches(picture, torch.zeros(GRID**2))
    assert drawn.size == (GRID * SIDE, GRID * SIDE)
    covered = (centres(drawn) == illustrations._HIDDEN).all(-1)
    assert np.array_equal(covered, mask.view(GRID, GRID).numpy())
    tiles = np.kron(mask.view(GRID, GRID).numpy(), np.ones((SIDE, SIDE), dtype=bool))
    assert np.array_equal(np.asarray(drawn)[~tiles], np.asarray(plain)[~tiles])
    # The picture lies in the middle half of the canvas, as the processor puts it; above and below is padding.
    padded = (centres(plain) == illustrations._PADDING).all(-1)
    assert padded[:3].all() and padded[9:].all() and not padded[3:9].any()


def test_the_masking_figure_shows_the_masks_of_the_functions(picture, panels):
    figure = masking_figure(picture, BOX, "the red box", grid_size=GRID, seed=4)
    ((title, drawn),) = panels
    assert title == "the red box" and figure.width > 4 * GRID * SIDE
    _, random, blockwise, referring = (panel for _, panel in drawn)
    hidden = [(centres(panel) == illustrations._HIDDEN).all(-1) for panel in (random, blockwise, referring)]
    # A line of the box may run through the middle of a patch.
    assert hidden[0].mean() == pytest.approx(0.75, abs=0.05) and hidden[1].mean() == pytest.approx(0.4, abs=0.06)
    x0, y0, x1, y1 = 6, 3, 11, 9  # corners 7.2, 4.8, 10.8, 8.4, cut and grown by one patch
    inside = hidden[2][y0:y1, x0:x1]
    assert 0.6 < inside.mean() <= 0.8 and hidden[2].sum() - inside.sum() < 0.45 * (GRID**2 - inside.size)
    assert "77% near the box" in drawn[3][0]  # 30 - int(7.5) of 30 patches
    assert masking_figure(picture, BOX, "the red box", grid_size=GRID, seed=4).tobytes() == figure.tobytes()
    assert masking_figure(picture, BOX, "the red box", grid_size=GRID, seed=5).tobytes() != figure.tobytes()


def test_the_region_is_that_of_the_masking_function(picture):
    """Masked fully inside and not at all outside, the drawing shows the region itself."""
    mask = dynamic_image_mask([0.75, 0.55, 0.3, 0.3], GRID, inside_ratio=1.0, outside_ratio=0.0)
    hidden = (centres(draw_masked_patches(picture, mask)) == illustrations._HIDDEN).all(-1)
    assert hidden[3:9, 6:11].all() and hidden.sum() == 30


def test_offsets_are_blue_before_the_centre_and_vermilion_behind(picture, panels):
    visual_relation_figure(picture, BOX, grid_size=GRID)
    ((_, drawn),) = panels
    horizontal, vertical = centres(drawn[1][1]), centres(drawn[2][1])
    blueness = {"x": horizontal[..., 2] - horizontal[..., 0], "y": (vertical[..., 2] - vertical[..., 0]).T}
    for axis, centre in (("x", 9.0), ("y", 6.6)):
        values = blueness[axis].mean(0)
        assert (np.diff(values) < 0).all()
        assert (values[: int(centre) - 1] > 0).all() and (values[int(centre) + 2 :] < 0).all()
    for (caption, panel), expected in zip(drawn[3:], (1 / 3.6, 1 / 3.6)):
        assert caption.endswith(f"{expected:.2f}")
        flat = centres(panel)[0]  # on the padding, which has one colour
        assert (flat == flat[0]).all()


def test_the_longer_side_of_a_box_is_the_paler_map(picture, panels):
    visual_relation_figure(picture, (20, 30, 180, 90), grid_size=GRID)
    visual_relation_figure(picture, (20, 10, 60, 90), grid_size=GRID)
    for (_, drawn), order in zip(panels, (1, -1)):
        width, height = (centres(panel)[0, 0] for _, panel in drawn[3:])  # on the padding
        assert order * (width[0] - height[0]) > 50  # red goes as the green grows


def test_scores_make_a_second_row_of_their_own_values(picture, panels):
    labels = visual_relation_labels([0.75, 0.55, 0.3, 0.3], GRID)
    visual_relation_figure(picture, BOX, "a phrase", grid_size=GRID, scores=labels)
    visual_relation_figure(picture, BOX, grid_size=GRID, scores=-labels.requires_grad_())
    (_, truth), (_, same), _, (_, opposite) = panels
    for place in range(1, 5):
        assert truth[place][1].tobytes() == same[place][1].tobytes() != opposite[place][1].tobytes()
    assert "mean error 0.00" in same[0][0]
    with pytest.raises(ValueError, match=r"shape \(100, 4\); \(144, 4\) fits"):
        visual_relation_figure(picture, BOX, grid_size=GRID, scores=torch.zeros(100, 4))


def test_bars_are_as_high_as_the_scores(picture):
    pieces, scores = ["▁the", "▁red", "▁bo", "x"], [0.0, 0.5, 1.0, 0.25]
    figure = np.asarray(semantic_relation_figure(picture, BOX, pieces, torch.tensor(scores), "the red box"))
    green = (figure == illustrations.ANSWER_COLOURS[4]).all(-1)
    columns = green.sum(0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (columns > 0).astype(int), [0]])))
    heights = [columns[start:stop].max() for start, stop in zip(edges[::2], edges[1::2])]
    assert heights == [1, 61, 121, 31]
    with pytest.raises(ValueError, match=r"4 pieces, but scores of the shape \(3,\)"):
        semantic_relation_figure(picture, BOX, pieces, [1, 2, 3])


def test_what_is_no_square_grid(picture):
    with pytest.raises(ValueError, match=r"mask has the shape \(10,\)"):
        draw_masked_patches(picture, torch.zeros(10))
