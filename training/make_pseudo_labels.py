# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Makes boxes and phrases for a folder of pictures, to train without annotations (the split `train_pseudo`).

    python training/make_pseudo_labels.py --images PICTURES --detector google/owlv2-base-patch16-ensemble \\
        --classes person dog cup "potted plant" --output my_data
    accelerate launch training/finetune.py training/recipes/own_data.yaml --data.dataset my_data \\
        --data.train_split train_pseudo

The recipe scores `my_data/val.jsonl`, a few phrases with boxes made by hand. Without one add `--evaluation.metric null
--evaluation.split null --evaluation.keep last --evaluation.splits "{}"`.
DETECTOR is a zero-shot object detector that Transformers' pipeline runs: OWL-ViT, OWLv2, Grounding DINO or MM
Grounding DINO (OmDet-Turbo lacks the post-processing that the pipeline calls). `oneref_hf/data/pseudo_labels.py` says
how detections become phrases. The result is `OUTPUT/train_pseudo.jsonl`; pictures that cannot be read are left out
with a warning.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


FAMILIES = ("owlvit", "owlv2", "grounding-dino", "mm-grounding-dino")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        pictures = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in ENDINGS)
        if not pictures:
            raise ValueError(f"There is no picture ({', '.join(ENDINGS)}) in '{options.images}'.")
        count = write(pictures, _detector(options), options)
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"make_pseudo_labels: {lines[0]}", file=sys.stderr)
        return 1
    print(f"written: {options.output / 'train_pseudo.jsonl'}, {count} phrases")
    return 0


def write(pictures: list[Path], detect: Callable, options: argparse.Namespace) -> int:
    """Labels the pictures with `detect` (picture, classes -> the pipeline's dictionaries); returns the number."""
    options.output.mkdir(parents=True, exist_ok=True)
    partial = options.output / f".train_pseudo.{os.getpid()}.partial"
    count = 0
    try:
        with open(partial, "w", encoding="utf-8") as file:
            for row in _rows(pictures, detect, options):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        if not count:
            raise ValueError("The detector found nothing that a phrase could mean; lower --threshold.")
        partial.replace(options.output / "train_pseudo.jsonl")
    finally:
        partial.unlink(missing_ok=True)
    return count


def _rows(pictures: list[Path], detect: Callable, options: argparse.Namespace) -> Iterator[dict]:
    from oneref_hf.data.pseudo_labels import Detection, pseudo_phrases, without_duplicates
    from oneref_hf.data.records import open_image

    for path in pictures:
        try:
            str(path).encode()
            picture = open_image(str(path)).convert("RGB")
        except UnicodeEncodeError:
            print(f"The name {os.fsencode(path)} is not UTF-8; the picture is left out.", file=sys.stderr)
            continue
        except ValueError as error:
            print(f"{error}; it is left out.", file=sys.stderr)
            continue
        found = [
            Detection(one["label"], one["score"], tuple(one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")))
            for one in detect(picture, options.classes)
            if one["score"] >= options.threshold
        ]
        for phrase, detection in pseudo_phrases(without_duplicates(found), (picture.height, picture.width)):
            yield {
                "image": os.path.relpath(path, options.output),
                "phrase": phrase,
                "box": [float(value) for value in detection.box],
                "height": picture.height,
                "width": picture.width,
                "source": f"pseudo labels of {options.detector}",
            }


def _detector(options: argparse.Namespace) -> Callable:
    from transformers import AutoConfig, pipeline

    family = AutoConfig.from_pretrained(options.detector).model_type
    if family not in FAMILIES:
        raise ValueError(f"'{options.detector}' is of the family {family}; --detector takes {', '.join(FAMILIES)}.")
    detector = pipeline("zero-shot-object-detection", model=options.detector, device=options.device)
    return lambda picture, classes: detector(picture, candidate_labels=classes, threshold=options.threshold)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="pictures, also in its folders")
    parser.add_argument("--detector", required=True, metavar="DIR_OR_HUB_ID")
    parser.add_argument("--classes", required=True, nargs="+", metavar="CLASS", help="what to look for")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score of a detection")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--device", help="where to compute")
    return parser


if __name__ == "__main__":
    sys.exit(main())
