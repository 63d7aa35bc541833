# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What an output directory may replace, what every conversion leaves in it, and checksums."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from manifest import ModelRow
from safetensors import SafetensorError
from sources import Source

from oneref_hf.complete_output import what_is_there


DEFAULT_ROOT = Path("converted")  # for released files, each in a folder of its name
REPORT_FILE = "conversion_report.json"
CARDS = str(Path(__file__).resolve().parents[1] / "model_cards")


class ConversionError(ValueError):
    """A checkpoint that was read but cannot become what was asked for."""


def check_output(output: Path, overwrite: bool, is_ours: Callable[[dict], bool], source: Path) -> None:
    """Raises `ValueError` where writing to `output` would destroy anything but an earlier conversion.

    Args:
        output: the directory to write; it may be absent or empty.
        overwrite: whether an earlier conversion may be replaced.
        is_ours: says from the contents of `config.json` whether the directory is such a conversion.
        source: the checkpoint, which must not lie in what is replaced.
    """
    if source.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"'{source}' lies inside '{output}', which would be replaced; choose another --output.")
    there = what_is_there(output, is_ours)
    if there == "other":
        raise ValueError(f"'{output}' holds something else than an earlier conversion; choose another --output.")
    if there == "ours" and not overwrite:
        raise ValueError(f"'{output}' exists already; choose another --output or pass --overwrite.")


def refuse_differences(names: Sequence[str]) -> None:
    """Raises `ConversionError` if any tensor that was written is not the source's."""
    if names:
        raise ConversionError(f"What was written differs from the source in {', '.join(names)}.")


@contextmanager
def safetensors_errors(output: Path) -> Iterator[None]:
    """Turns the library's error, which is no `ValueError`, into one sentence."""
    try:
        yield
    except SafetensorError as error:
        raise ConversionError(f"The weights of '{output}' cannot be written or read back: {error}.") from error


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps `save_pretrained` from drawing its own."""
    from transformers.utils import logging as transformers_logging

    with_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if with_bar:
            transformers_logging.enable_progress_bar()


def source_facts(source: Source, checksum: str | None, dtype: str, image_size: int) -> dict:
    """What a report says of the file that was converted, with the type and the size that its weights have there."""
    return {
        "file": source.path.name,
        "member": source.member,
        "sha256": checksum,
        "repository": source.repo,
        "revision": source.revision,
        "dtype": dtype,
        "image_size": image_size,
    }


def write_report(folder: Path, report: dict) -> None:
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def released_card(row: ModelRow, checksum: str | None) -> str:
    """The full model card of a released model, for a directory that was really converted."""
    if CARDS not in sys.path:
        sys.path.append(CARDS)
    from render import render_card

    return render_card(row, sha256=checksum)


def sha256(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str | None:
    """SHA-256 of a file in hexadecimal; `None` if it was cancelled."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(4 << 20):
            if cancelled():
                return None
            digest.update(block)
    return digest.hexdigest()
