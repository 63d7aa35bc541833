# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""From any referring data set to records.

    load_referring_dataset("converted/refcoco", "val", images="/data/coco")     # output of convert_annotations.py
    load_referring_dataset("jxu124/refcoco", "val", images="/data")             # a data set on the Hub
    load_referring_dataset("my_data", "train")                                  # a folder with train.jsonl
    load_referring_dataset("my_data/all.csv", "test")                           # rows whose column `split` is test

What a file of your own holds (JSON Lines: one object per line; CSV: columns of these names):

- `image`: path, relative to `images` or else to the file; or an address: http(s), or another that `datasets` opens.
- `phrase`: text; in JSON Lines also a list of texts, which gives one record each.
- `box`: `[x0, y0, x1, y1]` in pixels; in CSV one cell `x0 y0 x1 y1`, or four columns x0, y0, x1, y1. Needed for
  training and evaluation, not for prediction.
- `box_xywh`, in place of `box`: `[left, top, width, height]` in pixels.
- `segmentation` (optional): COCO polygons, COCO run lengths, or the path (relative to the file) of a mask picture in
  which the object is not zero.
- `split` (optional): keeps only the rows of the split asked for, and those that name none, if the file is given by its
  own path.
- `id`, `source`, `expression_type` (optional): text.
- `height`, `width` (optional): size of the picture; boxes outside it are then found while loading.

COCO JSON has `images` (`id`, `file_name`, `height`, `width`) and `annotations` (`image_id`, `bbox` as x, y, w, h,
`segmentation`, and `phrase` or `caption`, a text or a list; `caption` may stand in the image instead).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from . import layouts, records, sources
from .layouts import ToFields, choose_layout
from .records import MalformedRow, is_address, make_record, record_features
from .sources import SOURCES, DatasetError, FileSource, LibrarySource


logger = logging.get_logger(__name__)

# Other names of a split, tried where there is none of its own name. jxu124/refcoco calls testA "test", beside testB.
_OTHER_NAMES = {"val": ["validation"], "validation": ["val"], "testA": ["test"]}
_PROBED_ROWS = 1000
_BATCH_ROWS = 100  # small, because rows may carry pictures
_SHOWN_PROBLEMS = 10
_PICTURE_LIST = "metadata"  # the file in which `datasets` finds the texts and boxes of a folder of pictures
_PICTURES = {"image": "picture", "mask": "mask picture"}


@dataclass(frozen=True)
class Problem:
    """A row that was left out: where it stands, why, and how many usable ones come before it."""

    place: str
    reason: str
    preceding: int = field(compare=False)

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass
class ReferringData:
    """A split ready to use.

    Attributes:
        records: `datasets.Dataset`, or `IterableDataset` when streaming, with the columns of `record_features`.
        problems: the rows left out. When streaming, it fills while `records` is read.
        fingerprint: a text that changes when the source or the way of reading it does; for files the same streaming or
            not.
        name: short name of the data set.
    """

    records: object
    problems: list[Problem]
    fingerprint: str
    name: str

    def problems_within(self, limit: int | None) -> list[Problem]:
        """The rows left out before the first `limit` records are complete; the same streaming or not."""
        return [problem for problem in self.problems if limit is None or problem.preceding < limit]


def load_referring_dataset(
    name_or_path: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    column_mapping: Mapping[str, str] | str | None = None,
    images: str | os.PathLike | None = None,
    strict: bool = False,
):
    """Reads one split of a referring data set as records.

    The docstring of this module says what sources may hold, that of `records.py` which columns come out.

    Rows that cannot be used are left out, named in warnings and counted. Without `streaming` the records are prepared
    once and kept in the cache of `datasets`; whether pictures and masks exist is looked up each time.

    Args:
        name_or_path: a file (.jsonl, .csv, .tsv, .json in COCO form, .parquet); a directory with files named after the
            split (`val.jsonl`, `data/val-00000-of-00001.parquet`), of `Dataset.save_to_disk`, or anything else that
            `datasets.load_dataset` reads, such as pictures and their `metadata.jsonl`; or the name of a data set on
            the Hub, `OWNER/NAME` or `OWNER/NAME:CONFIG`.
        split: its name; `val` also finds `validation`, and `testA` finds `test` where there is a testB.
            None takes every row of a file, and is enough where there is only one split.
        streaming: return an `IterableDataset` that reads as it goes and stores nothing.
        column_mapping: which column holds a field, for example `{"phrase": "caption", "box_xywh": "bbox"}`, or the
            name of a layout in `layouts.py`; found by the columns if None.
        images: folder that the picture paths are relative to, with or without their own folders.
        strict: raise at the first row that cannot be used.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`.

    Raises:
        DatasetError: if the source cannot be read, has no such split or (unless streaming) gives no record; with
            `strict`, for any row that cannot be used, which shows only during iteration when streaming.
    """
    return open_referring_data(name_or_path, split, streaming, column_mapping, images, strict).records


def open_referring_data(
    name_or_path: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    column_mapping: Mapping[str, str] | str | None = None,
    images: str | os.PathLike | None = None,
    strict: bool = False,
) -> ReferringData:
    """`load_referring_dataset` with all that it knows; arguments as there.

    Raises:
        DatasetError: as there.
    """
    if images is not None and not Path(images).is_dir():
        raise DatasetError(f"The folder of pictures '{images}' does not exist.")
    name, found = _find_sources(os.fspath(name_or_path), split, streaming)
    columns = set().union(*(source.columns() for source in found[:1]))
    of_rows = split is not None and "split" in columns and Path(name_or_path).is_file()
    reader = _Reader(
        to_fields=choose_layout(column_mapping, columns, found[0].name),
        name=name,
        split=_split_of_rows(found[0], split) if of_rows else None,
        images=None if images is None else os.path.abspath(images),
    )
    reader = reader.with_picture_rule(found)
    fingerprint = _fingerprint(found, column_mapping, reader)
    problems = ProblemLog(strict)
    make = _stream if streaming else _prepare
    return ReferringData(make(found, reader, problems, fingerprint), problems.problems, fingerprint, name)


@dataclass
class ProblemLog:
    """Collects what is left out and says so; the first entry is an error if `strict`."""

    strict: bool
    problems: list[Problem] = field(default_factory=list)
    known: set[Problem] = field(default_factory=set)

    def add(self, problem: Problem) -> None:
        """Notes it and says so.

        Raises:
            DatasetError: if `strict`.
        """
        if self.strict:
            raise DatasetError(f"{problem}.")
        if problem in self.known:  # an earlier pass over the stream
            return
        if len(self.problems) < _SHOWN_PROBLEMS:
            logger.warning(f"{problem}; the row is left out.")
        self.known.add(problem)
        self.problems.append(problem)

    def summarise(self, name: str, first: int = 0) -> None:
        """Says at the end how many rows of `name` were left out, the first of them being `problems[first]`."""
        if len(self.problems) > first:
            logger.warning(f"{name}: rows left out in all: {len(self.problems) - first}.")


# Finding the files ------------------------------------------------------------------------------------------------
def _find_sources(name: str, split: str | None, streaming: bool) -> tuple[str, list[FileSource | LibrarySource]]:
    """A short name for the data set, and its sources in order."""
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() not in SOURCES:
            raise DatasetError(f"The ending of '{path}' is not one of {', '.join(SOURCES)}.")
        return path.stem, [SOURCES[path.suffix.lower()](path)]
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return path.name, _saved_source(path, split, streaming)
        files = _files_of_split(path, split)
        if files:
            return path.resolve().name, [SOURCES[file.suffix.lower()](file) for file in files]
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix.lower() in SOURCES:
        raise DatasetError(f"There is no file or directory '{name}'; check the path.")
    return _library_sources(name, split, streaming)


def _files_of_split(folder: Path, split: str | None) -> list[Path]:
    files = sorted(file for place in (folder, folder / "data") for file in place.glob("*") if file.suffix in SOURCES)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        if file.stem == _PICTURE_LIST:
            continue
        by_split.setdefault(file.stem.split("-")[0], []).append(file)
    if not by_split:
        return []
    found = by_split[_split_name(split, by_split, str(folder))]
    if len({file.suffix for file in found}) > 1:
        raise DatasetError(f"{folder} has the split in several formats: {', '.join(file.name for file in found)}.")
    return found


def _split_name(split: str | None, known, where: str) -> str:
    known = list(known)
    if split is None and len(known) == 1:
        return known[0]
    if split in known:
        return split
    for name in _OTHER_NAMES.get(split, ()):
        if name in known and (name != "test" or "testB" in known):
            return name
    wanted = "needs the name of a split" if split is None else f"has no split {split!r}"
    raise DatasetError(f"{where} {wanted}; it has {', '.join(known)}.")


def _split_of_rows(source: FileSource, split: str) -> str:
    """What the rows of a file call a split, read no further than its own name."""
    names: dict[str, None] = {}
    for _, row in source.rows():
        if isinstance(row, dict):
            names[str(row.get("split") or "")] = None
            if split in names:
                return split
    of_every_split = "" in names
    names.pop("", None)
    try:
        return _split_name(split, names, str(source.path))
    except DatasetError:
        if of_every_split:
            return split
        raise


def _saved_source(path: Path, split: str | None, streaming: bool) -> list[LibrarySource]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except Exception as error:  # whatever the library stumbles over
        raise DatasetError(f"The saved data set '{path}' cannot be read: {_first_line(error)}") from error
    if isinstance(saved, DatasetDict):
        split = _split_name(split, saved, str(path))
        saved = saved[split]
    return _of_library(saved, path.name, split or str(saved.split or "all"), streaming)


def _library_sources(name: str, split: str | None, streaming: bool) -> tuple[str, list[LibrarySource]]:
    from datasets import get_dataset_split_names, load_dataset

    repo, config = name, None
    if not Path(name).exists() and ":" in name:
        repo, _, config = name.partition(":")
    try:
        splits = get_dataset_split_names(repo, config)
        split = _split_name(split, splits, repo)
        dataset = load_dataset(repo, config, split=split, streaming=streaming)
    except DatasetError:
        raise
    except Exception as error:  # network, missing repository, broken files, ...
        raise DatasetError(f"The data set '{name}' cannot be loaded: {_first_line(error)}") from error
    short = repo.rstrip("/").rpartition("/")[2].lower()
    return short, _of_library(dataset, short, split, streaming)


def _of_library(dataset, name: str, split: str, streaming: bool) -> list[LibrarySource]:
    from datasets import Dataset, Image

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    if not streaming or isinstance(dataset, Dataset) or dataset.num_shards == 1:
        return [LibrarySource(name, split, dataset)]
    shards = range(dataset.num_shards)
    return [LibrarySource(name, split, dataset.shard(len(shards), index, contiguous=True), index) for index in shards]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Reading ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Reader:
    """Turns the rows of a source into records; can be pickled."""

    to_fields: ToFields
    name: str
    split: str | None  # keep only rows of this split
    images: str | None  # absolute
    bare_names: bool = False  # pictures lie in `images` without the folders of their paths

    def read(self, source: FileSource | LibrarySource) -> Iterator[tuple[str, dict | MalformedRow]]:
        """One record, or the reason why there is none, per phrase."""
        for place, row in source.rows():
            if isinstance(row, MalformedRow):
                yield place, row
                continue
            if self.split is not None and row.get("split") not in (None, "", self.split):
                continue
            try:
                phrases = list(self.to_fields(row))
            except MalformedRow as error:
                yield place, error
                continue
            except KeyError as error:
                yield place, MalformedRow(f"it has no column {error.args[0]!r}")
                continue
            except (AttributeError, TypeError) as error:
                yield place, MalformedRow(f"it does not fit the layout ({error})")
                continue
            for number, fields in enumerate(phrases):
                ending = f"#{number}" if len(phrases) > 1 else ""
                try:
                    record = make_record(fields, default_id=place, default_source=self.name)
                except MalformedRow as error:
                    yield place, error
                    continue
                record["id"] += ending
                record["image"] = self.located(record["image"], source.folder)
                if _is_in_a_file(record["mask"]):
                    record["mask"] = _absolute(source.folder, record["mask"]["path"])
                yield place, record

    def located(self, image: dict, folder: Path) -> dict:
        """With an absolute path, unless it is embedded or an address."""
        if not _is_in_a_file(image):
            return image
        path = os.path.basename(image["path"]) if self.bare_names else image["path"]
        return _absolute(self.images or folder, path)

    def with_picture_rule(self, found: list[FileSource | LibrarySource]) -> _Reader:
        """Finds out from the first rows whether the pictures lie in `images` with or without their folders."""
        if self.images is None:
            return self
        bare = _Reader(**{**vars(self), "bare_names": True})
        for source in found[:1]:
            for _, record in itertools.islice(self.read(source), _PROBED_ROWS):
                if isinstance(record, MalformedRow) or record["image"]["bytes"] is not None:
                    continue
                if os.path.exists(record["image"]["path"]):
                    return self
                if os.path.exists(bare.located(record["image"], source.folder)["path"]):
                    return bare
        return self


def _is_in_a_file(picture: Mapping | None) -> bool:
    return picture is not None and picture["bytes"] is None and not is_address(picture["path"])


def _absolute(folder: str | Path, path: str) -> dict:
    return {"bytes": None, "path": os.path.join(os.path.abspath(folder), path)}


class _PictureFolders:
    """Says whether pictures and masks exist.

    Folders are listed once, because a look-up per record is slow on network drives.
    """

    def __init__(self):
        self._names = functools.cache(self._list)

    def problem(self, record: Mapping) -> str | None:
        files = {column: record[column]["path"] for column in _PICTURES if _is_in_a_file(record[column])}
        reasons = (self.problem_of(column, path) for column, path in files.items())
        return next(filter(None, reasons), None)

    def problem_of(self, column: str, path: str) -> str | None:
        if is_address(path):
            return None
        folder, name = os.path.split(os.path.normpath(path))
        return None if name in self._names(folder) else f"there is no {_PICTURES[column]} '{path}'"

    @staticmethod
    def _list(folder: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(folder))
        except OSError:
            return frozenset()


def _stream(found: list, reader: _Reader, problems: ProblemLog, fingerprint: str):
    from datasets import IterableDataset

    # Lists among the arguments are what `datasets` splits over processes and workers.
    arguments = {"sources_of_split": found, "reader": reader, "problems": problems}
    return IterableDataset.from_generator(_streamed, features=record_features(), gen_kwargs=arguments)


def _streamed(sources_of_split: list, reader: _Reader, problems: ProblemLog) -> Iterator[dict]:
    pictures, usable = _PictureFolders(), 0
    for source in sources_of_split:
        first = len(problems.problems)
        for place, record in reader.read(source):
            reason = str(record) if isinstance(record, MalformedRow) else pictures.problem(record)
            if reason is not None:
                problems.add(Problem(place, reason, usable))
                continue
            usable += 1
            yield record
        problems.summarise(source.name, first)


def _prepare(found: list, reader: _Reader, problems: ProblemLog, fingerprint: str):
    from datasets import Dataset

    rows = Dataset.from_file(str(_prepared_file(found, reader, fingerprint)))
    reasons = rows.data.column("reason").to_pylist()
    pictures = _PictureFolders()
    for column in _PICTURES:
        for index, (path, embedded) in enumerate(_paths_of(rows.data.column(column))):
            if reasons[index] is None and path is not None and not embedded:
                reasons[index] = pictures.problem_of(column, path)
    kept, left_out = [], []
    for index, (place, reason) in enumerate(zip(rows.data.column("place").to_pylist(), reasons)):
        if reason is None:
            kept.append(index)
        else:
            left_out.append(Problem(place, reason, len(kept)))
    if not kept and not problems.strict:
        reason = f": {left_out[0]}" if left_out else ", for it is empty"
        if reader.images is None and "there is no picture" in reason:
            reason += "; pass images (--images) if the pictures lie elsewhere"
        raise DatasetError(f"{reader.name} gives no usable row{reason}.")
    for problem in left_out:
        problems.add(problem)
    problems.summarise(reader.name)
    if len(kept) < len(rows):
        rows = rows.select(kept)
    return rows.remove_columns(["place", "reason"])


def _paths_of(images) -> Iterator[tuple[str | None, bool]]:
    """Path, if any, and whether the picture is embedded, of every row, without touching the pictures' bytes."""
    import pyarrow.compute as pc

    for chunk in images.chunks:
        paths = pc.struct_field(chunk, "path").to_pylist()
        yield from zip(paths, pc.is_valid(pc.struct_field(chunk, "bytes")).to_pylist())


def _prepared_file(found: list, reader: _Reader, fingerprint: str) -> Path:
    """An Arrow file of all rows in the cache of `datasets`: records, and places and reasons where there is none.

    Arrow converts a batch of rows at once, whereas `Dataset.from_generator` goes through every number in Python.
    """
    import datasets
    import pyarrow as pa
    from tqdm.auto import tqdm

    # Which pictures and masks the paths in the rows mean depends on the folders, too.
    folders = [os.path.abspath(source.folder) for source in found]
    path = Path(datasets.config.HF_DATASETS_CACHE, "oneref_records", f"{_hash([fingerprint, *folders])}.arrow")
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {"place": datasets.Value("string"), "reason": datasets.Value("string")}
    schema = datasets.Features({**record_features(), **texts}).arrow_schema
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    quiet = datasets.are_progress_bars_disabled() or None
    try:
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            rows = iter(tqdm(_prepared(found, reader), desc=reader.name, unit=" phrases", disable=quiet))
            while batch := list(itertools.islice(rows, _BATCH_ROWS)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _prepared(found: list, reader: _Reader) -> Iterator[dict]:
    nothing = dict.fromkeys(record_features())
    for source in found:
        for place, record in reader.read(source):
            if isinstance(record, MalformedRow):
                yield {**nothing, "place": place, "reason": str(record)}
            else:
                yield {**record, "place": place, "reason": None}


def _fingerprint(found: list, column_mapping, reader: _Reader) -> str:
    code = [inspect.getsource(module) for module in (layouts, records, sources)]
    code += [inspect.getsource(thing) for thing in (_Reader, _is_in_a_file, _absolute, _prepared)]
    parts = {
        "code": code,
        "sources": [source.identity() for source in found],
        "mapping": column_mapping if column_mapping is None or isinstance(column_mapping, str) else {**column_mapping},
        "reader": [reader.name, reader.split, reader.images, reader.bare_names],
    }
    return _hash(parts)


def _hash(parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


__all__ = ["DatasetError", "Problem", "ReferringData", "load_referring_dataset", "open_referring_data"]
