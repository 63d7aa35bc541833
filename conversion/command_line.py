# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The options that every converter of weights has."""

import argparse

from safetensors_writer import DTYPES


def source_options(parser: argparse.ArgumentParser, kind: str) -> argparse._MutuallyExclusiveGroup:
    """Adds the ways to say what is converted, a file or a released `kind`, one of which must be given."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="FILE.pth, ARCHIVE.zip::MEMBER, hf://OWNER/NAME/FILE[::MEMBER]",
    )
    what.add_argument("--name", help=f"a released {kind}, by the name of its card in model_cards")
    return what


def writing_options(parser: argparse.ArgumentParser) -> None:
    """Adds how the output is written."""
    parser.add_argument("--dtype", choices=list(DTYPES), help="type of the written weights; default: as stored")
    parser.add_argument("--allow-unused", action="store_true", help="drop source parameters that no table knows")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the result with the source")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
