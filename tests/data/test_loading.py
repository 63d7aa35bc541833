# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Loading: every source gives the same records, streaming or not, and says what it leaves out."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from annotation_directory import AnnotationDirectory
from annotations import record_to_row
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.distributed import split_dataset_by_node
from manifest import load_manifest
from PIL import Image
from pycocotools import mask as coco

from oneref_hf.data import DatasetError, load_referring_dataset, open_image, target_mask
from oneref_hf.data.loading import open_referring_data


POLYGON = [3.0, 2.0, 38.5, 4.0, 20.0, 35.0]
ROWS = [
    {"image": "a.png", "phrase": "The CUP", "box_xywh": [1.9, 2.9, 10.9, 11.9], "segmentation": [POLYGON]},
    {"image": "b.png", "phrase": "a spoon, left", "box_xywh": [5, 6, 20, 10], "expression_type": "place"},
    {"image": "a.png", "phrase": "its handle", "box_xywh": [0, 0, 60, 40]},
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of 40 x 60 (height, width)."""
    for name, grey in (("a.png", 50), ("b.png", 200)):
        Image.new("RGB", (60, 40), (grey,) * 3).save(tmp_path / name)
    return tmp_path


def plain(records) -> list[dict]:
    """Everything in the records, pictures as they are stored."""
    for column in ("image", "mask"):
        records = records.cast_column(column, datasets.Image(decode=False))
    return list(records)


def load_both_ways(*args, **kwargs) -> list[dict]:
    """The records, having checked that streaming gives the same, columns included."""
    records = load_referring_dataset(*args, **kwargs)
    stream = load_referring_dataset(*args, **kwargs, streaming=True)
    assert isinstance(records, Dataset) and isinstance(stream, datasets.IterableDataset)
    assert records.features == stream.features
    rows = plain(records)
    assert rows == plain(stream) == plain(stream)  # a second pass over the stream, too
    return rows


def essence(rows: list[dict]) -> list[tuple]:
    """What must be the same whatever the source; numbers to three decimals, as some uploads have single precision."""
    return [
        (
            Path(row["image"]["path"]).name,
            row["phrase"],
            row["box"] and np.round(row["box"], 3).tolist(),
            row["box_truncated"],
            row["polygons"] and np.round(row["polygons"][0], 3).tolist(),
        )
        for row in rows
    ]


EXPECTED = [
    ("a.png", "The CUP", [1.9, 2.9, 12.8, 14.8], [1, 2, 11, 13], POLYGON),
    ("b.png", "a spoon, left", [5, 6, 25, 16], [5, 6, 25, 16], None),
    ("a.png", "its handle", [0, 0, 60, 40], [0, 0, 60, 40], None),
]


def write_json_lines(path: Path, rows: list) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


# A person's own files


def test_json_lines(pictures):
    path = write_json_lines(pictures / "mine.jsonl", ["", *ROWS, ""])
    rows = load_both_ways(path, None)
    assert essence(rows) == EXPECTED
    assert [row["id"] for row in rows] == ["mine.jsonl, line 2", "mine.jsonl, line 3", "mine.jsonl, line 4"]
    assert {row["source"] for row in rows} == {"mine"}
    assert [row["expression_type"] for row in rows] == [None, "place", None]
    picture = load_referring_dataset(path, None)[0]["image"]
    assert picture.size == (60, 40) and picture.getpixel((0, 0)) == (50, 50, 50)


@pytest.mark.parametrize(("ending", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_csv(pictures, ending, separator):
    header = ["image", "phrase", "box_xywh", "x0", "y0", "x1", "y1", "segmentation", "height", "width"]
    cells = [
        ["a.png", "The CUP", "1.9 2.9 10.9 11.9", "", "", "", "", f'"[{POLYGON}]"', "40", "60"],
        ["b.png", '"a spoon, left"', "", "5", "6", "25", "16", "", "", ""],
        ["a.png", "its handle", "", "0", "0", "60", "40", "", "40", "60"],
    ]
    path = pictures / f"mine{ending}"
    path.write_text("\ufeff" + "\n".join(separator.join(row) for row in [header, *cells]), encoding="utf-8")
    assert essence(load_both_ways(path, None)) == EXPECTED


@pytest.mark.parametrize("caption_in_image", [False, True])
def test_coco_json(pictures, caption_in_image):
    """Phrases in the annotations, or in images of their own as MDETR's files have them."""
    images, annotations = [], []
    for number, row in enumerate(ROWS):
        image = {"id": number, "file_name": row["image"], "height": 40, "width": 60}
        annotation = {"id": 7 + number, "image_id": number, "bbox": row["box_xywh"]}
        annotation["segmentation"] = row.get("segmentation", [])
        (image if caption_in_image else annotation)["caption"] = row["phrase"]
        images.append(image)
        annotations.append(annotation)
    path = pictures / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    rows = load_both_ways(path, None)
    assert essence(rows) == EXPECTED
    assert (rows[0]["height"], rows[0]["width"]) == (40, 60)
    assert [row["id"] for row in rows] == ["7", "8", "9"]


def test_phrases_in_a_list_and_masks_in_a_picture(pictures):
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[5:9, 10:20] = 255
    Image.fromarray(mask).save(pictures / "mask.png")
    row = {"image": "a.png", "phrase": ["one", "two"], "box": [10, 5, 20, 9], "segmentation": "mask.png", "id": 3}
    rows = load_both_ways(write_json_lines(pictures / "mine.jsonl", [row]), None)
    assert [(row["id"], row["phrase"]) for row in rows] == [("3#0", "one"), ("3#1", "two")]
    assert {row["mask"]["path"] for row in rows} == {str(pictures / "mask.png")}


def test_splits_of_files_and_of_rows(pictures):
    for split, phrase in (("train", "one"), ("val", "two")):
        write_json_lines(pictures / f"{split}.jsonl", [{"image": "a.png", "phrase": phrase}])
    assert [row["phrase"] for row in load_both_ways(pictures, "val")] == ["two"]
    assert [row["phrase"] for row in load_both_ways(pictures, "validation")] == ["two"]
    with pytest.raises(DatasetError, match="has no split 'test'; it has train, val"):
        load_referring_dataset(pictures, "test")
    with pytest.raises(DatasetError, match="needs the name of a split"):
        load_referring_dataset(pictures, None)
    rows = [{"image": "a.png", "phrase": phrase, "split": phrase[:5]} for phrase in ("train 1", "train 2", "test")]
    path = write_json_lines(pictures / "all.jsonl", rows)
    assert [row["phrase"] for row in load_both_ways(path, "train")] == ["train 1", "train 2"]
    assert len(load_both_ways(path, None)) == 3


def test_rows_that_name_a_split_may_come_late(pictures):
    rows = [{"image": "a.png", "phrase": str(number)} for number in range(150)]
    rows += [{"image": "b.png", "phrase": f"test {number}", "split": "test"} for number in range(3)]
    path = write_json_lines(pictures / "all.jsonl", [*rows, {"image": "b.png", "phrase": "train", "split": "train"}])
    assert len(load_both_ways(path, "train")) == 151
    assert len(load_both_ways(path, "test")) == 153, "rows that name none are of every split"


def test_other_names_of_a_split_within_one_file(pictures):
    """`testA` finds `test` only beside `testB`, as in folders; rows that name no split belong to each."""
    path = pictures / "all.csv"

    def found(splits: list[str], wanted: str) -> list[int]:
        rows = [f"a.png,row {number},{split}" for number, split in enumerate(splits)]
        path.write_text("\n".join(["image,phrase,split", *rows]))
        return [int(row["phrase"][-1]) for row in load_both_ways(path, wanted)]

    assert found(["train", "validation", "validation"], "val") == [1, 2]
    assert found(["validation", "val"], "val") == [1]
    assert found(["test", "testB"], "testA") == [0]
    assert found(["train", ""], "val") == [1]
    assert found(["train", "", "validation"], "val") == [1, 2]
    for splits, wanted, named in [(["train", "test"], "testA", "train, test"), (["train"], "val", "train")]:
        with pytest.raises(DatasetError, match=f"all.csv has no split '{wanted}'; it has {named}."):
            found(splits, wanted)


def test_column_mapping(pictures):
    rows = [{"picture": row["image"], "texts": [row["phrase"]], "box": row["box_xywh"]} for row in ROWS]
    path = write_json_lines(pictures / "mine.jsonl", rows)
    mapping = {"image": "picture", "phrase": "texts", "box_xywh": "box"}
    assert [row[:4] for row in essence(load_both_ways(path, None, column_mapping=mapping))] == [
        row[:4] for row in EXPECTED
    ]
    for wrong, message in [
        ({"phrases": "texts"}, "unknown field 'phrases'; did you mean 'phrase'"),
        ({"phrase": "text"}, "no column 'text' for phrase; it has box, picture, texts"),
        ("lmms", "No layout is called 'lmms'"),
        (None, "has the columns box, picture, texts, which fit no known layout"),
    ]:
        with pytest.raises(DatasetError, match=message):
            load_referring_dataset(path, None, column_mapping=wrong)


# Converted annotations and uploads


def converted(folder: Path, embed: Path | None = None) -> Path:
    """A directory written by the converter, from records as the original has them."""
    with (
        AnnotationDirectory(folder, load_manifest().dataset("unc"), embed_images=embed is not None) as directory,
        directory.writer("val", source="unc_val.pth", sha256="0" * 64, known_rows=3) as writer,
    ):
        for row in ROWS:
            record = [row["image"], {"height": 40, "width": 60}, row["box_xywh"], row["phrase"], [POLYGON]]
            row = record_to_row(record, "unc", "val")
            row["image_file"] = f"train2014/{row['image_file']}"
            if embed:
                name = row["image_file"].rpartition("/")[2]
                row["image"] = {"bytes": (embed / name).read_bytes(), "path": name}
            writer.add(row)
    return folder


def test_converted_annotations(pictures, tmp_path):
    folder = converted(tmp_path / "refcoco")
    expected = [(*row[:4], POLYGON) for row in EXPECTED]
    rows = load_both_ways(folder, "val", images=pictures)  # the pictures lie there without their folder
    assert essence(rows) == expected
    assert {row["source"] for row in rows} == {"unc"} and rows[0]["image_file"] == "train2014/a.png"
    (tmp_path / "root" / "train2014").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / "root" / "train2014" / name).write_bytes((pictures / name).read_bytes())
    rows = load_both_ways(folder, "val", images=tmp_path / "root")
    assert essence(rows) == expected
    assert rows[0]["image"]["path"] == str(tmp_path / "root" / "train2014" / "a.png")
    with pytest.raises(
        DatasetError, match=r"no usable row: .*row 0: there is no picture .*; pass images \(--images\)"
    ):
        load_referring_dataset(folder, "val")


def test_converted_annotations_with_embedded_pictures(pictures, tmp_path):
    folder = converted(tmp_path / "refcoco", embed=pictures)
    rows = load_both_ways(folder, "val")
    assert essence(rows) == [(*row[:4], POLYGON) for row in EXPECTED]
    assert rows[1]["image"]["bytes"] == (pictures / "b.png").read_bytes()
    assert load_referring_dataset(folder, "val")[1]["image"].getpixel((0, 0)) == (200, 200, 200)


def lmms_lab(pictures: Path) -> Dataset:
    """One row per object, its phrases in a list, numbers in single precision, the picture embedded."""
    numbers = List(Value("float32"))
    features = {"question_id": Value("string"), "image": datasets.Image(), "question": Value("string")}
    features |= {
        "answer": List(Value("string")),
        "segmentation": numbers,
        "bbox": numbers,
        "file_name": Value("string"),
    }
    rows = [
        {
            "question_id": f"q{number}",
            "image": {"bytes": (pictures / row["image"]).read_bytes(), "path": row["image"]},
            "question": "Please describe the object.",
            "answer": [row["phrase"]],
            "segmentation": row.get("segmentation", [[]])[0],
            "bbox": row["box_xywh"],
            "file_name": row["image"],
        }
        for number, row in enumerate(ROWS)
    ]
    return Dataset.from_list(rows, features=Features(features))


def jxu124(pictures: Path) -> Dataset:
    """Paths below a COCO folder, corner boxes, and the COCO annotation as JSON text."""
    rows = []
    for number, row in enumerate(ROWS):
        x, y, w, h = row["box_xywh"]
        annotation = {"segmentation": row.get("segmentation", []), "bbox": row["box_xywh"], "id": number}
        rows.append(
            {
                "image_path": f"coco/train2014/{row['image']}",
                "bbox": [x, y, x + w, y + h],
                "captions": [row["phrase"]],
                "raw_anns": json.dumps(annotation),
                "raw_image_info": json.dumps({"height": 40, "width": 60}),
                "split": "val",
            }
        )
    return Dataset.from_list(rows)


def refcoco_m(pictures: Path) -> Dataset:
    """One row per picture with all its objects; masks as compressed run lengths."""
    rows = []
    for row in ROWS:
        mask = coco.encode(np.zeros((40, 60), dtype=np.uint8, order="F"))
        mask["counts"] = mask["counts"].decode()
        sample = {"sentences": [row["phrase"]], "bbox": row["box_xywh"], "mask": mask}
        rows.append({"image": {"bytes": None, "path": str(pictures / row["image"])}, "samples": [sample]})
    sample = {"sentences": List(Value("string")), "bbox": List(Value("float32"))}
    sample["mask"] = {"size": List(Value("int32")), "counts": Value("string")}
    return Dataset.from_list(rows, features=Features({"image": datasets.Image(), "samples": List(sample)}))


@pytest.mark.parametrize("upload", [lmms_lab, jxu124, refcoco_m])
@pytest.mark.parametrize("stored", ["hub", "disk", "parquet"])
def test_uploads(upload, stored, pictures, tmp_path, monkeypatch):
    dataset = upload(pictures)
    if stored == "hub":  # a stand-in for the network
        splits = {"train": dataset.select([0]), "validation": dataset}

        def load_dataset(repo, config, split, streaming):
            assert (repo, config) == ("owner/RefCOCO", "main")
            return splits[split].to_iterable_dataset(num_shards=2) if streaming else splits[split]

        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda repo, config: list(splits))
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        name, split = "owner/RefCOCO:main", "val"
    elif stored == "disk":
        name, split = tmp_path / "saved", "validation"
        DatasetDict({"validation": dataset}).save_to_disk(name)
    else:
        name, split = tmp_path / "upload", "val"
        (name / "data").mkdir(parents=True)
        dataset.to_parquet(name / "data" / "val-00000-of-00001.parquet")
    images = pictures if upload is jxu124 else None
    records = load_referring_dataset(name, split, images=images)
    stream = load_referring_dataset(name, split, images=images, streaming=True)
    rows, streamed = plain(records), plain(stream)
    for row in streamed if stored == "hub" else ():  # whose identifiers count per shard
        row["id"] = row["id"].replace(", shard 0", "")
    assert [row["id"] for row in rows[:2]] == [row["id"] for row in streamed[:2]]
    found = [row[:4] if upload is refcoco_m else row for row in essence(rows)]
    assert found == [row[:4] if upload is refcoco_m else row for row in essence(streamed)]
    assert found == [row[:4] if upload is refcoco_m else row for row in EXPECTED]
    if upload is refcoco_m:
        assert rows[0]["rle"] == {"size": [40, 60], "counts": [2400]}
    if upload is jxu124:
        assert (rows[0]["height"], rows[0]["width"]) == (40, 60)


def test_a_folder_that_the_library_reads(pictures, tmp_path):
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes((pictures / "a.png").read_bytes())
    write_json_lines(folder / "metadata.jsonl", [{"file_name": "a.png", "phrase": "the cup", "box": [1, 2, 30, 31]}])
    rows = load_both_ways(tmp_path / "photos", "train")
    assert [(row["phrase"], row["box"]) for row in rows] == [("the cup", [1, 2, 30, 31])]


def test_a_flat_folder_of_pictures(pictures):
    write_json_lines(pictures / "metadata.jsonl", [{"file_name": "b.png", "phrase": "the cup"}])
    for split in ("train", None):
        rows = load_both_ways(pictures, split)
        assert [(row["phrase"], row["image"]["path"]) for row in rows] == [("the cup", str(pictures / "b.png"))]
    with pytest.raises(DatasetError, match="has no split 'val'; it has train"):
        load_referring_dataset(pictures, "val")


def test_pictures_and_masks_at_addresses(pictures, tmp_path):
    """In an archive, whose pictures `datasets` leaves there: zip://..., as hf://... when streaming from the Hub."""
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[5:9, 10:20] = 255
    Image.fromarray(mask).save(pictures / "mask.png")
    row = {"file_name": "a.png", "segmentation_file_name": "mask.png", "phrase": "the cup", "box": [10, 5, 20, 9]}
    folder = tmp_path / "photos"
    folder.mkdir()
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for name in ("a.png", "mask.png"):
            archive.write(pictures / name, name)
        archive.writestr("metadata.jsonl", json.dumps(row))
    for images in (None, pictures):
        (row,) = load_both_ways(folder, "train", images=images)
        assert row["image"]["path"] == f"zip://a.png::{folder}/train.zip" and row["image"]["bytes"] is None
        assert open_image(row["image"]).getpixel((0, 0)) == (50, 50, 50)
        assert np.array_equal(target_mask(row, (40, 60)), mask > 0)
    for streaming in (False, True):  # what `datasets` itself makes of them
        assert next(iter(load_referring_dataset(folder, "train", streaming)))["image"].size == (60, 40)


def test_test_a_is_found_under_its_other_name_only_beside_test_b(pictures, tmp_path):
    for name in ("both/test", "both/testB", "alone/test"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_json_lines(path, [{"image": str(pictures / "a.png"), "phrase": name}])
    assert [row["phrase"] for row in load_both_ways(tmp_path / "both", "testA")] == ["both/test"]
    with pytest.raises(DatasetError, match="no split 'testA'"):
        load_referring_dataset(tmp_path / "alone", "testA")


# Rows that cannot be used


BAD_LINES = [
    (ROWS[0], None),
    ("{not json", "line 2: it is not valid JSON"),
    ([1, 2], "line 3: it is not a JSON object"),
    ({"image": "a.png"}, "line 4: the phrase is empty"),
    ({"image": "gone.png", "phrase": "x"}, "line 5: there is no picture '.*gone.png'"),
    ({"image": "a.png", "phrase": ["fine", ""]}, "line 6: the phrase is empty"),
    ({"image": "a.png", "phrase": []}, "line 7: its list of phrases is empty"),
    ({"image": "a.png", "phrase": "x", "segmentation": "gone.png"}, "line 8: there is no mask picture '.*gone.png'"),
    (ROWS[1], None),
]


def test_malformed_rows_are_left_out_and_counted(pictures, caplog):
    path = write_json_lines(pictures / "mine.jsonl", [row for row, _ in BAD_LINES])
    reasons = [reason for _, reason in BAD_LINES if reason]
    rows = load_both_ways(path, None)
    assert [row["phrase"] for row in rows] == ["The CUP", "fine", "a spoon, left"]
    for streaming in (False, True):
        caplog.clear()
        data = open_referring_data(path, None, streaming=streaming)
        assert len(plain(data.records)) == 3
        assert len(data.problems) == len(reasons)
        for problem, reason in zip(data.problems, reasons):
            assert re.match(f"mine.jsonl, {reason}", str(problem)), problem
        assert sum("the row is left out" in message for message in caplog.messages) == len(reasons)
        assert caplog.messages[-1] == "mine: rows left out in all: 7."
        for limit, lines in ((1, ""), (2, "2345"), (3, "2345678"), (None, "2345678")):
            assert [problem.place[-1] for problem in data.problems_within(limit)] == [*lines]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (BAD_LINES, "line 2: it is not valid JSON"),
        (BAD_LINES[0::7], "line 2: there is no mask picture '.*gone.png'"),
    ],
)
def test_strict_stops_at_the_first(pictures, lines, message):
    path = write_json_lines(pictures / "mine.jsonl", [row for row, _ in lines])
    with pytest.raises(DatasetError, match=rf"^mine\.jsonl, {message}"):
        load_referring_dataset(path, None, strict=True)
    stream = load_referring_dataset(path, None, strict=True, streaming=True)
    with pytest.raises(DatasetError, match=rf"^mine\.jsonl, {message}"):
        list(stream)


def test_malformed_csv_and_coco_rows(pictures):
    path = pictures / "mine.csv"
    path.write_bytes(b"image,phrase\na.png,fine\na.png\na.png,one,two\na.png,caf\xe9\na.png,fine too\n")
    data = open_referring_data(path, None)
    assert [str(problem) for problem in data.problems] == [
        "mine.csv, line 3: it has fewer cells than the header",
        "mine.csv, line 4: it has more cells than the header; quote texts that hold the separator",
        "mine.csv, line 5: the phrase 'caf\\udce9' is too long or not valid text",
    ]
    assert len(data.records) == 2
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], "caption": "x"}, {"image_id": 2}, 5],
    }
    (pictures / "mine.json").write_text(json.dumps(content))
    data = open_referring_data(pictures / "mine.json", None)
    assert [str(problem) for problem in data.problems] == [
        "mine.json, annotation 1: there is no image with the id 2",
        "mine.json, annotation 2: it is not an object",
    ]


def test_corners_and_sides_in_columns_with_gaps(pictures):
    path = pictures / "mine.csv"
    lines = ["1,2,30,38,40.0,60.0", ",,,,,", "1,,30,38,40,60", "1,2,30,,40,60", "0,0,1,1,40.5,60"]
    path.write_text("image,phrase,x0,y0,x1,y1,height,width\n" + "".join(f"a.png,cup,{line}\n" for line in lines))
    data = open_referring_data(path, None)
    assert [(row["box"], row["height"], row["width"]) for row in plain(data.records)] == [
        ([1, 2, 30, 38], 40, 60),
        (None, None, None),
    ]
    places, reasons = zip(*(str(problem).split(": ") for problem in data.problems))
    assert places == ("mine.csv, line 4", "mine.csv, line 5", "mine.csv, line 6")
    assert reasons[:2] == ("its box lacks y0", "its box lacks y1") and "40.5" in reasons[2]
    path.write_text("image,phrase,x0,y0,x1\na.png,cup,1,2,30\nb.png,cup,,,\n")
    data = open_referring_data(path, None)
    assert [str(problem) for problem in data.problems] == ["mine.csv, line 2: its box lacks y1"]


def test_coco_images_that_share_an_identifier(pictures):
    """As where files were merged by hand; which of them an annotation means nobody knows."""
    images = [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}, {"file_name": "a.png"}]
    images += [{"id": 2, "file_name": "a.png"}] * 2
    annotations = [{"image_id": 1, "caption": "x"}, {"caption": "y"}, {"image_id": 2, "caption": "z"}]
    (pictures / "mine.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    data = open_referring_data(pictures / "mine.json", None)
    assert [row["phrase"] for row in plain(data.records)] == ["z"]
    assert [str(problem) for problem in data.problems] == [
        "mine.json, annotation 0: there are several images with the id 1",
        "mine.json, annotation 1: it has no image_id",
    ]


def test_long_cells_of_csv(pictures):
    """A mask as text may be longer than what Python's module for CSV takes by default."""
    polygon = POLYGON * 10_000
    path = pictures / "mine.csv"
    path.write_text(f'image,phrase,segmentation\na.png,the cup,"{[polygon]}"\n')
    (row,) = load_both_ways(path, None)
    assert row["polygons"] == [polygon]


def test_coco_identifiers_of_other_types(pictures):
    """Through pandas, numbers become floats, and through some tools texts."""
    images = [{"id": number, "file_name": name} for number, name in ((1, "a.png"), ("2", "b.png"), ("x", "b.png"))]
    ids = [1.0, "1", 2, 2.0, "x", 1.5]
    annotations = [{"image_id": number, "caption": str(number)} for number in ids]
    (pictures / "mine.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    data = open_referring_data(pictures / "mine.json", None)
    assert [Path(row["image"]["path"]).stem for row in plain(data.records)] == [*"aabbb"]
    assert [str(problem) for problem in data.problems] == [
        "mine.json, annotation 5: there is no image with the id 1.5"
    ]


def test_preset_rows_that_do_not_fit(pictures):
    rows = jxu124(pictures).to_list()
    rows[1]["raw_anns"] = "{broken"
    del rows[2]["captions"]
    data = open_referring_data(write_json_lines(pictures / "rows.jsonl", rows), None, images=pictures)
    assert [str(problem) for problem in data.problems] == [
        "rows.jsonl, line 2: raw_anns is not a JSON object",
        "rows.jsonl, line 3: it has no column 'captions'",
    ]


def test_the_cache_follows_files_and_pictures(pictures):
    path = write_json_lines(pictures / "mine.jsonl", [*ROWS, {"image": "late.png", "phrase": "late"}])
    first = open_referring_data(path, None)
    assert (len(first.records), len(first.problems)) == (3, 1)
    assert open_referring_data(path, None).fingerprint == first.fingerprint
    assert open_referring_data(path, None, streaming=True).fingerprint == first.fingerprint
    Image.new("RGB", (5, 5)).save(pictures / "late.png")
    assert len(load_referring_dataset(path, None)) == 4
    write_json_lines(path, ROWS[:1])
    changed = open_referring_data(path, None)
    assert len(changed.records) == 1 and changed.fingerprint != first.fingerprint


def test_the_cache_follows_the_folders_that_paths_are_relative_to(pictures, tmp_path_factory, monkeypatch):
    """Neither the working directory nor a link to the annotations changes what they are, but both where things lie."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (pictures / "below").mkdir()
    Image.new("L", (60, 40), 255).save(pictures / "mask.png")
    row = {"image": "a.png", "phrase": "the cup", "segmentation": "mask.png"}
    path = write_json_lines(pictures / "mine.jsonl", [row])
    monkeypatch.chdir(pictures)
    first = open_referring_data("mine.jsonl")
    monkeypatch.chdir("below")
    second = open_referring_data("../mine.jsonl")
    assert [plain(data.records)[0]["mask"]["path"] for data in (first, second)] == [str(pictures / "mask.png")] * 2
    assert first.fingerprint == second.fingerprint

    Dataset.from_list([{"image": "a.png", "phrase": "the cup"}]).save_to_disk(elsewhere / "saved")
    (elsewhere / "mine.jsonl").symlink_to(path)
    for name, right, wrong in (("saved", pictures, elsewhere), ("mine.jsonl", pictures, elsewhere)):
        given = {place: elsewhere / name if name == "saved" else place / name for place in (right, wrong)}
        monkeypatch.chdir(wrong)
        with pytest.raises(DatasetError, match=f"there is no picture '{wrong}/a.png'"):
            load_referring_dataset(given[wrong])
        monkeypatch.chdir(right)
        assert [row["image"]["path"] for row in plain(load_referring_dataset(given[right]))] == [f"{right}/a.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "There is no file or directory '/nowhere/at/all'"),
        ("gone.jsonl", "There is no file or directory 'gone.jsonl'"),
        ("notes.txt", "The ending of '.*notes.txt' is not one of .jsonl"),
        ("empty.jsonl", "empty has the columns"),
        ("list.json", "list.json is not COCO JSON"),
        ("broken.json", "broken.json is not valid JSON"),
        ("broken.parquet", "broken.parquet is not a readable Parquet file"),
        ("headless.csv", "fit no known layout"),
    ],
)
def test_sources_that_cannot_be_used(tmp_path, name, message):
    for file, text in {
        "notes.txt": "x",
        "empty.jsonl": "",
        "list.json": "[]",
        "broken.json": "{",
        "broken.parquet": "x",
        "headless.csv": "a.png,the cup",
    }.items():
        (tmp_path / file).write_text(text)
    name = name if name.startswith(("/", "gone")) else str(tmp_path / name)
    for streaming in (False, True):
        with pytest.raises(DatasetError, match=message):
            load_referring_dataset(name, None, streaming=streaming)


def test_a_missing_folder_of_pictures(pictures):
    with pytest.raises(DatasetError, match=r"folder of pictures '.*gone' does not exist"):
        load_referring_dataset(pictures, "val", images=pictures / "gone")


def test_streams_are_split_by_file(pictures, tmp_path):
    """Two processes share the files of a split, as training does."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        rows = [{"image": str(pictures / "a.png"), "phrase": f"{number} {row}"} for row in range(3)]
        Dataset.from_list(rows).to_parquet(folder / f"train-{number:05d}-of-00002.parquet")
    stream = load_referring_dataset(folder, "train", streaming=True)
    assert stream.num_shards == 2
    shares = [[row["phrase"] for row in split_dataset_by_node(stream, rank, 2)] for rank in range(2)]
    assert shares == [["0 0", "0 1", "0 2"], ["1 0", "1 1", "1 2"]]


def test_import_is_light():
    code = "import sys, oneref_hf.data; print({'datasets', 'pyarrow', 'pycocotools'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
