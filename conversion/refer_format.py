# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads the official `refer` distribution: `refs(MAKER).p` (a pickle of references) beside `instances.json` (COCO)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotations import SPLITS, AnnotationError, MalformedRecord, describe, make_row, read_pickle_file


@dataclass(frozen=True)
class ReferFiles:
    """The two files of one dataset, read."""

    references: Path
    sentences: dict[str, list[tuple[Any, Any]]]  # by split: (reference, sentence)
    images: dict[int, dict]
    annotations: dict[int, dict]
    misfits: list[str]  # references that belong to no split, each with the reason


def read_refer(folder: Path, name: str, maker: str) -> ReferFiles:
    """Reads `folder`/refs(`maker`).p and instances.json, or those in its subfolder `name`; nothing is executed.

    Raises:
        AnnotationError: a file is missing, damaged, unsafe, or holds something else.
    """
    folder = Path(folder)
    if not (folder / f"refs({maker}).p").is_file() and (folder / name).is_dir():
        folder = folder / name
    references_path, instances_path = folder / f"refs({maker}).p", folder / "instances.json"
    for path in (references_path, instances_path):
        if not path.is_file():
            raise AnnotationError(f"{path} does not exist; --refer wants the folder with refs({maker}).p in it.")

    references = read_pickle_file(references_path)
    if not isinstance(references, list):
        raise AnnotationError(f"{references_path} holds {describe(references)}; expected a list of references.")
    instances = _read_json(instances_path)
    files = ReferFiles(
        references_path,
        {},
        _by_id(instances, "images", instances_path),
        _by_id(instances, "annotations", instances_path),
        [],
    )
    for number, reference in enumerate(references):
        if not isinstance(reference, dict) or not isinstance(reference.get("sentences"), list):
            files.misfits.append(f"reference {number}: it is not a dictionary with a list of sentences")
        elif not isinstance(reference.get("split"), str) or reference["split"] not in SPLITS:
            files.misfits.append(f"reference {number}: its split is {describe(reference.get('split'))}")
        else:
            pairs = files.sentences.setdefault(reference["split"], [])
            pairs.extend((reference, sentence) for sentence in reference["sentences"])
    return files


def sentence_to_row(pair: tuple[dict, Any], files: ReferFiles, dataset: str, split: str) -> dict:
    """Normalises one (reference, sentence); the phrase is `sent`, the distribution's own cleaned form.

    Raises:
        MalformedRecord: says what does not fit.
    """
    reference, sentence = pair
    if not isinstance(sentence, dict):
        raise MalformedRecord(f"the sentence is {describe(sentence)}, not a dictionary")
    identifiers = {
        "image_id": _identifier(reference, "image_id"),
        "ann_id": _identifier(reference, "ann_id"),
        "ref_id": _identifier(reference, "ref_id"),
        "sentence_id": _identifier(sentence, "sent_id"),
    }
    image = files.images.get(identifiers["image_id"])
    annotation = files.annotations.get(identifiers["ann_id"])
    if image is None or annotation is None:
        kind = "image" if image is None else "annotation"
        raise MalformedRecord(f"instances.json has no {kind} {identifiers['image_id' if image is None else 'ann_id']}")
    return make_row(
        image.get("file_name"),
        sentence.get("sent"),
        annotation.get("bbox"),
        "xywh",
        size=image,
        segmentation=annotation.get("segmentation"),
        source=dataset,
        split=split,
        **identifiers,
    )


def _identifier(entry: dict, key: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise MalformedRecord(f"{key} is {describe(value)}, not a number")
    return value


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{path} holds {describe(content)}; expected an object with images and annotations.")
    return content


def _by_id(instances: dict, key: str, path: Path) -> dict[int, dict]:
    entries = instances.get(key)
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), int) for entry in entries
    ):
        raise AnnotationError(f"{path}: {key} is not a list of objects with an integer id.")
    return {entry["id"]: entry for entry in entries}
