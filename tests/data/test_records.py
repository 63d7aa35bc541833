# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The record: boxes by the truncation rule, segmentations in every form, pictures, and what is refused."""

import io
import struct
import sys

import fsspec
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from oneref_hf.data.records import MalformedRow, has_segmentation, make_record, open_image, target_mask


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def record(**fields):
    return make_record(
        {"image": "a.png", "phrase": "the cup", **fields}, default_id="rows, line 1", default_source="mine"
    )


def run_lengths(mask: np.ndarray) -> list[int]:
    """Column by column, background first, by counting."""
    flat = mask.T.reshape(-1)
    counts, value = [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def test_a_bare_row():
    assert record() == {
        "id": "rows, line 1",
        "image": {"path": "a.png", "bytes": None},
        "image_file": "a.png",
        "phrase": "the cup",
        "box": None,
        "box_truncated": None,
        "polygons": None,
        "rle": None,
        "mask": None,
        "height": None,
        "width": None,
        "source": "mine",
        "expression_type": None,
        "semantic_relation_labels": None,
    }
    assert not has_segmentation(record())


def test_every_stored_number_is_truncated_before_adding():
    """The example of the original's annotation files, and a case where adding first would give one pixel more."""
    example = record(box_xywh=[303.58, 69.03, 293.29, 425.79])
    assert example["box_truncated"] == [303, 69, 596, 494]
    assert example["box"] == pytest.approx([303.58, 69.03, 596.87, 494.82])
    assert record(box_xywh=[1.9, 2.9, 10.9, 11.9])["box_truncated"] == [1, 2, 11, 13]
    assert record(box=[1.9, 2.9, 12.8, 14.8])["box_truncated"] == [1, 2, 12, 14]
    assert record(box=[-1.9, -0.5, 12.8, 14.8])["box_truncated"] == [-1, 0, 12, 14]  # towards zero
    assert record(box=[1.9, 2.9, 12.8, 14.8], box_truncated=[1, 2, 11, 13])["box_truncated"] == [1, 2, 11, 13]


@pytest.mark.parametrize("text", ["1.5 2 30 40", "1.5, 2, 30, 40", "[1.5, 2, 30, 40]", "(1.5,2,30,40)"])
def test_boxes_in_text(text):
    assert record(box=text)["box"] == [1.5, 2, 30, 40]


def test_every_form_of_a_segmentation_gives_the_same_mask(tmp_path):
    polygon = [3.0, 2.0, 18.0, 4.0, 12.0, 15.0]
    encoded = coco.merge(coco.frPyObjects([polygon], 20, 30))
    mask = coco.decode(encoded)
    assert 0 < mask.sum() < mask.size
    Image.fromarray(255 * mask).save(tmp_path / "mask.png")
    content = (tmp_path / "mask.png").read_bytes()
    runs = {"size": [20, 30], "counts": run_lengths(mask)}
    forms = [
        {"segmentation": [polygon]},
        {"segmentation": polygon},
        {"segmentation": f"[{polygon}]"},
        {"polygons": [polygon]},
        {"segmentation": runs, "height": 20, "width": 30},
        {"segmentation": [runs]},
        {"rle": runs},
        {"segmentation": {"size": [20, 30], "counts": encoded["counts"]}},
        {"segmentation": {"size": [20, 30], "counts": encoded["counts"].decode()}},
        {"segmentation": str(tmp_path / "mask.png")},
        {"segmentation": {"path": None, "bytes": content}},
    ]
    for form in forms:
        row = record(**form)
        assert has_segmentation(row)
        np.testing.assert_array_equal(target_mask(row, (20, 30)), mask, err_msg=str(form)[:80])
        if row["polygons"] is None:  # polygons do not know the size of their picture
            with pytest.raises(ValueError, match=r"\(30, 20\)"):
                target_mask(row, (30, 20))


def test_compressed_run_lengths_are_read_as_the_coco_api_writes_them():
    random = np.random.default_rng(0)
    for _ in range(100):
        height, width = random.integers(1, 60, 2)
        mask = (random.random((height, width)) < random.random()).astype(np.uint8)
        if random.random() < 0.3:
            mask[:] = mask[0, 0]
        encoded = coco.encode(np.asfortranarray(mask))
        row = record(segmentation={"size": [int(height), int(width)], "counts": encoded["counts"]})
        assert row["rle"] == {"size": [height, width], "counts": run_lengths(mask)}


@pytest.mark.parametrize("counts", ["zzzzzz", "0" * 100, "~~~~", "1PP", "\x00", "a" * 30, "é"])
def test_damaged_compressed_run_lengths(counts):
    with pytest.raises(MalformedRow, match="run lengths"):
        record(segmentation={"size": [10, 10], "counts": counts})


@pytest.mark.parametrize("nothing", [None, "", [], {"size": None, "counts": None}])
def test_no_segmentation(nothing):
    row = record(segmentation=nothing)
    assert not has_segmentation(row)
    assert target_mask(row, (5, 5)) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"phrase": None}, "the phrase is empty"),
        ({"phrase": "  "}, "the phrase is empty"),
        ({"phrase": 7}, "the phrase is 7, not text"),
        ({"phrase": "x" * 20_000}, "too long"),
        ({"phrase": "caf\udce9"}, "not valid text"),
        ({"image": None}, "the image is missing"),
        ({"image": 5}, "the image is 5"),
        ({"image": {"path": None, "bytes": None}}, "the image is missing"),
        ({"image": "a\0b"}, "image path"),
        ({"box": [1, 2, 3]}, "box has 3 numbers, not 4"),
        ({"box": [1, 2, 3, "4"]}, "box holds '4', not a number"),
        ({"box": [1, 2, 3, True]}, "box holds True"),
        ({"box": [1, 2, 3, float("nan")]}, "box holds nan"),
        ({"box": [1, 2, 3, 1e9]}, "box holds 1000000000.0"),
        ({"box": "1 2 three 4"}, "box is '1 2 three 4', not a list of numbers"),
        ({"box": {"x": 1}}, "not a list of numbers"),
        ({"box": [30, 2, 3, 40]}, "negative width or height"),
        ({"box_xywh": [30, 2, 3, -40]}, "box_xywh .* negative width or height"),
        ({"box": [0.1, 0.2, 0.5, 0.6]}, "in pixels, not in fractions"),
        ({"box": [1, 2, 3, 4], "box_xywh": [1, 2, 3, 4]}, "both box and box_xywh"),
        ({"box": [50, 2, 60, 9], "height": 20, "width": 30}, "outside the picture of 30 x 20 pixels"),
        ({"box": [1, 2, 3, 4], "box_truncated": [3, 2, 1, 4]}, "box_truncated"),
        ({"height": 20}, "width of the picture is missing"),
        ({"height": 20.5, "width": 30}, "height of the picture is 20.5"),
        ({"segmentation": [[1, 2, 3, 4]]}, "a polygon has 4 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "a polygon holds '6'"),
        ({"segmentation": "[1, 2"}, "not valid JSON"),
        ({"segmentation": 5}, "the segmentation is 5"),
        ({"segmentation": {"size": [2, 2], "counts": [1, 2]}}, "cover 3 pixels; the picture has 4"),
        ({"segmentation": {"size": [2, 2], "counts": [-1, 5]}}, "cover 4 pixels"),
        ({"segmentation": {"size": [2, 2], "counts": [1.5, 2.5]}}, "not whole numbers"),
        ({"segmentation": {"size": [2, 2], "counts": []}}, "cover 0 pixels"),
        ({"segmentation": {"size": [2], "counts": [4]}}, "size of the run lengths"),
        ({"segmentation": {"size": [2, 2], "counts": [4]}, "height": 3, "width": 3}, "the picture is \\[3, 3\\]"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]], "rle": {"size": [1, 1], "counts": [1]}}, "both segmentation and rle"),
        ({"expression_type": ["a"]}, "expression_type is \\['a'\\], not text"),
        ({"semantic_relation_labels": "x"}, "semantic_relation_labels"),
    ],
)
def test_malformed_rows_say_why(fields, reason):
    with pytest.raises(MalformedRow, match=reason):
        record(**fields)


def test_pictures_open_from_every_form(tmp_path):
    picture = Image.new("RGB", (5, 3), (200, 10, 20))
    picture.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    path = str(tmp_path / "a.png")
    forms = [picture, path, {"path": path, "bytes": None}, {"path": "gone.png", "bytes": buffer.getvalue()}]
    for form in forms:
        assert np.array_equal(np.asarray(open_image(form)), np.asarray(picture))
    (tmp_path / "text.png").write_text("no picture")
    cut = buffer.getvalue()[:-30]
    unknown = struct.pack("<4s4I56x2I4s40x", b"DDS ", 124, 0, 4, 4, 32, 4, b"ABCD")  # no error that Pillow documents
    bad = [
        str(tmp_path / "none.png"),
        str(tmp_path / "text.png"),
        {"path": None, "bytes": b"x"},
        {"path": "c", "bytes": cut},
        {"path": "c", "bytes": unknown},
    ]
    for form in bad:
        with pytest.raises(ValueError, match=r"no image file|not a readable image|is not readable"):
            open_image(form)


def test_pictures_at_addresses_that_datasets_opens(tmp_path, monkeypatch):
    """As image folders on the Hub have them when streaming (hf://); here in memory."""
    picture = Image.new("RGB", (5, 3), (200, 10, 20))
    picture.save(tmp_path / "a.png")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/oneref/a.png": (tmp_path / "a.png").read_bytes(), "/oneref/text.png": b"no picture"})
    for form in ("memory://oneref/a.png", {"path": "memory://oneref/a.png", "bytes": None}):
        assert np.array_equal(np.asarray(open_image(form)), np.asarray(picture))
    for address in ("memory://oneref/none.png", "memory://oneref/text.png", "nonsense://a.png"):
        with pytest.raises(ValueError, match=address):
            open_image(address)
    monkeypatch.setitem(sys.modules, "datasets.utils.file_utils", None)
    with pytest.raises(ImportError, match=r"^Opening 'memory://oneref/a.png' needs datasets: pip install"):
        open_image("memory://oneref/a.png")
