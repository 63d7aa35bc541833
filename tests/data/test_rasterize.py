# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Masks from annotations, against the COCO API and against masks drawn by hand."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from oneref_hf.data.rasterize import box_to_mask, polygons_to_mask, rle_to_mask, segmentation_to_mask


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
SIZE = (23, 31)


def test_box_rule_equals_the_coco_api():
    """Boxes at, across and beyond the borders, on quarter pixels so that halves occur."""
    random = np.random.default_rng(0)
    boxes = np.round(random.uniform([-6, -6, 0, 0], [33, 25, 40, 30], (2000, 4)) * 4) / 4
    for box in boxes:
        expected = coco.decode(coco.frPyObjects(box[None], *SIZE))[..., 0]
        np.testing.assert_array_equal(box_to_mask(box, SIZE), expected, err_msg=str(box))


def test_box_mask_uses_the_untruncated_box():
    mask = box_to_mask([1.5, 0.4, 2.0, 1.2], (4, 6))
    assert mask.dtype == np.uint8
    assert np.argwhere(mask).tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_polygons_are_united():
    squares = [[2, 3, 8, 3, 8, 9, 2, 9], [20, 10, 25, 10, 25, 20, 20, 20]]
    mask = polygons_to_mask(squares, SIZE)
    expected = np.zeros(SIZE, np.uint8)
    expected[3:9, 2:8] = expected[10:20, 20:25] = 1
    np.testing.assert_array_equal(mask, expected)
    reversed_and_overlapping = polygons_to_mask([squares[1], squares[0], squares[0]], SIZE)
    np.testing.assert_array_equal(reversed_and_overlapping, expected)


def test_run_lengths_both_ways():
    mask = np.zeros(SIZE, np.uint8)
    mask[4:10, 7:12] = 1
    compressed = coco.encode(np.asfortranarray(mask))
    columns = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(columns)) + 1
    runs = np.diff([0, *ends, columns.size]).tolist()
    for counts in (compressed["counts"], compressed["counts"].decode(), runs):
        np.testing.assert_array_equal(rle_to_mask({"size": list(SIZE), "counts": counts}, SIZE), mask)


def test_any_segmentation_is_recognised():
    triangle = [[0, 0, 10, 0, 0, 10]]
    expected = polygons_to_mask(triangle, SIZE)
    assert expected.sum() > 30
    rle = coco.encode(np.asfortranarray(expected))
    for segmentation in (triangle, rle, Image.fromarray(expected * 255), expected.astype(bool)):
        np.testing.assert_array_equal(segmentation_to_mask(segmentation, SIZE), expected)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "at least one polygon"),
        ([[0, 0, 4, 4]], "at least three points"),
        ([[0, 0, 4, 4, 5, 5, 6]], "at least three points"),
        ([[[0, 0], [4, 0], [4, 4]]], "flat list"),
        ({"counts": [1]}, "size is missing"),
        ({"size": [3, 4], "counts": [12]}, r"\(3, 4\), not \(23, 31\)"),
        ({"size": [23, 31], "counts": [5, 7]}, "cover 12 pixels, the picture has 713"),
        (np.zeros((2, 2)), r"\(2, 2\), the picture \(23, 31\)"),
    ],
)
def test_bad_segmentations_are_named(segmentation, message):
    with pytest.raises(ValueError, match=message):
        segmentation_to_mask(segmentation, SIZE)


def test_compressed_run_lengths_must_cover_the_picture():
    counts = coco.encode(np.asfortranarray(np.eye(7, 5, dtype=np.uint8)))["counts"]
    assert np.array_equal(rle_to_mask({"size": [7, 5], "counts": counts}, (7, 5)), np.eye(7, 5, dtype=np.uint8))
    with pytest.raises(ValueError, match="the picture has 42"):
        rle_to_mask({"size": [7, 6], "counts": counts}, (7, 6))
    with pytest.raises(ValueError, match="damaged"):
        rle_to_mask({"size": [7, 5], "counts": b"\x00"}, (7, 5))
