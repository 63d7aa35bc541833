# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The one record of this package: a picture, a phrase, and where the phrase is found.

Every source (`sources.py`) is brought to the columns of `record_features`, one row per phrase:

- `id`: unique name of the record; its own, or file and line, with `#0`, `#1`, ... where one row holds several phrases.
- `image`: the picture, decoded when it is read (`datasets.Image`).
- `image_file`: its path or address as the source has it; null where the picture is embedded without a name.
- `phrase`: the expression as annotated; the processor lower-cases.
- `box`: x0, y0, x1, y1 in pixels of the upright picture, as annotated; may be null for prediction.
- `box_truncated`: the target of training and evaluation; every *stored* number is cut to an integer before x + w is
  added, as the original does.
- `polygons`: COCO polygons in pixels, flat lists x0, y0, x1, y1, ...
- `rle`: COCO run lengths, uncompressed; `size` is (height, width), `counts` go column by column, background first.
- `mask`: a picture of the mask, non-zero = the object.
- `height`, `width`: of the picture, where the source says.
- `source`: the data set that the record comes from.
- `expression_type`: kind of phrase, for the breakdown of an evaluation; free text.
- `semantic_relation_labels`: scores of the 62 text positions between the first and the last.

At most one of `polygons`, `rle` and `mask` is not null. All but `id`, `image`, `phrase` and `source` may be.
"""

from __future__ import annotations

import functools
import io
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..letterbox_oneref import flatten_images
from .rasterize import decoded_counts, polygons_to_mask, rle_to_mask, segmentation_to_mask


# What a row of a source may hold; `make_record` explains each.
ROW_FIELDS = (
    "id",
    "image",
    "phrase",
    "box",
    "box_xywh",
    "box_truncated",
    "segmentation",
    "polygons",
    "rle",
    "height",
    "width",
    "source",
    "expression_type",
    "semantic_relation_labels",
)

SEGMENTATIONS = ("polygons", "rle", "mask")  # the columns that a mask may be in
MAX_PHRASE = 10_000
MAX_COORDINATE = 1_000_000
MAX_SIDE = 100_000


class MalformedRow(ValueError):
    """One row of a source cannot become a record; the message says why."""


@functools.cache
def record_features():
    """The typed columns of a record, `datasets.Features`."""
    from datasets import Features, Image, List, Value

    return Features(
        {
            "id": Value("string"),
            "image": Image(),
            "image_file": Value("string"),
            "phrase": Value("string"),
            "box": List(Value("float64"), length=4),
            "box_truncated": List(Value("int32"), length=4),
            "polygons": List(List(Value("float64"))),
            "rle": {"size": List(Value("int32")), "counts": List(Value("int64"))},
            "mask": Image(),
            "height": Value("int32"),
            "width": Value("int32"),
            "source": Value("string"),
            "expression_type": Value("string"),
            "semantic_relation_labels": List(Value("float64")),
        }
    )


def make_record(row: Mapping[str, Any], *, default_id: str, default_source: str) -> dict:
    """Checks a row and gives it the columns of `record_features`.

    Args:
        row: any of `ROW_FIELDS`; null, an empty text and a missing key are the same.
            `image` (required): path, address, or `{"path": ..., "bytes": ...}`; it is not opened here.
            `phrase` (required): text.
            `box`: corners x0, y0, x1, y1 in pixels; or `box_xywh`: left, top, width, height.
            `box_truncated`: where it cannot be computed from the box that is given.
            `segmentation`: COCO polygons (or a single flat one), COCO run lengths, a path of a mask picture or
            `{"path": ..., "bytes": ...}`, or the JSON text of any of these. `polygons` and `rle` are parts of it.
        default_id, default_source: for rows that do not say.

    Raises:
        MalformedRow: says which field is wrong and how.
    """
    row = {name: value for name, value in row.items() if not _is_nothing(value)}
    image = _image(row.get("image"))
    height, width = _size(row)
    return {
        "id": _text(row.get("id", default_id), "id"),
        "image": image,
        "image_file": image["path"],
        "phrase": _phrase(row.get("phrase")),
        **_boxes(row, height, width),
        **_segmentation(row, height, width),
        "height": height,
        "width": width,
        "source": _text(row.get("source", default_source), "source"),
        "expression_type": _text(row["expression_type"], "expression_type") if "expression_type" in row else None,
        "semantic_relation_labels": _numbers(row["semantic_relation_labels"], "semantic_relation_labels")
        if "semantic_relation_labels" in row
        else None,
    }


def undecoded(records):
    """The same `datasets.Dataset` or `IterableDataset` with its pictures as they are stored, for `open_image`."""
    from datasets import Image

    for column in ("image", "mask"):
        records = records.cast_column(column, Image(decode=False))
    return records


def open_image(value) -> Image.Image:
    """The picture of a record, decoded or not, as a PIL image.

    Args:
        value: PIL image, path, http(s) or data address, another that `datasets` opens (such as hf:// and zip://), or
            `{"path": ..., "bytes": ...}` as `datasets` stores it.

    Raises:
        ImportError: if only `datasets` opens such an address and it is not installed.
        ValueError: if there is no such file or answer, or it is not a readable picture.
    """
    if isinstance(value, Mapping) and value["bytes"] is None:
        value = value["path"]
    if isinstance(value, str) and is_address(value) and not value.startswith(("http://", "https://", "data:")):
        value = {"path": value, "bytes": _fetched(value)}
    if isinstance(value, Mapping):
        try:
            picture = Image.open(io.BytesIO(value["bytes"]))
            picture.load()
        except Exception as error:  # decoders fail in every possible way
            raise ValueError(f"The embedded image {value['path'] or ''!r} is not readable: {error}") from error
        return picture
    try:
        return flatten_images(value)[0]
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def is_address(path: str) -> bool:
    """Whether a picture is not in a file of this machine's, but at an address of any kind."""
    return "://" in path or path.startswith("data:")


def _fetched(address: str) -> bytes:
    """What a data set that is streamed, or read from an archive, has at hf://..., zip://...::..., and so on."""
    try:
        from datasets.utils.file_utils import xopen
    except ImportError as error:
        raise ImportError(f"Opening {address!r} needs datasets: pip install oneref-hf[train].") from error
    try:
        with xopen(address, "rb") as file:
            return file.read()
    except Exception as error:  # whatever the network or the archive says
        raise ValueError(f"No picture could be read from {address!r}: {error}") from error


def target_mask(record: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray | None:
    """The annotated mask, uint8 `(height, width)` of the upright picture, 1 = the object; None where there is none.

    Raises:
        ValueError: if the annotation is for a picture of another size, or the mask picture is not readable.
    """
    if record["polygons"] is not None:
        return polygons_to_mask(record["polygons"], size)
    if record["rle"] is not None:
        return rle_to_mask(record["rle"], size)
    if record["mask"] is not None:
        return segmentation_to_mask(open_image(record["mask"]), size)
    return None


def has_segmentation(record: Mapping[str, Any]) -> bool:
    """Whether a record has a mask in any form."""
    return any(record[name] is not None for name in SEGMENTATIONS)


# Fields -----------------------------------------------------------------------------------------------------------
def _is_nothing(value: Any) -> bool:
    """Null, an empty text, or a structure of nulls, which is what Arrow may make of a null structure."""
    if isinstance(value, Mapping):
        return all(part is None for part in value.values())
    return value is None or value == ""


def _text(value: Any, name: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not _is_valid_text(value):
        raise MalformedRow(f"{name} is {_shown(value)}, not text")
    return value


def _phrase(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise MalformedRow("the phrase is empty")
    if not isinstance(value, str):
        raise MalformedRow(f"the phrase is {_shown(value)}, not text")
    if len(value) > MAX_PHRASE or not _is_valid_text(value):
        raise MalformedRow(f"the phrase {_shown(value)} is too long or not valid text")
    return value


def _is_valid_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates, which Arrow cannot store
        return False
    return True


def _image(value: Any, name: str = "image") -> dict:
    """As `datasets.Image` stores it."""
    if isinstance(value, str):
        value = {"path": value, "bytes": None}
    if isinstance(value, (bytes, bytearray)):
        value = {"path": None, "bytes": bytes(value)}
    if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
        raise MalformedRow(f"the {name} is {_shown(value)}, not a path, an address or an embedded picture")
    path = value.get("path")
    if path is not None and (not isinstance(path, str) or "\0" in path or not _is_valid_text(path)):
        raise MalformedRow(f"the {name} path is {_shown(path)}")
    return {"path": path, "bytes": value.get("bytes")}


def _size(row: Mapping) -> tuple[int | None, int | None]:
    sides = [row.get("height"), row.get("width")]
    if sides.count(None) == 2:
        return None, None
    for name, side in zip(("height", "width"), sides):
        if side is None or _number(side, name) != int(side) or not 1 <= side <= MAX_SIDE:
            raise MalformedRow(
                f"the {name} of the picture is {_shown(side)}; give height and width in pixels, or none"
            )
    return int(sides[0]), int(sides[1])


def _boxes(row: Mapping, height: int | None, width: int | None) -> dict:
    if "box" in row and "box_xywh" in row:
        raise MalformedRow("it has both box and box_xywh")
    name = "box_xywh" if "box_xywh" in row else "box"
    if name not in row:
        return {"box": None, "box_truncated": None}
    numbers = _numbers(row[name], name)
    if len(numbers) != 4:
        raise MalformedRow(f"{name} has {len(numbers)} numbers, not 4")
    x0, y0, x1, y1 = numbers
    truncated = [int(number) for number in numbers]  # towards zero
    if name == "box_xywh":
        x1, y1 = x0 + x1, y0 + y1
        truncated[2] += truncated[0]
        truncated[3] += truncated[1]
    if x1 < x0 or y1 < y0:
        raise MalformedRow(f"{name} {numbers} has a negative width or height")
    if max(x1, y1) <= 1:
        raise MalformedRow(f"{name} {numbers} lies within one pixel; boxes are in pixels, not in fractions")
    if width is not None and (x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0):
        raise MalformedRow(f"{name} {numbers} lies outside the picture of {width} x {height} pixels")
    if "box_truncated" in row:
        truncated = [int(number) for number in _numbers(row["box_truncated"], "box_truncated")]
        if len(truncated) != 4 or truncated[2] < truncated[0] or truncated[3] < truncated[1]:
            raise MalformedRow(f"box_truncated is {truncated}, not x0, y0, x1, y1")
    return {"box": [x0, y0, x1, y1], "box_truncated": truncated}


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_COORDINATE:
        raise MalformedRow(f"{name} holds {_shown(value)}, not a number of pixels")
    return value


def _numbers(value: Any, name: str) -> list[float]:
    """From a list, or from text such as `1, 2, 3, 4` or `[1 2 3 4]`."""
    if isinstance(value, str):
        try:
            value = [float(part) for part in re.split(r"[\s,]+", value.strip(" \t[]()"))]
        except ValueError:
            raise MalformedRow(f"{name} is {_shown(value)}, not a list of numbers") from None
    if not isinstance(value, (list, tuple)):
        raise MalformedRow(f"{name} is {_shown(value)}, not a list of numbers")
    return [float(_number(item, name)) for item in value]


def _segmentation(row: Mapping, height: int | None, width: int | None) -> dict:
    columns: dict[str, Any] = {"polygons": None, "rle": None, "mask": None}
    given = [name for name in ("segmentation", "polygons", "rle") if name in row]
    if len(given) > 1:
        raise MalformedRow(f"it has both {given[0]} and {given[1]}")
    value = row[given[0]] if given else None
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise MalformedRow("the segmentation is not valid JSON") from None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0]  # as ReferItGame's `refer` files have it
    if value is None or value == []:
        return columns
    if isinstance(value, Mapping) and "counts" in value:
        return {**columns, "rle": _rle(value, height, width)}
    if isinstance(value, list):
        return {**columns, "polygons": _polygons(value)}
    return {**columns, "mask": _image(value, "segmentation")}


def _polygons(value: list) -> list[list[float]]:
    polygons = value if isinstance(value[0], (list, tuple)) else [value]
    polygons = [_numbers(polygon, "a polygon") for polygon in polygons]
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise MalformedRow(f"a polygon has {len(polygon)} numbers; at least three x, y pairs are needed")
    return polygons


def _rle(value: Mapping, height: int | None, width: int | None) -> dict:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or min(_number(side, "size") for side in size) < 1:
        raise MalformedRow(f"the size of the run lengths is {_shown(size)}, not [height, width]")
    size = [int(side) for side in size]
    if height is not None and size != [height, width]:
        raise MalformedRow(f"the run lengths are for {size} (height, width), the picture is {[height, width]}")
    if isinstance(counts, (str, bytes)):
        try:
            counts = decoded_counts(counts)
        except ValueError as error:
            raise MalformedRow(str(error)) from None
    elif not isinstance(counts, (list, tuple)) or any(isinstance(c, bool) or not isinstance(c, int) for c in counts):
        raise MalformedRow(f"the counts of the run lengths are {_shown(counts)}, not whole numbers")
    if sum(counts) != math.prod(size) or min(counts) < 0:
        raise MalformedRow(f"the run lengths cover {sum(counts)} pixels; the picture has {math.prod(size)}")
    return {"size": size, "counts": list(counts)}


def _shown(value: Any) -> str:
    """A short mention of a value."""
    if value is None:
        return "missing"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = [
    "ROW_FIELDS",
    "SEGMENTATIONS",
    "MalformedRow",
    "has_segmentation",
    "is_address",
    "make_record",
    "open_image",
    "record_features",
    "target_mask",
    "undecoded",
]
