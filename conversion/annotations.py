# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the original's annotation files and turns every record into one typed row.

A row stands for one phrase. Two boxes are kept because the original uses two: `box` is the annotation as it is, from
which box masks are drawn; `box_truncated` is the target of training and evaluation, where the original truncates each
*stored* number (x, y, w, h for most files) before adding, which cannot be recovered from `box`.

Columns (`ROW_COLUMNS`): image_file, image_id, phrase, box (xyxy float pixels), box_truncated (xyxy integer pixels),
polygons (COCO), rle (COCO, uncompressed), height, width, source, split, ann_id, ref_id, sentence_id,
semantic_relation_labels. What a source does not hold is None.
"""

import hashlib
import mmap
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safe_pickle import BrokenPickleError, UnsafePickleError, read_pickle


SPLITS = ("train", "val", "trainval", "test", "testA", "testB", "train_pseudo")
COCO_DATASETS = ("unc", "unc+", "gref", "gref_umd")
MIXTURES = ("mixup", "mixup_with_sts", "mixup_with_refc", "mixup_with_refc_referit")
SEMANTIC_POSITIONS = 62  # text positions between the first and the last of 64

# Sanity bounds: far above anything in the released files, low enough that hostile ones stay cheap.
MAX_COORDINATE = 1_000_000
MAX_SIDE = 100_000
MAX_PHRASE = 10_000
MAX_NUMBERS_PER_MASK = 1_000_000
MAX_PICKLE_BYTES = 2**31

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file by torch.save before version 1.6
_COCO_NAME = re.compile(r"COCO_[a-z]+[0-9]{4}_([0-9]{12})\.\w+")


class AnnotationError(ValueError):
    """The file, folder or request cannot be used; the message is one sentence for a person."""


class MalformedRecord(ValueError):
    """One record does not fit its layout; the message says why."""


# Files ------------------------------------------------------------------------------------------------------------
def read_split_file(path: Path) -> list:
    """The list of records in a file by `torch.save` (zip or the older stream) or `pickle.dump`; nothing is executed.

    Raises:
        AnnotationError: the file is missing, damaged, unsafe, or holds something else.
    """
    path = Path(path)
    records = read_pickle_file(path)
    if isinstance(records, dict) and "model" in records:
        raise AnnotationError(f"{path} is a model checkpoint; an annotation file holds a list of records.")
    if not isinstance(records, (list, tuple)):
        raise AnnotationError(f"{path} holds a {type(records).__name__}; expected a list of records.")
    if not records:
        raise AnnotationError(f"{path} holds no records.")
    return records


def read_pickle_file(path: Path) -> Any:
    """What a file by `torch.save` (without tensors) or `pickle.dump` holds; raises as `read_split_file`."""
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\3\4":
                return _read_zip(file)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_stream(data)
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnsafePickleError as error:
        if "torch._utils" in str(error):
            raise AnnotationError(f"{path} holds tensors, as checkpoints do; annotations are plain lists.") from error
        fault = "damaged or not an annotation file" if isinstance(error, BrokenPickleError) else "refused"
        raise AnnotationError(f"{path} is {fault}: {error}.") from error
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OverflowError, struct.error) as error:
        raise AnnotationError(f"{path} is damaged or not an annotation file: {error}.") from error


def _read_zip(file) -> Any:
    with zipfile.ZipFile(file) as archive:
        found = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise ValueError("the archive was not written by torch.save (it has no single data.pkl)")
        if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("the archive uses a compression that torch.save does not write")
        if found[0].file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its pickle claims {found[0].file_size} bytes, more than any annotation file has")
        data = archive.read(found[0])
    return read_pickle(data)[0]


def _read_stream(data) -> Any:
    first, end = read_pickle(data)
    if not isinstance(first, int) or first != _TORCH_MAGIC:
        return first
    for _ in ("protocol version", "system information"):
        _, end = read_pickle(data, end)
    return read_pickle(data, end)[0]


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def split_in_name(path: Path) -> str:
    """The split that a file name such as `unc+_testA.pth` ends in."""
    for split in sorted(SPLITS, key=len, reverse=True):
        if Path(path).stem.endswith(f"_{split}"):
            return split
    raise AnnotationError(f"{path}: the name does not end in a split ({', '.join(SPLITS)}); give it with --split.")


# Records ----------------------------------------------------------------------------------------------------------
def record_to_row(record: Any, dataset: str, split: str) -> dict:
    """Normalises one record of a split file.

    Args:
        record: list or tuple of 3, 5 or 6 fields, in the layout of `dataset`.
        dataset: key of the original, or a mixture.
        split: one of `SPLITS`; pseudo-labelled COCO records may lack size and polygons.

    Returns:
        The row. `source` is `dataset`; inside a mixture, whose COCO records do not tell theirs, it is
        `coco`, `referit` or `flickr`. `image_file` is the bare file name.

    Raises:
        MalformedRecord: says which field is wrong.
    """
    if not isinstance(record, (list, tuple)):
        raise MalformedRecord(f"it is {describe(record)}, not a list of fields")
    if dataset == "flickr":
        name, box, phrase = _of_length(record, 3)
        return make_row(name, phrase, box, "xyxy", source="flickr", split=split)
    if dataset == "referit":
        name, _mask_name, box, phrase, _attributes = _of_length(record, 5)
        return make_row(name, phrase, box, "xyxy", source="referit", split=split)

    labels = None
    if dataset in MIXTURES:
        if len(record) == 6:
            *record, labels = record
        name, part, box, phrase, segmentation = _of_length(record, 5)
        if isinstance(name, str) and name.split("_")[0] == "COCO":
            source = "coco"
        elif isinstance(part, str) and part in ("flickr", "referit"):
            return make_row(name, phrase, box, "xywh", source=part, split=split, semantic_relation_labels=labels)
        else:
            raise MalformedRecord("it is neither a COCO, a ReferItGame nor a Flickr30k record")
    else:
        name, part, box, phrase, segmentation = _of_length(record, 5)
        source = dataset
    if split == "train_pseudo" and not isinstance(part, dict):
        part = segmentation = None
    elif not isinstance(part, dict):
        raise MalformedRecord(f"field 1 is {describe(part)}, not the image size; older projects stored other fields")
    elif segmentation is None:
        raise MalformedRecord("it has no polygons")
    return make_row(
        name,
        phrase,
        box,
        "xywh",
        size=part,
        segmentation=segmentation,
        source=source,
        split=split,
        semantic_relation_labels=labels,
    )


def make_row(
    image_file: Any,
    phrase: Any,
    box: Any,
    box_format: str,
    *,
    source: str,
    split: str,
    size: Any = None,
    segmentation: Any = None,
    semantic_relation_labels: Any = None,
    **identifiers: int | None,
) -> dict:
    """Checks raw values and builds a row; `identifiers` are image_id, ann_id, ref_id and sentence_id.

    Args:
        box: four numbers, `xyxy` corners or `xywh` (top left x, y, width, height), in pixels.
        size: mapping with `height` and `width`, or None.
        segmentation: COCO polygons, COCO RLE (either form), or None.
    """
    height, width = (None, None) if size is None else _image_size(size)
    boxes = _boxes(box, box_format)
    row = {
        "image_file": _file_name(image_file),
        "phrase": _phrase(phrase),
        **boxes,
        **_segmentation(segmentation, height, width),
        "height": height,
        "width": width,
        "source": source,
        "split": split,
        "semantic_relation_labels": _semantic_labels(semantic_relation_labels),
        **{key: identifiers.get(key) for key in ("image_id", "ann_id", "ref_id", "sentence_id")},
    }
    if row["image_id"] is None and (match := _COCO_NAME.fullmatch(row["image_file"])):
        row["image_id"] = int(match[1])
    return row


def describe(value: Any) -> str:
    """A short, safe mention of a value from a file: of containers the type alone, as hostile ones unfold endlessly."""
    if isinstance(value, str):
        return ascii(value[:40]) + ("..." if len(value) > 40 else "")
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return repr(value)
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _of_length(record, length: int):
    if len(record) != length:
        raise MalformedRecord(f"it has {len(record)} fields, not {length}")
    return record


def _number(value: Any, what: str, low: float = -MAX_COORDINATE, high: float = MAX_COORDINATE) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MalformedRecord(f"{what} is {describe(value)}, not a number")
    if not low <= value <= high:  # also false for NaN
        raise MalformedRecord(f"{what} is {describe(value)}, outside {low} to {high}")
    return value


def _numbers(value: Any, what: str) -> list:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise MalformedRecord(f"{what} is {describe(value)}, not a list of numbers")
    if len(value) > MAX_NUMBERS_PER_MASK:
        raise MalformedRecord(f"{what} has {len(value)} numbers")
    return [_number(item, what) for item in value]


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 255:
        raise MalformedRecord(f"the image file name is {describe(value)}")
    if value in (".", "..") or any(mark in value for mark in ("/", "\\", ":", "\0")) or not _is_text(value):
        raise MalformedRecord(f"the image file name {describe(value)} is not a plain file name")
    return value


def _phrase(value: Any) -> str:
    if not isinstance(value, str):
        raise MalformedRecord(f"the phrase is {describe(value)}, not text")
    if not value.strip():
        raise MalformedRecord("the phrase is empty")
    if len(value) > MAX_PHRASE or not _is_text(value):
        raise MalformedRecord(f"the phrase {describe(value)} is too long or not valid text")
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True


def _image_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, dict) or not {"height", "width"} <= set(size):
        raise MalformedRecord(f"the image size is {describe(size)}, not a height and a width")
    sides = [_number(size[side], f"the image {side}", 1, MAX_SIDE) for side in ("height", "width")]
    if any(side != int(side) for side in sides):
        raise MalformedRecord(f"the image size {sides} is not whole")
    return int(sides[0]), int(sides[1])


def _boxes(value: Any, box_format: str) -> dict:
    numbers = _numbers(value, "the box")
    if len(numbers) != 4:
        raise MalformedRecord(f"the box has {len(numbers)} numbers, not 4")
    a, b, c, d = numbers
    x2, y2 = (a + c, b + d) if box_format == "xywh" else (c, d)
    if x2 < a or y2 < b:
        raise MalformedRecord(f"the {box_format} box {numbers} has a negative width or height")
    truncated = [int(number) for number in numbers]  # towards zero, as the original does
    if box_format == "xywh":
        truncated[2] += truncated[0]
        truncated[3] += truncated[1]
    return {"box": [float(a), float(b), float(x2), float(y2)], "box_truncated": truncated}


def _semantic_labels(value: Any) -> list[float] | None:
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return None
    labels = [float(number) for number in _numbers(value, "the semantic relation labels")]
    if len(labels) != SEMANTIC_POSITIONS:
        raise MalformedRecord(f"there are {len(labels)} semantic relation labels, not {SEMANTIC_POSITIONS}")
    return labels


# Segmentations ----------------------------------------------------------------------------------------------------
def _segmentation(value: Any, height: int | None, width: int | None) -> dict:
    if value is None:
        return {"polygons": None, "rle": None}
    if height is None:
        raise MalformedRecord("it has a segmentation but no image size")
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]  # as the `refer` files of ReferItGame have it
    if isinstance(value, dict):
        return {"polygons": None, "rle": _rle(value, height, width)}
    if not isinstance(value, (list, tuple)):
        raise MalformedRecord(f"the polygons are {describe(value)}")
    if not value:
        raise MalformedRecord("it has no polygons")
    polygons, total = [], 0
    for polygon in value:
        points = [float(number) for number in _numbers(polygon, "a polygon")]
        if len(points) < 6 or len(points) % 2:
            raise MalformedRecord(f"a polygon has {len(points)} numbers; at least three x, y pairs are needed")
        total += len(points)
        if total > MAX_NUMBERS_PER_MASK:
            raise MalformedRecord("its polygons are absurdly large")
        polygons.append(points)
    return {"polygons": polygons, "rle": None}


def _rle(value: dict, height: int, width: int) -> dict:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or list(map(_whole, size)) != [height, width]:
        raise MalformedRecord(f"the size of its RLE is not the image size ({height}, {width})")
    if isinstance(counts, (str, bytes)):
        counts = decode_rle_counts(counts)
    if not isinstance(counts, (list, tuple)) or len(counts) > MAX_NUMBERS_PER_MASK:
        raise MalformedRecord(f"the counts of its RLE are {describe(counts)}")
    counts = [int(_number(count, "an RLE count", 0, height * width)) for count in counts]
    if sum(counts) != height * width:
        raise MalformedRecord(f"its RLE covers {sum(counts)} pixels; the image has {height * width}")
    return {"size": [height, width], "counts": counts}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def decode_rle_counts(text: str | bytes) -> list[int]:
    """The run lengths in COCO's compressed string.

    Digits of base 32 are stored from code 48 on, lowest first, with bit 5 set on all but the last, whose bit 4 is the
    sign. From the fourth run on a number is the difference to the run two before.
    """
    codes = text.encode("utf-8", "replace") if isinstance(text, str) else text
    counts: list[int] = []
    number = shift = 0
    for code in codes[: 7 * MAX_NUMBERS_PER_MASK]:
        digit = code - 48
        if not 0 <= digit < 64 or shift > 35:
            raise MalformedRecord("the compressed counts of its RLE are damaged")
        number |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    if shift:
        raise MalformedRecord("the compressed counts of its RLE are damaged")
    return counts
