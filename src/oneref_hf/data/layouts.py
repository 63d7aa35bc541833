# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""How the columns of a source become the fields of a record (`records.ROW_FIELDS`).

A layout turns one row into one row of fields per phrase. It is chosen by the columns of the source, in this order:

- `converted` (columns image_file, phrase, box_truncated): the output of conversion/convert_annotations.py.
- `lmms-lab` (question_id, image, answer, bbox), such as lmms-lab/RefCOCO: `answer` lists the phrases, `bbox` is x, y,
  w, h, and `segmentation` a single flat polygon.
- `jxu124` (image_path, captions, bbox, raw_anns), such as jxu124/refcoco: `captions` lists the phrases. Box (x, y, w,
  h as in COCO) and polygons come from the JSON in `raw_anns`, the size from `raw_image_info`; `bbox` (corners)
  counts only without them. Pictures lie below a COCO folder.
- `refcoco-m` (image, samples), such as moondream/refcoco-m: each of `samples` has `sentences`, `bbox` (x, y, w, h) and
  the run lengths `mask`.
- `record` (phrase): the columns are called like the fields; `phrase` may be a list.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .records import ROW_FIELDS, MalformedRow
from .sources import DatasetError


ToFields = Callable[[Mapping[str, Any]], Iterator[dict]]


@dataclass(frozen=True)
class Layout:
    """`columns` tell the layout from others, `fields` gives the rows of one row, one for each phrase."""

    columns: frozenset[str]
    fields: ToFields


def choose_layout(column_mapping: Mapping[str, str] | str | None, columns: Iterable[str], source: str) -> ToFields:
    """The function from a row to its fields.

    Args:
        column_mapping: which column holds a field, `{"phrase": "caption", "box_xywh": "bbox"}`; fields that it does
            not name are taken from columns of their own name. Or the name of a layout. None finds the layout.
        columns: of the source.
        source: its name, for messages.

    Raises:
        DatasetError: if the mapping names unknown fields or columns, or no layout fits.
    """
    columns = set(columns)
    if isinstance(column_mapping, str):
        if column_mapping not in LAYOUTS:
            raise DatasetError(f"No layout is called '{column_mapping}'; there are {', '.join(LAYOUTS)}.")
        return LAYOUTS[column_mapping].fields
    if column_mapping is not None:
        _check_mapping(column_mapping, columns, source)
        return partial(_renamed, mapping=dict(column_mapping))
    for layout in LAYOUTS.values():
        if layout.columns <= columns:
            return layout.fields
    raise DatasetError(
        f"{source} has the columns {', '.join(sorted(columns)) or '(none)'}, which fit no known layout; say with "
        "column_mapping (--columns) which hold the image, the phrase and the box."
    )


def _check_mapping(mapping: Mapping[str, str], columns: set[str], source: str) -> None:
    for field, column in mapping.items():
        if field not in ROW_FIELDS:
            close = difflib.get_close_matches(field, ROW_FIELDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(ROW_FIELDS)}."
            raise DatasetError(f"The column mapping names the unknown field {field!r}; {hint}")
        if columns and column not in columns:
            raise DatasetError(f"{source} has no column {column!r} for {field}; it has {', '.join(sorted(columns))}.")


def _renamed(row: Mapping[str, Any], mapping: Mapping[str, str]) -> Iterator[dict]:
    fields = {name: row.get(name) for name in ROW_FIELDS}
    # What is mapped elsewhere does not count under its own name, too (a `box` that is really x, y, w, h, say).
    fields = {name: value for name, value in fields.items() if name not in mapping.values()}
    yield from _per_phrase({**fields, **{field: row.get(column) for field, column in mapping.items()}})


def _per_phrase(fields: dict) -> Iterator[dict]:
    phrases = fields["phrase"]
    if not isinstance(phrases, (list, tuple)):
        yield fields
        return
    if not phrases:
        raise MalformedRow("its list of phrases is empty")
    for phrase in phrases:
        yield {**fields, "phrase": phrase}


def _record(row: Mapping) -> Iterator[dict]:
    return _renamed(row, {})


def _converted(row: Mapping) -> Iterator[dict]:
    embedded = row.get("image")
    image = row["image_file"] if embedded is None else {**embedded, "path": row["image_file"]}
    return _per_phrase({**{name: row.get(name) for name in ROW_FIELDS}, "image": image})


def _lmms_lab(row: Mapping) -> Iterator[dict]:
    return _per_phrase(
        {
            "id": row["question_id"],
            "image": row["image"],
            "phrase": row["answer"],
            "box_xywh": row["bbox"],
            "segmentation": row.get("segmentation"),
        }
    )


def _jxu124(row: Mapping) -> Iterator[dict]:
    annotation, size = _json(row, "raw_anns"), _json(row, "raw_image_info")
    return _per_phrase(
        {
            "image": row["image_path"],
            "phrase": row["captions"],
            "box_xywh": annotation.get("bbox"),
            "box": None if "bbox" in annotation else row["bbox"],
            "segmentation": annotation.get("segmentation"),
            "height": size.get("height"),
            "width": size.get("width"),
        }
    )


def _refcoco_m(row: Mapping) -> Iterator[dict]:
    for sample in row["samples"] or ():
        yield from _per_phrase(
            {
                "image": row["image"],
                "phrase": sample["sentences"],
                "box_xywh": sample["bbox"],
                "segmentation": sample["mask"],
            }
        )


def _json(row: Mapping, column: str) -> dict:
    try:
        value = json.loads(row.get(column) or "{}")
    except (TypeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise MalformedRow(f"{column} is not a JSON object")
    return value


LAYOUTS: Mapping[str, Layout] = {
    "converted": Layout(frozenset({"image_file", "phrase", "box_truncated"}), _converted),
    "lmms-lab": Layout(frozenset({"question_id", "image", "answer", "bbox"}), _lmms_lab),
    "jxu124": Layout(frozenset({"image_path", "captions", "bbox", "raw_anns"}), _jxu124),
    "refcoco-m": Layout(frozenset({"image", "samples"}), _refcoco_m),
    "record": Layout(frozenset({"phrase"}), _record),
}


__all__ = ["LAYOUTS", "choose_layout"]
