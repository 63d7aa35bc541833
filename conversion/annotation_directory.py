# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Writes annotation rows as a directory that `datasets.load_dataset` reads: Parquet shards, a card, lists of losses.

    with AnnotationDirectory("refcoco", dataset="unc", embed_images=False) as directory:
        with directory.writer("train", source="unc_train.pth", sha256="...") as writer:
            writer.add(row)

Nothing appears under the final name before the `with` block ends without an error. A directory that this module wrote
earlier gains the new splits; its old shards are linked, not copied.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from annotations import AnnotationError
from datasets import Features, Image, List, Value
from manifest import Dataset


MAX_SHARD_BYTES = 500_000_000
_PROVENANCE_KEY = b"oneref_annotations"
_CARD = Path(__file__).with_name("annotation_card.md")

LISTS = {
    "missing_images.txt": "pictures that were not found or could not be read",
    "malformed_records.txt": "records that were left out, each with the reason",
    "excluded_images.txt": "pictures kept out because they occur in another split",
}


def row_features(embed_images: bool) -> Features:
    """The typed columns; `image` is there only where pictures are embedded."""
    number_list = List(Value("float64"))
    columns = {
        "image_file": Value("string"),
        "image": Image(),
        "image_id": Value("int64"),
        "phrase": Value("string"),
        "box": List(Value("float64"), length=4),
        "box_truncated": List(Value("int32"), length=4),
        "polygons": List(number_list),
        "rle": {"size": List(Value("int32")), "counts": List(Value("int64"))},
        "height": Value("int32"),
        "width": Value("int32"),
        "source": Value("string"),
        "split": Value("string"),
        "ann_id": Value("int64"),
        "ref_id": Value("int64"),
        "sentence_id": Value("int64"),
        "semantic_relation_labels": number_list,
    }
    if not embed_images:
        del columns["image"]
    return Features(columns)


class ShardWriter:
    """Streams the rows of one split into Parquet shards of bounded size; their number is known only at the end."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, max_shard_bytes: int, rows_per_group: int):
        self.folder, self.split, self.schema = folder, split, schema
        self.max_shard_bytes, self.rows_per_group = max_shard_bytes, rows_per_group
        self.pending: list[dict] = []
        self.parts: list[Path] = []
        self.parquet: pq.ParquetWriter | None = None
        self.shard_bytes = 0
        self.rows = 0

    def __enter__(self):
        return self

    def __exit__(self, error_type, *_):
        if error_type is None:
            self._flush()
        if self.parquet is not None:
            self.parquet.close()
        if error_type is None:
            for number, part in enumerate(self.parts):
                part.rename(self.folder / f"{self.split}-{number:05d}-of-{len(self.parts):05d}.parquet")

    def add(self, row: dict) -> None:
        self.pending.append(row)
        if len(self.pending) >= self.rows_per_group:
            self._flush()

    def add_table(self, table: pa.Table) -> None:
        """Adds rows that already have the columns of `row_features`, in any order."""
        table = table.select(self.schema.names).cast(self.schema)
        if self.parquet is None or self.shard_bytes + table.nbytes > self.max_shard_bytes:
            if self.parquet is not None:
                self.parquet.close()
            self.parts.append(self.folder / f"{self.split}-{len(self.parts):05d}.part")
            self.parquet = pq.ParquetWriter(self.parts[-1], self.schema)
            self.shard_bytes = 0
        self.parquet.write_table(table)
        self.shard_bytes += table.nbytes
        self.rows += len(table)

    def _flush(self) -> None:
        if self.pending:
            self.add_table(pa.Table.from_pylist(self.pending, self.schema))
            self.pending = []


class AnnotationDirectory:
    """A context manager that builds the directory beside its final place and moves it there when complete."""

    def __init__(
        self, output: Path, dataset: Dataset, embed_images: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES
    ):
        self.output = Path(output)
        self.dataset = dataset
        self.features = row_features(embed_images)
        self.embed_images = embed_images
        self.max_shard_bytes = max_shard_bytes
        self.existing = self._existing_shards()

    def __enter__(self):
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.staging = Path(
            tempfile.mkdtemp(prefix=f".{self.output.name}.", suffix=".partial", dir=self.output.parent)
        )
        try:
            (self.staging / "data").mkdir()
            for shard in self.existing:
                _link(shard, self.staging / "data" / shard.name)
            for name in LISTS:
                if (self.output / name).is_file():
                    shutil.copyfile(self.output / name, self.staging / name)
        except BaseException:
            shutil.rmtree(self.staging)
            raise
        return self

    def __exit__(self, error_type, *_):
        try:
            if error_type is None:
                (self.staging / "README.md").write_text(self._card(), encoding="utf-8")
                self.staging.chmod(0o777 & ~_umask())  # mkdtemp makes it private
                self._move_into_place()
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)

    def writer(self, split: str, **provenance) -> ShardWriter:
        """A writer for a new split; its shards store `provenance` (source, sha256, known_rows) for the card."""
        if split in {split_of(shard) for shard in self.existing}:
            raise AnnotationError(f"{self.output} already holds the split {split}; choose another --output.")
        schema = self.features.arrow_schema
        provenance = {"dataset": self.dataset.key, **provenance}
        schema = schema.with_metadata({**schema.metadata, _PROVENANCE_KEY: json.dumps(provenance).encode()})
        # Rows with pictures are large: small groups let a reader stream them.
        rows_per_group = 100 if self.embed_images else 2000
        return ShardWriter(self.staging / "data", split, schema, self.max_shard_bytes, rows_per_group)

    def list_losses(self, name: str, lines) -> None:
        """Adds `lines` to one of `LISTS`, without repetition."""
        path = self.staging / name
        known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = list(dict.fromkeys([*known, *lines]))
        if lines:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _existing_shards(self) -> list[Path]:
        if not self.output.exists() or (self.output.is_dir() and not any(self.output.iterdir())):
            return []
        shards = shards_of(self.output)
        held = provenance_of(shards[0])["dataset"]
        if held != self.dataset.key:
            raise AnnotationError(f"{self.output} holds annotations of {held}, not of {self.dataset.key}.")
        if ("image" in pq.read_schema(shards[0]).names) != self.embed_images:
            raise AnnotationError(f"{self.output} differs in --embed-images from what is asked for now.")
        return shards

    def _move_into_place(self) -> None:
        if not self.output.exists():
            self.staging.rename(self.output)
            return
        previous = self.staging.with_suffix(".previous")
        self.output.rename(previous)
        try:
            self.staging.rename(self.output)
        except OSError:
            previous.rename(self.output)
            raise
        # Whatever people have put there stays: pictures, pseudo-labels.
        for folder in (Path("data"), Path()):
            for entry in (previous / folder).iterdir():
                if not (self.output / folder / entry.name).exists():
                    entry.rename(self.output / folder / entry.name)
        shutil.rmtree(previous)

    def _card(self) -> str:
        splits: dict[str, dict] = {}
        for shard in sorted((self.staging / "data").iterdir()):
            entry = splits.setdefault(split_of(shard), {**provenance_of(shard), "rows": 0})
            entry["rows"] += pq.read_metadata(shard).num_rows
        front_matter = {
            "pretty_name": self.dataset.name,
            "language": ["en"],
            "task_categories": ["zero-shot-object-detection", "image-segmentation"],
            "tags": ["referring-expression", "visual-grounding", "oneref"],
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
                }
            ],
        }
        table = [
            f"| {split} | {entry['rows']} | {entry.get('known_rows') or ''} | {entry.get('source', '')} "
            f"| {entry.get('sha256', '')[:16]} |"
            for split, entry in splits.items()
        ]
        lists = [f"- `{name}`: {what}" for name, what in LISTS.items() if (self.staging / name).is_file()]
        replacements = {
            "FRONT_MATTER": yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True).strip(),
            "NAME": self.dataset.name,
            "DIRECTORY": self.output.name,
            "SPLIT": next(iter(splits)),
            "SPLITS": "\n".join(table),
            "PICTURES": "embedded in the column `image`" if self.embed_images else "not included",
            "LISTS": "\n".join(["", "Left aside:", "", *lists, ""]) if lists else "",
        }
        text = _CARD.read_text(encoding="utf-8")
        for key, value in replacements.items():
            text = text.replace("{{" + key + "}}", value)
        return text


def shards_of(folder: Path) -> list[Path]:
    """The shards of a directory written by this module.

    Raises:
        AnnotationError: it is something else.
    """
    shards = sorted((Path(folder) / "data").glob("*.parquet"))
    if not shards or any(provenance_of(shard) is None for shard in shards):
        raise AnnotationError(f"{folder} is not a directory of converted annotations.")
    return shards


def split_of(shard: Path) -> str:
    return shard.name.split("-", 1)[0]


def provenance_of(shard: Path) -> dict | None:
    """What the writer noted about a shard: dataset, source, sha256, known_rows; None for a foreign file."""
    try:
        raw = (pq.read_schema(shard).metadata or {}).get(_PROVENANCE_KEY)
    except (OSError, pa.ArrowException):
        return None
    return None if raw is None else json.loads(raw)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
