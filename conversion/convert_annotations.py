# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Converts OneRef's annotation files to a directory that `datasets.load_dataset` reads.

    python conversion/convert_annotations.py unc_train.pth unc_val.pth --dataset unc --images IMAGES --output refcoco
    python conversion/convert_annotations.py --refer REFER_DATA --dataset refcocog --images IMAGES --output refcocog
    python conversion/convert_annotations.py --build mixup_with_refc refcoco refcoco+ refcocog --output mixture

IMAGES is the image root of the original's layout (other/images/mscoco/images/train2014, referit/images,
Flickr30k/flickr30k-images below it) or a folder that holds the pictures themselves. Files are read without executing
anything in them. Later runs may add splits to the same output. Needs the extra `train` of the package.
"""

import argparse
import io
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset as ArrowDataset
    from datasets import concatenate_datasets, disable_progress_bars
except ModuleNotFoundError as error:
    sys.exit(f"convert_annotations: The package {error.name} is missing: pip install 'oneref-hf[train]'.")
from annotation_directory import AnnotationDirectory, provenance_of, shards_of, split_of
from annotations import (
    MIXTURES,
    SPLITS,
    AnnotationError,
    MalformedRecord,
    read_split_file,
    record_to_row,
    sha256_of,
    split_in_name,
)
from manifest import Dataset, Manifest, ManifestError, load_manifest
from PIL import Image
from refer_format import read_refer, sentence_to_row
from tqdm.auto import tqdm


SHOWN_REASONS = 10  # on the terminal; the list in the output has all
# A mask is written once per record, but a hostile file may name one mask from a million records.
MAX_NUMBERS_PER_BYTE = 64


@dataclass
class Split:
    """One split being converted, and what was left aside on the way."""

    name: str
    path: Path
    records: list
    to_row: Callable[[Any], dict]
    malformed: list[str] = field(default_factory=list)
    missing: Counter = field(default_factory=Counter)  # picture -> rows
    excluded: set[str] = field(default_factory=set)


class Pictures:
    """The pictures below the image root. Folders are listed once; a look-up per record is slow on network drives."""

    def __init__(self, root: Path, folders: dict[str, str]):
        if not root.is_dir():
            raise AnnotationError(f"{root} is not a folder; --images wants the folder that holds the pictures.")
        self.root = root
        self.prefixes = {source: f"{name}/" if (root / name).is_dir() else "" for source, name in folders.items()}
        self.listings: dict[str, set[str]] = {}

    def relative_path(self, source: str, name: str) -> str:
        return self.prefixes[source] + name

    def exists(self, relative_path: str) -> bool:
        folder, _, name = relative_path.rpartition("/")
        if folder not in self.listings:
            self.listings[folder] = set(os.listdir(self.root / folder))
        return name in self.listings[folder]

    def read(self, relative_path: str) -> dict | None:
        """The encoded picture as `datasets` stores it; None if it cannot be opened."""
        try:
            content = (self.root / relative_path).read_bytes()
            Image.open(io.BytesIO(content)).close()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        return {"bytes": content, "path": relative_path.rpartition("/")[2]}


def main(arguments: list[str] | None = None) -> int:
    args = _parse(arguments)
    try:
        if args.build:
            build_mixture(args, load_manifest())
        else:
            convert(args, load_manifest())
    except (AnnotationError, ManifestError) as error:
        print(f"convert_annotations: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"convert_annotations: {error.filename or args.output}: {error.strerror or error}.", file=sys.stderr)
        return 1
    return 0


def convert(args: argparse.Namespace, manifest: Manifest) -> None:
    """Converts split files, or with --refer the splits of a `refer` folder."""
    if not args.dataset or not args.images or bool(args.inputs) == bool(args.refer):
        raise AnnotationError("--dataset, --images and either split files or --refer are needed (or --build).")
    dataset = _dataset(args.dataset, args.inputs, manifest)
    folders = {entry.key: entry.images for entry in manifest.datasets.values() if entry.images}
    pictures = Pictures(args.images, {**folders, "coco": folders["unc"]})
    excluded = _pictures_in(args.exclude_images_of)
    splits = _refer_splits(args, dataset) if args.refer else _file_splits(args, dataset)
    with AnnotationDirectory(args.output, dataset, args.embed_images) as directory:
        for split in splits:
            _convert_split(split, directory, pictures, excluded, args.strict)
            del split  # its records, before the next file is read
    print(f"written: {args.output}")


def _convert_split(
    split: Split, directory: AnnotationDirectory, pictures: Pictures, excluded: set[str], strict: bool
) -> None:
    known = directory.dataset.counts.get(split.name)
    provenance = {"source": split.path.name, "sha256": sha256_of(split.path), "known_rows": known}
    with directory.writer(split.name, **provenance) as writer:
        for row in _rows(split, strict):
            if row["image_file"] in excluded:
                split.excluded.add(row["image_file"])
                continue
            row["image_file"] = pictures.relative_path(row["source"], row["image_file"])
            found = row["image_file"] not in split.missing and pictures.exists(row["image_file"])
            if found and directory.embed_images:
                row["image"] = pictures.read(row["image_file"])
                found = row["image"] is not None
            if not found:
                split.missing[row["image_file"]] += 1
            if found or not directory.embed_images:
                writer.add(row)
    directory.list_losses("missing_images.txt", split.missing)
    directory.list_losses("malformed_records.txt", [f"{split.path.name}, {line}" for line in split.malformed])
    directory.list_losses("excluded_images.txt", sorted(split.excluded))

    where = f"{split.path.name} ({split.name})"
    problems = _problems(split, known, pictures.root, directory.embed_images)
    if strict and problems:
        raise AnnotationError(f"{where}: {problems[0]}; --strict accepts no such thing.")
    if writer.rows == 0:
        reason = split.malformed[-1] if split.malformed else "no picture is there, or all are excluded"
        raise AnnotationError(f"{split.path} gives no usable row ({reason}).")
    print(f"{where}: {writer.rows} rows")
    if split.excluded:
        print(f"{where}: pictures kept out because they occur in the excluded splits: {len(split.excluded)}")
    for line in [*split.malformed[:SHOWN_REASONS], *problems]:
        print(f"{where}: {line}", file=sys.stderr)


def _rows(split: Split, strict: bool) -> Iterator[dict]:
    """The well-formed rows; the reason of any other goes to `split.malformed`, or under `strict` ends everything."""
    numbers, limit = 0, MAX_NUMBERS_PER_BYTE * split.path.stat().st_size
    for index, record in enumerate(tqdm(split.records, desc=split.name, unit=" phrases", disable=None)):
        try:
            row = split.to_row(record)
        except MalformedRecord as error:
            if strict:
                raise AnnotationError(f"{split.path}, record {index}: {error}.") from error
            split.malformed.append(f"record {index}: {error}")
            continue
        numbers += sum(map(len, row["polygons"] or ())) + len((row["rle"] or {"counts": ()})["counts"])
        if numbers > limit:
            raise AnnotationError(f"{split.path} is refused: it unfolds to far more than a file of its size can hold.")
        yield row


def _problems(split: Split, known: int | None, root: Path, embedded: bool) -> list[str]:
    problems = []
    if split.malformed:
        problems.append(f"malformed records left out: {len(split.malformed)}")
    if split.missing:
        fate = "left out" if embedded else "kept"
        rows = f"rows that name them, {fate}: {split.missing.total()}"
        problems.append(f"pictures missing below {root} or unreadable: {len(split.missing)}; {rows}")
    if known not in (None, len(split.records)):
        problems.append(f"{len(split.records)} expressions found, {known} known for the released file")
    return problems


def _file_splits(args: argparse.Namespace, dataset: Dataset) -> Iterable[Split]:
    """Reads the files one at a time, so that only one is in memory."""
    if args.split and len(args.inputs) > 1:
        raise AnnotationError("--split names the split of one file; several files carry it in their names.")
    names = [args.split or split_in_name(path) for path in args.inputs]
    if len(set(names)) < len(names):
        raise AnnotationError(f"two of the files hold the same split ({', '.join(names)}).")
    for path, name in zip(args.inputs, names):
        to_row = partial(record_to_row, dataset=dataset.key, split=name)
        yield Split(name, path, read_split_file(path), to_row)


def _refer_splits(args: argparse.Namespace, dataset: Dataset) -> Iterable[Split]:
    if dataset.refer is None:
        raise AnnotationError(f"there is no refer distribution of {dataset.key}.")
    files = read_refer(args.refer, *dataset.refer)
    names = [name for name in SPLITS if name in files.sentences and args.split in (None, name)]
    if not names:
        raise AnnotationError(f"{files.references} holds no sentences of the split asked for.")
    for name in names:
        # References that belong to no split are reported once, with the first.
        misfits = files.misfits if name == names[0] else []
        to_row = partial(sentence_to_row, files=files, dataset=dataset.key, split=name)
        yield Split(name, files.references, files.sentences[name], to_row, list(misfits))


def build_mixture(args: argparse.Namespace, manifest: Manifest) -> None:
    """Concatenates the training splits of converted datasets in the order of the manifest, then shuffles if asked.

    The other splits are those of the one part that the original evaluates a mixture on, as far as its folder has them.
    """
    mixture = manifest.dataset(args.build)
    if not mixture.parts:
        raise AnnotationError(f"{args.build} is not a mixture.")
    shards = {}
    for folder in args.inputs:
        found = shards_of(folder)
        if not any(split_of(shard) == "train" for shard in found):
            raise AnnotationError(f"{folder} has no training split.")
        shards[provenance_of(found[0])["dataset"]] = found
    if len(args.inputs) != len(mixture.parts) or set(shards) != set(mixture.parts):
        held = ", ".join(shards) or "nothing"
        raise AnnotationError(f"{mixture.key} is made of {', '.join(mixture.parts)}; the folders given hold {held}.")
    embedded = {"image" in pq.read_schema(found[0]).names for found in shards.values()}
    if len(embedded) > 1:
        raise AnnotationError("some of the parts embed their pictures and some do not; convert all of them alike.")
    excluded = _pictures_in(args.exclude_images_of)
    disable_progress_bars()
    with AnnotationDirectory(args.output, mixture, embedded.pop()) as directory:
        _mix_training(args, directory, shards, excluded)
        for split in ("val", "test"):
            _take_over(split, manifest.datasets[mixture.evaluation], directory, shards[mixture.evaluation])
    print(f"written: {args.output}")


def _mix_training(
    args: argparse.Namespace, directory: AnnotationDirectory, shards: dict[str, list[Path]], excluded: set[str]
) -> None:
    mixture = directory.dataset
    known = mixture.counts["train"]
    files = {part: [str(shard) for shard in shards[part] if split_of(shard) == "train"] for part in mixture.parts}
    sources = ", ".join(f"{part} ({len(found)} shards)" for part, found in files.items())
    with (
        tempfile.TemporaryDirectory() as cache,
        directory.writer("train", source=sources, known_rows=known) as writer,
    ):
        rows = concatenate_datasets([ArrowDataset.from_parquet(found, cache_dir=cache) for found in files.values()])
        total = len(rows)
        if excluded:
            names = [path.rpartition("/")[2] for path in rows["image_file"]]
            directory.list_losses("excluded_images.txt", [name for name in names if name in excluded])
            rows = rows.select([index for index, name in enumerate(names) if name not in excluded])
        if args.shuffle is not None:
            rows = rows.shuffle(seed=args.shuffle)
        for table in rows.with_format("arrow").iter(batch_size=writer.rows_per_group):
            writer.add_table(table)
        if total != known:
            problem = f"{mixture.key}: {total} expressions found, {known} known for the released file"
            if args.strict:
                raise AnnotationError(f"{problem}; --strict accepts no such thing.")
            print(problem, file=sys.stderr)
    print(f"{mixture.key} (train): {writer.rows} rows, {total - writer.rows} kept out")


def _take_over(split: str, dataset: Dataset, directory: AnnotationDirectory, shards: list[Path]) -> None:
    """Gives a mixture a split of one dataset."""
    files = [shard for shard in shards if split_of(shard) == split]
    if not files:
        return
    with directory.writer(split, source=dataset.key, known_rows=dataset.counts[split]) as writer:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(writer.rows_per_group):
                writer.add_table(pa.Table.from_batches([batch]))
    print(f"{directory.dataset.key} ({split}): {writer.rows} rows, those of {dataset.key}")


def _dataset(name: str, files: list[Path], manifest: Manifest) -> Dataset:
    """The dataset asked for. A bare `mixup` is found by the folder it lies in, else nothing is known about it."""
    if name == "mixup":
        folders = {parent.name for path in files for parent in path.resolve().parents}
        name = next((key for key in MIXTURES if key in manifest.datasets and key in folders), name)
    if name in MIXTURES and name not in manifest.datasets:
        return Dataset(key=name, name="Mixed referring expressions", id=name.replace("_", "-"), counts={})
    return manifest.dataset(name)


def _pictures_in(requests: list[str]) -> set[str]:
    """Bare file names of the pictures in converted splits, each given as DIR:SPLIT."""
    names: set[str] = set()
    for request in requests:
        folder, _, split = request.rpartition(":")
        found = [shard for shard in shards_of(folder) if split_of(shard) == split]
        if not found:
            raise AnnotationError(f"--exclude-images-of {request}: the folder has no split {split!r}.")
        for shard in found:
            paths = pq.read_table(shard, columns=["image_file"])["image_file"].to_pylist()
            names.update(path.rpartition("/")[2] for path in paths)
    return names


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("inputs", nargs="*", type=Path, metavar="SPLIT.pth", help="split files (--build: folders)")
    parser.add_argument("--dataset", help="unc, unc+, gref_umd, gref, referit, flickr, mixup..., or refcoco and so on")
    parser.add_argument("--images", type=Path, metavar="DIR", help="image root")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--split", choices=SPLITS, help="where the file name does not end in it; --refer: only this")
    parser.add_argument("--refer", type=Path, metavar="DIR", help="folder of the official refer distribution")
    parser.add_argument("--build", metavar="MIXTURE", help="mixup_with_refc or mixup_with_refc_referit")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="--build: shuffle with this seed")
    parser.add_argument(
        "--exclude-images-of",
        action="append",
        default=[],
        metavar="DIR:SPLIT",
        help="leave out rows whose picture occurs in that converted split (repeatable)",
    )
    parser.add_argument("--embed-images", action="store_true", help="store the pictures in the shards (large)")
    parser.add_argument("--strict", action="store_true", help="stop at anything malformed, missing or miscounted")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
