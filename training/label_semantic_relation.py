# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Adds the labels of MRefM's semantic target-relation score to a referring data set.

    python training/label_semantic_relation.py --model converted/beit3-base --dataset converted/refcoco \\
        --images IMAGES --split train --output converted/refcoco-related

The original's labels were not released. Here a frozen model says how near each word of a phrase is to the referred
region of the picture; `oneref_hf/data/semantic_relation.py` explains the reasoning. OUTPUT is a data set like the
input with the column `semantic_relation_labels` (62 numbers, for texts of 64 tokens), which a recipe names as
`data.dataset`. Records whose picture cannot be read are left out with a warning.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch


TEXT_LENGTH = 64


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)

    from oneref_hf.data.sources import DatasetError

    try:
        count = label(options)
    except (DatasetError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"label_semantic_relation: {lines[0]}", file=sys.stderr)
        return 1
    print(f"written: {options.output}, {count} records")
    return 0


def label(options: argparse.Namespace) -> int:
    from datasets import Dataset, DatasetDict
    from transformers import AutoConfig

    from oneref_hf import Beit3Model, OneRefModel, OneRefProcessor
    from oneref_hf.data.loading import load_referring_dataset
    from oneref_hf.data.records import record_features
    from oneref_hf.data.semantic_relation import semantic_relation_labels
    from oneref_hf.prediction import undecoded

    if options.output.exists():
        raise ValueError(f"'{options.output}' exists already; choose another --output.")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model_class = Beit3Model if AutoConfig.from_pretrained(options.model).model_type == "beit3" else OneRefModel
    model = model_class.from_pretrained(options.model).to(device).eval()
    processor = OneRefProcessor.from_pretrained(options.model)
    records = undecoded(load_referring_dataset(options.dataset, options.split, images=options.images))

    def labelled():
        for start in range(0, len(records), options.batch_size):
            rows = [records[index] for index in range(start, min(start + options.batch_size, len(records)))]
            rows, inputs = _inputs(rows, processor)
            if rows:
                inputs = {name: value.to(device) for name, value in inputs.items()}
                for row, labels in zip(rows, semantic_relation_labels(model, inputs).cpu().tolist()):
                    yield {**row, "semantic_relation_labels": labels}

    result = Dataset.from_list(list(labelled()), features=record_features())
    partial = options.output.with_name(f".{options.output.name}.{os.getpid()}.partial")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        DatasetDict({options.split: result}).save_to_disk(str(partial))
        partial.rename(options.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(result)


def _inputs(rows: list[dict], processor) -> tuple[list[dict], dict]:
    """The rows whose picture can be read, and the model's inputs for them."""
    from oneref_hf.data.records import open_image

    kept, pictures = [], []
    for row in rows:
        try:
            if row["box_truncated"] is None:
                raise ValueError("it has no box")
            pictures.append(open_image(row["image"]))
            kept.append(row)
        except ValueError as error:
            print(f"{row['id']}: {error}; it is left out.", file=sys.stderr)
    if not kept:
        return [], {}
    return kept, processor(
        pictures,
        [row["phrase"] for row in kept],
        boxes=[row["box_truncated"] for row in kept],
        padding="max_length",
        max_length=TEXT_LENGTH,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="a BEiT-3 or OneRef model")
    parser.add_argument("--dataset", required=True, metavar="DIR_OR_NAME", help="the data set to label")
    parser.add_argument("--images", metavar="DIR", help="folder of its pictures")
    parser.add_argument("--split", default="train")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the labelled data set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", help="where to compute; the first GPU if there is one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
