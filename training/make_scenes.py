# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Writes drawn scenes with referring expressions, to train and evaluate on.

    python training/make_scenes.py --output scenes --train 20000 --val 1000 --test 2000 --compositional 1000
    python training/make_scenes.py --output scenes-look --val 24 --contact-sheet scenes.png

`load_referring_dataset("scenes", "val")` reads what it writes. The same options give the same scenes again.
"""

import argparse
import sys
from pathlib import Path

from oneref_hf.data.scenes import SIZES, SPLITS, SceneError, scene_records, write_scenes


_ON_SHEET = 24


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        make_scenes(options)
    except (SceneError, OSError) as error:
        print(f"make_scenes: {error}", file=sys.stderr)
        return 1
    return 0


def make_scenes(options: argparse.Namespace) -> None:
    counts = {split: getattr(options, split) for split in SPLITS}
    sheet = options.contact_sheet
    if sheet is not None and (sheet.suffix.lower() != ".png" or not sheet.parent.is_dir()):
        raise SceneError(f"The contact sheet '{sheet}' must be a .png in a directory that exists.")
    write_scenes(options.output, counts, options.seed, options.size, options.processes)
    print(f"written: {options.output}")
    if sheet is not None:
        split = next(split for split in (*SPLITS[1:], SPLITS[0]) if counts[split])
        _draw_sheet(sheet, split, min(counts[split], _ON_SHEET), options)
        print(f"written: {sheet}")


def _draw_sheet(path: Path, split: str, count: int, options: argparse.Namespace) -> None:
    from oneref_hf.data.scenes.contact_sheet import contact_sheet

    partial = path.with_name(f".{path.name}.partial")
    contact_sheet(list(scene_records(split, count, options.seed, options.size))).save(partial, "PNG")
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new directory")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, default=0, metavar="N", help=f"scenes of the split {split}")
    parser.add_argument(
        "--size", type=int, default=160, help=f"pixels of the longer side, {SIZES[0]} to {SIZES[1]} (default: 160)"
    )
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other scenes (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help="processes that draw (default: 1)")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help=f"also show the first {_ON_SHEET} scenes of one split"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
