# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The geometry of the canvas, against the original's evaluation transform and by round trips."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from oneref_hf.letterbox_oneref import Letterbox, centred_offset


CASES = [
    f"{name}.{size}"
    for name in ("coffee_210x140", "astronaut_150x201", "chelsea_121x121", "rocket_63x40")
    for size in (96, 384)
]


@pytest.fixture(scope="module")
def preprocess(fixtures_dir):
    facts = json.loads((fixtures_dir / "preprocess.json").read_text())
    assert set(facts) == set(CASES)
    return facts, load_file(fixtures_dir / "preprocess.safetensors")


def letterbox_of(case: str) -> Letterbox:
    name, canvas_size = case.rsplit(".", 1)
    width, height = map(int, name.rsplit("_", 1)[1].split("x"))
    return Letterbox.centred(height, width, int(canvas_size))


def random_sizes(count: int):
    rng = random.Random(0)
    for _ in range(count):
        height, width = (int(2 ** rng.uniform(0, 13)) for _ in range(2))
        yield height, width, rng.choice((96, 224, 384, 512))


@pytest.mark.parametrize("case", CASES)
def test_labels_equal_the_original(preprocess, case):
    facts, tensors = preprocess
    letterbox = letterbox_of(case)
    box = torch.tensor([facts[case]["image_box_xyxy"]])
    torch.testing.assert_close(
        letterbox.boxes_to_canvas(box)[0], torch.tensor(facts[case]["target_box_cxcywh"]), atol=1e-7, rtol=0
    )
    assert torch.equal(letterbox.pixel_mask(), tensors[f"{case}.pixel_mask"].long())
    source = tensors[f"{case.rsplit('.', 1)[0]}.source_mask"][0].bool()
    assert torch.equal(letterbox.mask_to_canvas(source), tensors[f"{case}.target_mask"][0])


def test_the_smaller_half_of_the_padding_comes_first_as_in_the_original():
    for side in range(1, 385):
        assert centred_offset(side, 384) == round((384 - side) / 2 - 0.1)


def test_content_fills_the_long_side_and_keeps_a_pixel_of_the_short_one():
    for height, width, canvas_size in [(10000, 3, 384), (3, 10000, 384), (1, 1, 96), *random_sizes(200)]:
        letterbox = Letterbox.centred(height, width, canvas_size)
        assert max(letterbox.content_height, letterbox.content_width) == canvas_size
        assert min(letterbox.content_height, letterbox.content_width) >= 1
        assert letterbox.pixel_mask().sum() == letterbox.content_height * letterbox.content_width


def test_boxes_survive_the_round_trip():
    generator = torch.Generator().manual_seed(0)
    for height, width, canvas_size in [(10000, 3, 384), (1, 1, 96), *random_sizes(200)]:
        corners = torch.rand(20, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
        boxes_xyxy = corners.flatten(1)
        letterbox = Letterbox.centred(height, width, canvas_size)
        boxes_cxcywh = letterbox.boxes_to_canvas(boxes_xyxy)
        assert (boxes_cxcywh >= 0).all() and (boxes_cxcywh <= 1).all()
        returned = letterbox.boxes_to_picture(boxes_cxcywh)
        assert (returned - boxes_xyxy).abs().max() < 0.01, (height, width, canvas_size)


def test_boxes_are_clipped_to_the_picture():
    letterbox = Letterbox.centred(100, 200, 96)
    whole_canvas = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert letterbox.boxes_to_picture(whole_canvas).tolist() == [[0, 0, 200, 100]]
    padding = torch.tensor([[0.5, 0.05, 0.5, 0.02]])  # above the picture
    assert letterbox.boxes_to_picture(padding).tolist() == [[50, 0, 150, 0]]


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427), (97, 1000), (50, 50)])
def test_masks_survive_the_round_trip(height, width):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 5 : height // 2, width // 4 : width * 3 // 4] = True
    letterbox = Letterbox.centred(height, width, 384)
    returned = letterbox.map_to_picture(letterbox.mask_to_canvas(mask)) > 0.5
    assert returned.shape == mask.shape
    for axis in (0, 1):
        before, after = (torch.where(values.any(axis))[0] for values in (mask, returned))
        # Every edge to the next canvas pixel, the unit of a nearest-neighbour mask.
        assert max(abs(before[0] - after[0]), abs(before[-1] - after[-1])) <= 1 / letterbox.scale + 1


def test_maps_of_any_resolution_are_cut_to_the_picture():
    """A ramp over the canvas, sampled at the centres of 24 x 24 cells, gives a ramp over the picture."""
    letterbox = Letterbox.centred(60, 120, 384)  # content: 192 rows from 96 on
    rows = (torch.arange(24) + 0.5) * 16  # canvas row of each cell's centre
    ramp = letterbox.map_to_picture(rows[:, None].expand(24, 24).bfloat16())
    assert ramp.shape == (60, 120) and ramp.dtype == torch.float32
    expected = 96 + (torch.arange(60) + 0.5) * 192 / 60
    torch.testing.assert_close(ramp, expected[:, None].expand(60, 120), atol=1.0, rtol=0)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match=r"at least one pixel per side, not \(height, width\) = \(0, 5\)"):
        Letterbox.centred(0, 5, 384)
