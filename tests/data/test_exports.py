# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Answers as COCO and Label Studio files: read by pycocotools, checked field by field, corrected and read back."""

import json
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from PIL import Image

from oneref_hf.data import DatasetError, load_referring_dataset, target_mask
from oneref_hf.data.exports import (
    LABEL_STUDIO_CONFIG,
    LOCAL_FILES,
    coco_dataset,
    label_studio_rows,
    label_studio_tasks,
    labelled_picture,
    phrases_from_categories,
    write_json,
)


WIDTH, HEIGHT = 210, 140
PHRASES = ["the red cup", "the spoon", "the red cup"]


def drawn_mask(seed: int) -> np.ndarray:
    """Blobs with holes, touching the edges."""
    values = np.random.default_rng(seed).random((HEIGHT // 10, WIDTH // 10)) > 0.6
    return np.kron(values, np.ones((10, 10), dtype=bool))


@pytest.fixture
def folder(tmp_path, fixtures_dir):
    (tmp_path / "my photos").mkdir()
    for name in ("my photos/a b.png", "c.png"):
        Image.open(fixtures_dir / "coffee_210x140.png").save(tmp_path / name)
    return tmp_path


@pytest.fixture
def answers():
    boxes = [(1.25, 2.5, 100.75, 90.0), (0.0, 0.0, 210.0, 140.0), (20.0, 30.0, 21.5, 139.99)]
    return [
        {
            "score": 0.5 + seed / 10,
            "label": phrase,
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box)),
            "mask": Image.fromarray(drawn_mask(seed).astype(np.uint8) * 255),
        }
        for seed, (phrase, box) in enumerate(zip(PHRASES, boxes))
    ]


@pytest.fixture
def labelled(folder, answers):
    return [
        labelled_picture(folder / "my photos" / "a b.png", [answers[0], None, answers[1]], folder),
        labelled_picture(folder / "c.png", answers[2], folder),
    ]


# COCO -------------------------------------------------------------------------------------------------------------
def test_pycocotools_reads_boxes_and_masks(labelled, folder, answers):
    from pycocotools.coco import COCO

    write_json(folder / "coco.json", coco_dataset(labelled))
    coco = COCO(str(folder / "coco.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["my photos/a b.png", "c.png"]
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [annotation["image_id"] for annotation in annotations] == [1, 1, 2]
    for seed, (annotation, answer) in enumerate(zip(annotations, answers, strict=True)):
        assert np.array_equal(coco.annToMask(annotation), drawn_mask(seed))
        assert annotation["area"] == drawn_mask(seed).sum()
        x, y, width, height = annotation["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(list(answer["box"].values()))
        assert coco.loadCats(annotation["category_id"])[0]["name"] == annotation["phrase"] == answer["label"]
    assert len(coco.getCatIds()) == 2  # the same phrase twice is one category
    # A data set of this form is also a result that the COCO evaluation accepts.
    assert len(coco.loadRes(annotations).anns) == 3


def test_corrected_coco_is_a_referring_data_set(labelled, folder):
    dataset = coco_dataset(labelled)
    corrected = dataset["annotations"][0]
    corrected.update(phrase="the red cup on the left", bbox=[10, 20, 30.5, 40])
    del corrected["segmentation"]
    del dataset["annotations"][1]
    write_json(folder / "corrected.json", dataset)
    records = load_referring_dataset(folder / "corrected.json", None)
    assert records["phrase"][:] == ["the red cup on the left", "the red cup"]
    assert records[0]["box"] == [10, 20, 40.5, 60]
    assert target_mask(records[0], (HEIGHT, WIDTH)) is None
    assert np.array_equal(target_mask(records[1], (HEIGHT, WIDTH)), drawn_mask(2))
    assert records[0]["image"].size == (WIDTH, HEIGHT)


def test_boxes_alone(labelled, answers):
    del answers[0]["mask"]
    annotation = coco_dataset(labelled)["annotations"][0]
    assert "segmentation" not in annotation and annotation["area"] == pytest.approx(99.5 * 87.5)


def test_a_tool_that_keeps_only_categories(labelled, folder):
    dataset = coco_dataset(labelled)
    for annotation in dataset["annotations"][:2]:
        del annotation["phrase"]
    dataset["annotations"][2]["phrase"] = "corrected"
    assert [entry["phrase"] for entry in phrases_from_categories(dataset)["annotations"]] == [
        "the red cup",
        "the spoon",
        "corrected",
    ]
    with pytest.raises(DatasetError, match="annotation 2 has neither a phrase nor a category"):
        phrases_from_categories({**dataset, "categories": dataset["categories"][:1]})


# Label Studio -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("regions, kind", [("boxes", "rectanglelabels"), ("masks", "brushlabels")])
def test_tasks_fit_the_labelling_interface(labelled, regions, kind):
    """Every result names controls of the interface and has what its kind needs (Label Studio's import format)."""
    interface = xml.fromstring(LABEL_STUDIO_CONFIG)
    controls = {element.get("name"): element for element in interface if element.get("toName")}
    image = interface.find("Image")
    assert controls["box"].get("canRotate") == "false"  # a region's rotation would be lost
    tasks = json.loads(json.dumps(label_studio_tasks(labelled, regions), allow_nan=False))
    assert [task["data"] for task in tasks] == [
        {"image": f"{LOCAL_FILES}my%20photos/a%20b.png"},
        {"image": f"{LOCAL_FILES}c.png"},
    ]
    assert image.get("value") == "$image"
    for task, count in zip(tasks, (2, 1), strict=True):
        (prediction,) = task["predictions"]
        assert 0 <= prediction["score"] <= 1 and prediction["model_version"] == "oneref"
        results = prediction["result"]
        assert [result["type"] for result in results] == [kind, "textarea"] * count
        assert len({result["id"] for result in results}) == count
        for result in results:
            control = controls[result["from_name"]]
            assert control.tag.lower() == result["type"] and result["to_name"] == image.get("name")
            assert (result["original_width"], result["original_height"]) == (WIDTH, HEIGHT)
            value = result["value"]
            if result["type"] == "textarea":
                assert value["text"][0] in PHRASES
            else:
                assert value[kind][0] in [label.get("value") for label in control]
            if regions == "boxes":
                assert value["x"] + value["width"] <= 100 + 1e-9 and value["y"] + value["height"] <= 100 + 1e-9
                assert min(value[side] for side in ("x", "y", "width", "height")) >= 0
            else:
                assert value["format"] == "rle" and all(0 <= byte <= 255 for byte in value["rle"])


def test_a_known_stream_of_run_lengths():
    """Worked out by hand for 3 x 1 pixels, the middle one inside: runs of 4, 4 and 4 values."""
    from oneref_hf.data.exports import _packed, _unpacked

    header = f"{12:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    runs = "1" + "00" + "011" + "00000000" + "1" + "00" + "011" + "11111111" + "1" + "00" + "011" + "00000000"
    bits = (header + runs).ljust(96, "0")
    expected = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert _packed(np.array([[False, True, False]])) == expected
    # The same as single values, after a 0.
    mixed = "1" + "00" + "011" + "00000000" + "0" + "01" + "0111" + "11111111" * 4 + "00000000" * 4
    bits = header + mixed + "0" * (-len(header + mixed) % 8)
    packed = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert _unpacked(packed, (1, 3)).tolist() == [[False, True, False]]


@pytest.mark.parametrize("regions", ["boxes", "masks"])
def test_corrected_tasks_are_a_referring_data_set(labelled, folder, regions):
    tasks = label_studio_tasks(labelled, regions)
    for task in tasks[:1]:  # a person looked at the first picture alone: accepted, then corrected
        old = json.loads(json.dumps(task["predictions"][0]["result"]))
        new = json.loads(json.dumps(old))
        new[1]["value"]["text"] = ["the cup"]
        task["annotations"] = [
            {"result": new, "updated_at": "2026-02-01T00:00:00Z"},
            {"result": old, "updated_at": "2026-01-01T00:00:00Z"},
            {"result": [], "updated_at": "2026-03-01T00:00:00Z", "was_cancelled": True},
        ]
    rows = label_studio_rows(tasks)
    (folder / "corrected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = load_referring_dataset(folder / "corrected.jsonl", None, strict=True)
    assert records["phrase"][:] == ["the cup", "the spoon"]
    if regions == "boxes":
        assert records[0]["box"] == pytest.approx([1.25, 2.5, 100.75, 90.0], abs=0.01)
        return
    for seed, record in enumerate(records):
        mask = drawn_mask(seed)
        assert np.array_equal(target_mask(record, (HEIGHT, WIDTH)), mask)
        ys, xs = np.nonzero(mask)
        assert record["box"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_regions_that_cannot_be_used(labelled, answers):
    def exported(regions="boxes"):
        (task, _) = label_studio_tasks(labelled, regions)
        return [{**task, "annotations": [{"result": task["predictions"][0]["result"]}]}]

    tasks = exported()
    tasks[0]["annotations"][0]["result"][1]["value"]["text"] = [" "]
    with pytest.raises(DatasetError, match=r"'region1' on 'my photos/a b\.png' has no phrase"):
        label_studio_rows(tasks)
    tasks = exported()
    tasks[0]["annotations"][0]["result"][0]["value"]["rotation"] = 15
    with pytest.raises(DatasetError, match=r"'region1' on 'my photos/a b\.png' is rotated by 15 degrees"):
        label_studio_rows(tasks)
    tasks = exported()
    tasks[0]["annotations"][0]["result"][0]["type"] = "ellipselabels"
    with pytest.raises(DatasetError, match="ellipselabels, not a box or mask"):
        label_studio_rows(tasks)
    tasks = exported("masks")
    value = tasks[0]["annotations"][0]["result"][0]["value"]
    value["rle"] = value["rle"][:-3]
    with pytest.raises(DatasetError, match="cut off"):
        label_studio_rows(tasks)
    tasks[0]["annotations"][0]["result"][0]["original_width"] += 1
    with pytest.raises(DatasetError, match=r"for 29400 pixels, not \(140, 211\)"):
        label_studio_rows(tasks)
    with pytest.raises(ValueError, match="regions is one of boxes, masks"):
        label_studio_tasks(labelled, "polygons")
    del answers[1]["mask"]
    with pytest.raises(ValueError, match=r"'the spoon' on 'my photos/a b\.png' has no mask"):
        label_studio_tasks(labelled, "masks")


# Pictures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_a_turned_photograph_has_the_size_that_people_see(folder, fixtures_dir, kind):
    turned = Image.open(fixtures_dir / "coffee_210x140.png")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / f"turned.{kind}", exif=exif)
    assert labelled_picture(folder / f"turned.{kind}", []).size == (WIDTH, HEIGHT)


def test_what_is_no_picture(folder):
    (folder / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"a\.png' is not a readable image"):
        labelled_picture(folder / "a.png", [], folder)


def test_linked_pictures_keep_their_names(folder):
    """Large sets are often folders of links; a folder may be a link, too."""
    (folder / "set").mkdir()
    (folder / "set" / "link.png").symlink_to(folder / "c.png")
    assert labelled_picture(folder / "set" / "link.png", [], folder / "set").file_name == "link.png"
    (folder / "same").symlink_to(folder / "my photos")
    assert labelled_picture(folder / "my photos" / "a b.png", [], folder / "same").file_name == "a b.png"
    with pytest.raises(ValueError, match="does not lie in"):
        labelled_picture(folder / "c.png", [], folder / "set")


def test_a_mask_of_another_size(folder, answers):
    answers[0]["mask"] = answers[0]["mask"].resize((10, 10))
    with pytest.raises(ValueError, match=r"mask on 'c\.png' is \(10, 10\)"):
        coco_dataset([labelled_picture(folder / "c.png", answers[0], folder)])
