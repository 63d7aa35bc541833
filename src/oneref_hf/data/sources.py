# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Where rows come from: JSON Lines, CSV, COCO JSON and Parquet files, and data sets of the `datasets` library.

A source yields `(place, row)` in a fixed order. `place` is what a person finds the row by ("val.jsonl, line 3"); `row`
is a dictionary, or the `MalformedRow` that says why there is none. Sources can be pickled, so that they work in
processes of a data loader.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .records import MalformedRow


Rows = Iterator[tuple[str, "dict | MalformedRow"]]
CSV_CORNERS = ("x0", "y0", "x1", "y1")
# Small, because rows may carry pictures.
_PARQUET_ROWS = 64
# Enough for any mask; bounded, as a quote that is never closed makes the rest of a file one cell.
_CSV_CHARACTERS = 2**24


class DatasetError(ValueError):
    """A data set cannot be used; the message is one sentence for a person."""


@dataclass(frozen=True)
class FileSource:
    """One annotation file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def folder(self) -> Path:
        return self.path.parent

    def identity(self) -> list:
        """Changes when the file does."""
        status = self.path.stat()
        return [str(self.path.resolve()), status.st_size, status.st_mtime_ns]

    def columns(self) -> set[str]:
        """The columns of all rows, since one that says what a row is may come late (`split`)."""
        return {column for _, row in self.rows() if isinstance(row, dict) for column in row}

    def rows(self) -> Rows:
        """Every row with its place, read as they are asked for.

        Raises:
            DatasetError: if the file as a whole cannot be read.
        """
        raise NotImplementedError


class JsonLinesSource(FileSource):
    """One JSON object per line; blank lines are skipped."""

    def rows(self) -> Rows:
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf").strip()
                if line:
                    yield f"{self.path.name}, line {number}", _json_row(line)


def _json_row(line: bytes) -> dict | MalformedRow:
    try:
        row = json.loads(line)
    except RecursionError:
        return MalformedRow("it is not valid JSON (nested too deeply)")
    except ValueError as error:
        return MalformedRow(f"it is not valid JSON ({error})")
    return row if isinstance(row, dict) else MalformedRow("it is not a JSON object")


class CsvSource(FileSource):
    """A header line, then one row per phrase; tabs separate the cells of a `.tsv`.

    A box is one cell `box` with four numbers, or the four columns x0, y0, x1, y1.
    """

    def rows(self) -> Rows:
        csv.field_size_limit(max(csv.field_size_limit(), _CSV_CHARACTERS))
        # Bytes that are not UTF-8 become lone surrogates, which the check of the row then finds.
        with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",")
            while True:
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    yield f"{self.path.name}, line {reader.line_num}", MalformedRow(f"it is not valid CSV ({error})")
                    continue
                if cells is None:
                    return
                yield f"{self.path.name}, line {reader.line_num}", _csv_row(cells)


def _csv_row(cells: dict) -> dict | MalformedRow:
    if None in cells:
        return MalformedRow("it has more cells than the header; quote texts that hold the separator")
    if None in cells.values():
        return MalformedRow("it has fewer cells than the header")
    missing = [name for name in CSV_CORNERS if not cells.get(name)]
    if not missing:
        cells["box"] = " ".join(cells[name] for name in CSV_CORNERS)
    elif len(missing) < len(CSV_CORNERS) and not cells.get("box"):
        return MalformedRow(f"its box lacks {', '.join(missing)}")
    for side in ("height", "width"):
        # With gaps in the column, programs write "480.0".
        if re.fullmatch(r"\d+(\.0*)?", cells.get(side, ""), re.ASCII):
            cells[side] = int(float(cells[side]))
    return cells


class CocoSource(FileSource):
    """COCO JSON: `images` (id, file_name, height, width) and `annotations` (image_id, bbox, segmentation).

    The phrase is `phrase` or `caption` of the annotation, or `caption` of its image; it may be a list.
    """

    def rows(self) -> Rows:
        try:
            content = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{self.path} is not valid JSON: {error}.") from error
        lists = [content.get(name) for name in ("images", "annotations")] if isinstance(content, dict) else []
        if not lists or not all(isinstance(entries, list) for entries in lists):
            raise DatasetError(
                f"{self.path} is not COCO JSON, for it lacks the lists images and annotations; a list of objects "
                "belongs in a .jsonl file, one object per line."
            )
        images: dict[str, list[dict]] = {}
        for image in lists[0]:
            if isinstance(image, dict):
                images.setdefault(_key(image), []).append(image)
        for number, annotation in enumerate(lists[1]):
            yield f"{self.path.name}, annotation {number}", _coco_row(annotation, images)


def _key(entry: dict, name: str = "id") -> str:
    """Identifiers are numbers or texts, never anything that cannot be a key; 7, 7.0 and "7" are one."""
    identifier = entry.get(name)
    if isinstance(identifier, float) and identifier.is_integer():
        identifier = int(identifier)
    return identifier if isinstance(identifier, str) else json.dumps(identifier)


def _coco_row(annotation: Any, images: dict[str, list[dict]]) -> dict | MalformedRow:
    if not isinstance(annotation, dict):
        return MalformedRow("it is not an object")
    if annotation.get("image_id") is None:
        return MalformedRow("it has no image_id")
    key = _key(annotation, "image_id")
    *others, image = images.get(key, [None])
    if image is None:
        return MalformedRow(f"there is no image with the id {key}")
    if any(other.get("file_name") != image.get("file_name") for other in others):
        return MalformedRow(f"there are several images with the id {key}")
    phrase = annotation.get("phrase", annotation.get("caption", image.get("caption")))
    return {
        **annotation,
        "image": image.get("file_name"),
        "height": image.get("height"),
        "width": image.get("width"),
        "phrase": phrase,
        "box_xywh": annotation.get("bbox"),
    }


class ParquetSource(FileSource):
    """A Parquet file; rows count from 0."""

    def columns(self) -> set[str]:
        with self._readable() as file:
            return set(file.schema_arrow.names)

    def rows(self) -> Rows:
        number = 0
        with self._readable() as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield f"{self.path.name}, row {number}", row
                    number += 1

    @contextmanager
    def _readable(self):
        import pyarrow
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(self.path) as file:
                yield file
        except (OSError, pyarrow.ArrowException) as error:
            raise DatasetError(f"{self.path} is not a readable Parquet file: {error}") from error


@dataclass(frozen=True)
class LibrarySource:
    """A split (or one shard of it) that the `datasets` library has opened, pictures not decoded; rows count from 0."""

    name: str
    split: str
    dataset: Any = field(repr=False)
    shard: int | None = None
    folder: Path = Path()

    def identity(self) -> list:
        """Changes when the data set does, as far as the library tells."""
        info = self.dataset.info
        splits = {name: split.num_examples for name, split in (info.splits or {}).items()}
        facts = [self.name, self.split, self.shard, str(info.features), splits, str(info.version), info.dataset_size]
        return [*facts, getattr(self.dataset, "_fingerprint", None)]  # of a `Dataset`; stable between sessions

    def columns(self) -> set[str]:
        """As the data set declares them, or else those of its first row."""
        if self.dataset.column_names is not None:
            return set(self.dataset.column_names)
        return set(next(iter(self.dataset), {}))

    def rows(self) -> Rows:
        """Every row with its place, read as they are asked for."""
        place = f"{self.name}, {self.split}" + ("" if self.shard is None else f", shard {self.shard}")
        for number, row in enumerate(self.dataset):
            yield f"{place}, row {number}", row


SOURCES: Mapping[str, type[FileSource]] = {
    ".jsonl": JsonLinesSource,
    ".ndjson": JsonLinesSource,
    ".csv": CsvSource,
    ".tsv": CsvSource,
    ".json": CocoSource,
    ".parquet": ParquetSource,
}


__all__ = ["SOURCES", "DatasetError", "FileSource", "LibrarySource", "Rows"]
