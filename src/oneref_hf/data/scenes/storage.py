# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Scenes as a directory of Parquet files, in the form that data sets on the Hub have."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from ...complete_output import complete_directory
from .builder import SceneError, check_arguments, scene_sample


_ROWS_PER_GROUP = 100  # small, because rows carry pictures
_ROWS_PER_FILE = 5000


def write_scenes(
    output: str | Path, counts: Mapping[str, int], seed: int = 0, size: int = 160, processes: int = 1
) -> Path:
    """Writes splits as a directory that `load_referring_dataset` and `datasets.load_dataset` read.

    `data/SPLIT-*.parquet` holds pictures and masks as PNG, phrases, boxes, types, and in the column `scene` the JSON
    of all objects, the number of the target and the logical form. Files do not depend on the number of processes.

    Args:
        output: a directory that does not exist yet, or is empty.
        counts: scenes per split; splits without scenes are left out.
        seed, size: as for `SceneRecords`.

    Returns:
        `output` as a Path.

    Raises:
        SceneError: if an argument is out of range, there is nothing to write, the directory holds something already,
            or the library `datasets` is missing.
    """
    for split, count in counts.items():
        check_arguments(split, seed, size, count)
    counts = {split: count for split, count in counts.items() if count}
    if not counts:
        raise SceneError("No split has any scenes; give the number of scenes of at least one.")
    if processes < 1:
        raise SceneError(f"{processes} processes cannot draw anything; give at least 1.")
    schema, output = _schema(), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SceneError(f"{output} already exists; choose another output directory.")
    with complete_directory(output) as folder, processes_map(processes) as mapper:
        (folder / "data").mkdir()
        for split, count in counts.items():
            files = [range(start, min(start + _ROWS_PER_FILE, count)) for start in range(0, count, _ROWS_PER_FILE)]
            for number, indices in enumerate(files):
                path = folder / "data" / f"{split}-{number:05d}-of-{len(files):05d}.parquet"
                _write_file(path, schema, mapper, functools.partial(_rows, split, seed, size), indices)
        (folder / "README.md").write_text(_card(counts, seed, size), encoding="utf-8")
    return output


def _schema():
    try:
        from datasets import Features, List, Value
        from datasets import Image as Picture
    except ImportError as error:
        raise SceneError("Writing scenes needs the library datasets: pip install oneref-hf[train].") from error
    text, whole_number = Value("string"), Value("int32")
    return Features(
        {
            "id": text,
            "image": Picture(),
            "phrase": text,
            "box": List(Value("float64"), length=4),
            "segmentation": Picture(),
            "height": whole_number,
            "width": whole_number,
            "source": text,
            "expression_type": text,
            "scene": text,
        }
    ).arrow_schema


@contextmanager
def processes_map(processes: int, initializer: Callable | None = None) -> Iterator[Callable]:
    """`map`, or the same in several processes, each of which begins with `initializer`; results come in order."""
    if processes == 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(processes, initializer) as pool:
        yield pool.imap


def _write_file(path: Path, schema, mapper: Callable, rows_of: Callable, indices: range) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    groups = [indices[start : start + _ROWS_PER_GROUP] for start in range(0, len(indices), _ROWS_PER_GROUP)]
    with ParquetWriter(path, schema) as writer:
        for rows in mapper(rows_of, groups):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _rows(split: str, seed: int, size: int, indices: range) -> list[dict]:
    rows = []
    for index in indices:
        sample = scene_sample(split, index, seed)
        record = sample.record(size)
        scene = {**asdict(sample.scene), "target": sample.target, "form": sample.form}
        pictures = {"image": _png(record["image"]), "segmentation": _png(record["mask"])}
        rows.append({**record, **pictures, "scene": json.dumps(scene)})
    return rows


def _png(picture: Image.Image) -> dict:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # higher ones are much slower and gain next to nothing on the grain
    return {"path": None, "bytes": file.getvalue()}


def _card(counts: Mapping[str, int], seed: int, size: int) -> str:
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in counts:
        lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    numbers = ", ".join(f"{count} {split}" for split, count in counts.items())
    lines += [
        "---",
        "# Scenes",
        "",
        f"Drawn scenes with referring expressions, made by `oneref_hf.data.scenes` with seed {seed} at {size} pixels: "
        f"{numbers}. Boxes are x0, y0, x1, y1 in pixels and, like the masks, of the visible part of the object.",
        "",
    ]
    return "\n".join(lines)


__all__ = ["processes_map", "write_scenes"]
