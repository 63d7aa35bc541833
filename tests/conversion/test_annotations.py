# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Annotation files of every layout become typed rows; damaged and hostile ones leave one sentence and nothing else."""

import contextlib
import io
import json
import math
import os
import pickle
import pickletools
import random
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from annotation_directory import AnnotationDirectory
from annotations import MalformedRecord, decode_rle_counts, record_to_row
from convert_annotations import main
from datasets import load_dataset
from manifest import load_manifest
from PIL import Image
from pycocotools import mask as coco_masks


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")

SIZE = {"height": 40, "width": 60}
POLYGON = [[1.5, 2.0, 20.25, 2.0, 20.25, 30.5], [30.0, 5.0, 35.0, 5.0, 35.0, 9.0, 30.0, 9.0]]
COCO_NAMES = [f"COCO_train2014_{number:012d}.jpg" for number in (9, 25, 30, 34)]
COCO_FOLDER = "other/images/mscoco/images/train2014"


def coco_record(index: int = 0, phrase: str = "The LEFT cup", box=(3.9, 2.6, 10.3, 20.7)):
    return (COCO_NAMES[index % 4], dict(SIZE), list(box), phrase, [list(points) for points in POLYGON])


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    names = [f"{COCO_FOLDER}/{name}" for name in COCO_NAMES]
    names += ["referit/images/38685.jpg", "Flickr30k/flickr30k-images/1000.jpg"]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE["width"], SIZE["height"]), (40 * number, 90, 10)).save(root / name)
    return root


def run(*arguments) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def refused(tmp_path: Path, *arguments) -> str:
    """Runs the command, which must fail with one sentence and leave nothing; returns the sentence."""
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments, "--output", tmp_path / "out")
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert sorted(tmp_path.rglob("*")) == before
    return err


def rows_of(directory: Path, split: str) -> list[dict]:
    return list(load_dataset(str(directory), split=split, cache_dir=str(directory.parent / "cache")))


# Layouts -----------------------------------------------------------------------------------------------------------
LABELS = [index / 61 for index in range(62)]
COCO_ROW = {
    "image_file": f"{COCO_FOLDER}/{COCO_NAMES[1]}",
    "image_id": 25,
    "phrase": "Cup",
    "box": [3.9, 2.6, 3.9 + 10.3, 2.6 + 20.7],
    "box_truncated": [3, 2, 13, 22],
    "polygons": POLYGON,
    **SIZE,
}
COCO_LAYOUTS = [
    (dataset, split, [coco_record(1, "Cup")], {**COCO_ROW, "source": dataset})
    for dataset, split in [("unc", "testA"), ("unc+", "testB"), ("gref", "val"), ("gref_umd", "test")]
]
REFERIT = {
    "image_file": "referit/images/38685.jpg",
    "phrase": "sky",
    "box": [5.0, 6.0, 30.0, 21.0],
    "source": "referit",
}
FLICKR = {**REFERIT, "image_file": "Flickr30k/flickr30k-images/1000.jpg", "source": "flickr"}
TRUNCATED = {"box_truncated": [5, 6, 30, 21]}
MIXED = [
    (["38685.jpg", "referit", [5, 6, 25, 15], "sky", [("r1", ["a"])]], {**REFERIT, **TRUNCATED}),
    (("1000.jpg", "flickr", np.array([5.0, 6.0, 25.0, 15.0]), "sky", "placeholder"), {**FLICKR, **TRUNCATED}),
    (coco_record(1, "Cup"), {**COCO_ROW, "source": "coco"}),
]
LAYOUTS = [
    *COCO_LAYOUTS,
    ("referit", "trainval", [("38685.jpg", "38685_1.pth", [5, 6, 30, 21], "sky", [("r1", ["a"])])], REFERIT),
    ("referit", "train_pseudo", [("38685.jpg", "x", [5, 6, 30, 21], "sky", [])], {**REFERIT, **TRUNCATED}),
    ("flickr", "test", [("1000.jpg", [5.5, 6.5, 30.5, 21.5], "sky")], {**FLICKR, "box": [5.5, 6.5, 30.5, 21.5]}),
    ("flickr", "train_pseudo", [["1000.jpg", [5, 6, 30, 21], "sky"]], {**FLICKR, **TRUNCATED}),
    *[("mixup", "val", [record], row) for record, row in MIXED],
    *[("mixup_with_refc_referit", "test", [record], row) for record, row in MIXED[:1]],
    *[
        ("mixup_with_sts", "train", [(*record, LABELS)], {**row, "semantic_relation_labels": LABELS})
        for record, row in MIXED
    ],
    (
        "unc",
        "train_pseudo",
        [(COCO_NAMES[1], "mask.pth", [np.float32(3.5), 2, 10, 20], "Cup", [])],
        {"box": [3.5, 2.0, 13.5, 22.0], "height": None, "polygons": None, "source": "unc"},
    ),
]


@pytest.mark.parametrize("dataset, split, records, expected", LAYOUTS, ids=lambda value: str(value)[:24])
def test_every_layout_becomes_the_expected_row(tmp_path, images, dataset, split, records, expected):
    file = tmp_path / f"{dataset}_{split}.pth"
    torch.save(records, file)
    code, _, err = run(file, "--dataset", dataset, "--images", images, "--output", tmp_path / "out")
    assert code == 0, err
    (row,) = rows_of(tmp_path / "out", split)
    assert row["split"] == split
    assert {key: row[key] for key in expected} == expected


def test_a_mixture_is_known_by_its_folder(tmp_path, images):
    for root, known in {"mixup_with_refc": "321327", "mixup_with_refc_referit": "375454", "mine": None}.items():
        file = tmp_path / root / "mixup" / "mixup_train.pth"
        file.parent.mkdir(parents=True)
        torch.save([coco_record()], file)
        code, _, err = run(file, "--dataset", "mixup", "--images", images, "--output", tmp_path / f"{root}_out")
        assert code == 0 and err == (
            f"mixup_train.pth (train): 1 expressions found, {known} known for the released file\n" if known else ""
        )


@pytest.mark.parametrize(
    "save",
    [
        lambda records, path: torch.save(records, path),
        lambda records, path: torch.save(records, path, _use_new_zipfile_serialization=False),
        lambda records, path: path.write_bytes(pickle.dumps(records, protocol=0)),
        lambda records, path: path.write_bytes(pickle.dumps(records, protocol=5)),
    ],
    ids=["zip", "legacy", "pickle-0", "pickle-5"],
)
def test_every_container_is_read(tmp_path, images, save):
    file = tmp_path / "unc_val.pth"
    save([coco_record(index, f"caf\u00e9 {index}") for index in range(3)], file)
    assert run(file, "--dataset", "unc", "--images", images, "--output", tmp_path / "out")[0] == 0
    assert [row["phrase"] for row in rows_of(tmp_path / "out", "val")] == ["caf\u00e9 0", "caf\u00e9 1", "caf\u00e9 2"]


def test_truncation_precedes_addition_and_the_other_box_keeps_every_digit():
    row = record_to_row(coco_record(box=(303.58, 69.03, 293.29, 425.79)), "unc", "train")
    assert row["box_truncated"] == [303, 69, 596, 494]
    # Adding first gives another pixel: 3.9 + 10.3 = 14.2, but 3 + 10 = 13.
    assert record_to_row(coco_record(box=(3.9, 0, 10.3, 5)), "unc", "train")["box_truncated"] == [3, 0, 13, 5]
    assert record_to_row(coco_record(box=(-0.7, -1.2, 9, 9)), "unc", "train")["box_truncated"] == [0, -1, 9, 8]


def test_box_masks_drawn_from_the_kept_box_equal_the_coco_api_on_the_stored_one():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        stored = np.round(rng.uniform(0, 30, 4), rng.integers(0, 3)).tolist()
        x1, y1, x2, y2 = record_to_row(coco_record(box=stored), "unc", "train")["box"]
        mask = np.zeros((40, 60), dtype=np.uint8)
        mask[math.floor(y1 + 0.5) : math.floor(y2 + 0.5), math.floor(x1 + 0.5) : math.floor(x2 + 0.5)] = 1
        expected = coco_masks.decode(coco_masks.frPyObjects(np.array([stored]), 40, 60))[..., 0]
        assert np.array_equal(mask, expected), stored


# The directory ------------------------------------------------------------------------------------------------------
def test_a_directory_loads_typed_gains_splits_and_refuses_strangers(tmp_path, images):
    out = tmp_path / "refcoco"
    for split, count in (("train", 5), ("val", 2)):
        torch.save([coco_record(index, f"{split} {index}") for index in range(count)], tmp_path / f"unc_{split}.pth")
        code, _, err = run(tmp_path / f"unc_{split}.pth", "--dataset", "refcoco", "--images", images, "--output", out)
        known = {"train": 120624, "val": 10834}[split]
        assert code == 0 and f"{count} expressions found, {known} known" in err

    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 5, "val": 2}
    features = loaded["train"].features
    assert features["box"].length == 4 and features["box"].feature.dtype == "float64"
    assert features["box_truncated"].feature.dtype == "int32"
    assert features["polygons"].feature.feature.dtype == "float64"
    assert loaded["train"][4]["phrase"] == "train 4" and loaded["train"][4]["rle"] is None

    card = (out / "README.md").read_text()
    assert "# RefCOCO: referring" in card and "| val | 2 | 10834 | unc_val.pth |" in card and "{{" not in card
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []

    # What people put into the folder stays when a split is added.
    (out / "pictures").mkdir()
    (out / "pictures" / "a.png").write_text("precious")
    (out / "data" / "notes.txt").write_text("mine")
    (out / "train_pseudo.jsonl").write_text("{}")
    test = tmp_path / "unc_testA.pth"
    shutil.copy(tmp_path / "unc_val.pth", test)
    code, _, err = run(test, "--dataset", "unc", "--images", images, "--output", out)
    assert code == 0, err
    assert (out / "pictures" / "a.png").read_text() == "precious"
    assert (out / "data" / "notes.txt").read_text() == "mine"
    assert (out / "train_pseudo.jsonl").read_text() == "{}" and list((out / "data").glob("testA-*.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []

    file = tmp_path / "unc_val.pth"
    assert "already holds the split val" in run(file, "--dataset", "unc", "--images", images, "--output", out)[2]
    assert "not of unc+" in run(file, "--dataset", "unc+", "--images", images, "--output", out)[2]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    code, _, err = run(file, "--dataset", "unc", "--images", images, "--output", foreign)
    assert code == 1 and "not a directory of converted annotations" in err
    assert (foreign / "thesis.txt").read_text() == "precious"


def test_large_splits_are_cut_into_shards_in_order(tmp_path):
    dataset = load_manifest().dataset("unc")
    with (
        AnnotationDirectory(tmp_path / "out", dataset, max_shard_bytes=400_000) as directory,
        directory.writer("train") as writer,
    ):
        for index in range(5000):
            writer.add(record_to_row(coco_record(index, f"phrase {index}"), "unc", "train"))
    shards = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert len(shards) > 2 and shards[0] == f"train-00000-of-{len(shards):05d}.parquet"
    assert [row["phrase"] for row in rows_of(tmp_path / "out", "train")] == [f"phrase {i}" for i in range(5000)]


def test_embedded_pictures_make_shards_self_contained_and_missing_ones_are_listed(tmp_path, images):
    records = [coco_record(0), coco_record(1), ("COCO_train2014_000000000099.jpg", *coco_record()[1:])]
    torch.save(records, tmp_path / "unc_val.pth")
    arguments = (tmp_path / "unc_val.pth", "--dataset", "unc", "--images", images, "--output")
    missing = f"{COCO_FOLDER}/COCO_train2014_000000000099.jpg\n"

    code, out, err = run(*arguments, tmp_path / "plain")
    assert code == 0 and "3 rows" in out and "or unreadable: 1; rows that name them, kept: 1" in err
    assert (tmp_path / "plain" / "missing_images.txt").read_text() == missing

    code, out, err = run(*arguments, tmp_path / "embedded", "--embed-images")
    assert code == 0 and "2 rows" in out and "rows that name them, left out: 1" in err
    assert (tmp_path / "embedded" / "missing_images.txt").read_text() == missing
    shard = str(next((tmp_path / "embedded" / "data").iterdir()))
    rows = load_dataset("parquet", data_files=shard, split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["image"].size for row in rows] == [(60, 40), (60, 40)]
    assert rows[1]["image"].convert("RGB").getpixel((5, 5))[0] == pytest.approx(40, abs=3)

    assert "pictures missing below" in refused(tmp_path, *arguments[:-1], "--strict")


def test_pictures_may_lie_flat_below_the_root(tmp_path, images):
    torch.save([coco_record(0)], tmp_path / "unc_val.pth")
    flat = images / COCO_FOLDER
    code, _, err = run(tmp_path / "unc_val.pth", "--dataset", "unc", "--images", flat, "--output", tmp_path / "out")
    assert code == 0 and "missing" not in err
    assert rows_of(tmp_path / "out", "val")[0]["image_file"] == COCO_NAMES[0]


# Malformed records --------------------------------------------------------------------------------------------------
def changed(position, value):
    record = list(coco_record())
    record[position] = value
    return record


NOTHING = []
for _ in range(60):  # 2^60 paths through shared lists: must not be unfolded, not even into a message
    NOTHING = [NOTHING, NOTHING]

MALFORMED = {
    "4 fields, not 5": coco_record()[:4],
    "not a list of fields": "COCO_train2014_000000000009.jpg",
    "not a plain file name": changed(0, "../../secret.jpg"),
    "not a plain": changed(0, "/etc/passwd"),
    "file name is 7": changed(0, 7),
    "older projects": changed(1, "9_1.pth"),
    "height": changed(1, {"height": 0, "width": 60}),
    "not whole": changed(1, {"height": 10.5, "width": 60}),
    "box has 3 numbers": changed(2, [1, 2, 3]),
    "the box is nan": changed(2, [1, 2, float("nan"), 3]),
    "outside": changed(2, [1, 2, 10**400, 3]),
    "negative width": changed(2, [1, 2, -3, 4]),
    "is True, not a number": changed(2, [1, 2, True, 4]),
    "'5', not a number": changed(2, [1, 2, "5", 4]),
    "phrase is empty": changed(3, "  \n"),
    "not valid text": changed(3, "bad \ud800 surrogate"),
    "phrase is a value of type bytes": changed(3, b"left cup"),
    "no polygons": changed(4, []),
    "three x, y pairs": changed(4, [[1.0, 2.0, 3.0, 4.0]]),
    "a polygon is 'x'": changed(4, ["x"]),
    "a value of type list": changed(4, NOTHING),
    "size of its RLE": changed(4, {"size": [1, 1], "counts": [1]}),
    "covers 3 pixels": changed(4, {"size": [40, 60], "counts": [1, 2]}),
    "RLE are damaged": changed(4, {"size": [40, 60], "counts": "~~~~~~~~~~~~"}),
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_a_malformed_record_says_what_is_wrong(reason):
    with pytest.raises(MalformedRecord, match=r"(?s).*") as caught:
        record_to_row(MALFORMED[reason], "unc", "val")
    assert reason in str(caught.value) and len(str(caught.value)) < 200


def test_malformed_records_are_counted_and_listed_or_stop_a_strict_run(tmp_path, images):
    torch.save([coco_record(0), MALFORMED["phrase is empty"], coco_record(1)], tmp_path / "unc_val.pth")
    arguments = (tmp_path / "unc_val.pth", "--dataset", "unc", "--images", images)
    assert "record 1: the phrase is empty" in refused(tmp_path, *arguments, "--strict")
    code, out, err = run(*arguments, "--output", tmp_path / "out")
    assert code == 0 and "2 rows" in out and "malformed records left out: 1" in err
    assert (tmp_path / "out/malformed_records.txt").read_text() == "unc_val.pth, record 1: the phrase is empty\n"


def test_a_file_of_another_layout_is_refused_as_a_whole(tmp_path, images):
    torch.save([("1000.jpg", [5, 6, 30, 21], "sky")] * 3, tmp_path / "unc_val.pth")
    message = refused(tmp_path, tmp_path / "unc_val.pth", "--dataset", "unc", "--images", images)
    assert "gives no usable row (record 2: it has 3 fields, not 5)" in message


def test_a_miscounted_split_stops_a_strict_run(tmp_path, images):
    torch.save([coco_record(0)], tmp_path / "unc_testA.pth")
    message = refused(tmp_path, tmp_path / "unc_testA.pth", "--dataset", "unc", "--images", images, "--strict")
    assert "1 expressions found, 5657 known" in message


def test_one_mask_shared_by_thousands_of_records_does_not_fill_the_disk(tmp_path, images):
    polygon = [[float(value) for value in range(2000)]]
    record = [COCO_NAMES[0], SIZE, [1, 2, 3, 4], "cup", polygon]
    torch.save([record] * 5000, tmp_path / "unc_val.pth")
    message = refused(tmp_path, tmp_path / "unc_val.pth", "--dataset", "unc", "--images", images)
    assert "unfolds" in message


# The official refer files -------------------------------------------------------------------------------------------
def refer_folder(folder: Path, maker: str = "unc", splits: tuple[str, str] = ("train", "testA")) -> Path:
    folder.mkdir(parents=True)
    mask = np.zeros((40, 60), dtype=np.uint8, order="F")
    mask[3:20, 5:30] = mask[25:31, 40:44] = 1
    compressed = coco_masks.encode(mask)
    instances = {
        "images": [{"id": number, "file_name": COCO_NAMES[number], **SIZE} for number in range(2)],
        "annotations": [
            {"id": 70, "image_id": 0, "bbox": [3.9, 2.6, 10.3, 20.7], "segmentation": POLYGON},
            {
                "id": 71,
                "image_id": 1,
                "bbox": [5, 3, 39, 28],
                "segmentation": {"size": [40, 60], "counts": compressed["counts"].decode()},
            },
        ],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    references = [
        {
            "ref_id": number,
            "ann_id": 70 + number,
            "image_id": number,
            "split": split,
            # The distribution's own name of the picture; RefCOCOg's has the annotation's number in it.
            "file_name": f"{COCO_NAMES[number].removesuffix('.jpg')}_{70 + number}.jpg",
            "sentences": [{"sent_id": 10 * number + i, "sent": f"cup {i}", "raw": f"Cup {i}!"} for i in range(2)],
        }
        for number, split in enumerate(splits)
    ]
    (folder / f"refs({maker}).p").write_bytes(pickle.dumps(references, protocol=2))
    return folder


def test_refer_files_give_every_split_with_identifiers_and_masks(tmp_path, images):
    refer_folder(tmp_path / "data" / "refcoco")
    out = tmp_path / "out"
    code, _, err = run("--refer", tmp_path / "data", "--dataset", "refcoco", "--images", images, "--output", out)
    assert code == 0, err
    first, second = rows_of(out, "train")
    assert {**COCO_ROW, "image_file": f"{COCO_FOLDER}/{COCO_NAMES[0]}", "image_id": 0, "phrase": "cup 0"} == {
        key: first[key] for key in COCO_ROW
    }
    assert (second["ann_id"], second["ref_id"], second["sentence_id"]) == (70, 0, 1)
    row = rows_of(out, "testA")[0]
    mask = coco_masks.decode(coco_masks.frPyObjects(row["rle"], 40, 60))
    assert row["polygons"] is None and mask.sum() == 17 * 25 + 6 * 4 and mask[25:31, 40:44].all()


def test_refer_files_of_refcocog_come_by_their_split_maker(tmp_path, images):
    """Both makers' files lie in one folder: umd has val and test, google has val alone, on other references."""
    folder = refer_folder(tmp_path / "data" / "refcocog", "umd", ("val", "test"))
    google = pickle.loads((folder / "refs(umd).p").read_bytes())[1:]
    google[0]["split"] = "val"
    (folder / "refs(google).p").write_bytes(pickle.dumps(google))
    found = {}
    for dataset in ("refcocog", "gref"):
        out = tmp_path / dataset
        code, _, err = run("--refer", tmp_path / "data", "--dataset", dataset, "--images", images, "--output", out)
        assert code == 0, err
        loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache" / dataset))
        found[dataset] = {
            split: [(row["ref_id"], row["phrase"], row["source"], Path(row["image_file"]).name) for row in rows]
            for split, rows in loaded.items()
        }
    of_reference = [[(number, f"cup {i}", "gref_umd", COCO_NAMES[number]) for i in range(2)] for number in range(2)]
    assert found["refcocog"] == {"val": of_reference[0], "test": of_reference[1]}
    assert found["gref"] == {"val": [(1, f"cup {i}", "gref", COCO_NAMES[1]) for i in range(2)]}
    assert "| test | 2 | 9602 | refs(umd).p |" in (tmp_path / "refcocog" / "README.md").read_text()

    (folder / "refs(umd).p").unlink()
    message = refused(tmp_path, "--refer", folder, "--dataset", "gref_umd", "--images", images)
    assert "refs(umd).p does not exist" in message


def test_refer_references_that_do_not_fit_are_reported(tmp_path, images):
    folder = refer_folder(tmp_path / "refcoco")
    references = pickle.loads((folder / "refs(unc).p").read_bytes())
    references += [{**references[0], "split": "dev"}, {**references[0], "ann_id": 5, "split": "val"}, "junk"]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references))
    arguments = ("--refer", folder, "--dataset", "unc", "--images", images)
    code, _, err = run(*arguments, "--split", "train", "--output", tmp_path / "out")
    assert code == 0 and "reference 2: its split is 'dev'" in err and "reference 4: it is not a dictionary" in err
    assert "instances.json has no annotation 5" in refused(tmp_path, *arguments, "--split", "val")
    (folder / "instances.json").write_text("[" * 100_000)
    assert "not valid JSON" in refused(tmp_path, *arguments)
    (folder / "instances.json").unlink()
    assert "instances.json does not exist" in refused(tmp_path, *arguments)


def test_compressed_runs_decode_as_the_coco_api_does():
    rng = np.random.default_rng(1)
    for density in (0.02, 0.5, 0.98, 0.0, 1.0):
        mask = np.asfortranarray((rng.random((37, 53)) < density).astype(np.uint8))
        counts = decode_rle_counts(coco_masks.encode(mask)["counts"])
        assert np.array_equal(
            coco_masks.decode(coco_masks.frPyObjects({"size": [37, 53], "counts": counts}, 37, 53)), mask
        )


# Mixtures -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def parts(tmp_path_factory, images) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    for dataset, splits in {"unc": ("train", "testA"), "unc+": ("train",), "gref_umd": ("train", "val")}.items():
        for split in splits:
            picture = {"testA": 3, "val": 2}.get(split)
            records = [coco_record(i if picture is None else picture, f"{dataset} {i}") for i in range(5)]
            file = folder / f"{dataset}_{split}.pth"
            torch.save(records, file)
            assert run(file, "--dataset", dataset, "--images", images, "--output", folder / dataset)[0] == 0
    return {name: folder / name for name in ("unc", "unc+", "gref_umd")}


def test_a_mixture_is_concatenated_in_order_and_shuffled_by_seed(tmp_path, parts):
    folders = [parts["gref_umd"], parts["unc"], parts["unc+"]]
    phrases = {}
    for name, extra in {"plain": (), "a": ("--shuffle", 3), "b": ("--shuffle", 3), "c": ("--shuffle", 4)}.items():
        code, _, err = run("--build", "mixup_with_refc", *folders, "--output", tmp_path / name, *extra)
        assert code == 0 and "15 expressions found, 321327 known" in err
        rows = rows_of(tmp_path / name, "train")
        phrases[name] = [row["phrase"] for row in rows]
        assert all(row["phrase"].startswith(row["source"] + " ") for row in rows)
    assert phrases["plain"] == [f"{part} {i}" for part in ("unc", "unc+", "gref_umd") for i in range(5)]
    assert phrases["a"] == phrases["b"] != phrases["plain"]
    assert phrases["c"] != phrases["a"] and sorted(phrases["a"]) == sorted(phrases["plain"])


def test_a_mixture_is_evaluated_on_one_of_its_parts(tmp_path, parts):
    """As in the release: RefCOCOg's other splits, and no RefCOCO test split."""
    assert run("--build", "mixup_with_refc", *parts.values(), "--output", tmp_path / "mix", "--shuffle", 3)[0] == 0
    assert sorted(load_dataset(str(tmp_path / "mix"), cache_dir=str(tmp_path / "cache"))) == ["train", "val"]
    assert rows_of(tmp_path / "mix", "val") == rows_of(parts["gref_umd"], "val")
    assert "| val | 5 | 4896 | gref_umd |" in (tmp_path / "mix" / "README.md").read_text()


def test_the_mixture_with_referit_takes_all_of_its_four_parts(tmp_path, parts, images):
    records = [("38685.jpg", f"38685_{i}.pth", [5, 6, 30, 21], f"referit {i}", [("r1", ["a"])]) for i in range(3)]
    for split, count in {"train": 3, "test": 1}.items():
        torch.save(records[:count], tmp_path / f"referit_{split}.pth")
        arguments = (tmp_path / f"referit_{split}.pth", "--dataset", "referit", "--images", images)
        assert run(*arguments, "--output", tmp_path / "referit")[0] == 0
    folders = [tmp_path / "referit", *parts.values()]
    code, out, err = run("--build", "mixup_with_refc_referit", *folders, "--output", tmp_path / "mix")
    assert code == 0 and "18 expressions found, 375454 known" in err
    assert "mixup_with_refc_referit (train): 18 rows, 0 kept out" in out
    rows = rows_of(tmp_path / "mix", "train")
    expected = [f"{part} {i}" for part in ("unc", "unc+", "gref_umd") for i in range(5)]
    assert [row["phrase"] for row in rows] == [*expected, *(f"referit {i}" for i in range(3))]
    assert {key: rows[-1][key] for key in REFERIT} == {**REFERIT, "phrase": "referit 2"}
    assert rows[-1]["polygons"] is None and rows[0]["polygons"] == POLYGON
    assert sorted(load_dataset(str(tmp_path / "mix"), cache_dir=str(tmp_path / "cache"))) == ["train", "val"]
    assert rows_of(tmp_path / "mix", "val") == rows_of(parts["gref_umd"], "val")  # not ReferItGame's test split
    card = (tmp_path / "mix" / "README.md").read_text()
    assert "| train | 18 | 375454 |" in card and "| val | 5 | 4896 | gref_umd |" in card


def test_pictures_of_evaluation_splits_are_kept_out(tmp_path, parts, images):
    exclude = ("--exclude-images-of", f"{parts['unc']}:testA", "--exclude-images-of", f"{parts['gref_umd']}:val")
    assert run("--build", "mixup_with_refc", *parts.values(), "--output", tmp_path / "mix", *exclude)[0] == 0
    kept = {Path(row["image_file"]).name for row in rows_of(tmp_path / "mix", "train")}
    assert kept == set(COCO_NAMES[:2])
    assert (tmp_path / "mix/excluded_images.txt").read_text().split() == COCO_NAMES[2:]

    torch.save([coco_record(index) for index in range(4)], tmp_path / "gref_train.pth")
    code, out, _ = run(
        tmp_path / "gref_train.pth", "--dataset", "gref", "--images", images, "--output", tmp_path / "gref", *exclude
    )
    assert code == 0 and "2 rows" in out and "excluded splits: 2" in out


def test_an_incomplete_mixture_is_refused(tmp_path, parts):
    message = refused(tmp_path, "--build", "mixup_with_refc_referit", *parts.values())
    assert "made of unc, unc+, gref_umd, referit; the folders given hold unc, unc+, gref_umd" in message
    assert "321327 known" in refused(tmp_path, "--build", "mixup_with_refc", *parts.values(), "--strict")
    assert "no split 'dev'" in refused(
        tmp_path, "--build", "mixup_with_refc", *parts.values(), "--exclude-images-of", f"{parts['unc']}:dev"
    )


# Hostile and damaged files ------------------------------------------------------------------------------------------
def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("unc_val/data.pkl", data)
        archive.writestr("unc_val/version", "3\n")
    return buffer.getvalue()


class _Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def test_a_pickle_that_calls_something_is_refused_and_nothing_runs(tmp_path, images):
    marker = tmp_path / "executed"
    touch, write = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    for call in (_Call(os.system, touch), _Call(eval, write), _Call(open, str(marker), "w")):
        for content in ([call], [coco_record(), changed(3, call)]):
            for data in (pickle.dumps(content), zipped(pickle.dumps(content, protocol=2))):
                (tmp_path / "unc_val.pth").write_bytes(data)
                message = refused(tmp_path, tmp_path / "unc_val.pth", "--dataset", "unc", "--images", images)
                assert "is refused: the file asks to import" in message
    assert not marker.exists()


def test_files_of_another_kind_get_one_sentence_each(tmp_path, images):
    file = tmp_path / "unc_val.pth"
    good = io.BytesIO()
    torch.save([coco_record()], good)
    cases = {
        b"": "damaged or not an annotation file",
        b"hello": "damaged or not an annotation file",
        good.getvalue()[:-40]: "damaged or not an annotation file",
        b"PK\3\4": "damaged or not an annotation file",
        pickle.dumps({"train": []}): "holds a dict",
        pickle.dumps({"model": {}, "epoch": 3}): "is a model checkpoint",
        pickle.dumps([]): "no records",
    }
    for data, sentence in cases.items():
        file.write_bytes(data)
        assert sentence in refused(tmp_path, file, "--dataset", "unc", "--images", images)
    torch.save({"model": {"weight": torch.zeros(3)}}, file)
    assert "holds tensors, as checkpoints do" in refused(tmp_path, file, "--dataset", "unc", "--images", images)
    assert "No such file" in refused(tmp_path, tmp_path / "x_val.pth", "--dataset", "unc", "--images", images)
    assert "--images wants" in refused(tmp_path, file, "--dataset", "unc", "--images", tmp_path / "nowhere")
    assert "no dataset is called 'ucn'; did you mean 'unc'" in refused(
        tmp_path, file, "--dataset", "ucn", "--images", images
    )
    file.rename(tmp_path / "dev.pth")
    assert "does not end in a split" in refused(tmp_path, tmp_path / "dev.pth", "--dataset", "unc", "--images", images)


def test_the_command_exits_with_one_sentence_and_no_traceback(tmp_path, images):
    (tmp_path / "unc_val.pth").write_bytes(b"junk")
    script = Path(__file__).parents[2] / "conversion" / "convert_annotations.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "unc_val.pth", "--dataset=unc", f"--images={images}", "--output=out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("convert_annotations: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unc_val.pth"]


_watching = False
_dangerous: list[str] = []


def _audit(event, _arguments):
    if _watching and event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"):
        _dangerous.append(event)


INSERTED = [b"cos\nsystem\n(S'exit 1'\ntR", b"cbuiltins\neval\n", b"\x93", b"0", b"(", b"R", b"Q", b"b"]


def mutate(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        start = rng.randrange(len(data))
        del data[start : start + rng.randint(1, 30)]
    else:
        at = rng.randrange(len(data))
        data[at:at] = rng.choice(
            [b"cos\nsystem\n(S'exit 1'\ntR", b"cbuiltins\neval\n", b"\x93", b"0", b"(", b"R", b"Q", b"b"]
        )
    return bytes(data)


def swap_opcodes(data: bytes, rng: random.Random) -> bytes:
    opcodes = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
    positions = [position for _, _, position in pickletools.genops(data)]
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        position = rng.choice(positions)
        data[position : position + 1] = rng.choice(opcodes)
    return bytes(data)


@pytest.fixture
def manifest_read_once(monkeypatch):
    manifest = load_manifest()
    monkeypatch.setattr("convert_annotations.load_manifest", lambda: manifest)


def fuzz(tmp_path, file: Path, contents, arguments) -> None:
    """Every mutated file either converts completely or is refused with one sentence and no trace."""
    global _watching
    sys.addaudithook(_audit)
    out = tmp_path / "out"
    before = sorted(path.name for path in tmp_path.iterdir())

    def hang(*_):
        raise TimeoutError("more than 10 seconds for one file")

    previous = signal.signal(signal.SIGALRM, hang)
    outcomes = {0: 0, 1: 0}
    for number, content in enumerate(contents):
        file.write_bytes(content)
        signal.alarm(10)
        _watching = True
        try:
            code, _, err = run(*arguments, "--output", out)
        finally:
            _watching = False
            signal.alarm(0)
        outcomes[code] += 1
        if code:
            assert err.splitlines()[-1].startswith("convert_annotations: "), number
        else:
            table = load_dataset("parquet", data_dir=str(out / "data"), cache_dir=str(tmp_path / "cache"))
            assert all(row["phrase"].strip() and len(row["box"]) == 4 for rows in table.values() for row in rows)
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            out.rmdir()
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == before, number
    signal.signal(signal.SIGALRM, previous)
    assert not _dangerous
    assert outcomes[1] > 100 and outcomes[0] > 10, outcomes  # the mutations neither all fail nor all pass


def test_mutated_split_files_never_crash_run_or_leave_anything(tmp_path, images, manifest_read_once):
    rng = random.Random(0)
    records = [coco_record(index, f"the {index} cup") for index in range(8)]
    inner = pickle.dumps(records, protocol=2)
    legacy = io.BytesIO()
    torch.save(records, legacy, _use_new_zipfile_serialization=False)
    contents = [mutate(zipped(inner), rng) for _ in range(100)]
    contents += [zipped(mutate(inner, rng)) for _ in range(150)]
    contents += [zipped(swap_opcodes(inner, rng)) for _ in range(150)]
    contents += [mutate(legacy.getvalue(), rng) for _ in range(100)]
    file = tmp_path / "unc_val.pth"
    file.touch()
    fuzz(tmp_path, file, contents, (file, "--dataset", "unc", "--images", images))


def test_mutated_refer_files_never_crash_run_or_leave_anything(tmp_path, images, manifest_read_once):
    rng = random.Random(1)
    folder = refer_folder(tmp_path / "refcoco")
    file = folder / "refs(unc).p"
    good = file.read_bytes()
    contents = [mutate(good, rng) for _ in range(350)] + [swap_opcodes(good, rng) for _ in range(150)]
    fuzz(tmp_path, file, contents, ("--refer", folder, "--dataset", "unc", "--images", images))


def test_mutated_instances_never_crash_or_leave_anything(tmp_path, images, manifest_read_once):
    rng = random.Random(2)
    folder = refer_folder(tmp_path / "refcoco")
    file = folder / "instances.json"
    good = file.read_bytes()
    numbers = [match.span() for match in re.finditer(rb"-?\d+(\.\d+)?", good)]
    contents = [mutate(good, rng) for _ in range(250)]
    for _ in range(250):  # still valid JSON
        start, end = rng.choice(numbers)
        odd = rng.choice([b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"NaN", b"9" * 400, b"true", b"0.5"])
        contents.append(good[:start] + odd + good[end:])
    fuzz(tmp_path, file, contents, ("--refer", folder, "--dataset", "unc", "--images", images))
