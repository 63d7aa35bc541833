# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The canvas: its geometry against the original's evaluation transform and by round trips; reading of odd pictures."""

import json
import random
import socket
import struct

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from safetensors.torch import load_file

from oneref_hf import letterbox_oneref
from oneref_hf.letterbox_oneref import Letterbox, centred_offset, flatten_images, read_picture, upright


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


# Pictures ---------------------------------------------------------------------------------------------------------
def seen(picture: Image.Image) -> np.ndarray:
    return read_picture(picture, convert_rgb=True, to_8_bit_range=False).movedim(0, -1).numpy()


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_as_pillow_does_and_only_once(orientation, kind, fixtures_dir, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"photo.{kind}"
    Image.open(fixtures_dir / "rocket_63x40.png").save(path, exif=exif)
    with Image.open(path) as photo:
        expected = np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))
    assert expected.shape[:2] == ((63, 40) if orientation in (5, 6, 7, 8) else (40, 63))
    (opened,) = flatten_images(path)
    assert upright(opened) is opened
    for picture in (opened, Image.open(path)):
        assert np.array_equal(seen(picture), expected)


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHII", ExifTags.Base.ResolutionUnit, 4, 1, 70000),  # too large for its type
        struct.pack("<HHI4s", ExifTags.Base.ResolutionUnit, 2, 3, b"ab"),  # text in place of a number
        struct.pack("<HHI4s", ExifTags.Base.XResolution, 2, 3, b"72"),
    ],
)
def test_a_photograph_with_a_mistyped_exif_tag_is_turned(entry, fixtures_dir, tmp_path):
    lying = Image.open(fixtures_dir / "rocket_63x40.png").convert("RGB")
    sixth = struct.pack("<HHIHH", ExifTags.Base.Orientation, 3, 1, 6, 0)
    tags = b"".join(sorted([sixth, entry], key=lambda tag: struct.unpack_from("<H", tag)))
    lying.save(tmp_path / "damaged.png", exif=b"II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4))
    for picture in (*flatten_images(tmp_path / "damaged.png"), Image.open(tmp_path / "damaged.png")):
        assert np.array_equal(seen(picture), np.rot90(lying, -1))


def test_exif_data_that_cannot_be_read_do_not_cost_the_picture(fixtures_dir, tmp_path):
    photo = Image.open(fixtures_dir / "rocket_63x40.png")
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  3\nno hexadecimal number")
    photo.save(tmp_path / "damaged.png", pnginfo=text)
    (picture,) = flatten_images(tmp_path / "damaged.png")
    assert np.array_equal(seen(picture), np.asarray(photo.convert("RGB")))


def test_whatever_a_decoder_raises_is_one_sentence(tmp_path):
    """Pillow raises NotImplementedError for a DDS file of a pixel format that it does not know."""
    path = tmp_path / "texture.dds"
    path.write_bytes(struct.pack("<4s4I56x2I4s40x", b"DDS ", 124, 0, 4, 4, 32, 4, b"ABCD"))
    with pytest.raises(ValueError, match=r"texture\.dds' is not a readable image"):
        flatten_images(path)


def test_a_silent_web_server_is_not_waited_for(monkeypatch):
    assert letterbox_oneref._URL_TIMEOUT == 60
    monkeypatch.setattr(letterbox_oneref, "_URL_TIMEOUT", 0.1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,  # accepts, and never answers
        pytest.raises(ValueError, match=r"No picture could be read from 'http.*: timed out"),
    ):
        flatten_images(f"http://127.0.0.1:{server.getsockname()[1]}/a.png")
